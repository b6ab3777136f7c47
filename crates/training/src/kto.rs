//! Learning from single answers that were judged good or bad.

use burn::tensor::{Tensor, TensorData, activation::sigmoid};
use olora_data::{Batch, Padding};

use crate::objective::{Loss, Objective, Outputs};

/// Kahneman-Tversky optimisation (Ethayarajh et al. 2024,
/// [arXiv 2402.01306](https://arxiv.org/abs/2402.01306), equation 7), as TRL 1.16
/// defines it: a good answer is to gain more on the reference than the model does in
/// general, a bad one less.
///
/// What the model gains in general, `z`, is estimated for each micro-batch from
/// its prompts with each other's answers ([`Batch::mismatched`]): the mean of
/// `log π − log π_ref` of those, and at least 0. No gradient goes through it. A
/// micro-batch of one sample has no other answer, and compares with its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kto {
    /// How much a gain counts.
    pub beta: f64,
    /// What the loss of a good answer counts.
    pub desirable_weight: f64,
    /// What the loss of a bad one counts.
    pub undesirable_weight: f64,
    /// The most tokens of a prompt with another's answer; as of any sample.
    pub max_length: usize,
    /// What lengths are padded to a multiple of, as of any batch.
    pub padding_multiple: usize,
}

impl Kto {
    /// Weights of 1, and what is longer than `max_length` is cut.
    pub fn new(beta: f64, max_length: usize) -> Self {
        Self {
            beta,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
            max_length,
            padding_multiple: 1,
        }
    }
}

impl Objective for Kto {
    fn name(&self) -> &'static str {
        "KTO"
    }

    fn needs_reference(&self) -> bool {
        true
    }

    fn unrelated(&self, batch: &Batch) -> Option<Batch> {
        let padding = Padding {
            // Nothing looks at padding.
            id: 0,
            multiple: self.padding_multiple,
        };
        batch.preferred.as_ref()?;
        Some(batch.mismatched(self.max_length, padding))
    }

    fn count(&self, batch: &Batch) -> f64 {
        batch.preferred.as_ref().map_or(0.0, |all| all.len() as f64)
    }

    fn loss(&self, outputs: &Outputs<'_>) -> Loss {
        let batch = outputs.batch();
        let log_likelihoods = outputs.token_log_likelihoods();
        let (Some(preferred), Some(unrelated)) = (&batch.preferred, outputs.unrelated_gains())
        else {
            // Without a count, for which it is refused.
            return log_likelihoods.sum().mul_scalar(0.0).into();
        };
        let gained = log_likelihoods.clone() - outputs.reference_log_likelihoods();
        let gains = outputs.sum_by_sample(gained);
        let of_answers = outputs.sum_by_sample(log_likelihoods);
        let general = unrelated.mean().clamp_min(0.0);

        let device = gains.device();
        let n = preferred.len();
        let by_label = |good: f64, bad: f64| {
            let values = preferred
                .iter()
                .map(|is| if *is { good } else { bad } as f32);
            let values = TensorData::new(values.collect::<Vec<_>>(), [n]);
            Tensor::<1>::from_data(values, &device)
        };
        let weights = by_label(self.desirable_weight, self.undesirable_weight);
        // A good answer is to be above what is general, a bad one below.
        let sign = by_label(1.0, -1.0);
        let above = (gains.clone() - general.clone()) * sign;
        let losses = (sigmoid(above.mul_scalar(self.beta)).neg().add_scalar(1.0)) * weights;

        let rewards = gains.mul_scalar(self.beta);
        let good = by_label(1.0, 0.0);
        let bad = by_label(0.0, 1.0);
        let mut measures = Vec::new();
        for (of, reward, share, log_likelihood, share_of_it) in [
            (
                &good,
                "rewards/chosen",
                "rewards/chosen#",
                "logps/chosen",
                "logps/chosen#",
            ),
            (
                &bad,
                "rewards/rejected",
                "rewards/rejected#",
                "logps/rejected",
                "logps/rejected#",
            ),
        ] {
            let n = of.clone().sum();
            measures.push((reward, (rewards.clone() * of.clone()).sum()));
            measures.push((share, n.clone()));
            measures.push((log_likelihood, (of_answers.clone() * of.clone()).sum()));
            measures.push((share_of_it, n));
        }
        measures.push(("kl", general.mul_scalar(n as f64)));
        let tokens = batch.target_samples();
        let n_good = tokens.iter().filter(|i| preferred[**i as usize]).count();
        measures.push(("nll_loss", (of_answers * good).sum().neg()));
        measures.push(("nll_loss#", Tensor::from_data([n_good as f32], &device)));
        Loss {
            sum: losses.sum(),
            measures,
        }
    }
}
