//! The adapter on the model, from data, from an earlier session or from nothing.

use std::collections::BTreeMap;

use burn::data::dataset::Dataset;
use olora_adapter::{
    AdapterConfig, Directions, Method, PeftAdapter, Rows, attach, attach_along, attach_empty,
};
use olora_data::{Padding, Schedule};
use olora_model::Llama;
use olora_training::loss_sum;

use crate::{
    Event, Observer, Recipe, RunError, recipe::Trained, start_from::attach_from, steps::batch,
};

/// The model with its adapter, if it has one.
///
/// For a method that needs data, `batches` runs through those of the run.
pub(crate) fn attach_adapter(
    recipe: &Recipe,
    llama: Llama,
    start: AdapterStart<'_>,
    observer: &dyn Observer,
) -> Result<Llama, RunError> {
    let Trained::Adapter(config) = recipe.adapter.trained(llama.lm_head.is_some()) else {
        return Ok(llama);
    };
    let mut progress = |done, all| observer.on(&Event::Attaching(done, all));
    Ok(match start {
        AdapterStart::From(adapter) => attach_from(llama, adapter, observer)?,
        _ if config.method != Method::Eva => attach(llama, &config, recipe.seed, &mut progress)?,
        AdapterStart::Fresh { schedule, padding } => {
            let directions = directions(recipe, &config, &llama, schedule, padding, observer)?;
            attach_along(llama, &config, &directions)?
        }
        AdapterStart::Resumed(ranks) => attach_empty(llama, &config, ranks)?,
        AdapterStart::Trial => {
            let like = AdapterConfig {
                method: Method::Lora,
                ..config
            };
            attach(llama, &like, recipe.seed, &mut progress)?
        }
    })
}

/// What a start that needs data has to go by.
#[derive(Clone, Copy)]
pub(crate) enum AdapterStart<'a> {
    /// The run's batches.
    Fresh {
        schedule: &'a Schedule,
        padding: Padding,
    },
    /// The ranks that an earlier session found; the factors are loaded.
    Resumed(&'a BTreeMap<String, usize>),
    /// An adapter that was trained before. A session that goes on loads its own
    /// values over it.
    From(&'a PeftAdapter),
    /// Nothing: only time and memory are of interest.
    Trial,
}

/// EVA's pass over data.
fn directions(
    recipe: &Recipe,
    config: &AdapterConfig,
    llama: &Llama,
    schedule: &Schedule,
    padding: Padding,
    observer: &dyn Observer,
) -> Result<Directions, RunError> {
    /// How many times its rank a layer may get (`rho` of the paper and of PEFT).
    const RHO: f64 = 2.0;
    /// Batches after which what has been found must do. PEFT goes on for ever.
    const MAX_BATCHES: usize = 256;
    let rho = recipe.adapter.rho.unwrap_or(RHO);
    let n_batches = schedule.len();
    let run = |watched: &Llama, index: usize| {
        observer.on(&Event::Looking(index + 1));
        let batch = batch(schedule, index % n_batches.max(1), padding)?;
        let loss = loss_sum(watched, &batch);
        loss.try_into_data()
            .map_err(|error| RunError::device(&error))?;
        // The positions that a trained token is predicted from; on a GPU there are more, as padding.
        let mut chosen = batch.target_positions;
        chosen.truncate(batch.n_trained);
        // The loss is taken at those alone.
        let picked = vec!["lm_head".to_owned()];
        Ok::<_, RunError>(Rows { chosen, picked })
    };
    let directions = Directions::find(llama.clone(), config, rho, MAX_BATCHES, run)?;
    if !directions.settled() {
        let note = format!(
            "after {MAX_BATCHES} batches the directions of some layers were still moving; \
             they start from what was found"
        );
        observer.on(&Event::Note(note));
    }
    Ok(directions)
}
