//! How the next token is chosen.

use std::collections::BTreeMap;

use rand::Rng;

use crate::ModelError;

/// How the next token is chosen. What changes logits applies in the order of the
/// fields, and the filters after it, as in transformers' `generate`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits of tokens already present if positive, multiplies
    /// them if negative; 1 is off.
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens that have been generated (OpenAI's API); 0 is
    /// off.
    pub presence_penalty: f32,
    /// Taken from them as often as they have been generated; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens.
    pub bias: BTreeMap<u32, f32>,
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
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            bias: BTreeMap::new(),
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// # Errors
    ///
    /// [`ModelError::OutOfRange`] for what cannot be meant, naming it.
    pub fn validate(&self) -> Result<(), ModelError> {
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
        let added = [
            ("presence-penalty", self.presence_penalty),
            ("frequency-penalty", self.frequency_penalty),
        ];
        let biases = self.bias.values().map(|bias| ("logit-bias", *bias));
        for (key, value) in added.into_iter().chain(biases) {
            if !value.is_finite() {
                return out_of_range(key, value, "a finite number");
            }
        }
        Ok(())
    }
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

/// Candidates that are put in order at first: as a rule the draw is among them.
const FIRST: usize = 64;

/// Picks a token from the logits of one position, which are scratch space, after
/// `seen`, of which all beyond `n_prompt` has been generated.
pub(crate) fn choose(
    logits: &mut [f32],
    seen: &[u32],
    n_prompt: usize,
    sampling: &Sampling,
    rng: &mut impl Rng,
) -> u32 {
    change(logits, seen, n_prompt, sampling);
    if sampling.temperature == 0.0 {
        return first_of_highest(logits) as u32;
    }
    draw(logits, sampling, rng)
}

/// Penalties and biases.
fn change(logits: &mut [f32], seen: &[u32], n_prompt: usize, sampling: &Sampling) {
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
    if sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0 {
        let mut counts = BTreeMap::new();
        for id in seen.get(n_prompt..).unwrap_or_default() {
            *counts.entry(*id).or_insert(0.0) += 1.0;
        }
        for (id, count) in counts {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit -= sampling.presence_penalty + count * sampling.frequency_penalty;
            }
        }
    }
    for (id, bias) in &sampling.bias {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit += bias;
        }
    }
}

