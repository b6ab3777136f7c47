//! Several sources of samples, each gone through as often as it is to be.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::{Corpus, DataError, Sample, ValidationSplit, split::held_out};

/// Sources with weights. One of weight `w` is gone through `w` times in an
/// epoch: of weight 1, each of its samples comes once, of weight 2 twice; of
/// weight 0.25 a quarter of them, and another quarter in the next epoch.
///
/// Exactly: a source's samples, in one order after the other that the seed
/// decides, make a sequence without an end, and epoch `e` takes what is in it
/// from `⌊e·w·n⌋` up to `⌊(e+1)·w·n⌋`, `n` being their number. So after any
/// number of epochs no sample has come more than once more than another of its
/// source, and what an epoch holds depends on the seed and its number alone.
#[derive(Clone, Debug)]
pub struct Mixture {
    corpus: Corpus,
    sources: Vec<Source>,
}

#[derive(Clone, Copy, Debug)]
struct Source {
    n: usize,
    weight: f64,
}

impl Mixture {
    /// Sources with their weights.
    ///
    /// # Errors
    ///
    /// When a weight is not a number above 0, a source has no samples, or the
    /// weights are so small that an epoch has none.
    pub fn new(sources: impl IntoIterator<Item = (Corpus, f64)>) -> Result<Self, DataError> {
        let mut corpora = Vec::new();
        let source = |(corpus, weight): (Corpus, f64)| {
            let n = corpus.n_units();
            corpora.push(corpus);
            Source { n, weight }
        };
        let sources = sources.into_iter().map(source).collect();
        Self::of(Corpus::join(corpora), sources)
    }

    /// Refuses what cannot be mixed. The sources are parts of the corpus, in order.
    fn of(corpus: Corpus, sources: Vec<Source>) -> Result<Self, DataError> {
        for &Source { n, weight } in &sources {
            let wrong = |expected: String| DataError::OutOfRange {
                key: "weight",
                found: weight.to_string(),
                expected,
            };
            if !(weight > 0.0 && weight.is_finite()) {
                return Err(wrong("a number above 0".to_owned()));
            }
            if n == 0 {
                return Err(DataError::OutOfRange {
                    key: "number of samples",
                    found: "0".to_owned(),
                    expected: "at least 1".to_owned(),
                });
            }
            // Indices have 32 bits, and what an epoch holds must be one.
            if n as f64 * weight > f64::from(u32::MAX / 2) {
                let most = f64::from(u32::MAX / 2) / n as f64;
                return Err(wrong(format!(
                    "at most {most}, by the source's {n} samples"
                )));
            }
        }
        let mixture = Self { corpus, sources };
        // With one that a source gives, every epoch has at least one.
        if let (0, Some(first)) = (mixture.n_samples_in(0), mixture.sources.first()) {
            return Err(DataError::OutOfRange {
                key: "weight",
                found: first.weight.to_string(),
                expected: format!(
                    "large enough that an epoch takes one of the source's {} samples",
                    first.n
                ),
            });
        }
        Ok(mixture)
    }

    /// Holds samples out, as [`split`](crate::split()) does, of all sources
    /// together: `(training, validation)`. Each source keeps its weight, of the
    /// samples that are left to it.
    ///
    /// # Errors
    ///
    /// Those of [`split`](crate::split()), and those of [`new`](Self::new) of what
    /// is left.
    pub fn split(
        &self,
        validation: ValidationSplit,
        seed: u64,
    ) -> Result<(Self, Corpus), DataError> {
        let held_out = held_out(&self.corpus, validation, seed)?;
        let unit = self.corpus.unit();
        let mut rest = held_out.as_slice();
        let left = self.sources.iter().map(|source| {
            let (of_source, others) = rest.split_at(source.n * unit);
            rest = others;
            Source {
                n: of_source.iter().filter(|held_out| !**held_out).count() / unit,
                ..*source
            }
        });
        let sources = left.collect();
        let train = Self::of(self.corpus.select(|i| !held_out[i]), sources)?;
        Ok((train, self.corpus.select(|i| held_out[i])))
    }

