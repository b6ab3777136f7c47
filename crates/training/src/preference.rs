//! Learning which of two answers is the better one: DPO, ORPO and `SimPO`.
//!
//! Each is defined as TRL 1.16 defines it, and held to its numbers by golden
//! values (`fixtures/make_preferences.py`). A micro-batch holds pairs, in each the
//! chosen answer and then the rejected one ([`Corpus::pairs`](olora_data::Corpus));
//! the sum is over pairs, and the count is their number.
//!
//! Where a chosen answer's prompt is trained too, its tokens weigh 0 in the batch:
//! they are in the cross-entropy of ORPO and in no answer.

use burn::tensor::{
    Tensor,
    activation::{log_sigmoid, relu},
};
use olora_data::Batch;

use crate::objective::{Loss, Measure, Objective, Outputs};

/// Direct preference optimisation (Rafailov et al. 2023,
/// [arXiv 2305.18290](https://arxiv.org/abs/2305.18290)): the chosen answer is to
/// gain more on the reference than the rejected one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dpo {
    /// How much a gain counts: the higher, the nearer the model stays to the
    /// reference.
    pub beta: f64,
    /// What is made of the difference of the gains.
    pub loss: DpoLoss,
    /// The share of pairs that is expected to be the wrong way around; of
    /// [`DpoLoss::Sigmoid`], [`DpoLoss::SigmoidNorm`] and [`DpoLoss::Robust`].
    pub label_smoothing: f64,
    /// How much the cross-entropy of the chosen answers is added.
    pub rpo_alpha: f64,
}

impl Default for Dpo {
    fn default() -> Self {
        Self {
            beta: 0.1,
            loss: DpoLoss::Sigmoid,
            label_smoothing: 0.0,
            rpo_alpha: 0.0,
        }
    }
}

/// What is made of the difference `Δ` of two gains on the reference, each the
/// answer's `log π − log π_ref`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DpoLoss {
    /// `−log σ(βΔ)`; with label smoothing `ε`,
    /// `−(1−ε)·log σ(βΔ) − ε·log σ(−βΔ)` (Mitchell 2023, conservative DPO).
    #[default]
    Sigmoid,
    /// The same of gains by token: each divided by its answer's length.
    SigmoidNorm,
    /// `max(0, 1 − βΔ)` (Zhao et al. 2023, [arXiv 2305.10425](https://arxiv.org/abs/2305.10425)).
    Hinge,
    /// `(Δ − 1/(2β))²` of gains by token (Azar et al. 2023,
    /// [arXiv 2310.12036](https://arxiv.org/abs/2310.12036), equation 17).
    Ipo,
    /// `(−(1−ε)·log σ(βΔ) + ε·log σ(−βΔ)) / (1−2ε)` (Chowdhury et al. 2024,
    /// [arXiv 2403.00409](https://arxiv.org/abs/2403.00409)).
    Robust,
}

impl DpoLoss {
    /// Whether gains are divided by the answers' lengths.
    fn is_by_token(self) -> bool {
        matches!(self, Self::SigmoidNorm | Self::Ipo)
    }
}

/// Odds-ratio preference optimisation (Hong et al. 2024,
/// [arXiv 2403.07691](https://arxiv.org/abs/2403.07691)), which needs no
/// reference: the cross-entropy of the chosen answer, with its prompt where that is
/// trained, minus `β·log σ` of the log odds ratio of the two, by token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Orpo {
    /// How much the odds ratio counts; `λ` in the paper.
    pub beta: f64,
}

impl Default for Orpo {
    fn default() -> Self {
        Self { beta: 0.1 }
    }
}

/// Simple preference optimisation (Meng et al. 2024,
/// [arXiv 2405.14734](https://arxiv.org/abs/2405.14734)), which needs no
/// reference: `−log σ(β·Δ − γ)` of the difference of log-likelihoods by token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SimPo {
    /// How much the difference counts.
    pub beta: f64,
    /// The margin that is to be reached.
    pub gamma: f64,
    /// As [`Dpo::label_smoothing`] of the sigmoid.
    pub label_smoothing: f64,
    /// How much the cross-entropy of the chosen answers is added: CPO-SimPO.
    pub rpo_alpha: f64,
}

impl Default for SimPo {
    fn default() -> Self {
        Self {
            beta: 2.0,
            gamma: 1.0,
            label_smoothing: 0.0,
            rpo_alpha: 0.0,
        }
    }
}

/// The number of pairs of a batch; 0 if it is not of pairs, each the chosen answer
/// and then the rejected one.
fn n_pairs(batch: &Batch) -> usize {
    let pairs = batch.preferred.as_deref().unwrap_or_default();
    let (pairs, rest) = pairs.as_chunks::<2>();
    let all = rest.is_empty() && pairs.iter().all(|pair| *pair == [true, false]);
    if all { pairs.len() } else { 0 }
}

