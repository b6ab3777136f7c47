//! Samples to one right-padded batch on the host.

use burn::{data::dataloader::batcher::Batcher, tensor::Device};

use crate::Sample;

/// A batch as host vectors: what a model reads, and where it is to be judged.
///
/// Inputs and targets are already shifted against each other. Rows are padded on
/// the right, so causal attention needs no other mask: no real token sees a
/// padded one, and no padded one is a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// `[n_rows, seq_len]`, row-major: all tokens but the last of each sample.
    pub inputs: Vec<i32>,
    /// Number of samples.
    pub n_rows: usize,
    /// Length of every row, padding included.
    pub seq_len: usize,
    /// Flat indices into `inputs` of those whose *next* token is trained, and
    /// after the first `n_trained` of them, zeros.
    pub positions: Vec<i32>,
    /// That next token, for each of `positions`.
    pub targets: Vec<i32>,
    /// Number of inputs that are not padding.
    pub n_tokens: usize,
    /// Number of tokens the loss is taken on: the first of `targets`.
    pub n_trained: usize,
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

impl From<u32> for Padding {
    /// No further than the longest row.
    fn from(id: u32) -> Self {
        Self { id, multiple: 1 }
    }
}

impl Batch {
    /// Pads on the right: with a plain id to the longest row, with a
    /// [`Padding`] to a multiple of its length.
    pub fn from_samples(samples: &[Sample], padding: impl Into<Padding>) -> Self {
        let Padding { id, multiple } = padding.into();
        let round_up = |n: usize| n.next_multiple_of(multiple.max(1));
        let longest = samples.iter().map(Sample::n_inputs).max().unwrap_or(0);
        let seq_len = round_up(longest);
        let mut inputs = vec![id.cast_signed(); samples.len() * seq_len];
        let (mut positions, mut targets) = (Vec::new(), Vec::new());
        for (row, sample) in samples.iter().enumerate() {
            let next = sample.tokens.iter().zip(&sample.trained).skip(1);
            for (i, (&token, (&target, &trained))) in sample.tokens.iter().zip(next).enumerate() {
                let at = row * seq_len + i;
                inputs[at] = token.cast_signed();
                if trained {
                    positions.push((at as u32).cast_signed());
                    targets.push(target.cast_signed());
                }
            }
        }
        let n_tokens = samples.iter().map(Sample::n_inputs).sum();
        let n_trained = targets.len();
        positions.resize(round_up(n_trained), 0);
        targets.resize(round_up(n_trained), 0);
        Self {
            inputs,
            n_rows: samples.len(),
            seq_len,
            positions,
            targets,
            n_tokens,
            n_trained,
        }
    }
}

/// Burn's name for [`Batch::from_samples`]: an item of a
/// [`Schedule`](crate::Schedule) is a whole micro-batch already.
#[derive(Clone, Copy, Debug)]
pub struct BatchCollator {
    /// How to pad.
    pub padding: Padding,
}

impl Batcher<Vec<Sample>, Batch> for BatchCollator {
    fn batch(&self, items: Vec<Vec<Sample>>, _device: &Device) -> Batch {
        Batch::from_samples(&items.concat(), self.padding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(tokens: &[u32], trained: &[u8]) -> Sample {
        Sample {
            tokens: tokens.to_vec(),
            trained: trained.iter().map(|&t| t == 1).collect(),
        }
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
        assert_eq!(batch.positions, [1, 2, 3]);
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
        assert_eq!(batch.positions, [1, 2, 4, 0]);
        assert_eq!(batch.targets, [7, 2, 2, 0]);
        assert_eq!(batch.n_trained, 3);
    }

    #[test]
    fn degenerate_samples_make_no_targets() {
        let batch = Batch::from_samples(&[sample(&[5], &[0]), sample(&[], &[])], 0);
        assert_eq!((batch.n_rows, batch.seq_len, batch.n_tokens), (2, 0, 0));
        assert!(batch.inputs.is_empty() && batch.targets.is_empty());
    }
}
