//! What a model scored, item by item and in sum.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{MultipleChoice, TaskName, python::argmax};

/// What a model scored on a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// The task.
    pub task: TaskName,
    /// Its items that were scored.
    pub n_items: usize,
    /// Means over the items, by the harness's names: `acc`, `acc_norm`,
    /// `acc_bytes`; `exact_match,strict-match`, `exact_match,flexible-extract`.
    pub metrics: BTreeMap<String, Score>,
    /// Tokens that went through the model, without padding.
    pub tokens: usize,
    /// Tokens of all requests, each with its whole context: what would go
    /// through the model if nothing were shared.
    pub request_tokens: usize,
    /// Seconds it took, tokenisation included.
    pub seconds: f64,
    /// Each item, in the order of the file. Not part of the serialised form:
    /// [`write_items`](super::write_items) writes them.
    #[serde(skip)]
    pub items: ItemResults,
}

/// A mean and how uncertain it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The mean over the items.
    pub value: f64,
    /// Its standard error, the sample's standard deviation divided by the root
    /// of the number of items; `None` for one item.
    pub stderr: Option<f64>,
}

impl Score {
    /// Of right and wrong items.
    pub(crate) fn of(right: impl Iterator<Item = bool>) -> Self {
        let (n, n_right) = right.fold((0, 0), |(n, n_right), right| {
            (n + 1, n_right + usize::from(right))
        });
        let (n, n_right) = (f64::from(n), n_right as f64);
        let value = n_right / n;
        // The sum of squared differences from the mean, of zeros and ones.
        let squares = n_right * (1.0 - value).powi(2) + (n - n_right) * value.powi(2);
        let stderr = (n > 1.0).then(|| (squares / (n - 1.0)).sqrt() / n.sqrt());
        Self { value, stderr }
    }
}

/// The items of a result, all of one kind.
#[derive(Clone, Debug, PartialEq)]
pub enum ItemResults {
    /// Of a multiple-choice task.
    Choices(Vec<ChoiceResult>),
    /// Of a task that is answered by generating.
    Generations(Vec<GenerationResult>),
}

impl Default for ItemResults {
    fn default() -> Self {
        Self::Choices(Vec::new())
    }
}

/// A multiple-choice item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoiceResult {
    /// Its place in the file, counted from 0.
    pub index: usize,
    /// For each choice the summed log-probability of its tokens, in nats.
    pub log_likelihoods: Vec<f64>,
    /// For each choice whether each of its tokens was the likeliest.
    pub is_greedy: Vec<bool>,
    /// For each choice the number of tokens that were scored.
    pub tokens: Vec<usize>,
    /// For each choice its length in characters (Unicode scalar values).
    pub characters: Vec<usize>,
    /// For each choice its length in bytes of UTF-8.
    pub bytes: Vec<usize>,
    /// The right choice.
    pub gold: usize,
    /// The choice with the largest log-likelihood, the first of equals.
    pub prediction: usize,
    /// The same per character.
    pub prediction_norm: usize,
    /// The same per byte.
    pub prediction_bytes: usize,
    /// Whether `prediction` is right.
    pub acc: bool,
    /// Whether `prediction_norm` is right.
    pub acc_norm: bool,
    /// Whether `prediction_bytes` is right.
    pub acc_bytes: bool,
}

/// What the model makes of one choice.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Likelihood {
    /// To other processes as bits, as it may be NaN, and is to be the same there.
    #[serde(with = "bits")]
    pub(crate) sum: f64,
    pub(crate) greedy: bool,
    pub(crate) tokens: usize,
}

mod bits {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "for serde")]
    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        value.to_bits().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        u64::deserialize(deserializer).map(f64::from_bits)
    }
}