/// What there is of the chosen and of the rejected answers, `[n_pairs]` each.
#[derive(Clone)]
struct Both {
    chosen: Tensor<1>,
    rejected: Tensor<1>,
}

impl Both {
    /// From `[2·n_pairs]`.
    fn of(by_sample: Tensor<1>) -> Self {
        let n = by_sample.dims()[0] / 2;
        let pairs = by_sample.reshape([n, 2]);
        let half = |i| pairs.clone().narrow(1, i, 1).reshape([n]);
        Self {
            chosen: half(0),
            rejected: half(1),
        }
    }

    fn map(self, mut f: impl FnMut(Tensor<1>) -> Tensor<1>) -> Self {
        Self {
            chosen: f(self.chosen),
            rejected: f(self.rejected),
        }
    }

    fn difference(self) -> Tensor<1> {
        self.chosen - self.rejected
    }
}

impl std::ops::Div for Both {
    type Output = Self;

    fn div(self, other: Self) -> Self {
        Self {
            chosen: self.chosen / other.chosen,
            rejected: self.rejected / other.rejected,
        }
    }
}

/// The answers of a batch of pairs.
struct Pairs {
    n: usize,
    /// Of each trained token, `[n_trained]`, nats.
    log_likelihoods: Tensor<1>,
    /// Of each answer, the sum over its tokens.
    answers: Both,
    /// Tokens of each answer.
    lengths: Both,
    /// Tokens of all chosen answers.
    n_chosen_tokens: f64,
}

impl Pairs {
    fn of(outputs: &Outputs<'_>) -> Self {
        let batch = outputs.batch();
        let log_likelihoods = outputs.token_log_likelihoods();
        let answers = Both::of(outputs.sum_by_sample(outputs.weighted(log_likelihoods.clone())));
        let lengths = answer_lengths(batch);
        let n_chosen_tokens = lengths.iter().step_by(2).map(|n| f64::from(*n)).sum();
        let device = log_likelihoods.device();
        Self {
            n: n_pairs(batch),
            lengths: Both::of(Tensor::from_data(lengths.as_slice(), &device)),
            log_likelihoods,
            answers,
            n_chosen_tokens,
        }
    }

    /// The cross-entropy of the chosen answers by token, summed over pairs as if
    /// each pair had the mean of the micro-batch: divided by the number of pairs,
    /// it is that mean, as in TRL.
    fn cross_entropy(&self) -> Tensor<1> {
        let per_token = self.n as f64 / self.n_chosen_tokens.max(1.0);
        self.answers.chosen.clone().sum().mul_scalar(-per_token)
    }

    /// What is measured of all objectives.
    fn measures(&self, rewards: &Both, log_likelihoods: Both) -> Vec<Measure> {
        let margins = rewards.clone().difference();
        let is_higher = rewards.chosen.clone().greater(rewards.rejected.clone());
        let device = margins.device();
        let tokens = Tensor::from_data([self.n_chosen_tokens as f32], &device);
        vec![
            ("rewards/chosen", rewards.chosen.clone().sum()),
            ("rewards/rejected", rewards.rejected.clone().sum()),
            ("rewards/margins", margins.sum()),
            ("rewards/accuracies", is_higher.float().sum()),
            ("logps/chosen", log_likelihoods.chosen.sum()),
            ("logps/rejected", log_likelihoods.rejected.sum()),
            ("nll_loss", self.answers.chosen.clone().sum().neg()),
            ("nll_loss#", tokens),
        ]
    }
}

/// Tokens of each answer: those that are trained and do not weigh 0.
fn answer_lengths(batch: &Batch) -> Vec<f32> {
    let mut lengths = vec![0.0; batch.n_samples()];
    for (i, sample) in batch.target_samples().into_iter().enumerate() {
        let weights = batch.target_weights.as_ref();
        let is_answer = weights.is_none_or(|weights| weights[i] > 0.0);
        lengths[sample as usize] += f32::from(u8::from(is_answer));
    }
    lengths
}

/// What a batch that is not of pairs gives: no sum, and no count, for which it is
/// refused.
fn nothing(outputs: &Outputs<'_>) -> Loss {
    outputs.token_log_likelihoods().sum().mul_scalar(0.0).into()
}

/// `−(1−ε)·log σ(x) − ε·log σ(−x)`.
fn smoothed(x: Tensor<1>, smoothing: f64) -> Tensor<1> {
    let right = log_sigmoid(x.clone()).mul_scalar(-(1.0 - smoothing));
    if smoothing == 0.0 {
        return right;
    }
    right - log_sigmoid(x.neg()).mul_scalar(smoothing)
}

