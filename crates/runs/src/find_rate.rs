//! `learning_rate = "auto"`: a rate for this model, data, method, rank and batch.
//!
//! From where the run starts, one step is made at a rate and the loss is taken on micro-batches that
//! come after it, for a few rates. At rates that are too low the loss hardly falls, at rates that are too
//! high it rises, and between them it has a lowest point, which a parabola through the three rates around
//! it gives (loss by the logarithm of the rate). The run's rate is a [`share`] of that, which follows from
//! the method and from what the run is.
//!
//! One step says what a rate does with this start, this scale, these layers and this model, over best
//! rates that are far apart, and it says the same for any few sequences. (Two steps do not: where they
//! are best was found to differ by a factor of two between seeds.) What it cannot know is what comes
//! later; the share is a fitted middle of that (BENCHMARKS.md, "A rate without a sweep").

mod share;

use std::ops::Range;

use burn::{module::Module, optim::GradientsParams};
use olora_data::Batch;
use olora_model::Llama;
use olora_training::{Decay, LearningRate, Learns, Optimized, Passes, copied, scheduler, step};

use self::share::Run;
use crate::{
    Event, Observer, Recipe, RunError,
    learner::{optimizer, passes},
    recipe::ObjectiveMethod,
    stages::Attached,
    steps::{batch, schedule},
};

/// By how much the rate is lower than usual where a step makes the loss fall at none.
const CAREFUL: f64 = 3.0;
/// The share of the run that looking may cost.
const SHARE: f64 = 0.05;
/// How many rates are tried at most.
const TRIED: usize = 5;
/// Of how many sequences the step is, and on how many the loss is taken, if there may be as many: a
/// direction that is not of a few sequences alone, even where the run's steps are.
const STEP: usize = 16;
const LOSS: usize = 32;
/// Of how many lengths the sequences are that the loss is taken on, at least, if there are as many.
const KINDS: usize = 8;
/// Between neighbouring rates, until the lowest is between two; the square of what is between them in
/// the end.
const FACTOR: f64 = 3.0;

/// What a run goes through: sequences, pairs counting as one, or packed rows.
#[derive(Clone, Copy, Debug)]
struct Extent {
    /// In all of its steps.
    trained: usize,
    /// In its training data.
    per_epoch: usize,
    /// In each evaluation.
    held_out: usize,
    steps: usize,
}

impl Extent {
    fn of(attached: &Attached<'_>) -> Self {
        let (prepared, schedule) = (attached.prepared, &attached.parts.schedule);
        let recipe = &prepared.recipe;
        let per_epoch = schedule.n_rows_per_epoch();
        // Validation data are not packed: how many rows they would be is not known, so they count
        // for nothing then.
        let held_out = match &prepared.data.validation {
            Some(corpus) if !recipe.data.packing => corpus.n_units(),
            _ => 0,
        };
        Self {
            trained: prepared.steps.n_batches * recipe.training.batch_size.min(per_epoch),
            per_epoch,
            held_out,
            steps: prepared.steps.total,
        }
    }
}

/// How much is looked at: sequences, or pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Look {
    /// In a micro-batch. A run's micro-batch is of sequences of one length, which in many data sets are
    /// of one kind, and what is best for a kind is not what is best for all. So these are smaller.
    rows: usize,
    /// Of the step, whose gradient is common to all rates.
    step: usize,
    /// That the loss is taken on, before it and after it at each rate.
    loss: usize,
}

