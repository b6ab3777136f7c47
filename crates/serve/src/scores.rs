//! Log-probabilities of tokens.

use crate::job::Score;

/// The score of a token by the logits of its place, with the `top` likeliest ones.
pub(crate) fn score(logits: &[f32], id: u32, top: usize) -> Score {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|logit| f64::from((logit - largest).exp()))
        .sum();
    let base = f64::from(largest) + sum.ln();
    let of = |id: u32| {
        let logit = logits.get(id as usize).copied();
        logit.map_or(f32::NEG_INFINITY, |logit| (f64::from(logit) - base) as f32)
    };
    let likelier = |a: &u32, b: &u32| {
        let by_logit = logits[*b as usize].total_cmp(&logits[*a as usize]);
        by_logit.then(a.cmp(b))
    };
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    if top < order.len() {
        order.select_nth_unstable_by(top, likelier);
        order.truncate(top);
    }
    order.sort_unstable_by(likelier);
    Score {
        id,
        logprob: of(id),
        top: order.into_iter().map(|id| (id, of(id))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_log_probabilities_and_the_likeliest_come_first() {
        let found = score(&[1.0, 3.0, 3.0, 0.0], 0, 2);
        let sum: f64 = [1.0_f64, 3.0, 3.0, 0.0].iter().map(|x| x.exp()).sum();
        assert!((f64::from(found.logprob) - (1.0 - sum.ln())).abs() < 1e-6);
        let ids: Vec<u32> = found.top.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [1, 2], "the first of equals is first");
        assert!(score(&[0.5; 4], 2, 0).top.is_empty());
        assert_eq!(score(&[0.5; 4], 2, 9).top.len(), 4);
    }

    #[test]
    fn logits_that_are_large_give_numbers() {
        let found = score(&[1e4, 0.0], 1, 1);
        assert!((found.logprob + 1e4).abs() < 1.0 && found.top[0].1.abs() < 1e-6);
    }
}
