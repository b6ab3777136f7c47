//! The adapter on the model, from data, from an earlier session or from nothing.

use std::collections::BTreeMap;

use burn::{data::dataset::Dataset, module::Module};
use olora_adapter::{
    AdapterConfig, AdapterError, Directions, GradientDirections, Method, PeftAdapter, Rows, attach,
    attach_along, attach_along_gradient, attach_empty, probed,
};
use olora_data::{Padding, Schedule};
use olora_model::Llama;
use olora_training::{Passes, Reference, loss_sum};

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
        _ if !config.method.needs_data() => attach(llama, &config, recipe.seed, &mut progress)?,
        AdapterStart::Fresh { schedule, padding } if config.method.is_of_gradient() => {
            let directions = along_gradient(recipe, &config, &llama, schedule, padding, observer)?;
            let scale = recipe.adapter.gradient_scale.unwrap_or(1.0);
            attach_along_gradient(llama, &config, &directions, scale)?
        }
        AdapterStart::Fresh { schedule, padding } => {
            let directions = directions(recipe, &config, &llama, schedule, padding, observer)?;
            attach_along(llama, &config, &directions)?
        }
        AdapterStart::Resumed(ranks) => attach_empty(llama, &config, ranks)?,
        AdapterStart::Trial => {
            // What takes as long and as much memory, once it is there.
            let method = if config.method.is_anchored() {
                Method::Olora
            } else {
                Method::Lora
            };
            let like = AdapterConfig { method, ..config };
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

/// The micro-batches that a start by the gradient looks at, unless the recipe says how many:
/// those of the first step, if they are no more than this.
const GRADIENT_BATCHES: usize = 8;

/// How many micro-batches of the run its start looks at; 0 unless it is by the gradient.
pub(crate) fn gradient_batches(recipe: &Recipe, n_batches: usize) -> usize {
    let adapter = &recipe.adapter;
    let is_used = !adapter.everything && adapter.from.is_none();
    if !is_used || !adapter.config.method.is_of_gradient() {
        return 0;
    }
    let n = recipe.adapter.gradient_batches;
    let n = n.unwrap_or(recipe.training.accumulation.min(GRADIENT_BATCHES));
    n.min(n_batches).max(1)
}

/// A pass forward and back over the run's first micro-batches, as the model is before it is
/// adapted.
fn along_gradient(
    recipe: &Recipe,
    config: &AdapterConfig,
    llama: &Llama,
    schedule: &Schedule,
    padding: Padding,
    observer: &dyn Observer,
) -> Result<GradientDirections, RunError> {
    observer.on(&Event::Looking(1));
    let n = gradient_batches(recipe, schedule.len());
    let batches = (0..n)
        .map(|index| batch(schedule, index, padding))
        .collect::<Result<Vec<_>, _>>()?;
    let mut directions = GradientDirections::new(llama, config, recipe.seed)?;
    // Nothing is adapted yet: the model is what it is compared with.
    let reference = Reference::frozen(llama);
    let passes = Passes::with_reference(recipe.objective(), llama, reference)?;
    let (probed, probes) = probed(Module::train(llama.clone()), config)?;
    passes.weight_gradients(&probed, &probes, &batches, |path, gradient| {
        directions
            .take(path, &gradient)
            .map_err(|error| match error {
                AdapterError::NotFinite(path) => {
                    AdapterError::NotFinite(format!("the gradient of {path}"))
                }
                other => other,
            })?;
        let (done, all) = directions.progress();
        observer.on(&Event::Attaching(done, all));
        Ok::<_, RunError>(())
    })?;
    Ok(directions)
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