impl Look {
    /// As much as the run's length and its data allow; `None` if that is too little.
    ///
    /// With frozen weights a backward pass takes about as long as a forward pass; with a reference
    /// there is another forward pass to everything.
    fn of(recipe: &Recipe, run: Extent) -> Option<Self> {
        let training = &recipe.training;
        let per_step = training.batch_size * training.accumulation;
        let of_reference = if recipe.objective.method.has_reference() {
            1.0
        } else {
            0.0
        };
        let (step, loss) = (2.0 + of_reference, 1.0 + of_reference);
        // Before the first step, every so many and after the last.
        let evaluations = 1 + match training.evaluate_every {
            0 => 1,
            every => run.steps.div_ceil(every),
        };
        let of_run = run.trained as f64 * step + evaluations as f64 * run.held_out as f64 * loss;
        let passes = SHARE * of_run;
        let losses = (1 + TRIED) as f64 * loss;
        #[expect(clippy::cast_sign_loss, reason = "a quotient of positive numbers")]
        let sequences = |passes: f64, each: f64| (passes / each) as usize;
        // The direction counts most, and is paid for once: of a short run it has a third of what may
        // be spent. No sequence is in both.
        let of_step = sequences(passes / 3.0, step)
            .min(per_step.max(STEP))
            .min(run.per_epoch / 3);
        let of_loss = sequences(passes - of_step as f64 * step, losses)
            .min(LOSS.max(4 * per_step))
            .min(run.per_epoch - of_step);
        let (fewest, most) = (fewest(recipe), training.batch_size);
        let less = of_step.min(of_loss);
        let rows = (less / KINDS).max(fewest).min(most);
        (less >= fewest).then(|| Self {
            rows,
            step: of_step / rows * rows,
            loss: of_loss / rows * rows,
        })
    }
}

/// What is looked at, in micro-batches: those of the step and, of other sequences, those of the loss.
fn batches(attached: &Attached<'_>, look: Look) -> Result<[Vec<Batch>; 2], RunError> {
    let prepared = attached.prepared;
    let mut recipe = prepared.recipe.clone();
    recipe.training.batch_size = look.rows;
    let [of_step, of_loss] = [look.step, look.loss].map(|sequences| sequences / look.rows);
    let schedule = schedule(&recipe, &prepared.data.train, of_step + of_loss)?;
    let made = |indices: Range<usize>| {
        indices
            .map(|index| batch(&schedule, index, prepared.padding))
            .collect::<Result<Vec<_>, RunError>>()
    };
    Ok([made(0..of_step)?, made(of_step..of_step + of_loss)?])
}

/// Sequences of a micro-batch that there have to be: KTO compares each with another one's answer.
fn fewest(recipe: &Recipe) -> usize {
    if recipe.objective.method == ObjectiveMethod::Kto {
        2
    } else {
        1
    }
}

/// The learning rate for a run, and says why.
///
/// # Errors
///
/// Those of the device.
pub(crate) fn find_rate(attached: &Attached<'_>, observer: &dyn Observer) -> Result<f64, RunError> {
    let prepared = attached.prepared;
    let (recipe, steps) = (&prepared.recipe, prepared.steps.total);
    let say = |rate: f64, why: String| {
        let rate = rounded(rate);
        observer.on(&Event::Note(format!("learning rate {rate:e}: {why}")));
        Ok(rate)
    };
    let config = &recipe.adapter.config;
    let run = Run {
        method: config.method,
        alpha: config.scale() * config.rank as f64,
        b_ratio: recipe.training.loraplus_ratio.unwrap_or(1.0),
        params: attached.parts.counts.params as f64,
        steps: steps as f64,
        tokens: trained_tokens(attached)?,
    };
    let (begin, share) = (run.one_step(config.scale()), run.share());
    let Some(look) = Look::of(recipe, Extent::of(attached)) else {
        let why = format!(
            "{} % of a run of {steps} steps is too little to look for one, and this is usual for method, scale and \
             size of the model",
            100.0 * SHARE
        );
        return say(begin * share, why);
    };
    let trial = Trial::new(attached, look)?;
    let mut tried: Vec<(f64, f64)> = Vec::new();
    let mut rate = begin;
    while tried.len() < TRIED {
        tried.push((rate, trial.loss_at(rate)?));
        tried.sort_by(|one, other| one.0.total_cmp(&other.0));
        match next(&tried, trial.before) {
            Some(next) => rate = next,
            None => break,
        }
    }
    let told: Vec<String> = tried
        .iter()
        .map(|(rate, loss)| format!("{loss:.3} at {rate:.1e}"))
        .collect();
    let made = format!(
        "one step of {} sequences takes the loss on {} others from {:.3} to {}",
        look.step,
        look.loss,
        trial.before,
        told.join(", ")
    );
    let Some((best, is_end)) = lowest(&tried, trial.before) else {
        let why = format!(
            "a third of what is usual for method, scale and size of the model, since {made}, and it falls at none of \
             them. That may be chance, where so little is looked at"
        );
        return say(begin * share / CAREFUL, why);
    };
    let end = if is_end {
        ", which is the last that was tried: a run at other rates may do better"
    } else {
        ""
    };
    let why = format!(
        "{made}; lowest at {best:.1e}{end}. The run's is {share:.2} of that, for {} with some {:.0} trained tokens a \
         step over {steps} steps",
        config.method.name(),
        run.tokens
    );
    say(share * best, why)
}

