//! `learning_rate = "auto"`: a rate for this model, data, method, rank and batch.
//!
//! From where the run starts, two steps are made at a rate and the loss is taken
//! on the micro-batches of a third, for a few rates. At rates that are too low the
//! loss hardly falls, at rates that are too high it rises, and between them it has
//! a lowest point, which a parabola through the three rates around it gives (loss
//! by the logarithm of the rate). The run's rate is a fixed share of that.
//!
//! What makes this work is that a method's start, its rank and its scale move the best rate of two
//! steps and the best rate of a run alike, over methods whose best rates are far apart. The two are
//! not the same, and their ratio is not the same everywhere: [`TOO_FAST`] is a middle of it
//! (BENCHMARKS.md, "A rate without a sweep").

use burn::{module::Module, optim::GradientsParams};
use olora_data::Batch;
use olora_model::Llama;
use olora_training::{Decay, LearningRate, Learns, Optimized, Passes, copied, scheduler, step};

use crate::{
    Event, Observer, Recipe, RunError,
    learner::{optimizer, passes},
    recipe::ObjectiveMethod,
    stages::Attached,
    steps::{batch, schedule},
};

/// By how much the best rate of two steps is higher than that of a run.
const TOO_FAST: f64 = 1.3;
/// By how much a rate for a run that nothing is known of is lower than where looking begins: low enough
/// for a real model.
const UNKNOWN: f64 = 5.0;
/// The share of the run that looking may cost.
const SHARE: f64 = 0.05;
/// How many rates are tried at most, and if there is not enough for as many.
const MANY: usize = 6;
const FEW: usize = 4;
/// Between neighbouring rates, until the lowest is between two; the square of what is between them in
/// the end.
const FACTOR: f64 = 3.0;

/// How much is looked at: sequences, or pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Look {
    /// Of the first step, whose gradient is common to all rates.
    first: usize,
    /// Of each rate's second step.
    second: usize,
    /// That the loss is taken on.
    third: usize,
    /// Rates.
    tried: usize,
}

impl Look {
    /// As much as the run's length allows, and no more than its own steps have; `None` if that is too
    /// little.
    ///
    /// With frozen weights a backward pass takes about as long as a forward pass; with a reference
    /// there is another forward pass to everything.
    fn of(recipe: &Recipe, steps: usize) -> Option<Self> {
        let training = &recipe.training;
        let per_step = training.batch_size * training.accumulation;
        let of_reference = if recipe.objective.method.has_reference() {
            1.0
        } else {
            0.0
        };
        let (step, loss) = (2.0 + of_reference, 1.0 + of_reference);
        let passes = SHARE * steps as f64 * per_step as f64 * step;
        let whole = |tried: usize| per_step as f64 * (step + loss) * (1 + tried) as f64;
        if whole(MANY) <= passes {
            return Some(Self {
                first: per_step,
                second: per_step,
                third: per_step,
                tried: MANY,
            });
        }
        // The direction counts most, and is paid for once: it has as many passes as each rate, which
        // halves its own between step and loss. The loss before the first step comes on top.
        let each = passes / (1.0 + FEW as f64 + 0.5);
        #[expect(clippy::cast_sign_loss, reason = "a quotient of positive numbers")]
        let sequences = |passes: f64| (passes.round() as usize).min(per_step);
        let look = Self {
            first: sequences(each / step),
            second: sequences(0.5 * each / step),
            third: sequences(0.5 * each / loss),
            tried: FEW,
        };
        (look.second >= fewest(recipe)).then_some(look)
    }
}

