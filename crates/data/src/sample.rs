//! One training sample, and what can be done with a list of them.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{DataError, Tokenizer};

/// Tokens, and which of them the loss is taken on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The token ids.
    pub tokens: Vec<u32>,
    /// `trained[i]`: token `i` is a target of the loss. As long as `tokens`; the
    /// first is always `false`, since nothing comes before it to predict it.
    pub trained: Vec<bool>,
}

impl Sample {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Number of tokens the loss is taken on.
    pub fn n_trained(&self) -> usize {
        self.trained.iter().filter(|&&trained| trained).count()
    }

    /// Number of tokens a model reads for this sample: all but the last.
    pub fn n_inputs(&self) -> usize {
        self.len().saturating_sub(1)
    }

    /// Every token but the first is trained.
    pub(crate) fn all_trained(tokens: Vec<u32>) -> Self {
        let trained = (0..tokens.len()).map(|i| i > 0).collect();
        Self { tokens, trained }
    }

    pub(crate) fn push_trained(&mut self, token: u32) {
        self.trained.push(!self.tokens.is_empty());
        self.tokens.push(token);
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.trained.truncate(len);
    }
}

/// The sample as text, cut where training begins and ends: each piece with
/// whether its tokens are trained. The pieces, joined, are the decoded sample.
pub fn describe_sample(
    sample: &Sample,
    tokenizer: &Tokenizer,
) -> Result<Vec<(String, bool)>, DataError> {
    let mut pieces = Vec::new();
    let (mut end, mut before) = (0, String::new());
    for run in sample.trained.chunk_by(|a, b| a == b) {
        end += run.len();
        // Some decoders strip the leading space of what they are given, so a
        // piece is what its tokens add to the text before them.
        let text = tokenizer.decode(&sample.tokens[..end], false)?;
        let piece = match text.strip_prefix(&before) {
            Some(piece) => piece.to_owned(),
            None => tokenizer.decode(&sample.tokens[end - run.len()..end], false)?,
        };
        pieces.push((piece, run.first().is_some_and(|&trained| trained)));
        before = text;
    }
    Ok(pieces)
}

/// How much to hold out for validation. In a file: `200` or `0.05`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ValidationSplit {
    /// This many samples.
    Count(usize),
    /// This share of the samples, between 0 and 1.
    Fraction(f64),
}

/// Holds samples out: `(training, validation)`, both in the order they came in.
/// Which ones depends on the seed alone.
pub fn split(
    samples: Vec<Sample>,
    validation: ValidationSplit,
    seed: u64,
) -> Result<(Vec<Sample>, Vec<Sample>), DataError> {
    let n = samples.len();
    let (n_valid, found) = match validation {
        ValidationSplit::Count(count) => (count, count.to_string()),
        ValidationSplit::Fraction(share) => {
            ((share * n as f64).round() as usize, share.to_string())
        }
    };
    if n_valid == 0 || n_valid >= n {
        return Err(DataError::OutOfRange {
            key: "validation split",
            found,
            expected: format!("at least one of the {n} samples and not all of them"),
        });
    }
    let mut held_out = vec![false; n];
    held_out[..n_valid].fill(true);
    held_out.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let (valid, train): (Vec<_>, Vec<_>) = samples
        .into_iter()
        .zip(held_out)
        .partition(|&(_, held_out)| held_out);
    let samples = |half: Vec<(Sample, bool)>| half.into_iter().map(|(sample, _)| sample).collect();
    Ok((samples(train), samples(valid)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(n: u32) -> Vec<Sample> {
        (0..n).map(|i| Sample::all_trained(vec![i, 0])).collect()
    }

    #[test]
    fn a_split_is_disjoint_complete_in_order_and_the_seeds() {
        let (train, valid) = split(samples(100), ValidationSplit::Fraction(0.1), 1).unwrap();
        assert_eq!((train.len(), valid.len()), (90, 10));
        let ids = |half: &[Sample]| half.iter().map(|s| s.tokens[0]).collect::<Vec<_>>();
        assert!(ids(&train).is_sorted() && ids(&valid).is_sorted());
        let mut all = [ids(&train), ids(&valid)].concat();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        let held_out = |seed| {
            split(samples(100), ValidationSplit::Count(10), seed)
                .unwrap()
                .1
        };
        assert_eq!(held_out(1), valid);
        assert_ne!(held_out(2), valid);
    }

    #[test]
    fn a_split_with_an_empty_side_is_refused() {
        for (validation, found) in [
            (ValidationSplit::Count(0), "0"),
            (ValidationSplit::Count(3), "3"),
            (ValidationSplit::Fraction(0.1), "0.1"),
            (ValidationSplit::Fraction(-1.0), "-1"),
            (ValidationSplit::Fraction(f64::NAN), "NaN"),
        ] {
            let error = split(samples(3), validation, 1).unwrap_err().to_string();
            let expected = "but must be at least one of the 3 samples and not all of them";
            assert_eq!(error, format!("`validation split` is {found}, {expected}"));
        }
    }

    #[test]
    fn a_split_reads_as_a_count_or_a_share() {
        let read = |text| serde_json::from_str::<ValidationSplit>(text).unwrap();
        assert_eq!(read("200"), ValidationSplit::Count(200));
        assert_eq!(read("0.05"), ValidationSplit::Fraction(0.05));
    }
}