/// Trained tokens of a step, over the first few.
fn trained_tokens(attached: &Attached<'_>) -> Result<f64, RunError> {
    let parts = &attached.parts;
    let n = attached.prepared.steps.n_batches.min(KINDS);
    let mut tokens = 0;
    for index in 0..n {
        tokens += batch(&parts.schedule, index, attached.prepared.padding)?.n_trained;
    }
    let n_batches = attached.prepared.steps.n_batches;
    let accumulation = attached
        .prepared
        .recipe
        .training
        .accumulation
        .min(n_batches);
    Ok((tokens * accumulation) as f64 / n.max(1) as f64)
}

/// Two digits: no more is known.
fn rounded(rate: f64) -> f64 {
    format!("{rate:.1e}").parse().unwrap_or(rate)
}

/// The next rate to try: towards where the loss is lower in steps of [`FACTOR`], until the lowest has
/// neighbours on both sides, then those halfway to these.
fn next(tried: &[(f64, f64)], before: f64) -> Option<f64> {
    let lowest = tried
        .iter()
        .enumerate()
        .min_by(|one, other| one.1.1.total_cmp(&other.1.1))?
        .0;
    // Where all of them make it rise, they are too high, however the losses there compare.
    if lowest == 0 || tried[lowest].1 > before {
        Some(tried[0].0 / FACTOR)
    } else if lowest + 1 == tried.len() {
        Some(tried[lowest].0 * FACTOR)
    } else {
        let rate = tried[lowest].0;
        let is_far = |other: f64| (other / rate).ln().abs() > 0.9 * FACTOR.ln();
        if is_far(tried[lowest + 1].0) {
            Some(rate * FACTOR.sqrt())
        } else if is_far(tried[lowest - 1].0) {
            Some(rate / FACTOR.sqrt())
        } else {
            None
        }
    }
}

/// Where the loss is lowest, by a parabola through the lowest that was found and its neighbours, over
/// the logarithm of the rate, and whether it has a neighbour on one side alone; `None` if none is
/// lower than `before`.
fn lowest(tried: &[(f64, f64)], before: f64) -> Option<(f64, bool)> {
    let (place, &(rate, loss)) = tried
        .iter()
        .enumerate()
        .min_by(|one, other| one.1.1.total_cmp(&other.1.1))
        .filter(|(_, (_, loss))| *loss < before)?;
    let below = place.checked_sub(1).and_then(|below| tried.get(below));
    let (Some(below), Some(above)) = (below, tried.get(place + 1)) else {
        return Some((rate, true));
    };
    // Far beyond what is bearable, how high a loss is says nothing of where it was lowest.
    let most = before + (before - loss);
    let to = |other: &(f64, f64)| ((other.0 / rate).ln(), other.1.min(most) - loss);
    let ((left, fall), (right, rise)) = (to(below), to(above));
    // Of the parabola through (left, fall), (0, 0) and (right, rise).
    let divisor = 2.0 * (left * rise - right * fall);
    if divisor >= 0.0 {
        return Some((rate, false));
    }
    let turn = (left * left * rise - right * right * fall) / divisor;
    Some((rate * turn.clamp(0.5 * left, 0.5 * right).exp(), false))
}

/// A step and a loss.
struct Trial {
    llama: Llama,
    passes: Passes,
    recipe: Recipe,
    /// For the loss.
    others: Vec<Batch>,
    /// The step's, common to all rates.
    gradients: GradientsParams,
    /// The loss before the step.
    before: f64,
}

