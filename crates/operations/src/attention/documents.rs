//! Documents of one row kept apart, even where a value is not finite.
//!
//! A key that a query does not see has the weight zero, and zero times infinity
//! is not a number: through the products that sum over positions (`P·v`,
//! `Pᵀ·g`, `dS·k`, `dSᵀ·q`) an infinity or NaN of one document would reach all
//! others whose positions are multiplied with it. So where a row holds several
//! documents, these products are given zero in the place of what is not finite,
//! and afterwards exactly those results that a seen position would have spoilt
//! become NaN. Finite values are not touched, and no result that was finite is.
//!
//! Whether a position is among those seen, which are a range or two, is answered
//! by counts from the beginning up to both ends of the range: work for a backend
//! that grows with the length, not with its square, and does not wait for it.

use burn::backend::{Backend, FloatDType, Shape, tensor::FloatTensor};

use super::{AttentionMask, Seen, Sizes};
use crate::portable::Portable;

/// A tensor, shaped `[batch, heads, positions, head_dim]`, as a product that
/// sums over its positions is given it.
pub(crate) struct Summed<B: Backend> {
    /// With zero in the place of what is not finite, if that must not spread.
    pub(crate) finite: Portable<B>,
    /// How many of each feature's values before a position are not finite,
    /// `[batch, heads, positions + 1, head_dim]`, in f32.
    counts: Option<Portable<B>>,
}

impl<B: Backend> Summed<B> {
    /// `apart` says that what is not finite must not spread. Otherwise the
    /// tensor stays as it is.
    pub(crate) fn new(tensor: FloatTensor<B>, apart: bool) -> Self {
        let tensor = Portable::<B>(tensor);
        if !apart {
            return Self {
                finite: tensor,
                counts: None,
            };
        }
        let not_finite = tensor.clone().not_finite();
        let ones = Portable::<B>(B::bool_into_float(not_finite.clone(), FloatDType::F32));
        let mut first = ones.shape();
        first[2] = 1;
        let none = B::float_zeros(Shape::from(first), &tensor.device(), FloatDType::F32);
        Self {
            finite: tensor.fill_where(not_finite, 0.0),
            counts: Some(Portable::cat(vec![Portable(none), ones.cumsum(2)], 2)),
        }
    }

    /// The product's `result`, with NaN where it would have summed over a value
    /// that is not finite: `seen` gives for each row and position of the result
    /// the positions over which its sum goes.
    ///
    /// # Shapes
    ///
    /// - result: `[batch, heads, n, head_dim]`, whose heads are a multiple of
    ///   the tensor's, shared among them, or a divisor, summed over them
    /// - seen: `batch · n`
    pub(crate) fn finish(
        self,
        result: FloatTensor<B>,
        seen: impl FnOnce() -> Vec<Seen>,
    ) -> FloatTensor<B> {
        let Some(counts) = self.counts else {
            return result;
        };
        let (result, seen) = (Portable::<B>(result), seen());
        let (shape, of_tensor) = (result.shape(), counts.shape());
        let [batch, heads, n, head_dim] = [0, 1, 2, 3].map(|axis| shape[axis]);
        let [tensor_heads, ends] = [of_tensor[1], of_tensor[2]];
        let counts = counts.reshape([batch * tensor_heads * ends, head_dim]);
        let up_to = |end: fn(&Seen) -> usize| {
            let lines = (0..batch * tensor_heads).flat_map(|head| {
                let seen = &seen[head / tensor_heads * n..][..n];
                seen.iter().map(move |seen| head * ends + end(seen))
            });
            counts.clone().select_rows(&lines.collect::<Vec<usize>>())
        };
        let mut within = up_to(|seen| seen.own.end) - up_to(|seen| seen.own.start);
        if seen.iter().any(|seen| !seen.shared.is_empty()) {
            let shared = up_to(|seen| seen.shared.end) - up_to(|seen| seen.shared.start);
            within = within + shared;
        }
        let within = if heads > tensor_heads {
            let shared = within.reshape([batch * tensor_heads, 1, n, head_dim]);
            Portable::cat(vec![shared; heads / tensor_heads], 1)
        } else {
            let groups = tensor_heads / heads.max(1);
            let grouped = within.reshape([batch * heads, groups, n, head_dim]);
            grouped.sum_dim(1)
        };
        let within = within.reshape(shape);
        let spoilt = within.clone().scale(0.0).lower(within);
        result.fill_where(spoilt, f64::NAN).0
    }
}

impl AttentionMask {
    /// Whether any row holds several documents. Of a row that is one, a causal mask says all.
    pub(crate) fn has_documents(&self) -> bool {
        let starts = self.starts.as_deref().unwrap_or_default();
        starts.iter().any(|start| *start > 0)
    }

