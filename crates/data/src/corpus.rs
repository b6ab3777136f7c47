//! The samples of a run, in one store that is not copied.

pub(crate) mod store;
pub(crate) mod writer;

use std::{fmt, ops::Range, sync::Arc};

use store::Store;
use writer::{Place, Writer, Written};

use crate::Sample;

/// Samples, in an order: tokens, which of them are trained, and what they count.
///
/// They lie behind each other in memory, or in a file that is mapped, and are
/// put together when they are asked for. Clones, [selections](Self::select) and
/// [joins](Self::join) share them: such a one takes at most 4 bytes a sample.
///
/// ```
/// use olora_data::{Corpus, Sample};
/// let corpus = Corpus::from(vec![
///     Sample::new(vec![5, 6, 7], vec![false, false, true]),
///     Sample::new(vec![5, 8], vec![false, true]),
/// ]);
/// assert_eq!((corpus.len(), corpus.n_inputs(0), corpus.n_trained(0)), (2, 2, 1));
/// assert_eq!(corpus.select(|i| i == 1).sample(0).tokens, [5, 8]);
/// ```
#[derive(Clone)]
pub struct Corpus {
    parts: Arc<[Part]>,
    /// The number of samples up to the end of each part.
    ends: Arc<[usize]>,
}

/// What is read of one store.
#[derive(Clone)]
struct Part {
    store: Arc<Store>,
    cut: Cut,
    train_on_prompt: bool,
    /// Those that are left, by their number in the store; `None`: all.
    chosen: Option<Arc<[u32]>>,
}

/// How the store's tokens become samples.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// Each sample of the store, its first `max_length` tokens.
    Each { max_length: usize },
    /// The same of pairs of answers, a good one and then a bad one, which are
    /// kept or left out together. With `train_on_prompt`, the good one's prompt
    /// is trained too, with the weight 0: see [`Sample::weights`].
    Pairs { max_length: usize },
    /// The tokens of all in a row, cut into blocks. A last one of one token has
    /// nothing to predict and is none.
    Blocks { length: usize },
}

impl Part {
    /// How many there are before any was chosen.
    fn n_all(&self) -> usize {
        match self.cut {
            Cut::Each { .. } | Cut::Pairs { .. } => self.store.n_samples(),
            Cut::Blocks { length } => {
                let n = self.store.n_tokens();
                n / length + usize::from(n % length > 1)
            }
        }
    }

    fn len(&self) -> usize {
        self.chosen
            .as_ref()
            .map_or_else(|| self.n_all(), |all| all.len())
    }

    /// Before any was chosen.
    fn number(&self, i: usize) -> usize {
        self.chosen.as_ref().map_or(i, |chosen| chosen[i] as usize)
    }

    /// The tokens of a sample, by its number.
    fn range(&self, number: usize) -> Range<usize> {
        match self.cut {
            Cut::Each { max_length } | Cut::Pairs { max_length } => {
                let span = self.store.span(number);
                span.start..span.end.min(span.start.saturating_add(max_length))
            }
            Cut::Blocks { length } => {
                let start = number * length;
                start..(start + length).min(self.store.n_tokens())
            }
        }
    }

    /// Whether a sample and the one before it are of one record.
    fn continues(&self, i: usize) -> bool {
        if i == 0 || matches!(self.cut, Cut::Blocks { .. }) {
            return false;
        }
        let mut since = self.number(i - 1) + 1..=self.number(i);
        since.all(|k| self.store.continues(k))
    }

    fn is_of_pairs(&self) -> bool {
        matches!(self.cut, Cut::Pairs { .. })
    }

    /// Whether all tokens of a sample, by its number, are trained.
    fn trains_all(&self, number: usize) -> bool {
        match self.cut {
            Cut::Blocks { .. } => true,
            Cut::Each { .. } => self.train_on_prompt,
            Cut::Pairs { .. } => self.train_on_prompt && self.store.preferred(number) == Some(true),
        }
    }

    fn sample(&self, i: usize) -> Sample {
        let number = self.number(i);
        let mut sample = self.store.sample(self.range(number));
        if !matches!(self.cut, Cut::Blocks { .. }) {
            sample.preferred = self.store.preferred(number);
        }
        if self.trains_all(number) {
            if self.is_of_pairs() {
                let answer = sample.trained.iter().map(|trained| f32::from(*trained));
                sample.weights = Some(answer.collect());
            }
            if let Some(weights) = &mut sample.weights {
                // What nobody gave a weight counts as much as anything.
                let untrained = weights.iter_mut().zip(&sample.trained);
                untrained
                    .filter(|(_, trained)| !**trained && !self.is_of_pairs())
                    .for_each(|(weight, _)| *weight = 1.0);
            }
            sample.trained = (0..sample.len()).map(|i| i > 0).collect();
        }
        sample
    }