/// Micro-batches of so many sequences after so many others of the run's order, no larger than the
/// run's own.
fn batches(
    attached: &Attached<'_>,
    sequences: usize,
    after: usize,
) -> Result<Vec<Batch>, RunError> {
    let prepared = attached.prepared;
    let mut recipe = prepared.recipe.clone();
    let rows = sequences.min(recipe.training.batch_size);
    recipe.training.batch_size = rows;
    let begin = after.div_ceil(rows);
    let indices = begin..begin + sequences / rows;
    let schedule = schedule(&recipe, &prepared.data.train, indices.end)?;
    indices
        .map(|index| batch(&schedule, index, prepared.padding))
        .collect()
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
    let recipe = &attached.prepared.recipe;
    let steps = attached.prepared.steps.total;
    let begin = usual(recipe);
    let Some(look) = Look::of(recipe, steps) else {
        let rate = begin / UNKNOWN;
        observer.on(&Event::Note(format!(
            "learning rate {rate:.1e}: {} % of a run of {steps} steps is too little to look for one, and this is usual \
             for method and scale",
            100.0 * SHARE
        )));
        return Ok(rounded(rate));
    };
    let trial = Trial::new(attached, look)?;
    let mut tried: Vec<(f64, f64)> = Vec::new();
    let mut rate = begin;
    while tried.len() < look.tried {
        tried.push((rate, trial.loss_at(rate)?));
        tried.sort_by(|one, other| one.0.total_cmp(&other.0));
        match next(&tried) {
            Some(next) => rate = next,
            None => break,
        }
    }
    let told: Vec<String> = tried
        .iter()
        .map(|(rate, loss)| format!("{loss:.3} at {rate:.1e}"))
        .collect();
    let made = format!(
        "two steps, of {} and {} sequences, take the loss on {} others from {:.3} to {}",
        look.first,
        look.second,
        look.third,
        trial.before,
        told.join(", ")
    );
    let Some((best, is_end)) = lowest(&tried, trial.before) else {
        let rate = rounded(begin / UNKNOWN);
        observer.on(&Event::Note(format!(
            "learning rate {rate:e}, which is usual for method and scale: {made}, and it falls at none of them. That may \
             be chance, where so little is looked at"
        )));
        return Ok(rate);
    };
    let rate = rounded(best / TOO_FAST);
    let end = if is_end {
        ", which is the last that was tried: a run at other rates may do better"
    } else {
        ""
    };
    observer.on(&Event::Note(format!(
        "learning rate {rate:e}: {made}; lowest at {best:.1e}{end}. The run's is three quarters of that"
    )));
    Ok(rate)
}

/// Two digits: no more is known.
fn rounded(rate: f64) -> f64 {
    format!("{rate:.1e}").parse().unwrap_or(rate)
}

/// Where to begin to look: about what two steps were fastest at, of the settings that were measured,
/// at a scale of 2. Where the update starts at zero, the first steps are slow.
fn usual(recipe: &Recipe) -> f64 {
    let config = &recipe.adapter.config;
    let at_two = if config.method.is_anchored() {
        1e-3
    } else {
        5e-3
    };
    at_two * (2.0 / config.scale()).clamp(0.1, 10.0)
}

