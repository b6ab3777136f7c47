//! What a run will take, in memory and time, before it is made.

use std::{sync::Arc, time::Instant};

use burn::{module::Module, tensor::Device};
use olora_devices::Details;
use olora_files::size;
use olora_training::{Optimized, share, step};
use serde::Serialize;

use crate::{
    Event, MemoryEstimate, Observer, Precision, Recipe, RunError,
    attach::{AdapterStart, attach_adapter},
    failure::failure_context,
    learner::{optimizer, passes},
    memory::{device_reserved_bytes, peak_resident_bytes},
    prepare::{Prepared, Resolved},
    stages::Loaded,
    steps::{BatchSize, batch, schedule},
};

/// A run as it is expected to be.
#[derive(Clone, Debug, Serialize)]
pub struct Forecast {
    /// The recipe's name.
    pub name: String,
    /// All parameters, adapter included.
    pub n_params: usize,
    /// Those that train.
    pub n_trained_params: usize,
    /// Steps in all.
    pub steps: usize,
    /// Micro-batches in all.
    pub n_batches: usize,
    /// Unpadded input tokens in all.
    pub tokens: u64,
    /// Share of all inputs that is padding.
    pub padding_share: f64,
    /// Rows and length of the largest micro-batch.
    pub largest_batch: [usize; 2],
    /// The memory that the run is expected to take.
    pub memory: MemoryEstimate,
    /// The sum of it: the peak.
    pub peak_memory: u64,
    /// The memory that the device has, in bytes, where it is known.
    pub device_memory: Option<u64>,
    /// The number formats.
    pub precision: Precision,
    /// What a short trial showed, if there was one.
    pub probe: Option<Probe>,
}

/// What a few micro-batches of the run took.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// Micro-batches that were timed, each with an update.
    pub batches: usize,
    /// Seconds for one input, padding included.
    pub seconds_per_input: f64,
    /// Unpadded input tokens per second that follow for the run.
    pub tokens_per_second: f64,
    /// Seconds of training that follow, without evaluation and checkpoints.
    pub train_seconds: f64,
    /// Seconds of the first, which are not counted: kernels are made in it.
    pub first_seconds: f64,
    /// Peak resident memory of this process so far, in bytes, the largest
    /// micro-batch included.
    pub peak_memory: Option<u64>,
    /// What the device's allocator held, in bytes.
    pub device_memory: Option<u64>,
}

/// Micro-batches that are timed after the first.
const TIMED: usize = 3;

/// Says what a recipe's run will take. Writes nothing.
///
/// With `probe`, the model is loaded and trained on a few micro-batches of the
/// run: the largest, for memory, then some of usual size, for time.
///
/// # Errors
///
/// As for [`train`](crate::train), but for an existing run directory.
pub fn plan(
    recipe: &Recipe,
    device: &Device,
    details: &Details,
    probe: bool,
    observer: &Arc<dyn Observer>,
) -> Result<Forecast, RunError> {
    plan_share(recipe, device, details, probe, 1, observer)
}

/// What the run takes on one of several processes, which share out the
/// micro-batches of each step. The time is this one's: that of the run is that
/// of the slowest, without the exchange.
///
/// # Errors
///
/// As for [`plan`], and if `n_ranks` does not divide `training.accumulation`.
pub fn plan_share(
    recipe: &Recipe,
    device: &Device,
    details: &Details,
    probe: bool,
    n_ranks: usize,
    observer: &Arc<dyn Observer>,
) -> Result<Forecast, RunError> {
    share(recipe.training.accumulation, 0, n_ranks).map_err(|error| RunError::Recipe {
        recipe: format!("{n_ranks} ranks"),
        reason: error.to_string(),
    })?;
    let failure = failure_context(recipe, device, details);
    failure.guard(|| {
        let resolved = Resolved::new(recipe, device, details.accelerator, &**observer)?;
        let mut prepared = Prepared::new(resolved, &**observer)?;
        prepared.n_ranks = n_ranks;
        let memory = prepared.memory(&prepared.counts);
        failure.expect(&memory);
        let steps = &prepared.steps;
        let tokens = steps.n_tokens as f64 * steps.n_batches as f64 / steps.n_seen.max(1) as f64;
        let mut forecast = Forecast {
            name: prepared.recipe.name.clone(),
            n_params: prepared.counts.params,
            n_trained_params: prepared.counts.trained,
            steps: steps.total,
            n_batches: steps.n_batches,
            tokens: tokens.round() as u64,
            padding_share: 1.0 - steps.n_tokens as f64 / steps.n_inputs.max(1) as f64,
            largest_batch: [steps.largest.n_rows, steps.largest.seq_len],
            memory,
            peak_memory: memory.total(),
            device_memory: details.memory,
            precision: prepared.precision.clone(),
            probe: None,
        };
        if probe {
            if details.accelerator {
                observer.on(&Event::MakingKernels {
                    measured: details.autotune,
                });
            }
            forecast.probe = Some(try_out(&prepared, device, tokens, &**observer)?);
        }
        Ok(forecast)
    })
}