    fn n_inputs(&self, i: usize) -> usize {
        self.range(self.number(i)).len().saturating_sub(1)
    }

    fn n_trained(&self, i: usize) -> usize {
        let number = self.number(i);
        let range = self.range(number);
        if self.trains_all(number) {
            return range.len().saturating_sub(1);
        }
        self.store.n_trained(range)
    }

    /// Whether the limit leaves something to learn of a sample, or of the pair
    /// that it is the first of: of both answers something, and not the same.
    fn says_something(&self, i: usize) -> bool {
        let range = |i: usize| self.range(self.number(i));
        if !self.is_of_pairs() {
            return self.n_trained(i) > 0;
        }
        let [good, bad] = [range(i), range(i + 1)];
        let has_answer = |range: &Range<usize>| self.store.n_trained(range.clone()) > 0;
        let is_cut =
            |i: usize, range: &Range<usize>| range.len() < self.store.span(self.number(i)).len();
        let same = (is_cut(i, &good) || is_cut(i + 1, &bad))
            && self.store.sample(good.clone()).tokens == self.store.sample(bad.clone()).tokens;
        has_answer(&good) && has_answer(&bad) && !same
    }

    /// Those whose index `keep` keeps.
    fn select(&self, mut keep: impl FnMut(usize) -> bool) -> Self {
        let chosen = (0..self.len())
            .filter(|&i| keep(i))
            .map(|i| self.number(i) as u32);
        Self {
            chosen: Some(chosen.collect()),
            ..self.clone()
        }
    }
}

/// What became of the samples of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "they are numbers")]
pub(crate) struct Counts {
    pub n_tokens: usize,
    pub n_trained: usize,
    /// Longer than the limit, dropped ones included.
    pub n_truncated: usize,
    /// Without anything trained within the limit, or of a pair whose answers
    /// have nothing trained or are the same within it.
    pub n_dropped: usize,
}

impl Corpus {
    /// What of a store has something trained, and what became of the rest.
    pub(crate) fn of(store: Arc<Store>, cut: Cut, train_on_prompt: bool) -> (Self, Counts) {
        let part = Part {
            store,
            cut,
            train_on_prompt,
            chosen: None,
        };
        let mut counts = Counts::default();
        // Most files lose none, and then no list of them is kept.
        let mut dropped = Vec::new();
        let unit = if part.is_of_pairs() { 2 } else { 1 };
        // A pair is whole: the writer was handed both.
        let n_all = part.n_all() / unit * unit;
        for first in (0..n_all).step_by(unit) {
            let says_something = part.says_something(first);
            for i in first..first + unit {
                let (n_inputs, n_trained) = (part.n_inputs(i), part.n_trained(i));
                if let Cut::Each { max_length } | Cut::Pairs { max_length } = cut {
                    counts.n_truncated += usize::from(part.store.span(i).len() > max_length);
                }
                if !says_something {
                    dropped.push(i as u32);
                    continue;
                }
                counts.n_tokens += n_inputs + 1;
                counts.n_trained += n_trained;
            }
        }
        counts.n_dropped = dropped.len();
        let part = if dropped.is_empty() {
            part
        } else {
            part.select(|i| dropped.binary_search(&(i as u32)).is_err())
        };
        (Self::new(vec![part]), counts)
    }

    fn new(parts: Vec<Part>) -> Self {
        let parts: Vec<_> = parts.into_iter().filter(|part| part.len() > 0).collect();
        let mut end = 0;
        let ends = parts.iter().map(|part| {
            end += part.len();
            end
        });
        Self {
            ends: ends.collect(),
            parts: parts.into(),
        }
    }

    /// Pairs of answers to one prompt, in each the good one and then the bad one.
    ///
    /// What takes samples one by one, such as a [`Schedule`](crate::Schedule), takes
    /// pairs here: see [`unit`](Self::unit).
    pub fn pairs(pairs: impl IntoIterator<Item = [Sample; 2]>) -> Self {
        let judged = pairs.into_iter().flat_map(|pair| {
            let both = pair.into_iter().zip([true, false]);
            both.map(|(sample, good)| Sample {
                preferred: Some(good),
                ..sample
            })
        });
        let samples: Vec<Sample> = judged.collect();
        Self::of_samples(&samples, true)
    }

    /// How many samples belong together: 2 where they are
    /// [pairs](Self::pairs), which no batch and no split takes apart, or 1.
    pub fn unit(&self) -> usize {
        if self.parts.iter().any(Part::is_of_pairs) {
            2
        } else {
            1
        }
    }

    /// The number of samples, pairs counting as one.
    pub fn n_units(&self) -> usize {
        self.len() / self.unit()
    }

    /// The samples of several, one behind the other.
    pub fn join(corpora: impl IntoIterator<Item = Self>) -> Self {
        let parts = corpora.into_iter();
        Self::new(parts.flat_map(|corpus| corpus.parts.to_vec()).collect())
    }