impl ChoiceResult {
    pub(crate) fn new(index: usize, item: &MultipleChoice, likelihoods: &[Likelihood]) -> Self {
        let log_likelihoods: Vec<f64> = likelihoods.iter().map(|choice| choice.sum).collect();
        let lengths = |of: fn(&str) -> usize| -> Vec<usize> {
            item.choices.iter().map(|choice| of(choice)).collect()
        };
        let characters = lengths(|choice| choice.chars().count());
        let bytes = lengths(str::len);
        let best_per = |lengths: &[usize]| {
            let pairs = log_likelihoods.iter().zip(lengths);
            argmax(&pairs.map(|(sum, n)| sum / *n as f64).collect::<Vec<_>>())
        };
        let prediction = argmax(&log_likelihoods);
        let (prediction_norm, prediction_bytes) = (best_per(&characters), best_per(&bytes));
        Self {
            index,
            is_greedy: likelihoods.iter().map(|choice| choice.greedy).collect(),
            tokens: likelihoods.iter().map(|choice| choice.tokens).collect(),
            characters,
            bytes,
            gold: item.gold,
            prediction,
            prediction_norm,
            prediction_bytes,
            acc: prediction == item.gold,
            acc_norm: prediction_norm == item.gold,
            acc_bytes: prediction_bytes == item.gold,
            log_likelihoods,
        }
    }
}

/// An item that was answered by generating.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerationResult {
    /// Its place in the file, counted from 0.
    pub index: usize,
    /// What the model wrote, up to a stop string.
    pub response: String,
    /// How many tokens it wrote.
    pub tokens: usize,
    /// The reference answer's number.
    pub gold: String,
    /// The first number after `#### `, or `[invalid]`.
    pub strict: String,
    /// The last number, or `[invalid]`.
    pub flexible: String,
    /// Whether `strict` is right.
    pub strict_match: bool,
    /// Whether `flexible` is right.
    pub flexible_match: bool,
}

impl ItemResults {
    /// The means that the harness reports for the task, and `acc_bytes` beside
    /// `acc_norm`.
    pub(crate) fn metrics(&self, task: TaskName) -> BTreeMap<String, Score> {
        let mut metrics = BTreeMap::new();
        let mut add = |name: &str, score| metrics.insert(name.to_owned(), score);
        match self {
            Self::Choices(items) => {
                add("acc", Score::of(items.iter().map(|item| item.acc)));
                if task.normalises() {
                    add(
                        "acc_norm",
                        Score::of(items.iter().map(|item| item.acc_norm)),
                    );
                    add(
                        "acc_bytes",
                        Score::of(items.iter().map(|item| item.acc_bytes)),
                    );
                }
            }
            Self::Generations(items) => {
                let strict = items.iter().map(|item| item.strict_match);
                add("exact_match,strict-match", Score::of(strict));
                let flexible = items.iter().map(|item| item.flexible_match);
                add("exact_match,flexible-extract", Score::of(flexible));
            }
        }
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_errors_are_those_of_the_sample() {
        let score = Score::of([true, false, true, true].into_iter());
        assert_eq!(score.value, 0.75);
        // Deviations 1/4, 3/4, 1/4, 1/4: √((3/16 + 9/16) / 3) / 2.
        assert_eq!(score.stderr, Some(0.25));
        assert_eq!(Score::of([true].into_iter()).stderr, None);
    }

    fn result(choices: &[&str], sums: &[f64], gold: usize) -> ChoiceResult {
        let choices = choices.iter().map(|choice| (*choice).to_owned()).collect();
        let item = MultipleChoice::new("", choices, gold);
        let likelihoods = sums.iter().map(|&sum| Likelihood {
            sum,
            greedy: false,
            tokens: 1,
        });
        ChoiceResult::new(0, &item, &likelihoods.collect::<Vec<_>>())
    }

    #[test]
    fn lengths_are_the_choices_own_in_characters_or_in_bytes() {
        let result = result(&["ab", "éé"], &[-2.0, -3.0], 1);
        assert_eq!((result.prediction, result.prediction_norm), (0, 0));
        // -1 and -1.5 by characters, -1 and -0.75 by bytes.
        assert_eq!(result.prediction_bytes, 1);
        assert_eq!(
            (result.acc, result.acc_norm, result.acc_bytes),
            (false, false, true)
        );
        assert_eq!((result.characters, result.bytes), (vec![2, 2], vec![2, 4]));
    }

    #[test]
    fn the_first_of_equal_choices_is_predicted() {
        let result = result(&["a", "b"], &[-1.0, -1.0], 0);
        assert!(result.acc && result.acc_norm);
    }
}