impl Trial {
    fn new(attached: &Attached<'_>, look: Look) -> Result<Self, RunError> {
        let recipe = attached.prepared.recipe.clone();
        let [own, others] = batches(attached, look)?;
        let passes = passes(&recipe, &attached.parts.llama)?;
        let llama = Module::train(attached.parts.llama.clone());
        // A step that keeps its gradients in the place of an update.
        let mut kept = Kept {
            llama: llama.clone(),
            gradients: None,
        };
        one(&mut kept, &passes, &recipe, 0, &own)?;
        let evaluated = passes.evaluate(
            &llama.valid(),
            others.iter().cloned().map(Ok::<_, RunError>),
        )?;
        Ok(Self {
            gradients: kept.gradients.unwrap_or_default(),
            before: evaluated.loss,
            llama,
            passes,
            recipe,
            others,
        })
    }

    /// The loss after one step at a rate, from the beginning; infinite if it is no number.
    fn loss_at(&self, rate: f64) -> Result<f64, RunError> {
        let constant = LearningRate {
            peak: rate,
            min: 0.0,
            warmup_steps: 0,
            total_steps: 1,
            decay: Decay::Constant,
            decay_steps: 0,
        };
        let ratio = self.recipe.training.loraplus_ratio;
        let mut learner = Optimized {
            module: self.llama.clone(),
            optimizer: optimizer(&self.recipe.training),
            learning_rate: scheduler(&constant, ratio, 0, &self.llama).step(),
        };
        learner.update(copied(&self.llama, &self.gradients));
        let others = self.others.iter().cloned().map(Ok::<_, RunError>);
        let evaluated = self.passes.evaluate(&learner.module.valid(), others);
        match evaluated.map_err(RunError::from) {
            Ok(evaluated) if evaluated.loss.is_finite() => Ok(evaluated.loss),
            Ok(_) | Err(RunError::Train(olora_training::TrainError::NotFinite { .. })) => {
                Ok(f64::INFINITY)
            }
            Err(error) => Err(error),
        }
    }
}

/// One step over some micro-batches, as the run would make it.
fn one<L: Learns<Module = Llama>>(
    learner: &mut L,
    passes: &Passes,
    recipe: &Recipe,
    number: usize,
    batches: &[Batch],
) -> Result<(), RunError> {
    let max_norm = recipe.training.max_grad_norm;
    step(learner, batches.len(), max_norm, |learner: &L, index| {
        passes.seed_dropout(recipe.seed, number, index);
        Ok::<_, RunError>(Some(passes.run(&learner.module(), &batches[index])))
    })?;
    Ok(())
}

/// Keeps gradients, averaged and clipped, and updates nothing.
struct Kept {
    llama: Llama,
    gradients: Option<GradientsParams>,
}

impl Learns for Kept {
    type Module = Llama;

    fn module(&self) -> Llama {
        self.llama.clone()
    }

