//! The stages of a run before its loop: each is complete when it exists.

use std::{collections::BTreeMap, time::Instant};

use burn::tensor::Device;
use olora_adapter::factors;
use olora_data::Schedule;
use olora_model::Llama;

use crate::{
    MemoryEstimate, Observer, RunError,
    attach::{AdapterStart, attach_adapter},
    base::load_base,
    counts::Counts,
    prepare::Prepared,
    steps::schedule,
};

/// The base in memory.
pub(crate) struct Loaded<'a> {
    pub(crate) prepared: &'a Prepared,
    pub(crate) llama: Llama,
}

impl<'a> Loaded<'a> {
    pub(crate) fn new(
        prepared: &'a Prepared,
        device: &Device,
        observer: &dyn Observer,
    ) -> Result<Self, RunError> {
        let Prepared {
            recipe,
            config,
            precision,
            ..
        } = prepared;
        device.seed(recipe.seed);
        let llama = load_base(recipe, config, precision, device, observer)?;
        Ok(Self { prepared, llama })
    }

    /// Attaches the adapter, if the recipe has one: afresh, or with the ranks
    /// that an earlier session chose.
    pub(crate) fn attach(
        self,
        known: Option<&BTreeMap<String, usize>>,
        observer: &dyn Observer,
    ) -> Result<Attached<'a>, RunError> {
        let Self { prepared, llama } = self;
        let attaching = Instant::now();
        let (recipe, data, steps) = (&prepared.recipe, &prepared.data, &prepared.steps);
        let schedule = schedule(recipe, &data.train, steps.n_batches)?;
        let start = match known {
            _ if let Some(from) = &prepared.from => AdapterStart::From(from),
            Some(ranks) => AdapterStart::Resumed(ranks),
            None => AdapterStart::Fresh {
                schedule: &schedule,
                padding: prepared.padding,
            },
        };
        let llama = attach_adapter(recipe, llama, start, observer)?;
        let seconds = attaching.elapsed().as_secs_f64();
        let counts = prepared.counts.attached(&llama);
        let parts = Parts {
            ranks: ranks(&llama),
            memory: prepared.memory(&counts),
            llama,
            schedule,
            counts,
            seconds,
        };
        Ok(Attached { prepared, parts })
    }
}

/// What trains, on the base.
pub(crate) struct Attached<'a> {
    pub(crate) prepared: &'a Prepared,
    pub(crate) parts: Parts,
}

/// The same without what was known before.
pub(crate) struct Parts {
    pub(crate) llama: Llama,
    /// The run's micro-batches.
    pub(crate) schedule: Schedule,
    pub(crate) counts: Counts,
    /// The rank of each adapted layer.
    pub(crate) ranks: BTreeMap<String, usize>,
    /// What the run takes, now that its parameters are there.
    pub(crate) memory: MemoryEstimate,
    /// Seconds that the adapter's start took.
    pub(crate) seconds: f64,
}

fn ranks(llama: &Llama) -> BTreeMap<String, usize> {
    let layers = factors(llama).into_iter();
    layers
        .map(|layer| (layer.path, layer.a.dims()[1]))
        .collect()
}