    /// Those whose index `keep` keeps, in the same order.
    #[must_use]
    pub fn select(&self, mut keep: impl FnMut(usize) -> bool) -> Self {
        let mut first = 0;
        let mut parts = Vec::with_capacity(self.parts.len());
        for part in self.parts.iter() {
            parts.push(part.select(|i| keep(first + i)));
            first += part.len();
        }
        Self::new(parts)
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whether there are no samples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sample `i`, from 0, if there are as many.
    pub fn get(&self, i: usize) -> Option<Sample> {
        (i < self.len()).then(|| self.sample(i))
    }

    /// Sample `i`, from 0.
    ///
    /// # Panics
    ///
    /// Like a slice, where there are not as many; see [`get`](Self::get).
    pub fn sample(&self, i: usize) -> Sample {
        let (part, i) = self.locate(i);
        part.sample(i)
    }

    /// Number of tokens a model reads for sample `i`: all but the last.
    ///
    /// # Panics
    ///
    /// Like [`sample`](Self::sample).
    pub fn n_inputs(&self, i: usize) -> usize {
        let (part, i) = self.locate(i);
        part.n_inputs(i)
    }

    /// Number of tokens of sample `i` that the loss is taken on.
    ///
    /// # Panics
    ///
    /// Like [`sample`](Self::sample).
    pub fn n_trained(&self, i: usize) -> usize {
        let (part, i) = self.locate(i);
        part.n_trained(i)
    }

    /// Whether sample `i` was judged, and to be a good answer.
    ///
    /// # Panics
    ///
    /// Like [`sample`](Self::sample).
    pub fn preferred(&self, i: usize) -> Option<bool> {
        let (part, i) = self.locate(i);
        part.store.preferred(part.number(i))
    }

    /// Whether sample `i` is of the same record as the sample before it, as where
    /// a conversation became several samples.
    ///
    /// # Panics
    ///
    /// Like [`sample`](Self::sample).
    pub fn continues(&self, i: usize) -> bool {
        let (part, i) = self.locate(i);
        part.continues(i)
    }

    /// Every sample, each put together when it is asked for.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Sample> + '_ {
        (0..self.len()).map(|i| self.sample(i))
    }

    /// Whether any of the samples lie in a file that is mapped, rather than in memory.
    pub fn is_mapped(&self) -> bool {
        self.parts.iter().any(|part| part.store.is_mapped())
    }

    /// Bytes of memory that the samples take: of a mapped file, what is kept of
    /// it at most. What several parts share counts once.
    pub fn resident_bytes(&self) -> usize {
        let mut total = 0;
        for (k, part) in self.parts.iter().enumerate() {
            let seen = self.parts[..k].iter();
            if !seen
                .into_iter()
                .any(|other| Arc::ptr_eq(&other.store, &part.store))
            {
                total += part.store.resident_bytes();
            }
            total += part.chosen.as_ref().map_or(0, |chosen| 4 * chosen.len());
        }
        total
    }

    fn locate(&self, i: usize) -> (&Part, usize) {
        let k = self.ends.partition_point(|&end| end <= i);
        let before = k.checked_sub(1).map_or(0, |k| self.ends[k]);
        (&self.parts[k], i - before)
    }
}

impl From<&[Sample]> for Corpus {
    fn from(samples: &[Sample]) -> Self {
        Self::of_samples(samples, false)
    }
}

impl Corpus {
    fn of_samples(samples: &[Sample], in_pairs: bool) -> Self {
        let write = || {
            let mut writer = Writer::new(Place::Memory, &[0; 32])?;
            for (i, sample) in samples.iter().enumerate() {
                writer.push(sample, in_pairs && i % 2 == 1)?;
            }
            writer.finish(&[])
        };
        let Ok(Written::Memory(store)) = write() else {
            unreachable!("memory takes every byte, and 2^32 samples would not be in a slice of it");
        };
        let max_length = usize::MAX;
        Self::new(vec![Part {
            store: Arc::new(store),
            cut: if in_pairs {
                Cut::Pairs { max_length }
            } else {
                Cut::Each { max_length }
            },
            train_on_prompt: false,
            chosen: None,
        }])
    }
}

impl From<Vec<Sample>> for Corpus {
    fn from(samples: Vec<Sample>) -> Self {
        samples.as_slice().into()
    }
}

impl FromIterator<Sample> for Corpus {
    fn from_iter<I: IntoIterator<Item = Sample>>(samples: I) -> Self {
        samples.into_iter().collect::<Vec<_>>().into()
    }
}

/// The same samples in the same order, wherever they lie.
impl PartialEq for Corpus {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl fmt::Debug for Corpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Corpus")
            .field("len", &self.len())
            .field("is_mapped", &self.is_mapped())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