impl Objective for Dpo {
    fn name(&self) -> &'static str {
        "DPO"
    }

    fn needs_reference(&self) -> bool {
        true
    }

    fn count(&self, batch: &Batch) -> f64 {
        n_pairs(batch) as f64
    }

    fn loss(&self, outputs: &Outputs<'_>) -> Loss {
        if n_pairs(outputs.batch()) == 0 {
            return nothing(outputs);
        }
        let pairs = Pairs::of(outputs);
        let gained = pairs.log_likelihoods.clone() - outputs.reference_log_likelihoods();
        let gains = Both::of(outputs.sum_by_sample(outputs.weighted(gained)));
        let difference = if self.loss.is_by_token() {
            (gains.clone() / pairs.lengths.clone()).difference()
        } else {
            gains.clone().difference()
        };
        let beta = self.beta;
        let scaled = || difference.clone().mul_scalar(beta);
        let losses = match self.loss {
            DpoLoss::Sigmoid | DpoLoss::SigmoidNorm => smoothed(scaled(), self.label_smoothing),
            DpoLoss::Hinge => relu(scaled().neg().add_scalar(1.0)),
            DpoLoss::Ipo => difference.sub_scalar(1.0 / (2.0 * beta)).square(),
            DpoLoss::Robust => {
                let smoothing = self.label_smoothing;
                let right = log_sigmoid(scaled()).mul_scalar(-(1.0 - smoothing));
                let flipped = log_sigmoid(scaled().neg()).mul_scalar(smoothing);
                (right + flipped).div_scalar(1.0 - 2.0 * smoothing)
            }
        };
        let mut sum = losses.sum();
        if self.rpo_alpha > 0.0 {
            sum = sum + pairs.cross_entropy().mul_scalar(self.rpo_alpha);
        }
        let rewards = gains.map(|gain| gain.mul_scalar(beta));
        Loss {
            sum,
            measures: pairs.measures(&rewards, pairs.answers.clone()),
        }
    }
}

impl Objective for SimPo {
    fn name(&self) -> &'static str {
        "SimPO"
    }

    fn count(&self, batch: &Batch) -> f64 {
        n_pairs(batch) as f64
    }

    fn loss(&self, outputs: &Outputs<'_>) -> Loss {
        if n_pairs(outputs.batch()) == 0 {
            return nothing(outputs);
        }
        let pairs = Pairs::of(outputs);
        let by_token = pairs.answers.clone() / pairs.lengths.clone();
        let rewards = by_token.clone().map(|mean| mean.mul_scalar(self.beta));
        let margin = rewards.clone().difference().sub_scalar(self.gamma);
        let mut sum = smoothed(margin, self.label_smoothing).sum();
        if self.rpo_alpha > 0.0 {
            sum = sum + pairs.cross_entropy().mul_scalar(self.rpo_alpha);
        }
        Loss {
            sum,
            measures: pairs.measures(&rewards, by_token),
        }
    }
}

impl Objective for Orpo {
    fn name(&self) -> &'static str {
        "ORPO"
    }

    fn count(&self, batch: &Batch) -> f64 {
        n_pairs(batch) as f64
    }

    fn loss(&self, outputs: &Outputs<'_>) -> Loss {
        let batch = outputs.batch();
        if n_pairs(batch) == 0 {
            return nothing(outputs);
        }
        let pairs = Pairs::of(outputs);
        // Prompts too, where they are trained: they weigh nothing in the answers alone.
        let whole = Both::of(outputs.sum_by_sample(pairs.log_likelihoods.clone()));
        let of_chosen = batch.target_samples().into_iter().filter(|i| i % 2 == 0);
        let per_token = pairs.n as f64 / of_chosen.count().max(1) as f64;
        let cross_entropy = whole.chosen.sum().mul_scalar(-per_token);

        let by_token = pairs.answers.clone() / pairs.lengths.clone();
        let complements = by_token.clone().map(log_of_complement);
        let log_odds = by_token.clone().difference() - complements.difference();
        let ratio = log_sigmoid(log_odds.clone());
        let sum = cross_entropy - ratio.clone().sum().mul_scalar(self.beta);
        let rewards = by_token.clone().map(|mean| mean.mul_scalar(self.beta));
        let mut measures = pairs.measures(&rewards, by_token);
        measures.push(("log_odds_ratio", ratio.sum()));
        measures.push(("log_odds_chosen", log_odds.sum()));
        Loss { sum, measures }
    }
}

/// `log(1 − exp(x))` for `x` below 0, without cancellation: by the logarithm of
/// `1 + y` where `exp(x)` is below a half, and of `−2·exp(x/2)·sinh(x/2)` above.
/// Each branch is computed at the nearest `x` that is its own, so that no infinite
/// gradient of the other comes in.
fn log_of_complement(x: Tensor<1>) -> Tensor<1> {
    use std::f64::consts::LN_2;
    let small = x.clone().clamp_max(-LN_2);
    let large = x.clamp_min(-LN_2);
    let of_small = small.exp().neg().log1p();
    let half = large.clone().div_scalar(2.0);
    let of_large = half.clone().neg().sinh().log() + half.add_scalar(LN_2);
    // Where the two meet, either is log(1/2).
    of_small + of_large.add_scalar(LN_2)
}
