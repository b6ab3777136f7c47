//! Rows of samples to one right-padded batch on the host.

use std::{ops::Range, slice};

use burn::{data::dataloader::batcher::Batcher, tensor::Device};

use crate::{MicroBatch, Sample};

/// A batch as host vectors: what a model reads, and where it is to be judged.
///
/// Inputs and targets are already shifted against each other. Rows are padded on
/// the right, so causal attention needs no other mask: no real token sees a
/// padded one, and no padded one is a target. In a packed batch a row holds
/// several samples, and attention has to keep to each of them: see
/// [`segments`](Self::segments).
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// `[n_rows, seq_len]`, row-major: all tokens but the last of each sample.
    pub inputs: Vec<i32>,
    /// Number of rows: of samples, unless they are packed.
    pub n_rows: usize,
    /// Length of every row, padding included.
    pub seq_len: usize,
    /// Flat indices into `inputs` of those whose *next* token is trained, and
    /// after the first `n_trained` of them, zeros.
    pub target_positions: Vec<i32>,
    /// That next token, for each of `target_positions`.
    pub targets: Vec<i32>,
    /// What the loss of each of `targets` counts, 0 after the first
    /// `n_trained`; `None`: 1 for each of those.
    pub target_weights: Option<Vec<f32>>,
    /// Number of inputs that are not padding.
    pub n_tokens: usize,
    /// Number of tokens the loss is taken on: the first of `targets`.
    pub n_trained: usize,
    /// What they count together: `n_trained` without weights.
    pub weight_sum: f64,
    /// Of a packed batch, for each row the number of inputs of each of its
    /// samples, in order and none of them 0; what is left of the row is padding.
    /// A sample's inputs may attend to each other alone, and their positions
    /// begin at 0. `None` where each row is one sample. Of pairs, see
    /// [`pairs`](Self::pairs).
    pub segments: Option<Vec<Vec<usize>>>,
    /// Of a batch that [`of_pairs`](Self::of_pairs) made, what the two samples of
    /// each pair share. [`segments`](Self::segments) has of each what follows
    /// that, which may be nothing.
    pub pairs: Option<Pairs>,
    /// Where all samples were judged, of each in order whether it is a good
    /// answer. Of pairs, every second one is.
    pub preferred: Option<Vec<bool>>,
}

/// Samples that come in twos, and begin alike as far as they do: inputs that both
/// have are there once, followed by the rest of the first and the rest of the
/// second. What attends to what is as if each had all of its inputs to itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pairs {
    /// For each row, of each of its pairs the number of inputs that both begin
    /// with.
    pub shared: Vec<Vec<usize>>,
    /// Of each sample, how many of the batch's targets are its own. They follow
    /// each other; where two samples part, one input has a target of each.
    pub n_targets: Vec<usize>,
}

/// The number of inputs that two samples have in common.
pub(crate) fn shared_inputs(one: &Sample, other: &Sample) -> usize {
    let alike = one.tokens.iter().zip(&other.tokens);
    let alike = alike.take_while(|(one, other)| one == other).count();
    alike.min(one.n_inputs()).min(other.n_inputs())
}

/// Where the inputs of one sample are in a batch's.
#[derive(Clone, Debug)]
struct Span {
    /// What it shares with another.
    shared: Range<usize>,
    own: Range<usize>,
}

impl Span {
    fn alone(own: Range<usize>) -> Self {
        Self {
            shared: own.start..own.start,
            own,
        }
    }

    fn all(&self) -> impl Iterator<Item = usize> + Clone {
        self.shared.clone().chain(self.own.clone())
    }
}

/// How rows of unequal length become one rectangle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Padding {
    /// The id to pad with. It may be the end-of-sequence token: what is trained
    /// is known by position, never by value.
    pub id: u32,
    /// Rows, and the list of trained positions, are padded to a multiple of
    /// this length, so that a device sees few different shapes: each new one
    /// can cost it new kernels.
    pub multiple: usize,
}

impl Padding {
    /// What lengths are padded to a multiple of, if nothing else is asked for:
    /// an `accelerator` makes kernels for shapes, so it is shown few of them.
    pub fn default_multiple(accelerator: bool) -> usize {
        if accelerator { 64 } else { 1 }
    }
}

impl From<u32> for Padding {
    /// No further than the longest row.
    fn from(id: u32) -> Self {
        Self { id, multiple: 1 }
    }
}

