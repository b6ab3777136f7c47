//! The learning rate as a pure function of the step.

use std::f64::consts::PI;

use burn::{
    lr_scheduler::{LrScheduler, LrSchedulerRecord, module_lr_scheduler::ModuleLrScheduler},
    module::{Module, ParamGroup},
};
use olora_adapter::{Kind, Role, params};
use serde::{Deserialize, Serialize};

/// The shape of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Half a cosine down to the minimum.
    #[default]
    Cosine,
    /// A straight line down to the minimum.
    Linear,
    /// No decay.
    Constant,
    /// Warm-up, stable, decay: constant, and at the end of the run a straight line
    /// down to the minimum (Hu et al. 2024, arXiv 2404.06395; Hägele et al. 2024,
    /// arXiv 2405.18392). A run of another length differs from this one in its
    /// end alone.
    Wsd,
}

/// Linear warm-up, then a decay. A function of the step alone, so a resumed
/// run continues it without any state of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct LearningRate {
    /// The highest value, reached at the end of warm-up.
    pub peak: f64,
    /// The value at the last step, unless there is no decay.
    pub min: f64,
    /// Steps of warm-up.
    pub warmup_steps: usize,
    /// Steps of the run.
    pub total_steps: usize,
    /// The decay.
    pub decay: Decay,
    /// Steps of it at the end of the run, of [`Decay::Wsd`]; the others decay from
    /// the end of warm-up on.
    pub decay_steps: usize,
}

impl LearningRate {
    /// The learning rate of a step, counted from 1.
    pub fn at(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        let after_warmup = self.total_steps.saturating_sub(self.warmup_steps);
        let decay_steps = match self.decay {
            Decay::Wsd => self.decay_steps.min(after_warmup),
            _ => after_warmup,
        };
        let begin = self.total_steps.saturating_sub(decay_steps);
        let done = match self.decay {
            Decay::Wsd => step.saturating_sub(begin),
            _ => step.saturating_sub(self.warmup_steps),
        };
        let done = (done as f64 / decay_steps.max(1) as f64).min(1.0);
        match self.decay {
            Decay::Constant => self.peak,
            Decay::Linear | Decay::Wsd => self.min + (self.peak - self.min) * (1.0 - done),
            Decay::Cosine => self.min + (self.peak - self.min) * 0.5 * (1.0 + (PI * done).cos()),
        }
    }
}

/// [`LearningRate`] in the form that Burn's `Learner` asks for: each call
/// moves on by one step.
#[derive(Clone)]
struct Stepper {
    rate: LearningRate,
    step: usize,
}

impl LrScheduler for Stepper {
    fn step(&mut self) -> f64 {
        self.step += 1;
        self.rate.at(self.step)
    }

    fn to_record(&self) -> LrSchedulerRecord {
        // The step is part of the run's own state.
        LrSchedulerRecord::default()
    }

    fn load_record(&mut self, _record: LrSchedulerRecord) {}
}

/// What the factors of an embedding learn at under LoRA+, whatever the learning
/// rate (`loraplus_lr_embedding` of `peft/optimizers/loraplus.py`).
const EMBEDDING_RATE: f64 = 1e-6;

/// The learning rate of every parameter, the first `step` steps being done.
///
/// With a ratio, LoRA+ as PEFT has it: `B` and everything of one axis learn at
/// the ratio times the rate, factors of embeddings at a rate of their own.
pub fn scheduler<M: Module>(
    rate: &LearningRate,
    loraplus_ratio: Option<f64>,
    step: usize,
    module: &M,
) -> ModuleLrScheduler {
    let stepper = |factor: f64| Stepper {
        rate: LearningRate {
            peak: rate.peak * factor,
            min: rate.min * factor,
            ..rate.clone()
        },
        step,
    };
    let scheduler = ModuleLrScheduler::new(stepper(1.0));
    let Some(ratio) = loraplus_ratio else {
        return scheduler;
    };
    let (mut faster, mut embeddings) = (Vec::new(), Vec::new());
    for param in params(module).iter().filter(|param| param.trains()) {
        let of_embedding = param.kind() == Some(Kind::Embedding);
        if param.role().is_factor() && of_embedding {
            embeddings.push(param.id());
        } else if param.shape().len() == 1 || param.role() == Role::B {
            faster.push(param.id());
        }
    }
    scheduler
        .with_group(ParamGroup::from_ids(faster), stepper(ratio))
        .with_group(
            ParamGroup::from_ids(embeddings),
            stepper(EMBEDDING_RATE / rate.peak),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(decay: Decay) -> LearningRate {
        LearningRate {
            peak: 1.0,
            min: 0.1,
            warmup_steps: 4,
            total_steps: 14,
            decay,
            decay_steps: 4,
        }
    }

    #[test]
    fn warm_up_stable_decay_falls_at_the_end_alone() {
        let values: Vec<f64> = (9..=15).map(|step| rate(Decay::Wsd).at(step)).collect();
        let expected = [1.0, 1.0, 0.775, 0.55, 0.325, 0.1, 0.1];
        for (found, expected) in values.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{values:?}");
        }
        // A longer run is the same until the shorter one decays.
        let longer = LearningRate {
            total_steps: 30,
            ..rate(Decay::Wsd)
        };
        assert!((1..=10).all(|step| longer.at(step) == rate(Decay::Wsd).at(step)));
        // No longer than what is left after warm-up.
        let short = LearningRate {
            decay_steps: 100,
            ..rate(Decay::Wsd)
        };
        assert_eq!(short.at(9), rate(Decay::Linear).at(9));
    }

    #[test]
    fn warms_up_linearly_and_never_starts_at_zero() {
        let values: Vec<_> = (1..=4).map(|step| rate(Decay::Cosine).at(step)).collect();
        assert_eq!(values, [0.25, 0.5, 0.75, 1.0]);
    }

    #[test]
    fn ends_at_the_minimum_and_passes_the_middle() {
        for decay in [Decay::Cosine, Decay::Linear] {
            assert!((rate(decay).at(9) - 0.55).abs() < 1e-12);
            assert!((rate(decay).at(14) - 0.1).abs() < 1e-12);
            assert!((rate(decay).at(99) - 0.1).abs() < 1e-12);
        }
        assert_eq!(rate(Decay::Constant).at(14), 1.0);
        assert!(rate(Decay::Cosine).at(6) > rate(Decay::Linear).at(6));
    }

    #[test]
    fn no_warm_up_starts_just_below_the_peak() {
        let rate = LearningRate {
            warmup_steps: 0,
            ..rate(Decay::Linear)
        };
        assert!(rate.at(1) < 1.0 && rate.at(1) > 0.9);
    }

    #[test]
    fn the_learners_form_continues_from_a_step() {
        let mut stepper = Stepper {
            rate: rate(Decay::Linear),
            step: 7,
        };
        assert_eq!(stepper.step(), rate(Decay::Linear).at(8));
    }
}
