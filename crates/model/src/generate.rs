//! Text generation, one token at a time.

use std::ops::ControlFlow;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Llama, ModelConfig, ModelError, first_not_finite};

/// How the next token is chosen. The filters apply in the order of the
/// fields, as in transformers' `generate`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits of tokens already present if positive, multiplies
    /// them if negative; 1 is off.
    pub repetition_penalty: f32,
    /// Divides the logits; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Keeps the k likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the likeliest tokens whose probabilities first add up to p; 1
    /// keeps all.
    pub top_p: f32,
    /// Seed of the draw.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            repetition_penalty: 1.0,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
        }
    }
}

impl Sampling {
    fn validate(&self) -> Result<(), ModelError> {
        let out_of_range = |key, found: f32, expected: &str| {
            Err(ModelError::OutOfRange {
                key,
                found: found.to_string(),
                expected: expected.to_owned(),
            })
        };
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return out_of_range("temperature", self.temperature, "0 (greedy) or more");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return out_of_range("top-p", self.top_p, "above 0 and at most 1");
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            return out_of_range("repetition-penalty", self.repetition_penalty, "above 0");
        }
        Ok(())
    }
}

/// Continues `prompt` by up to `max_new_tokens` tokens.
///
/// `on_token` sees each token as it is chosen and may stop the generation.
/// Stops by itself after any id of `stop_ids`, which is passed on too.
/// Returns the new tokens.
///
/// # Errors
///
/// [`ModelError::OutOfRange`] for an empty prompt, a prompt token beyond the
/// vocabulary, more tokens than the model has positions, where it has an end of
/// them, or impossible sampling options. [`ModelError::NotFinite`] if the model
/// computes logits that are NaN or infinite, naming where that begins.
pub fn generate(
    model: &Llama,
    prompt: &[u32],
    max_new_tokens: usize,
    sampling: &Sampling,
    stop_ids: &[u32],
    mut on_token: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Vec<u32>, ModelError> {
    sampling.validate()?;
    let n_vocab = model.vocab_size();
    if prompt.is_empty() {
        return Err(ModelError::OutOfRange {
            key: "prompt",
            found: "empty".to_owned(),
            expected: "at least one token".to_owned(),
        });
    }
    if let Some(id) = prompt.iter().find(|&&id| id as usize >= n_vocab) {
        return Err(ModelError::OutOfRange {
            key: "prompt",
            found: format!("token {id}"),
            expected: format!(
                "tokens below the model's vocabulary size of {n_vocab}; is this its tokenizer?"
            ),
        });
    }
    check_positions(model.position_limit(), prompt.len(), max_new_tokens)?;
    let device = model.device().inner();
    let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
    let mut cache = model.empty_cache();
    let mut seen = prompt.to_vec();
    let mut input = prompt.to_vec();
    for _ in 0..max_new_tokens {
        // As `Phi3ForCausalLM.prepare_inputs_for_generation` does.
        if let Some(end) = model.cache_ends_at()
            && !cache.is_empty()
            && cache.len() <= end
            && seen.len() > end
        {
            cache = model.empty_cache();
            input.clone_from(&seen);
        }
        let logits = model.next_token_logits(ids(&input, &device), &mut cache);
        let mut logits = logits
            .try_into_data_dtype(DType::F32)
            .map_err(|error| ModelError::device("logits", &error))?
            .try_into_vec::<f32>()
            .map_err(|error| ModelError::device("logits", &error))?;
        if !all_finite(&logits) {
            let embedded = model.embed(ids(&seen, &device));
            let positions = model.positions(&embedded, 0);
            return Err(ModelError::NotFinite {
                what: "the logits of the next token".to_owned(),
                first: first_not_finite(model, embedded, &positions)?,
            });
        }
        let next = choose(&mut logits, &seen, sampling, &mut rng);
        seen.push(next);
        if on_token(next).is_break() || stop_ids.contains(&next) {
            break;
        }
        input = vec![next];
    }
    Ok(seen.split_off(prompt.len()))
}

/// The last of the new tokens is never read: it takes no position.
fn check_positions(
    limit: Option<usize>,
    n_prompt: usize,
    max_new_tokens: usize,
) -> Result<(), ModelError> {
    let Some(limit) = limit else {
        return Ok(());
    };
    let n_positions = n_prompt.saturating_add(max_new_tokens.saturating_sub(1));
    if n_positions <= limit {
        return Ok(());
    }
    Err(ModelError::OutOfRange {
        key: "max-new-tokens",
        found: format!("{max_new_tokens} after a prompt of {n_prompt} tokens"),
        expected: if n_prompt <= limit {
            format!(
                "at most {}: the model has {limit} positions and none beyond",
                limit - n_prompt + 1
            )
        } else {
            format!("0: the model has only {limit} positions; shorten the prompt")
        },
    })
}

impl ModelConfig {
    /// Whether a prompt of `n_prompt` tokens is within the positions that the
    /// model was made for, rotary ones included; for those who ask before a
    /// model is loaded. What is generated may go beyond them, and gets worse.
    ///
    /// # Errors
    ///
    /// [`ModelError::OutOfRange`], saying how many there are.
    pub fn check_prompt(&self, n_prompt: usize) -> Result<(), ModelError> {
        let limit = self.longest_sequence();
        if n_prompt <= limit {
            return Ok(());
        }
        Err(ModelError::OutOfRange {
            key: "prompt",
            found: format!("{n_prompt} tokens long"),
            expected: format!(
                "at most {limit}: the model was made for as many positions, and reads nothing beyond them"
            ),
        })
    }

    /// Whether [`generate`] has the positions for `max_new_tokens` after a prompt
    /// of `n_prompt` tokens; for those who ask before a model is loaded.
    ///
    /// # Errors
    ///
    /// [`ModelError::OutOfRange`], saying how many there are.
    pub fn check_generation(
        &self,
        n_prompt: usize,
        max_new_tokens: usize,
    ) -> Result<(), ModelError> {
        check_positions(self.position_limit(), n_prompt, max_new_tokens)
    }
}

fn ids(tokens: &[u32], device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i32> = tokens.iter().map(|&id| id as i32).collect();
    Tensor::from_data(TensorData::new(ids, [1, tokens.len()]), device)
}

/// Counts instead of stopping at the first: without a branch it is vectorised,
/// and small beside the choice of a token.
fn all_finite(values: &[f32]) -> bool {
    values.iter().filter(|value| !value.is_finite()).count() == 0
}

/// The first of equals, as argmax does. The highest value is found first, which is
/// vectorised, and then where it is. 0 if there are none.
fn first_of_highest(logits: &[f32]) -> usize {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (whole, rest) = logits.as_chunks::<16>();
    for values in whole {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    let all = lanes.iter().chain(rest).copied();
    let highest = all.fold(f32::NEG_INFINITY, f32::max);
    let found = logits.iter().position(|value| *value == highest);
    found.unwrap_or(0)
}

/// Picks a token from the logits of one position, which are scratch space.
fn choose(logits: &mut [f32], seen: &[u32], sampling: &Sampling, rng: &mut impl Rng) -> u32 {
    if sampling.repetition_penalty != 1.0 {
        let mut distinct = seen.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        for id in distinct {
            if let Some(logit) = logits.get_mut(id as usize) {
                let penalty = sampling.repetition_penalty;
                *logit = if *logit > 0.0 {
                    *logit / penalty
                } else {
                    *logit * penalty
                };
            }
        }
    }
    if sampling.temperature == 0.0 {
        return first_of_highest(logits) as u32;
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let largest = order.first().map_or(0.0, |&id| logits[id]);
    let mut weights: Vec<f32> = order
        .iter()
        .map(|&id| ((logits[id] - largest) / sampling.temperature).exp())
        .collect();
    let total: f32 = weights.iter().sum();
    let mut kept = 0.0;
    let n_kept = weights.iter().take_while(|&&weight| {
        let before = kept;
        kept += weight / total;
        before < sampling.top_p
    });
    let n_kept = n_kept.count().max(1);
    weights.truncate(n_kept);
    let mut left = rng.random::<f32>() * weights.iter().sum::<f32>();
    let drawn = weights.iter().position(|weight| {
        left -= weight;
        left <= 0.0
    });
    order[drawn.unwrap_or(n_kept - 1)] as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(sampling: &Sampling, seen: &[u32]) -> Vec<usize> {
        let logits = [2.0, 1.0, 0.0, -1.0];
        let mut counts = vec![0; 4];
        let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        for _ in 0..4000 {
            counts[choose(&mut logits.clone(), seen, sampling, &mut rng) as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        assert_eq!(
            choose(&mut [1.0, 3.0, 3.0], &[], &Sampling::default(), &mut rng),
            1
        );
        for best in 0..40 {
            let mut logits: Vec<f32> = (0..40).map(|i| -1.0 - i as f32).collect();
            logits[best..].fill(2.0);
            assert_eq!(first_of_highest(&logits), best);
        }
        assert_eq!(first_of_highest(&[]), 0);
    }

    #[test]
    fn frequencies_follow_the_softmax_at_the_temperature() {
        let sampling = Sampling {
            temperature: 0.5,
            ..Sampling::default()
        };
        let counts = draws(&sampling, &[]);
        let weights: Vec<f64> = [4.0_f64, 2.0, 0.0, -2.0].iter().map(|x| x.exp()).collect();
        let total: f64 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(&weights) {
            assert!(
                (*count as f64 / 4000.0 - weight / total).abs() < 0.03,
                "{counts:?}"
            );
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let warm = Sampling {
            temperature: 1.0,
            ..Sampling::default()
        };
        let top_k = draws(
            &Sampling {
                top_k: 2,
                ..warm.clone()
            },
            &[],
        );
        assert!(
            top_k[0] > 0 && top_k[1] > 0 && top_k[2] == 0 && top_k[3] == 0,
            "{top_k:?}"
        );
        // Probabilities 0.644, 0.237, 0.087, 0.032: 0.7 is first reached with the second.
        let top_p = draws(
            &Sampling {
                top_p: 0.7,
                ..warm.clone()
            },
            &[],
        );
        assert!(top_p[1] > 0 && top_p[2] == 0 && top_p[3] == 0, "{top_p:?}");
        let tiny = draws(
            &Sampling {
                top_p: 1e-6,
                ..warm
            },
            &[],
        );
        assert_eq!(tiny[0], 4000);
    }

    #[test]
    fn the_penalty_lowers_what_was_seen_whatever_its_sign() {
        let sampling = Sampling {
            repetition_penalty: 3.0,
            ..Sampling::default()
        };
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        assert_eq!(choose(&mut [2.0, 1.0], &[0], &sampling, &mut rng), 1);
        assert_eq!(choose(&mut [-1.0, -2.0], &[0], &sampling, &mut rng), 1);
    }
}