impl Padding {
    /// A length, padded.
    pub(crate) fn round_up(self, n: usize) -> usize {
        n.next_multiple_of(self.multiple.max(1))
    }
}

impl Batch {
    /// Pads on the right: with a plain id to the longest row, with a
    /// [`Padding`] to a multiple of its length.
    pub fn from_samples(samples: &[Sample], padding: impl Into<Padding>) -> Self {
        let rows: Vec<_> = samples.iter().map(slice::from_ref).collect();
        Self::from_rows(&rows, padding.into())
    }

    /// Puts the samples of each row behind each other, and pads like
    /// [`from_samples`](Self::from_samples). No input is judged by a token of
    /// the next sample: the last token of each is a target only.
    pub fn packed(rows: &[Vec<Sample>], padding: impl Into<Padding>) -> Self {
        let segments = |row: &Vec<Sample>| {
            let lengths = row.iter().map(Sample::n_inputs);
            lengths.filter(|&length| length > 0).collect()
        };
        let segments = Some(rows.iter().map(segments).collect());
        let there = rows.iter().flatten().filter(|sample| sample.n_inputs() > 0);
        let preferred = there.map(|sample| sample.preferred).collect();
        let rows: Vec<_> = rows.iter().map(Vec::as_slice).collect();
        Self {
            segments,
            preferred,
            ..Self::from_rows(&rows, padding.into())
        }
    }

    /// Puts the pairs of each row behind each other, what both of a pair begin with
    /// only once: see [`Pairs`]. Pads like [`from_samples`](Self::from_samples).
    ///
    /// # Panics
    ///
    /// If a row holds half a pair.
    pub fn of_pairs(rows: &[Vec<Sample>], padding: impl Into<Padding>) -> Self {
        let mut segments = Vec::with_capacity(rows.len());
        let mut pairs = Pairs::default();
        for row in rows {
            let (both, rest) = row.as_chunks::<2>();
            assert!(rest.is_empty(), "a row of pairs holds half a one");
            let shared = both.iter().map(|[one, other]| shared_inputs(one, other));
            let shared: Vec<usize> = shared.collect();
            let own = both.iter().zip(&shared).flat_map(|(pair, shared)| {
                let own = |sample: &Sample| sample.n_inputs() - shared;
                pair.each_ref().map(own)
            });
            segments.push(own.collect());
            pairs.shared.push(shared);
            // No token comes before the first.
            let targets = |sample: &Sample| sample.trained.iter().skip(1).filter(|is| **is).count();
            pairs.n_targets.extend(row.iter().map(targets));
        }
        let rows: Vec<_> = rows.iter().map(Vec::as_slice).collect();
        let shared = Some(pairs.shared.as_slice());
        let batch = Self::of_rows(&rows, shared, padding.into());
        Self {
            segments: Some(segments),
            pairs: Some(pairs),
            ..batch
        }
    }

    fn from_rows(rows: &[&[Sample]], padding: Padding) -> Self {
        Self::of_rows(rows, None, padding)
    }

    /// `shared` is what the pairs of each row share, if they are pairs.
    fn of_rows(rows: &[&[Sample]], shared: Option<&[Vec<usize>]>, padding: Padding) -> Self {
        let (id, round_up) = (padding.id, |n| padding.round_up(n));
        let twice = |row: usize| shared.map_or(0, |shared| shared[row].iter().sum());
        let lengths = rows.iter().enumerate();
        let lengths = lengths.map(|(i, row)| n_inputs(row) - twice(i));
        let n_tokens = lengths.clone().sum();
        let seq_len = round_up(lengths.max().unwrap_or(0));
        let mut inputs = vec![id.cast_signed(); rows.len() * seq_len];
        let (mut target_positions, mut targets) = (Vec::new(), Vec::new());
        let is_weighted = rows.iter().copied().flatten().any(Sample::is_weighted);
        let mut target_weights = is_weighted.then(Vec::new);
        for (row, samples) in rows.iter().enumerate() {
            // Where the next sample begins, and the one before it began.
            let (mut at, mut before) = (row * seq_len, row * seq_len);
            for (number, sample) in samples.iter().enumerate() {
                // Of the second of a pair, what it shares with the first is there.
                let shared = match shared {
                    Some(shared) if number % 2 == 1 => shared[row][number / 2],
                    _ => 0,
                };
                let begin = if shared > 0 { before } else { at };
                let next = sample
                    .tokens
                    .iter()
                    .zip(&sample.trained)
                    .enumerate()
                    .skip(1);
                for (&token, (i, (&target, &trained))) in sample.tokens.iter().zip(next) {
                    let place = if i <= shared {
                        begin + i - 1
                    } else {
                        at + i - 1 - shared
                    };
                    inputs[place] = token.cast_signed();
                    if trained {
                        target_positions.push((place as u32).cast_signed());
                        targets.push(target.cast_signed());
                        if let Some(weights) = &mut target_weights {
                            weights.push(sample.weight(i));
                        }
                    }
                }
                before = at;
                at += sample.n_inputs() - shared;
            }
        }
        let n_trained = targets.len();
        let weight_sum = match &target_weights {
            Some(weights) => weights.iter().copied().map(f64::from).sum(),
            None => n_trained as f64,
        };
        target_positions.resize(round_up(n_trained), 0);
        targets.resize(round_up(n_trained), 0);
        if let Some(weights) = &mut target_weights {
            weights.resize(round_up(n_trained), 0.0);
        }
        Self {
            inputs,
            n_rows: rows.len(),
            seq_len,
            target_positions,
            targets,
            target_weights,
            n_tokens,
            n_trained,
            weight_sum,
            segments: None,
            pairs: None,
            preferred: rows
                .iter()
                .flat_map(|row| row.iter().map(|s| s.preferred))
                .collect(),
        }
    }