    /// All samples of all sources, one source behind the other.
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }

    /// Number of samples, each counted once, and pairs as one.
    pub fn len(&self) -> usize {
        self.corpus.n_units()
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.corpus.is_empty()
    }

    /// Every sample of every source once.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Sample> + '_ {
        self.corpus.iter()
    }

    /// Number of samples, or pairs, in an epoch, each counted as often as it comes.
    pub fn n_samples_in(&self, epoch: usize) -> usize {
        let of_source = |source: &Source| source.position(epoch + 1) - source.position(epoch);
        self.sources.iter().map(of_source).sum()
    }

    /// Whether every epoch holds each sample as often as the others do.
    pub(crate) fn is_even(&self) -> bool {
        self.sources
            .iter()
            .all(|source| source.weight.fract() == 0.0)
    }

    /// The indices of an epoch's samples, or pairs, in the order of the corpus;
    /// `None`: each once.
    pub(crate) fn indices(&self, seed: u64, epoch: usize) -> Option<Vec<u32>> {
        if self.sources.iter().all(|source| source.weight == 1.0) {
            return None;
        }
        let mut all = Vec::with_capacity(self.n_samples_in(epoch));
        let mut first = 0;
        for (k, source) in self.sources.iter().enumerate() {
            let start = all.len();
            source.indices(first, seed, k, epoch, &mut all);
            all[start..].sort_unstable();
            first += source.n as u32;
        }
        Some(all)
    }
}

impl Source {
    /// Where an epoch begins in the source's sequence.
    fn position(&self, epoch: usize) -> usize {
        // Epochs times samples is exact. The weight and the product are rounded
        // by half a unit of the last place each, which must not lose a sample
        // where the product is whole: 0.29 · 100 is 28.999999999999996.
        let product = (epoch as f64 * self.n as f64) * self.weight;
        (product * (1.0 + 2.0 * f64::EPSILON)).floor() as usize
    }

    /// Appends what the epoch takes of source `k`, whose first sample has the
    /// index `first`.
    fn indices(&self, first: u32, seed: u64, k: usize, epoch: usize, into: &mut Vec<u32>) {
        let (start, end) = (self.position(epoch), self.position(epoch + 1));
        let mut at = start;
        while at < end {
            let round = at / self.n;
            let within = at - round * self.n..self.n.min(end - round * self.n);
            at = round * self.n + within.end;
            let mut order: Vec<u32> = (first..first + self.n as u32).collect();
            if within.len() < self.n {
                let mut random = ChaCha8Rng::seed_from_u64(seed);
                // Apart from the streams of the epochs, which count from 0.
                random.set_stream(1 << 63 | (k as u64) << 40 | round as u64);
                order.shuffle(&mut random);
            }
            into.extend_from_slice(&order[within]);
        }
    }
}

impl From<Corpus> for Mixture {
    /// One source of weight 1, which may be empty.
    fn from(corpus: Corpus) -> Self {
        let source = Source {
            n: corpus.n_units(),
            weight: 1.0,
        };
        Self {
            corpus,
            sources: vec![source],
        }
    }
}

impl From<&Corpus> for Mixture {
    fn from(corpus: &Corpus) -> Self {
        corpus.clone().into()
    }
}

impl From<Vec<Sample>> for Mixture {
    fn from(samples: Vec<Sample>) -> Self {
        Corpus::from(samples).into()
    }
}

