//! Samples that are held out.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{Corpus, DataError};

/// How much to hold out for validation, counted in records: where each became one
/// sample, these are samples. In a file: `200` or `0.05`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ValidationSplit {
    /// This many records.
    Count(usize),
    /// This share of the records, between 0 and 1.
    Fraction(f64),
}

/// Holds samples out: `(training, validation)`, both in the order they came in.
/// Which ones depends on the seed alone. All samples of a record go together, so
/// that no part of it is trained while another is held out. Neither half copies a
/// token.
pub fn split(
    samples: impl Into<Corpus>,
    validation: ValidationSplit,
    seed: u64,
) -> Result<(Corpus, Corpus), DataError> {
    let samples = samples.into();
    let held_out = held_out(&samples, validation, seed)?;
    let train = samples.select(|i| !held_out[i]);
    let valid = samples.select(|i| held_out[i]);
    Ok((train, valid))
}

/// Of each sample, whether it is held out.
pub(crate) fn held_out(
    samples: &Corpus,
    validation: ValidationSplit,
    seed: u64,
) -> Result<Vec<bool>, DataError> {
    let continues: Vec<bool> = (0..samples.len()).map(|i| samples.continues(i)).collect();
    let n = continues.iter().filter(|continues| !**continues).count();
    let (n_valid, found) = match validation {
        ValidationSplit::Count(count) => (count, count.to_string()),
        ValidationSplit::Fraction(share) => {
            ((share * n as f64).round() as usize, share.to_string())
        }
    };
    if n_valid == 0 || n_valid >= n {
        let what = match samples.unit() {
            2 => "pairs",
            _ if n == samples.len() => "samples",
            _ => "conversations",
        };
        return Err(DataError::OutOfRange {
            key: "data.validation_samples",
            found,
            expected: format!("at least one of the {n} {what} and not all of them"),
        });
    }
    let mut held_out = vec![false; n];
    held_out[..n_valid].fill(true);
    held_out.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    // What continues a record goes where its beginning went.
    let mut records = held_out.into_iter();
    let mut current = false;
    let of_sample = |continues: bool| {
        if !continues {
            current = records.next().unwrap_or(false);
        }
        current
    };
    Ok(continues.into_iter().map(of_sample).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sample;

    fn samples(n: u32) -> Vec<Sample> {
        (0..n).map(|i| Sample::all_trained(vec![i, 0])).collect()
    }

    #[test]
    fn a_split_is_disjoint_complete_in_order_and_the_seeds() {
        let (train, valid) = split(samples(100), ValidationSplit::Fraction(0.1), 1).unwrap();
        assert_eq!((train.len(), valid.len()), (90, 10));
        let ids = |half: &Corpus| half.iter().map(|s| s.tokens[0]).collect::<Vec<_>>();
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
            assert_eq!(
                error,
                format!("`data.validation_samples` is {found}, {expected}")
            );
        }
    }

    #[test]
    fn a_split_reads_as_a_count_or_a_share() {
        let read = |text| serde_json::from_str::<ValidationSplit>(text).unwrap();
        assert_eq!(read("200"), ValidationSplit::Count(200));
        assert_eq!(read("0.05"), ValidationSplit::Fraction(0.05));
    }
}