    /// Number of samples: of rows, or of segments where rows hold several.
    pub fn n_samples(&self) -> usize {
        match &self.segments {
            None => self.n_rows,
            Some(rows) => rows.iter().map(Vec::len).sum(),
        }
    }

    /// Where each sample's inputs are in [`inputs`](Self::inputs), in order.
    /// Without segments, padding is taken for a part of them.
    fn spans(&self) -> Vec<Span> {
        let mut spans = Vec::with_capacity(self.n_samples());
        for row in 0..self.n_rows {
            let start = row * self.seq_len;
            let shared = self.pairs.as_ref().map(|pairs| &pairs.shared[row]);
            match self.segments.as_ref().and_then(|rows| rows.get(row)) {
                None => spans.push(Span::alone(start..start + self.seq_len)),
                Some(lengths) => {
                    let (mut at, mut of_pair) = (start, start..start);
                    for (number, &length) in lengths.iter().enumerate() {
                        if let Some(shared) = shared.filter(|_| number % 2 == 0) {
                            of_pair = at..at + shared[number / 2];
                            at = of_pair.end;
                        }
                        let own = at..at + length;
                        at = own.end;
                        spans.push(if shared.is_some() {
                            let shared = of_pair.clone();
                            Span { shared, own }
                        } else {
                            Span::alone(own)
                        });
                    }
                }
            }
        }
        spans
    }

    /// For each of the trained tokens, which of the samples it is of, from 0.
    pub fn target_samples(&self) -> Vec<i32> {
        if let Some(pairs) = &self.pairs {
            let samples = pairs.n_targets.iter().enumerate();
            let of_targets = samples.flat_map(|(sample, &n)| {
                let sample = (sample as u32).cast_signed();
                std::iter::repeat_n(sample, n)
            });
            return of_targets.collect();
        }
        let mut spans = self.spans().into_iter().enumerate().peekable();
        let mut of_targets = Vec::with_capacity(self.n_trained);
        // Positions ascend.
        for &position in self.target_positions.iter().take(self.n_trained) {
            while spans
                .peek()
                .is_some_and(|(_, span)| span.own.end <= position as usize)
            {
                spans.next();
            }
            let sample = spans.peek().map_or(0, |(sample, _)| *sample);
            of_targets.push((sample as u32).cast_signed());
        }
        of_targets
    }