impl From<&[Sample]> for Mixture {
    fn from(samples: &[Sample]) -> Self {
        Corpus::from(samples).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(n: usize) -> Corpus {
        (0..n)
            .map(|i| Sample::all_trained(vec![i as u32, 0]))
            .collect()
    }

    fn mixture(sources: &[(usize, f64)]) -> Mixture {
        let sources = sources.iter().map(|&(n, weight)| (corpus(n), weight));
        Mixture::new(sources).unwrap()
    }

    /// How often each index has come in some epochs.
    fn counts(mixture: &Mixture, seed: u64, epochs: std::ops::Range<usize>) -> Vec<usize> {
        let mut counts = vec![0; mixture.len()];
        for epoch in epochs {
            let indices = mixture.indices(seed, epoch).unwrap();
            assert_eq!(indices.len(), mixture.n_samples_in(epoch));
            assert!(indices.is_sorted());
            for i in indices {
                counts[i as usize] += 1;
            }
        }
        counts
    }

    #[test]
    fn over_many_epochs_each_sample_comes_as_often_as_its_sources_weight() {
        let mixture = mixture(&[(10, 1.0), (7, 2.0), (40, 0.25), (30, 0.29), (9, 1.5)]);
        for seed in [0, 1] {
            let counts = counts(&mixture, seed, 0..100);
            assert!(counts[..10].iter().all(|&n| n == 100));
            assert!(counts[10..17].iter().all(|&n| n == 200));
            assert!(counts[17..57].iter().all(|&n| n == 25));
            assert!(counts[57..87].iter().all(|&n| n == 29));
            assert!(counts[87..].iter().all(|&n| n == 150));
        }
    }

    #[test]
    fn after_any_number_of_epochs_no_sample_is_ahead_by_more_than_one() {
        for weight in [0.3, 0.7, 1.0 / 3.0, 2.25] {
            let mixture = mixture(&[(11, weight)]);
            for epochs in 1..40 {
                let counts = counts(&mixture, 5, 0..epochs);
                let (least, most) = (counts.iter().min(), counts.iter().max());
                assert!(most.unwrap() - least.unwrap() <= 1, "{weight}: {counts:?}");
                let total: usize = counts.iter().sum();
                assert_eq!(total, (11.0 * weight * epochs as f64 + 1e-9) as usize);
            }
        }
    }

    #[test]
    fn a_quarter_is_followed_by_another_quarter() {
        let mixture = mixture(&[(40, 0.25)]);
        let quarters: Vec<_> = (0..4).map(|e| mixture.indices(3, e).unwrap()).collect();
        let mut all = quarters.concat();
        assert!(!all.is_sorted());
        all.sort_unstable();
        assert_eq!(all, (0..40).collect::<Vec<_>>());
        // And then by another order.
        assert_ne!(mixture.indices(3, 4).unwrap(), quarters[0]);
    }

    #[test]
    fn an_epoch_is_its_seeds_and_its_numbers() {
        let mixture = mixture(&[(40, 0.5), (40, 0.5)]);
        let epoch = mixture.indices(3, 7);
        assert_eq!(mixture.indices(3, 7), epoch);
        assert_ne!(mixture.indices(4, 7), epoch);
        // Sources of the same size do not go in step.
        let epoch = epoch.unwrap();
        let second: Vec<_> = epoch[20..].iter().map(|i| i - 40).collect();
        assert_ne!(epoch[..20], second);
    }

    #[test]
    fn products_that_are_whole_lose_no_sample() {
        for (n, weight, whole) in [
            (100, 0.29, 29),
            (1000, 0.57, 570),
            (10, 0.7, 7),
            (3, 1.1, 3),
        ] {
            assert_eq!(mixture(&[(n, weight)]).n_samples_in(0), whole, "{weight}");
        }
        // 2³⁰ epochs of a tenth of ten.
        let source = Source { n: 10, weight: 0.1 };
        assert_eq!(source.position(1 << 30), 1 << 30);
    }

    #[test]
    fn weights_of_one_are_each_sample_once() {
        assert_eq!(mixture(&[(3, 1.0), (4, 1.0)]).indices(0, 5), None);
        assert_eq!(Mixture::from(corpus(3)).indices(0, 5), None);
        let twice = mixture(&[(2, 2.0)]);
        assert_eq!(twice.indices(0, 5), Some(vec![0, 0, 1, 1]));
    }

    #[test]
    fn a_split_is_of_all_sources_and_each_keeps_its_weight() {
        let whole = mixture(&[(40, 0.5), (60, 2.0)]);
        let count = ValidationSplit::Count(30);
        let (train, valid) = whole.split(count, 1).unwrap();
        assert_eq!((train.len(), valid.len()), (70, 30));
        let n_first = train
            .corpus()
            .iter()
            .take_while(|s| s.tokens[0] < 40)
            .count();
        let n = train.n_samples_in(0) + train.n_samples_in(1);
        assert_eq!(n, train.sources[0].n + 4 * train.sources[1].n);
        assert!(n_first >= train.sources[0].n && train.sources[0].n < 40);
        // Of one source, what is held out is what it always was.
        let (_, expected) = crate::split(corpus(100), count, 1).unwrap();
        let (_, valid) = Mixture::from(corpus(100)).split(count, 1).unwrap();
        assert_eq!(valid, expected);
        let none_left = mixture(&[(1, 1.0), (99, 1.0)]).split(ValidationSplit::Count(99), 1);
        assert!(none_left.is_err());
    }

    #[test]
    fn what_cannot_be_mixed_is_refused() {
        for (n, weight, expected) in [
            (3, 0.0, "`weight` is 0, but must be a number above 0"),
            (3, f64::NAN, "`weight` is NaN, but must be a number above 0"),
            (3, -1.0, "`weight` is -1, but must be a number above 0"),
            (0, 1.0, "`number of samples` is 0, but must be at least 1"),
            (
                3,
                0.25,
                "`weight` is 0.25, but must be large enough that an epoch takes one of the source's 3 samples",
            ),
        ] {
            let error = Mixture::new([(corpus(n), weight)]).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
        let error = Mixture::new([(corpus(4), 1e9)]).unwrap_err().to_string();
        assert!(error.contains("but must be at most 5368"), "{error}");
        // Little of a source is well where another fills the epoch.
        assert_eq!(mixture(&[(3, 0.25), (5, 1.0)]).n_samples_in(0), 5);
    }
}