fn try_out(
    prepared: &Prepared,
    device: &Device,
    tokens: f64,
    observer: &dyn Observer,
) -> Result<Probe, RunError> {
    let recipe = &prepared.recipe;
    let llama = Loaded::new(prepared, device, observer)?.llama;
    let start = prepared
        .from
        .as_ref()
        .map_or(AdapterStart::Trial, AdapterStart::From);
    let llama = attach_adapter(recipe, llama, start, observer)?;
    let passes = passes(recipe, &llama)?;
    let llama = Module::train(llama);
    let device = llama.device();
    // Nothing is to be learned: the next micro-batch is timed on the same model.
    let mut learner = Optimized::new(llama, optimizer(&recipe.training), 0.0);
    let max_norm = recipe.training.max_grad_norm;

    let order = in_order_of_size(prepared)?;
    let schedule = schedule(recipe, &prepared.data.train, prepared.steps.n_seen)?;
    let largest = order.len() - 1;
    // The largest, then some that stand for all: from the middle of each third.
    let chosen = (0..TIMED).map(|i| (2 * i + 1) * order.len() / (2 * TIMED));
    let mut first_seconds = 0.0;
    let (mut seconds, mut n_inputs) = (0.0, 0);
    for (count, index) in std::iter::once(largest).chain(chosen).enumerate() {
        let batch = batch(&schedule, order[index], prepared.padding)?;
        let size = BatchSize::of(&batch);
        let began = Instant::now();
        step(&mut learner, 1, max_norm, |learner, _| {
            Ok::<_, RunError>(Some(passes.run(&learner.module, &batch)))
        })?;
        device.sync().map_err(|error| RunError::device(&error))?;
        let took = began.elapsed().as_secs_f64();
        if count == 0 {
            first_seconds = took;
        } else {
            seconds += took;
            n_inputs += size.n_inputs();
        }
    }
    let seconds_per_input = seconds / n_inputs.max(1) as f64;
    let total_inputs = prepared.steps.total_inputs();
    let train_seconds = seconds_per_input * total_inputs / prepared.n_ranks as f64;
    Ok(Probe {
        batches: TIMED,
        seconds_per_input,
        tokens_per_second: tokens / train_seconds.max(1e-9),
        train_seconds,
        first_seconds,
        peak_memory: peak_resident_bytes(),
        device_memory: device_reserved_bytes(&device),
    })
}

/// The micro-batches that were looked at, those with fewest inputs first.
fn in_order_of_size(prepared: &Prepared) -> Result<Vec<usize>, RunError> {
    let n_seen = prepared.steps.n_seen;
    let schedule = schedule(&prepared.recipe, &prepared.data.train, n_seen)?;
    let mut sizes = (0..n_seen)
        .map(|index| {
            let size = schedule.size(index, prepared.padding)?;
            Ok((size.n_inputs(), index))
        })
        .collect::<Result<Vec<_>, RunError>>()?;
    sizes.sort_unstable();
    Ok(sizes.into_iter().map(|(_, index)| index).collect())
}

/// For people.
impl std::fmt::Display for Forecast {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let million = |n: usize| n as f64 / 1e6;
        let Self { memory, .. } = self;
        let [rows, seq] = self.largest_batch;
        writeln!(
            f,
            "run            {}: {} steps, {} tokens, {:.1} % padding, largest micro-batch {rows} × {seq}",
            self.name,
            self.steps,
            self.tokens,
            100.0 * self.padding_share
        )?;
        writeln!(
            f,
            "parameters     {:.2} M, of which {:.2} M train; {}",
            million(self.n_params),
            million(self.n_trained_params),
            self.precision
        )?;
        writeln!(f, "base           {}", size(memory.weights))?;
        writeln!(
            f,
            "trained        {}, with gradients and the optimiser's moments",
            size(memory.trained)
        )?;
        writeln!(f, "activations    {}", size(memory.activations))?;
        writeln!(f, "at work        {}", size(memory.workspace))?;
        writeln!(
            f,
            "logits         {}, not at the same time",
            size(memory.logits)
        )?;
        if memory.start > 0 {
            writeln!(
                f,
                "start          {}, before the first step, in the place of what training holds",
                size(memory.start)
            )?;
        }
        if memory.process > 0 {
            writeln!(f, "program, data  {}", size(memory.process))?;
        }
        write!(f, "peak           {}", size(self.peak_memory))?;
        if let Some(device) = self.device_memory {
            write!(f, " of the device's {}", size(device))?;
        }
        if let Some(probe) = &self.probe {
            let measured = probe.device_memory.or(probe.peak_memory);
            if let Some(measured) = measured {
                write!(
                    f,
                    ", {} in a trial of {} steps",
                    size(measured),
                    probe.batches + 1
                )?;
            }
            write!(
                f,
                "\ntime           {} at {:.0} tokens/s, by {} of them; evaluation and checkpoints come on top",
                duration(probe.train_seconds),
                probe.tokens_per_second,
                probe.batches
            )?;
        }
        Ok(())
    }
}

/// Seconds for people.
fn duration(seconds: f64) -> String {
    match seconds {
        ..120.0 => format!("{seconds:.1} s"),
        ..7200.0 => format!("{:.1} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}