/// The next rate to try: towards where the loss is lower in steps of [`FACTOR`], until the lowest has
/// neighbours on both sides, then those halfway to these.
fn next(tried: &[(f64, f64)]) -> Option<f64> {
    let lowest = tried
        .iter()
        .enumerate()
        .min_by(|one, other| one.1.1.total_cmp(&other.1.1))?
        .0;
    if lowest == 0 {
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

/// Two steps and a loss.
struct Trial {
    llama: Llama,
    passes: Passes,
    recipe: Recipe,
    /// Of the second step and, for the loss, of a third.
    second: Vec<Batch>,
    third: Vec<Batch>,
    /// The first step's, common to all rates.
    gradients: GradientsParams,
    /// The loss on the third step's micro-batches before the first.
    before: f64,
}

impl Trial {
    fn new(attached: &Attached<'_>, look: Look) -> Result<Self, RunError> {
        let recipe = attached.prepared.recipe.clone();
        let first = batches(attached, look.first, 0)?;
        let second = batches(attached, look.second, look.first)?;
        let third = batches(attached, look.third, look.first + look.second)?;
        let passes = passes(&recipe, &attached.parts.llama)?;
        let llama = Module::train(attached.parts.llama.clone());
        // A step that keeps its gradients in the place of an update.
        let mut kept = Kept {
            llama: llama.clone(),
            gradients: None,
        };
        one(&mut kept, &passes, &recipe, 0, &first)?;
        let evaluated =
            passes.evaluate(&llama.valid(), third.iter().cloned().map(Ok::<_, RunError>))?;
        Ok(Self {
            gradients: kept.gradients.unwrap_or_default(),
            before: evaluated.loss,
            llama,
            passes,
            recipe,
            second,
            third,
        })
    }

    /// The loss after two steps at a rate, from the beginning; infinite if it is no number.
    fn loss_at(&self, rate: f64) -> Result<f64, RunError> {
        let constant = LearningRate {
            peak: rate,
            min: 0.0,
            warmup_steps: 0,
            total_steps: 2,
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
        let lost = |error: &RunError| {
            matches!(
                error,
                RunError::Train(olora_training::TrainError::NotFinite { .. })
            )
        };
        match one(&mut learner, &self.passes, &self.recipe, 1, &self.second) {
            Err(error) if lost(&error) => return Ok(f64::INFINITY),
            other => other?,
        }
        let third = self.third.iter().cloned().map(Ok::<_, RunError>);
        let evaluated = self.passes.evaluate(&learner.module.valid(), third);
        match evaluated.map_err(RunError::from) {
            Ok(evaluated) if evaluated.loss.is_finite() => Ok(evaluated.loss),
            Ok(_) => Ok(f64::INFINITY),
            Err(error) if lost(&error) => Ok(f64::INFINITY),
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
        assert_eq!(next(&[(1.0, 2.0)]), Some(1.0 / 3.0));
        assert_eq!(next(&[(1.0, 2.0), (3.0, 1.0)]), Some(9.0));
        assert_eq!(next(&[(1.0, 1.0), (3.0, f64::INFINITY)]), Some(1.0 / 3.0));
        let root = 3_f64.sqrt();
        let around = [(1.0, 2.0), (3.0, 1.0), (9.0, 4.0)];
        assert_eq!(next(&around), Some(3.0 * root));
        let higher = [(1.0, 2.0), (3.0, 1.0), (3.0 * root, 1.5), (9.0, 4.0)];
        assert_eq!(next(&higher), Some(3.0 / root));
        let there = [(1.0, 2.0), (3.0, 1.0), (3.0 * root, 0.5), (9.0, 4.0)];
        assert_eq!(next(&there), None);
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

    /// In passes over sequences: the first step and the loss before it, then for each rate a step and
    /// a loss.
    #[test]
    fn looking_costs_a_twentieth_of_a_run_or_little_more() {
        let recipe = |batch: usize, accumulation: usize| {
            let text = "name = \"x\"\nmodel.path = \"m\"\ndata.train = \"d\"";
            let settings = [
                format!("training.batch_size={batch}"),
                format!("training.accumulation={accumulation}"),
            ];
            Recipe::parse(text, "x", &settings).unwrap()
        };
        for (batch, accumulation) in [(1, 1), (4, 1), (16, 1), (2, 8)] {
            for steps in [10, 24, 60, 100, 300, 1000, 100_000] {
                let recipe = recipe(batch, accumulation);
                let Some(look) = Look::of(&recipe, steps) else {
                    assert!(steps * batch * accumulation < 250, "{steps} {batch}");
                    continue;
                };
                let cost =
                    2 * look.first + look.third + look.tried * (2 * look.second + look.third);
                let share = cost as f64 / (2 * steps * batch * accumulation) as f64;
                // Numbers of sequences are whole.
                assert!(
                    share < 0.065,
                    "{share} of {steps} steps of {batch}: {look:?}"
                );
                assert!(look.first <= batch * accumulation && look.first >= look.second);
            }
        }
        let long = Look::of(&recipe(4, 2), 1000).unwrap();
        assert_eq!((long.first, long.third, long.tried), (8, 8, MANY));
    }

    #[test]
    fn a_rate_has_two_digits() {
        assert_eq!(rounded(0.001_234_5), 0.0012);
    }
}