    /// Each prompt with the answer to the one before it, the first with the last
    /// one's: answers that are like those of this batch and have nothing to do
    /// with what was asked. A prompt is what comes before a sample's first trained
    /// token. What is longer than `max_length` tokens is cut.
    #[must_use]
    pub fn mismatched(&self, max_length: usize, padding: impl Into<Padding>) -> Self {
        let spans = self.spans();
        let mut targets = vec![Vec::new(); spans.len()];
        for (i, sample) in self.target_samples().into_iter().enumerate() {
            targets[sample as usize].push((self.target_positions[i] as usize, self.targets[i]));
        }
        // What comes before the answer, and the answer with what of it is trained.
        let parts = spans.iter().zip(targets).map(|(span, targets)| {
            let (Some(&(first, _)), Some(&(last, end))) = (targets.first(), targets.last()) else {
                return (Vec::new(), Vec::new());
            };
            let inputs = span.all().map(|at| (at, self.inputs[at]));
            let upto = inputs.clone().filter(|(at, _)| *at <= first);
            let prompt: Vec<i32> = upto.map(|(_, token)| token).collect();
            let between = inputs.filter(|(at, _)| (first + 1..=last).contains(at));
            // Each of them is the target of what comes before it.
            let mut before = first;
            let mut answer = Vec::new();
            for (at, token) in between.chain([(usize::MAX, end)]) {
                let is_trained = targets.iter().any(|&(position, _)| position == before);
                answer.push((token, is_trained));
                before = at;
            }
            (prompt, answer)
        });
        let parts: Vec<_> = parts.collect();
        let before = parts.iter().cycle().skip(parts.len().saturating_sub(1));
        let samples = parts.iter().zip(before).map(|((prompt, _), (_, answer))| {
            let prompt = prompt.iter().map(|token| (*token, false));
            let all = prompt.chain(answer.iter().copied()).take(max_length);
            let (tokens, trained) = all.map(|(token, is)| (token.cast_unsigned(), is)).unzip();
            Sample::new(tokens, trained)
        });
        Self::from_samples(&samples.collect::<Vec<_>>(), padding)
    }

    /// The position of every input within its sample, `[n_rows, seq_len]`,
    /// row-major. Of padding, 0 in a row of several samples, and otherwise its
    /// distance from the row's beginning.
    pub fn sample_positions(&self) -> Vec<i32> {
        let mut all = Vec::with_capacity(self.inputs.len());
        for row in 0..self.n_rows {
            let end = all.len() + self.seq_len;
            for (start, part) in self.parts(row) {
                let start = start.map_or(0, |shared| shared.len());
                all.extend((start as u32..(start + part) as u32).map(u32::cast_signed));
            }
            let whole = self.segments.is_none();
            let rest = (0..(end - all.len()) as u32).map(u32::cast_signed);
            all.extend(rest.map(|at| if whole { at } else { 0 }));
        }
        all
    }

    /// The lengths of what follows each other in each row: samples, or what a pair
    /// shares and what each of it has to itself. `None` where each row is one sample.
    pub fn documents(&self) -> Option<Vec<Vec<usize>>> {
        self.segments.as_ref()?;
        let rows = (0..self.n_rows).map(|row| self.parts(row));
        Some(
            rows.map(|parts| parts.into_iter().map(|(_, length)| length).collect())
                .collect(),
        )
    }

    /// For each row and input, the inputs of that row, counted from 0, that it
    /// continues, though others may lie between: those that its sample shares with
    /// the other one of its pair. `None` without [`pairs`](Self::pairs).
    pub fn continued(&self) -> Option<Vec<Range<usize>>> {
        self.pairs.as_ref()?;
        let mut all = Vec::with_capacity(self.inputs.len());
        for row in 0..self.n_rows {
            let end = all.len() + self.seq_len;
            for (shared, length) in self.parts(row) {
                let shared = shared.unwrap_or(0..0);
                all.extend(std::iter::repeat_n(shared, length));
            }
            all.resize(end, 0..0);
        }
        Some(all)
    }

    /// What follows each other in a row: of each part, the inputs of the row that
    /// it continues, if it does, and its length.
    fn parts(&self, row: usize) -> Vec<(Option<Range<usize>>, usize)> {
        let segments = self.segments.as_ref().and_then(|rows| rows.get(row));
        let segments = segments.map_or(&[][..], Vec::as_slice);
        let Some(pairs) = &self.pairs else {
            return segments.iter().map(|length| (None, *length)).collect();
        };
        let (pairs_of_row, _) = segments.as_chunks::<2>();
        let mut at = 0;
        let parts = pairs_of_row.iter().zip(&pairs.shared[row]);
        let parts = parts.flat_map(|(own, &n)| {
            let shared = at..at + n;
            at = shared.end + own[0] + own[1];
            let continued = Some(shared);
            [(None, n), (continued.clone(), own[0]), (continued, own[1])]
        });
        parts.collect()
    }
}

/// The size of a [`Batch`]: see [`Schedule::size`](crate::Schedule::size).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchSize {
    /// Number of rows.
    pub n_rows: usize,
    /// Length of every row, padding included.
    pub seq_len: usize,
    /// Trained positions, padding included.
    pub n_targets: usize,
    /// Inputs that are not padding.
    pub n_tokens: usize,
}

