//! What the requests of an item have in common, so that it is run once.

use crate::encode::Request;

/// How one item is run: a prefix, then rows that continue it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PrefixPlan {
    /// Distinct inputs, none of which begins with another.
    pub(crate) rows: Vec<Vec<u32>>,
    /// How many tokens all rows begin with that are run once; 0 if there is
    /// one row only, which is run whole.
    pub(crate) prefix: usize,
    /// The row in which each request's input is.
    pub(crate) row_of: Vec<usize>,
}

impl PrefixPlan {
    /// The prefix is a multiple of `multiple`, so that few lengths occur.
    pub(crate) fn new(requests: &[Request], multiple: usize) -> Self {
        let mut order: Vec<usize> = (0..requests.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(requests[i].input.len()));
        let mut rows: Vec<Vec<u32>> = Vec::new();
        let mut row_of = vec![0; requests.len()];
        for i in order {
            let input = &requests[i].input;
            let known = rows.iter().position(|row| row.starts_with(input));
            row_of[i] = known.unwrap_or_else(|| {
                rows.push(input.clone());
                rows.len() - 1
            });
        }
        let common = match rows.as_slice() {
            [first, others @ ..] if !others.is_empty() => others
                .iter()
                .map(|row| first.iter().zip(row).take_while(|(a, b)| a == b).count())
                .min()
                .unwrap_or(0),
            _ => 0,
        };
        Self {
            rows,
            prefix: common - common % multiple.max(1),
            row_of,
        }
    }

    /// The longest row's part after the prefix.
    pub(crate) fn suffix(&self) -> usize {
        let longest = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        longest - self.prefix
    }

    /// Tokens that are run, without padding.
    pub(crate) fn n_tokens(&self) -> usize {
        let rows: usize = self.rows.iter().map(|row| row.len() - self.prefix).sum();
        self.prefix + rows
    }
}

/// Groups of plans to be run together: of one prefix length, so that one cache
/// holds them, the longest first, and of at most `tokens` tokens, padding
/// included, unless one plan alone has more. Each group lists indices of `plans`.
pub(crate) fn batches(plans: &[PrefixPlan], tokens: usize, multiple: usize) -> Vec<Vec<usize>> {
    let padded = |length: usize| length.next_multiple_of(multiple.max(1));
    let mut order: Vec<usize> = (0..plans.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse((plans[i].prefix, plans[i].suffix())));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    // Of the batch being filled: prefix, the longest suffix, rows.
    let mut open = (usize::MAX, 0, 0);
    for i in order {
        let plan = &plans[i];
        let (prefix, suffix, rows) = open;
        let rows_with = rows + plan.rows.len();
        match batches.last_mut() {
            Some(batch) if prefix == plan.prefix && rows_with * (prefix + suffix) <= tokens => {
                batch.push(i);
                open.2 = rows_with;
            }
            _ => {
                batches.push(vec![i]);
                open = (plan.prefix, padded(plan.suffix()), plan.rows.len());
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(input: &[u32], n_targets: usize) -> Request {
        Request {
            input: input.to_vec(),
            targets: vec![0; n_targets],
        }
    }

    #[test]
    fn the_common_prefix_is_run_once_and_what_is_within_another_row_not_at_all() {
        let requests = [
            request(&[1, 2, 3], 1),
            request(&[1, 2, 3, 4, 5], 3),
            request(&[1, 2, 3, 6], 2),
        ];
        let plan = PrefixPlan::new(&requests, 1);
        assert_eq!(plan.rows, [vec![1, 2, 3, 4, 5], vec![1, 2, 3, 6]]);
        assert_eq!((plan.prefix, plan.row_of.as_slice()), (3, &[0, 0, 1][..]));
        assert_eq!((plan.suffix(), plan.n_tokens()), (2, 6));
        assert_eq!(PrefixPlan::new(&requests, 2).prefix, 2);
    }

    #[test]
    fn one_row_is_run_whole() {
        let plan = PrefixPlan::new(&[request(&[1, 2], 1), request(&[1, 2], 1)], 1);
        assert_eq!((plan.rows.len(), plan.prefix, plan.suffix()), (1, 0, 2));
    }

    #[test]
    fn batches_share_a_prefix_length_and_keep_to_the_budget() {
        let plan = |prefix: usize, suffixes: &[usize]| PrefixPlan {
            rows: suffixes.iter().map(|n| vec![0; prefix + n]).collect(),
            prefix,
            row_of: vec![],
        };
        let plans = [
            plan(4, &[1, 2]),
            plan(8, &[1, 1]),
            plan(4, &[4, 3]),
            plan(4, &[1, 1]),
        ];
        assert_eq!(
            batches(&plans, 100, 1),
            [vec![1], vec![2, 0, 3]],
            "the longest first"
        );
        // Two rows of 4 + 4 tokens are 16, four are 32.
        assert_eq!(batches(&plans, 32, 1), [vec![1], vec![2, 0], vec![3]]);
        assert_eq!(batches(&plans, 1, 1).len(), 4);
    }
}
