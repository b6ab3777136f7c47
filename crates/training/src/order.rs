//! The one order in which the parts of a step are added.
//!
//! Sums of floating-point numbers depend on their order. The micro-batches of a
//! step are the leaves of a binary tree by their index: neighbours are added
//! first, then the sums of neighbours, `((0+1)+(2+3))+((4+5)+(6+7))`. A tree
//! that is not full has the same shape without what is missing. Whoever holds
//! some of the leaves can add those parts of the tree that are whole by
//! themselves, and the rest is added where the parts come together: the result
//! is the same, bit for bit, however the leaves were shared out.
//!
//! For up to three leaves this is the order from left to right. Beyond, as many
//! partial sums are kept as their number has binary digits.

/// Where a partial sum stands in the tree: it is that of `size` leaves, a power
/// of two, from `start` on, a multiple of `size`; fewer at the end of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) start: usize,
    pub(crate) size: usize,
}

/// The parts of a tree that are whole, from left to right.
#[derive(Debug)]
pub(crate) struct Parts<T>(Vec<(Node, T)>);

impl<T> Parts<T> {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a leaf, to the right of all others.
    pub(crate) fn leaf<E>(
        &mut self,
        index: usize,
        value: T,
        add: &mut impl FnMut(T, T) -> Result<T, E>,
    ) -> Result<(), E> {
        let node = Node {
            start: index,
            size: 1,
        };
        self.push(node, value, add)
    }

    /// Adds a part, to the right of all others, and joins what is whole.
    pub(crate) fn push<E>(
        &mut self,
        node: Node,
        value: T,
        add: &mut impl FnMut(T, T) -> Result<T, E>,
    ) -> Result<(), E> {
        let (mut node, mut value) = (node, value);
        while let Some((left, _)) = self.0.last() {
            let are_siblings = left.size == node.size
                && left.start.is_multiple_of(2 * node.size)
                && left.start + left.size == node.start;
            if !are_siblings {
                break;
            }
            if let Some((left, sum)) = self.0.pop() {
                value = add(sum, value)?;
                node = Node {
                    start: left.start,
                    size: 2 * left.size,
                };
            }
        }
        self.0.push((node, value));
        Ok(())
    }

    pub(crate) fn nodes(&self) -> Vec<Node> {
        self.0.iter().map(|(node, _)| *node).collect()
    }

    pub(crate) fn into_values(self) -> Vec<T> {
        self.0.into_iter().map(|(_, value)| value).collect()
    }

    /// The sum of a tree whose leaves are all there; `None` if it has none.
    pub(crate) fn total<E>(
        self,
        add: &mut impl FnMut(T, T) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        let mut values = self.into_values().into_iter().rev();
        let Some(mut total) = values.next() else {
            return Ok(None);
        };
        for left in values {
            total = add(left, total)?;
        }
        Ok(Some(total))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Writes down what is added to what.
    #[expect(
        clippy::needless_pass_by_value,
        clippy::unnecessary_wraps,
        reason = "as values are added that can fail"
    )]
    fn add(left: String, right: String) -> Result<String, Infallible> {
        Ok(format!("({left}{right})"))
    }

    fn leaves(range: std::ops::Range<usize>) -> Parts<String> {
        let mut parts = Parts::new();
        for i in range {
            let name = char::from(b'a' + i as u8).to_string();
            parts.leaf(i, name, &mut add).unwrap();
        }
        parts
    }

    fn total(parts: Parts<String>) -> String {
        parts.total(&mut add).unwrap().unwrap_or_default()
    }

    #[test]
    fn neighbours_are_added_first() {
        for (n, expected) in [
            (0, ""),
            (1, "a"),
            (2, "(ab)"),
            (3, "((ab)c)"),
            (4, "((ab)(cd))"),
            (5, "(((ab)(cd))e)"),
            (7, "(((ab)(cd))((ef)g))"),
            (8, "(((ab)(cd))((ef)(gh)))"),
        ] {
            assert_eq!(total(leaves(0..n)), expected);
        }
    }

    #[test]
    fn any_number_of_ranks_that_divides_gives_the_same_order() {
        for accumulation in 1..=24 {
            // A last step may have fewer.
            for n in 1..=accumulation {
                let expected = total(leaves(0..n));
                for n_ranks in (1..=accumulation).filter(|r| accumulation % r == 0) {
                    let block = accumulation / n_ranks;
                    let mut together = Parts::new();
                    for rank in 0..n_ranks {
                        let end = ((rank + 1) * block).min(n);
                        let own = leaves((rank * block).min(end)..end);
                        for (node, value) in own.0 {
                            together.push(node, value, &mut add).unwrap();
                        }
                    }
                    assert_eq!(total(together), expected, "{accumulation} {n} {n_ranks}");
                }
            }
        }
    }

    #[test]
    fn a_block_of_a_power_of_two_is_one_part() {
        assert_eq!(leaves(8..16).nodes(), [Node { start: 8, size: 8 }]);
        assert_eq!(leaves(3..6).nodes().len(), 2);
    }
}