    fn update(&mut self, gradients: GradientsParams) {
        self.gradients = Some(gradients);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_tried_towards_a_lower_loss_until_it_is_between_two() {
        assert_eq!(next(&[(1.0, 2.0)], 10.0), Some(1.0 / 3.0));
        assert_eq!(next(&[(1.0, 2.0), (3.0, 1.0)], 10.0), Some(9.0));
        assert_eq!(
            next(&[(1.0, 1.0), (3.0, f64::INFINITY)], 10.0),
            Some(1.0 / 3.0)
        );
        let root = 3_f64.sqrt();
        let around = [(1.0, 2.0), (3.0, 1.0), (9.0, 4.0)];
        assert_eq!(next(&around, 10.0), Some(3.0 * root));
        let higher = [(1.0, 2.0), (3.0, 1.0), (3.0 * root, 1.5), (9.0, 4.0)];
        assert_eq!(next(&higher, 10.0), Some(3.0 / root));
        let there = [(1.0, 2.0), (3.0, 1.0), (3.0 * root, 0.5), (9.0, 4.0)];
        assert_eq!(next(&there, 10.0), None);
        // Far too high, where a higher rate may be less bad.
        assert_eq!(next(&[(1.0, 12.0), (3.0, 11.0)], 10.0), Some(1.0 / 3.0));
    }

    #[test]
    fn the_lowest_point_is_a_parabola_s() {
        // (ln rate / ln 3 − 0.25)² at −1, 0 and 1, and at −1, 0 and a half.
        for far in [(3.0, 0.5625), (3_f64.sqrt(), 0.0625)] {
            let tried = [(1.0 / 3.0, 1.5625), (1.0, 0.0625 - 1e-12), far];
            let (found, is_end) = lowest(&tried, 10.0).unwrap();
            assert!(
                (found - 3_f64.powf(0.25)).abs() < 1e-6 && !is_end,
                "{found}"
            );
        }
        // However high a loss is, it counts no more than what was gained.
        let tried = [(1.0 / 3.0, 3.0), (1.0, 2.0), (3.0, f64::INFINITY)];
        let (found, _) = lowest(&tried, 4.0).unwrap();
        assert!((found - 3_f64.powf(-0.3)).abs() < 1e-12, "{found}");
        assert_eq!(lowest(&[(1.0, 4.0), (3.0, 5.0)], 4.0), None);
        assert_eq!(lowest(&[(1.0, 3.0), (3.0, 5.0)], 4.0), Some((1.0, true)));
    }

    /// In passes over sequences: the step and the loss before it, then a loss for each rate.
    #[test]
    fn looking_costs_a_twentieth_of_a_run_at_most() {
        let recipe = |batch: usize, accumulation: usize| {
            let text = "name = \"x\"\nmodel.path = \"m\"\ndata.train = \"d\"";
            let settings = [
                format!("training.batch_size={batch}"),
                format!("training.accumulation={accumulation}"),
            ];
            Recipe::parse(text, "x", &settings).unwrap()
        };
        let extent = |recipe: &Recipe, steps, held_out, per_epoch| Extent {
            trained: steps * recipe.training.batch_size * recipe.training.accumulation,
            per_epoch,
            held_out,
            steps,
        };
        for (batch, accumulation) in [(1, 1), (4, 1), (16, 1), (2, 8), (64, 2)] {
            for (steps, held_out) in [10, 24, 60, 100, 241, 1000, 100_000]
                .into_iter()
                .flat_map(|steps| [0, 4, 100].map(|held_out| (steps, held_out)))
            {
                let recipe = recipe(batch, accumulation);
                let run = extent(&recipe, steps, held_out, 1_000_000);
                let Some(look) = Look::of(&recipe, run) else {
                    assert!(steps * batch * accumulation < 100, "{steps} {batch}");
                    continue;
                };
                let cost = 2 * look.step + (1 + TRIED) * look.loss;
                let evaluations = 1 + steps.div_ceil(recipe.training.evaluate_every);
                let share = cost as f64 / (2 * run.trained + evaluations * held_out) as f64;
                assert!(
                    share <= SHARE,
                    "{share} of {steps} steps of {batch}: {look:?}"
                );
                assert!(look.step <= STEP.max(batch * accumulation));
                // Of many lengths, if there are as many sequences.
                let least = look.step.min(look.loss);
                assert!(least / look.rows >= least.min(KINDS), "{look:?}");
            }
        }
        let whole = recipe(4, 2);
        let long = Look::of(&whole, extent(&whole, 1000, 0, 10_000)).unwrap();
        assert_eq!((long.rows, long.step, long.loss), (2, STEP, LOSS));
        // A run that evaluates more takes longer, so that there is more to look at.
        let small = recipe(2, 1);
        let evaluates = |held_out| Look::of(&small, extent(&small, 100, held_out, 10_000));
        assert!(evaluates(200).unwrap().loss > evaluates(0).unwrap().loss);
        // Of few data none is in both.
        let few = Look::of(&whole, extent(&whole, 1000, 0, 30)).unwrap();
        assert_eq!((few.step, few.loss), (10, 20));
        assert_eq!(Look::of(&whole, extent(&whole, 1000, 0, 2)), None);
    }

    #[test]
    fn a_rate_has_two_digits() {
        assert_eq!(rounded(0.001_234_5), 0.0012);
    }
}