/// A token by its probability among those that the filters leave. Likelier tokens are
/// put in order only as far as the draw goes: it is nearly always among the first few,
/// and to sort a vocabulary takes as long as a small model takes for a token.
fn draw(logits: &[f32], sampling: &Sampling, rng: &mut impl Rng) -> u32 {
    let n = match sampling.top_k {
        0 => logits.len(),
        k => k.min(logits.len()),
    };
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |id: u32| f64::from((logits[id as usize] - largest) / sampling.temperature).exp();
    let likelier = |a: &u32, b: &u32| {
        let by_logit = logits[*b as usize].total_cmp(&logits[*a as usize]);
        by_logit.then(a.cmp(b))
    };
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    if n < order.len() {
        order.select_nth_unstable_by(n, likelier);
        order.truncate(n);
    }
    // In the order of ids, so that it does not depend on how they came to be selected.
    order.sort_unstable();
    let total: f64 = order.iter().map(|id| weight(*id)).sum();
    let (mut sorted, mut kept) = (0, 0.0);
    // Puts the next candidates in order behind those that are.
    let sort_more = |order: &mut [u32], sorted: &mut usize| {
        let rest = &mut order[*sorted..];
        let more = (FIRST.max(3 * *sorted)).min(rest.len());
        if more < rest.len() {
            rest.select_nth_unstable_by(more, likelier);
        }
        rest[..more].sort_unstable_by(likelier);
        *sorted += more;
    };
    // How many the threshold of probability keeps: those before which it is not reached.
    let mut n_kept = order.len();
    if sampling.top_p < 1.0 {
        let enough = f64::from(sampling.top_p) * total;
        n_kept = 0;
        while n_kept < order.len() && (n_kept == 0 || kept < enough) {
            if n_kept == sorted {
                sort_more(&mut order, &mut sorted);
            }
            kept += weight(order[n_kept]);
            n_kept += 1;
        }
    } else {
        kept = total;
    }
    let mut left = f64::from(rng.random::<f32>()) * kept;
    for place in 0..n_kept {
        if place == sorted {
            sort_more(&mut order, &mut sorted);
        }
        left -= weight(order[place]);
        if left <= 0.0 {
            return order[place];
        }
    }
    // Where sums in another order end a little lower.
    order.get(n_kept.saturating_sub(1)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn draws(sampling: &Sampling, seen: &[u32]) -> Vec<usize> {
        let logits = [2.0, 1.0, 0.0, -1.0];
        let mut counts = vec![0; 4];
        let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        for _ in 0..4000 {
            counts[choose(&mut logits.clone(), seen, seen.len(), sampling, &mut rng) as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        assert_eq!(
            choose(&mut [1.0, 3.0, 3.0], &[], 0, &Sampling::default(), &mut rng),
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
        assert_eq!(choose(&mut [2.0, 1.0], &[0], 1, &sampling, &mut rng), 1);
        assert_eq!(choose(&mut [-1.0, -2.0], &[0], 1, &sampling, &mut rng), 1);
    }

    #[test]
    fn what_was_generated_is_taken_from_and_the_prompt_is_not() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let with = |presence_penalty, frequency_penalty| Sampling {
            presence_penalty,
            frequency_penalty,
            ..Sampling::default()
        };
        let mut chosen = |sampling: &Sampling, seen: &[u32], n_prompt| {
            choose(&mut [2.0, 1.0], seen, n_prompt, sampling, &mut rng)
        };
        assert_eq!(chosen(&with(1.5, 0.0), &[0], 1), 0, "the prompt");
        assert_eq!(
            chosen(&with(1.5, 0.0), &[0], 0),
            1,
            "once is enough for presence"
        );
        assert_eq!(chosen(&with(0.0, 0.6), &[0], 0), 0);
        assert_eq!(chosen(&with(0.0, 0.6), &[0, 0], 0), 1, "each time counts");
    }

    #[test]
    fn a_bias_is_added() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let sampling = Sampling {
            bias: BTreeMap::from([(1, 2.0), (99, 5.0)]),
            ..Sampling::default()
        };
        assert_eq!(choose(&mut [2.0, 1.0], &[], 0, &sampling, &mut rng), 1);
    }

    /// Every candidate put in order before anything is drawn: what `draw` is short for.
    fn drawn_slowly(logits: &[f32], sampling: &Sampling, rng: &mut impl Rng) -> u32 {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        if sampling.top_k > 0 {
            order.truncate(sampling.top_k);
        }
        let weight =
            |id: usize| f64::from((logits[id] - logits[order[0]]) / sampling.temperature).exp();
        let mut weights: Vec<f64> = order.iter().map(|&id| weight(id)).collect();
        let total: f64 = weights.iter().sum();
        let mut kept = 0.0;
        let n_kept = weights.iter().take_while(|&&weight| {
            let before = kept;
            kept += weight / total;
            before < f64::from(sampling.top_p)
        });
        let n_kept = n_kept.count().max(1);
        weights.truncate(n_kept);
        let mut left = f64::from(rng.random::<f32>()) * weights.iter().sum::<f64>();
        let drawn = weights.iter().position(|weight| {
            left -= weight;
            left <= 0.0
        });
        order[drawn.unwrap_or(n_kept - 1)] as u32
    }

    #[test]
    fn what_is_drawn_is_what_is_drawn_from_all_in_order() {
        let logits: Vec<f32> = (0..3000)
            .map(|i| (i * 7919 % 3001) as f32 * 0.001)
            .collect();
        for (top_k, top_p) in [
            (0, 1.0),
            (0, 0.9),
            (0, 0.01),
            (5, 1.0),
            (500, 0.7),
            (9000, 1.0),
        ] {
            let sampling = Sampling {
                temperature: 0.7,
                top_k,
                top_p,
                ..Sampling::default()
            };
            for seed in 0..50 {
                let [mut rng, mut again] = [seed; 2].map(ChaCha8Rng::seed_from_u64);
                let found = draw(&logits, &sampling, &mut rng);
                let right = drawn_slowly(&logits, &sampling, &mut again);
                assert_eq!(found, right, "{top_k} {top_p} {seed}");
            }
        }
    }
}