    /// For each row and query, the keys that it sees.
    pub(crate) fn keys_of_queries(&self, sizes: Sizes) -> Vec<Seen> {
        let Sizes { batch, seq, .. } = sizes;
        (0..batch)
            .flat_map(|row| (0..seq).map(move |query| self.keys(row, query, seq, sizes.keys)))
            .collect()
    }

    /// For each row and key, the queries that see it. They are a range, since
    /// the keys of later queries neither begin nor end before those of earlier
    /// ones; of keys that several documents continue, it is taken up to the last
    /// query that sees them, whatever lies between.
    pub(crate) fn queries_of_keys(&self, sizes: Sizes) -> Vec<Seen> {
        let of_queries = self.keys_of_queries(sizes);
        let rows = of_queries.chunks(sizes.seq.max(1));
        rows.flat_map(|seen| {
            let mut continued = last_of_shared(seen, sizes.keys).into_iter();
            (0..sizes.keys).map(move |key| {
                let first = seen.partition_point(|keys| keys.own.end <= key);
                let end = seen.partition_point(|keys| keys.own.start <= key);
                let end = end.max(continued.next().unwrap_or(0));
                Seen {
                    shared: 0..0,
                    own: first..end.max(first),
                }
            })
        })
        .collect()
    }
}

/// For each key, the end of the queries that see it as a part of what their
/// document continues; 0 if none does.
fn last_of_shared(of_queries: &[Seen], keys: usize) -> Vec<usize> {
    // Of each key that such a range begins at, the last of these queries and the range's end.
    let mut begun = vec![(0, 0); keys];
    for (query, seen) in of_queries.iter().enumerate() {
        if !seen.shared.is_empty() {
            begun[seen.shared.start] = (query + 1, seen.shared.end);
        }
    }
    let (mut last, mut until) = (0, 0);
    let ends = begun.into_iter().enumerate().map(|(key, (query, end))| {
        if key >= until {
            last = 0;
        }
        if query > last {
            (last, until) = (query, end);
        }
        last
    });
    ends.collect()
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    /// A prompt of 3 with answers of 2 and 4, and one of 1 without an answer.
    #[test]
    fn answers_see_their_prompt_and_themselves() {
        let documents = [vec![3, 2, 4, 1]];
        let shared = [vec![0..0; 3], vec![0..3; 6], vec![0..0; 2]].concat();
        let mask = AttentionMask::causal(None)
            .within_documents(&documents, 11)
            .continuing(shared);
        let seen = |mask: &AttentionMask, query| -> Vec<usize> {
            let keys = mask.keys(0, query, 11, 11);
            (0..11).filter(|key| keys.contains(*key)).collect()
        };
        assert_eq!(seen(&mask, 2), [0, 1, 2]);
        assert_eq!(seen(&mask, 4), [0, 1, 2, 3, 4]);
        assert_eq!(seen(&mask, 5), [0, 1, 2, 5]);
        assert_eq!(seen(&mask, 8), [0, 1, 2, 5, 6, 7, 8]);
        assert_eq!(seen(&mask, 9), [9]);
        let windowed = mask.clone().within_window(Some(3));
        assert_eq!(seen(&windowed, 2), [0, 1, 2]);
        assert_eq!(seen(&windowed, 5), [1, 2, 5]);
        assert_eq!(seen(&windowed, 6), [2, 5, 6]);
        assert_eq!(seen(&windowed, 8), [6, 7, 8]);
        let sizes = Sizes::of(&[1, 1, 11, 8], &[1, 1, 11, 8]);
        let of_keys = |mask: &AttentionMask| -> Vec<Range<usize>> {
            let all = mask.queries_of_keys(sizes).into_iter();
            all.map(|seen| seen.own).collect()
        };
        let documents = [3..5, 4..5, 5..9, 6..9, 7..9, 8..9, 9..10, 10..11];
        assert_eq!(of_keys(&mask)[..3], [0..9, 1..9, 2..9]);
        assert_eq!(of_keys(&mask)[3..], documents);
        // Of the last answer, the window's first query sees key 1 and its second key 2.
        assert_eq!(of_keys(&windowed)[..3], [0..3, 1..6, 2..7]);
    }

    #[test]
    fn queries_and_keys_see_each_other() {
        let documents = [vec![3, 5], vec![7, 2]];
        for window in [None, Some(2)] {
            let mask = AttentionMask::causal(window).within_documents(&documents, 11);
            let sizes = Sizes::of(&[2, 4, 11, 8], &[2, 2, 11, 8]);
            let (keys, queries) = (mask.keys_of_queries(sizes), mask.queries_of_keys(sizes));
            assert_eq!((keys.len(), queries.len()), (22, 22));
            for row in [0, 11] {
                for query in 0..11 {
                    for key in 0..11 {
                        assert_eq!(
                            keys[row + query].contains(key),
                            queries[row + key].contains(query),
                            "row {row}, query {query}, key {key}"
                        );
                    }
                }
            }
        }
    }
}