impl BatchSize {
    /// That of a batch.
    pub fn of(batch: &Batch) -> Self {
        Self {
            n_rows: batch.n_rows,
            seq_len: batch.seq_len,
            n_targets: batch.targets.len(),
            n_tokens: batch.n_tokens,
        }
    }

    /// Inputs, padding included.
    pub fn n_inputs(self) -> usize {
        self.n_rows * self.seq_len
    }
}

/// Inputs of a row.
pub(crate) fn n_inputs(row: &[Sample]) -> usize {
    row.iter().map(Sample::n_inputs).sum()
}

/// Burn's name for making a [`Batch`]: an item of a
/// [`Schedule`](crate::Schedule) is a whole micro-batch already.
#[derive(Clone, Copy, Debug)]
pub struct BatchCollator {
    /// How to pad.
    pub padding: Padding,
}

impl Batcher<MicroBatch, Batch> for BatchCollator {
    fn batch(&self, items: Vec<MicroBatch>, _device: &Device) -> Batch {
        let kind = items.first().map(|item| item.kind).unwrap_or_default();
        let rows = items.into_iter().flat_map(|item| item.rows).collect();
        MicroBatch { rows, kind }.batch(self.padding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(tokens: &[u32], trained: &[u8]) -> Sample {
        Sample::new(tokens.to_vec(), trained.iter().map(|&t| t == 1).collect())
    }

    #[test]
    fn unequal_rows_are_shifted_and_padded_and_masked_by_position() {
        // 2 is end-of-sequence and padding at once, as in many checkpoints.
        let samples = [
            sample(&[5, 6, 7, 2], &[0, 0, 1, 1]),
            sample(&[8, 2], &[0, 1]),
        ];
        let batch = Batch::from_samples(&samples, 2);
        assert_eq!((batch.n_rows, batch.seq_len), (2, 3));
        assert_eq!(batch.inputs, [5, 6, 7, 8, 2, 2]);
        assert_eq!(batch.target_positions, [1, 2, 3]);
        assert_eq!(batch.targets, [7, 2, 2]);
        assert_eq!((batch.n_tokens, batch.n_trained), (4, 3));
    }

    #[test]
    fn a_multiple_adds_padding_and_nothing_else() {
        let samples = [
            sample(&[5, 6, 7, 2], &[0, 0, 1, 1]),
            sample(&[8, 2], &[0, 1]),
        ];
        let padding = Padding { id: 9, multiple: 4 };
        let batch = Batch::from_samples(&samples, padding);
        assert_eq!(batch.inputs, [5, 6, 7, 9, 8, 9, 9, 9]);
        assert_eq!((batch.seq_len, batch.n_tokens), (4, 4));
        assert_eq!(batch.target_positions, [1, 2, 4, 0]);
        assert_eq!(batch.targets, [7, 2, 2, 0]);
        assert_eq!(batch.n_trained, 3);
    }

    #[test]
    fn degenerate_samples_make_no_targets() {
        let batch = Batch::from_samples(&[sample(&[5], &[0]), sample(&[], &[])], 0);
        assert_eq!((batch.n_rows, batch.seq_len, batch.n_tokens), (2, 0, 0));
        assert!(batch.inputs.is_empty() && batch.targets.is_empty());
    }

    #[test]
    fn packed_rows_are_whole_samples_behind_each_other() {
        let rows = [
            vec![
                sample(&[5, 6, 7, 2], &[0, 0, 1, 1]),
                sample(&[8, 2], &[0, 1]),
            ],
            vec![sample(&[9, 4, 2], &[0, 0, 1]), sample(&[3], &[0])],
        ];
        let batch = Batch::packed(&rows, Padding { id: 1, multiple: 5 });
        assert_eq!((batch.n_rows, batch.seq_len), (2, 5));
        assert_eq!(batch.inputs, [5, 6, 7, 8, 1, 9, 4, 1, 1, 1]);
        assert_eq!(batch.segments, Some(vec![vec![3, 1], vec![2]]));
        assert_eq!(batch.sample_positions(), [0, 1, 2, 0, 0, 0, 1, 0, 0, 0]);
        // 6 → 7, 7 → 2 and 8 → 2 in the first row, 4 → 2 in the second; 7 → 8
        // and 9's neighbours in the other row are nobody's.
        assert_eq!(batch.target_positions, [1, 2, 3, 6, 0]);
        assert_eq!(batch.targets, [7, 2, 2, 2, 0]);
        assert_eq!((batch.n_tokens, batch.n_trained), (6, 4));
    }

    /// Two pairs in one row, of which the second parts at its last target, and a
    /// pair that has nothing in common.
    #[test]
    fn pairs_have_what_they_share_once() {
        let rows = [
            vec![
                sample(&[5, 6, 7, 8], &[0, 0, 1, 1]),
                sample(&[5, 6, 9, 2, 3], &[0, 0, 1, 1, 1]),
                sample(&[5, 4, 7], &[0, 0, 1]),
                sample(&[5, 4, 8], &[0, 0, 1]),
            ],
            vec![sample(&[1, 2], &[0, 1]), sample(&[3, 4], &[0, 1])],
        ];
        let batch = Batch::of_pairs(&rows, Padding { id: 0, multiple: 4 });
        assert_eq!((batch.n_rows, batch.seq_len), (2, 8));
        let first = [5, 6, 7, 9, 2, 5, 4, 0];
        assert_eq!(batch.inputs[..8], first);
        assert_eq!(batch.inputs[8..], [1, 3, 0, 0, 0, 0, 0, 0]);
        assert_eq!(batch.segments, Some(vec![vec![1, 2, 0, 0], vec![1, 1]]));
        let shared = vec![vec![2, 2], vec![0]];
        assert_eq!(batch.pairs.as_ref().unwrap().shared, shared);
        let documents = vec![vec![2, 1, 2, 2, 0, 0], vec![0, 1, 1]];
        assert_eq!(batch.documents(), Some(documents));
        let positions = batch.sample_positions();
        assert_eq!(positions[..8], [0, 1, 2, 2, 3, 0, 1, 0]);
        assert_eq!(positions[8..], [0; 8]);
        let continued = batch.continued().unwrap();
        assert_eq!(continued[..5], [0..0, 0..0, 0..2, 0..2, 0..2]);
        assert!(continued[5..].iter().all(Range::is_empty));
        // 6 → 7, 7 → 8; 6 → 9, 9 → 2, 2 → 3; 4 → 7; 4 → 8; 1 → 2; 3 → 4.
        assert_eq!(batch.target_positions[..9], [1, 2, 1, 3, 4, 6, 6, 8, 9]);
        assert_eq!(batch.targets[..9], [7, 8, 9, 2, 3, 7, 8, 2, 4]);
        assert_eq!(batch.target_samples(), [0, 0, 1, 1, 1, 2, 3, 4, 5]);
        assert_eq!(
            (batch.n_tokens, batch.n_trained, batch.n_samples()),
            (9, 9, 6)
        );
        // Taken apart by their targets, they are the samples that they were made of.
        let apart = |batch: &Batch| (batch.mismatched(9, 0), batch.mismatched(3, 0));
        assert_eq!(
            apart(&batch),
            apart(&Batch::from_samples(&rows.concat(), 0))
        );
    }

    #[test]
    fn positions_of_samples_of_their_own_rows_count_through() {
        let batch = Batch::from_samples(&[sample(&[5, 6, 7], &[0, 1, 1]), sample(&[5], &[0])], 0);
        assert_eq!(batch.segments, None);
        assert_eq!(batch.sample_positions(), [0, 1, 0, 1]);
    }

    #[test]
    fn weights_are_those_of_the_targets() {
        let weighted = Sample {
            weights: Some(vec![9.0, 9.0, 0.5, 0.25]),
            ..sample(&[5, 6, 7, 2], &[0, 0, 1, 1])
        };
        let rows = [vec![weighted.clone(), sample(&[8, 2], &[0, 1])]];
        let batch = Batch::packed(&rows, Padding { id: 0, multiple: 4 });
        assert_eq!(batch.targets, [7, 2, 2, 0]);
        assert_eq!(batch.target_weights, Some(vec![0.5, 0.25, 1.0, 0.0]));
        assert_eq!((batch.n_trained, batch.weight_sum), (3, 1.75));

        // Where all count 1, nothing is said of it.
        let plain = Sample {
            weights: Some(vec![9.0, 9.0, 1.0, 1.0]),
            ..weighted
        };
        let batch = Batch::from_samples(&[plain], 0);
        assert_eq!((batch.target_weights, batch.weight_sum), (None, 2.0));
    }
}
