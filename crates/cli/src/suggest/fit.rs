//! How a step is computed so that it fits the memory.

#![allow(
    clippy::format_push_string,
    reason = "writing to text returns an error that there is not"
)]

use std::{path::PathBuf, sync::Arc};

use anyhow::{Result, bail};
use burn::tensor::Device;
use olora_data::Answers;
use olora_devices::Details;
use olora_files::size;
use olora_runs::{Event, Forecast, Observer, Recipe, recipe::Places};

use super::{
    Asked,
    keys::{Key, Keys, text_of},
    look::Seen,
};
use crate::models::locate_data;

/// The share of the free memory that a run is fitted into.
const SHARE: f64 = 0.9;

/// Where the run is to be made.
pub(super) struct Place {
    pub(super) device: Device,
    pub(super) details: Details,
    pub(super) base: PathBuf,
}

/// What else than smaller micro-batches makes a step fit.
#[derive(Clone, Copy)]
struct Way {
    recompute: bool,
    packing: Option<&'static str>,
}

/// Chooses how the step is computed so that it fits the memory.
pub(super) fn fit(
    keys: &mut Keys,
    asked: &Asked<'_>,
    seen: &Seen,
    per_step: usize,
    place: &Place,
) -> Result<Forecast> {
    let limit = asked.memory.or_else(|| free(&place.details));
    // Answers are compared with those beside them.
    let fewest = if seen.options.answers == Answers::Labelled {
        2
    } else {
        1
    };
    let sizes: Vec<Option<usize>> = if keys.is_given("training.batch_size") {
        vec![None]
    } else {
        let halved = std::iter::successors(Some(per_step), |size| Some(size / 2));
        halved
            .take_while(|size| *size >= fewest)
            .map(Some)
            .collect()
    };
    let mut ways = vec![
        (false, None),
        (true, None),
        (true, Some("q8_0")),
        (true, Some("nf4")),
    ];
    // Only weights of a checkpoint that stay as they are can be packed.
    let is_fixed = !keys.trains_everything()
        && keys.text("adapter.placement") != Some("residual")
        && !keys.is_given("model.weights")
        && !keys.is_given("model.quantize");
    // What the user has set of recomputation stays, and is no way of its own.
    let recomputes_by_choice = !keys.is_given("training.recompute");
    ways.retain(|(recompute, packing)| match packing {
        None => !recompute || recomputes_by_choice,
        Some(_) => is_fixed,
    });
    let located = located(keys)?;
    let mut least: Option<(Forecast, String)> = None;
    for (recompute, packing) in ways {
        for size in &sizes {
            let mut tried = Keys {
                keys: keys.keys.clone(),
                given: keys.given.clone(),
            };
            let way = Way { recompute, packing };
            let said = of_step(&mut tried, *size, per_step, way);
            let forecast = match predict(&tried.whole(), &located, place) {
                // A base may have no matrix of a width that this format packs.
                Err(_) if packing.is_some() => continue,
                forecast => forecast?,
            };
            if limit.is_none_or(|limit| forecast.peak_memory <= limit) {
                keys.keys = tried.keys;
                return Ok(forecast);
            }
            let is_less =
                |(least, _): &(Forecast, String)| forecast.peak_memory < least.peak_memory;
            if least.as_ref().is_none_or(is_less) {
                least = Some((forecast, said));
            }
        }
    }
    let (least, said) = least.map_or((0, String::new()), |(least, said)| {
        (least.peak_memory, said)
    });
    let length = keys.keys.iter().find(|key| key.name == "data.max_length");
    let length = length.map_or_else(String::new, |key| key.value.to_string());
    let more = if asked.memory.is_some() {
        ", or more --memory"
    } else {
        ""
    };
    bail!(
        "the run does not fit into {}: {said} it is predicted to take {}. Give a smaller model, a shorter --max-length \
         than {length}, or a lower --rank{more}",
        size(limit.unwrap_or_default()),
        size(least),
    )
}

/// The micro-batches of a step and how they are computed; returns it in words. No
/// `size` is the user's.
fn of_step(keys: &mut Keys, size: Option<usize>, per_step: usize, way: Way) -> String {
    let mut said = "with the micro-batches that were asked for".to_owned();
    if let Some(size) = size {
        said = format!("with micro-batches of {size}");
        if keys.is_given("training.accumulation") {
            let why = "Sequences that are computed at once.";
            keys.set("training.batch_size", size as i64, why);
        } else {
            let why = format!("Sequences that are computed at once; {per_step} make a step.");
            keys.set("training.batch_size", size as i64, why);
            if size < per_step {
                let why = "Micro-batches of a step: the result is that of one large batch.";
                keys.set("training.accumulation", (per_step / size) as i64, why);
            }
        }
    }
    if way.recompute && !keys.is_given("training.recompute") {
        let why = "Blocks are computed again in the backward pass: less memory, a third more work.";
        keys.set("training.recompute", "blocks", why);
        said.push_str(", blocks computed again");
    }
    if let Some(packing) = way.packing {
        let why = "The base's matrices are packed as they are read, to fit the memory.";
        keys.set("model.quantize", packing, why);
        said.push_str(&format!(" and the base packed as {packing}"));
    }
    said
}

/// The recipe's data sets of the hub, where they are: looked for once, and not for each forecast.
fn located(keys: &Keys) -> Result<Places> {
    let mut recipe = recipe_of(&keys.whole())?;
    locate_data(&mut recipe)?;
    Ok(recipe.data.located)
}

fn recipe_of(keys: &[Key]) -> Result<Recipe> {
    Ok(Recipe::parse(&text_of(keys, false), "what was given", &[])?)
}

fn predict(keys: &[Key], located: &Places, place: &Place) -> Result<Forecast> {
    struct Silent;
    impl Observer for Silent {
        fn on(&self, _: &Event) {}
    }
    let mut recipe = recipe_of(keys)?;
    place.base.clone_into(&mut recipe.model.path);
    recipe.data.located.clone_from(located);
    let observer: Arc<dyn Observer> = Arc::new(Silent);
    let (device, details) = (&place.device, &place.details);
    Ok(olora_runs::plan(
        &recipe, device, details, false, &observer,
    )?)
}

/// The memory that a run may take, where it is known.
fn free(details: &Details) -> Option<u64> {
    let free = if details.accelerator {
        details.free_memory.or(details.memory)?
    } else {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        let free = system.available_memory();
        // Of a container, what it may take. What it has cached of files is given back when needed.
        let group = system.cgroup_limits();
        let group = group.map(|limits| limits.total_memory.saturating_sub(limits.rss));
        group.map_or(free, |group| group.min(free))
    };
    (free > 0).then_some((free as f64 * SHARE) as u64)
}
