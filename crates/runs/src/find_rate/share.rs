//! What share of one step's best rate is a run's.
//!
//! Fitted by eye to the best rates of whole runs, on six pairs of a model and data: tiny models of three
//! sizes (0.2, 0.9 and 4 million parameters) on the quickstart's data, and SmolLM2-135M on that, on
//! instructions and on GSM8K; on the second, in some thirty settings of method, rank, alpha, targets and
//! batch, and in three lengths. What it is worth on others is in BENCHMARKS.md, "A rate without a sweep".
//!
//! There is no theory behind the powers, but what they say is plausible: a factor that starts at zero
//! has to grow first, by the rate too, so one step shows less of what a rate will do; and a small model,
//! which learns all of small data, ends where rates have to be lower than where it began.

use olora_adapter::Method;

/// What the share follows from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) method: Method,
    /// Scale times rank, which is alpha unless it is rank-stabilised.
    pub(super) alpha: f64,
    /// How many times the rate `B` learns at (LoRA+).
    pub(super) b_ratio: f64,
    /// Parameters of the model.
    pub(super) params: f64,
    pub(super) steps: f64,
    /// Trained tokens of a step.
    pub(super) tokens: f64,
}

/// How both factors start, as far as it matters here.
enum Start {
    /// At length, wherever the weight points to.
    Both,
    /// One of them at zero.
    Zero,
    /// Along what the loss or the data say.
    Along,
}

/// Where measurements end, and what is beyond counts as the end: alpha, parameters, steps, tokens.
const ALPHA: (f64, f64) = (4.0, 64.0);
const PARAMS: (f64, f64) = (4e6, 135e6);
const STEPS: (f64, f64) = (30.0, 1000.0);
const TOKENS: (f64, f64) = (40.0, 1000.0);

impl Run {
    fn start(&self) -> Start {
        match self.method {
            Method::Olora | Method::OloraTail | Method::Pissa | Method::Milora => Start::Both,
            Method::Lora | Method::LoraGaussian | Method::LoraOrthogonal => Start::Zero,
            Method::Eva | Method::OloraGradient | Method::LoraGradient => Start::Along,
        }
    }

    /// The run's best rate to that of one step.
    pub(super) fn share(&self) -> f64 {
        let clamped = |number: f64, (least, most): (f64, f64)| number.clamp(least, most);
        let smaller = PARAMS.1 / clamped(self.params, PARAMS);
        let tokens = clamped(self.tokens, TOKENS) / 300.0;
        let lower = match self.start() {
            Start::Both => 0.9 * smaller.powf(0.27) * tokens.powf(-0.1),
            Start::Zero => {
                1.6 * smaller.powf(0.29)
                    * tokens.powf(-0.2)
                    * (clamped(self.alpha, ALPHA) / 16.0).powf(-0.33)
            }
            Start::Along => 1.0,
        };
        let own = match self.method {
            Method::OloraTail => 1.4,
            Method::LoraOrthogonal => 0.65,
            _ => 1.0,
        };
        let longer = (clamped(self.steps, STEPS) / 90.0).powf(0.4);
        1.0 / (lower * own * longer * self.b_ratio.powf(-0.23))
    }

    /// Where one step is best, about: where to begin to look.
    pub(super) fn one_step(&self, scale: f64) -> f64 {
        let smaller = 135e6 / self.params.max(1.0);
        let at_two = match self.start() {
            Start::Zero => 3.7e-3 * smaller.powf(0.35),
            Start::Both | Start::Along => 1.8e-4 * smaller.powf(0.5),
        };
        at_two * (2.0 / scale).clamp(1e-6, 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One step's best rate to a run's, as measured (2026-12-01): three seeds' mean of the first, over
    /// 112 or 32 held-out records, and the best of rates a factor √3 apart of the second.
    #[test]
    fn the_share_is_near_what_was_measured() {
        let quickstart = Run {
            method: Method::Lora,
            alpha: 16.0,
            b_ratio: 1.0,
            params: 0.94e6,
            steps: 84.0,
            tokens: 350.0,
        };
        let smollm2 = Run {
            params: 135e6,
            steps: 100.0,
            tokens: 60.0,
            ..quickstart
        };
        let olora = Method::Olora;
        for (run, ratio) in [
            (quickstart, 4.2),
            (
                Run {
                    alpha: 4.0,
                    ..quickstart
                },
                8.1,
            ),
            (
                Run {
                    alpha: 64.0,
                    ..quickstart
                },
                3.1,
            ),
            (
                Run {
                    b_ratio: 16.0,
                    ..quickstart
                },
                2.3,
            ),
            (
                Run {
                    method: olora,
                    ..quickstart
                },
                2.4,
            ),
            (
                Run {
                    method: Method::OloraTail,
                    ..quickstart
                },
                3.0,
            ),
            (
                Run {
                    method: Method::Pissa,
                    tokens: 175.0,
                    ..quickstart
                },
                2.35,
            ),
            (
                Run {
                    method: Method::LoraGradient,
                    ..quickstart
                },
                1.1,
            ),
            (
                Run {
                    method: olora,
                    params: 4e6,
                    ..quickstart
                },
                1.7,
            ),
            (smollm2, 2.1),
            (
                Run {
                    method: olora,
                    ..smollm2
                },
                1.3,
            ),
            (
                Run {
                    tokens: 205.0,
                    ..smollm2
                },
                1.6,
            ),
        ] {
            let off = run.share() * ratio;
            assert!((0.7..1.45).contains(&off), "{run:?}: {off}");
        }
    }
}
