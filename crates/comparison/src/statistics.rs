//! What a few seeds can tell.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// A step, counted from 0, and the validation loss after it.
pub(crate) type Point = (usize, f64);

pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The middle value, the mean of two for an even number; `None` for none.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    let lower = sorted[middle - usize::from(sorted.len().is_multiple_of(2))];
    Some(0.5 * (lower + upper))
}

/// The sample's standard deviation; `None` for fewer than two values.
pub(crate) fn deviation(values: &[f64]) -> Option<f64> {
    let n = values.len();
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (n > 1).then(|| (squares / (n - 1) as f64).sqrt())
}

/// A mean with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Interval {
    pub(crate) mean: f64,
    pub(crate) half_width: f64,
}

impl Interval {
    /// Student's interval for the mean of normally distributed values, which
    /// for paired differences is the paired t-test; `None` for fewer than two.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let deviation = deviation(values)?;
        let n = values.len() as f64;
        let quantile = StudentsT::new(0.0, 1.0, n - 1.0).ok()?.inverse_cdf(0.975);
        Some(Self {
            mean: mean(values),
            half_width: quantile * deviation / n.sqrt(),
        })
    }

    /// The probability of a mean as far from zero if it were zero (two-sided, by Student's t);
    /// `None` for fewer than two values, or if all are equal.
    pub(crate) fn p(values: &[f64]) -> Option<f64> {
        let deviation = deviation(values).filter(|deviation| *deviation > 0.0)?;
        let n = values.len() as f64;
        let t = mean(values) / (deviation / n.sqrt());
        let student = StudentsT::new(0.0, 1.0, n - 1.0).ok()?;
        Some(2.0 * student.cdf(-t.abs()))
    }

    /// Whether the interval leaves out zero.
    pub(crate) fn is_clear(&self) -> bool {
        self.mean.abs() > self.half_width
    }
}

/// The probabilities of several comparisons, corrected for their number by Holm's method: how
/// large each would have to be allowed to be for all that are smaller to be kept (Holm 1979, "A
/// simple sequentially rejective multiple test procedure").
pub(crate) fn holm(ps: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..ps.len()).collect();
    order.sort_by(|&one, &other| ps[one].total_cmp(&ps[other]));
    let mut corrected = vec![1.0; ps.len()];
    let mut largest = 0.0_f64;
    for (place, index) in order.into_iter().enumerate() {
        largest = largest.max((ps.len() - place) as f64 * ps[index]);
        corrected[index] = largest.min(1.0);
    }
    corrected
}

/// The value at `x` by straight lines between points that are sorted by it, on the logarithm of
/// `x`; `None` outside them.
pub(crate) fn at_log(points: &[(f64, f64)], x: f64) -> Option<f64> {
    let exact = points.iter().find(|(at, _)| *at == x);
    if let Some((_, y)) = exact {
        return Some(*y);
    }
    let pair = points
        .windows(2)
        .find(|pair| pair[0].0 < x && x < pair[1].0)?;
    let [(x0, y0), (x1, y1)] = [pair[0], pair[1]];
    let share = (x / x0).ln() / (x1 / x0).ln();
    Some(y0 + share * (y1 - y0))
}

/// The length of run at which a loss is met for the first time, of losses by length, by straight
/// lines between the logarithms of the losses; `None` if none meets it, and the first length if
/// that does.
pub(crate) fn length_to(losses: &[(usize, f64)], target: f64) -> Option<f64> {
    let met = losses.iter().position(|(_, loss)| *loss <= target)?;
    let (to, below) = losses[met];
    let Some(&(from, above)) = met.checked_sub(1).map(|before| &losses[before]) else {
        return Some(to as f64);
    };
    let share = (above / target).ln() / (above / below).ln();
    Some(from as f64 + share * (to - from) as f64)
}

/// The step, by straight lines between evaluations, from which on the loss
/// stays at or below `target`; `None` if it ends above.
pub(crate) fn steps_to(curve: &[Point], target: f64) -> Option<f64> {
    let stays = |&(_, loss): &Point| loss <= target;
    curve.last().filter(|last| stays(last))?;
    let Some(last_above) = curve.iter().rposition(|point| !stays(point)) else {
        return curve.first().map(|first| first.0 as f64);
    };
    let ((from, above), (to, below)) = (curve[last_above], curve[last_above + 1]);
    let share = (above - target) / (above - below);
    Some(from as f64 + share * (to - from) as f64)
}

/// The mean loss over the run: the area under the straight lines between
/// evaluations, by steps. `None` for fewer than two evaluations.
pub(crate) fn area(curve: &[Point]) -> Option<f64> {
    let (first, last) = (curve.first()?.0, curve.last()?.0);
    let pieces = curve
        .windows(2)
        .map(|pair| 0.5 * (pair[0].1 + pair[1].1) * (pair[1].0 - pair[0].0) as f64);
    (last > first).then(|| pieces.sum::<f64>() / (last - first) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By R: `t.test(c(1, 2, 4))` gives the mean 2.333333 and the interval
    /// from -1.461250 to 6.127916.
    #[test]
    fn the_interval_is_students() {
        let interval = Interval::of(&[1.0, 2.0, 4.0]).unwrap();
        assert!((interval.mean - 7.0 / 3.0).abs() < 1e-12);
        assert!(
            (interval.half_width - 3.794_583).abs() < 1e-5,
            "{interval:?}"
        );
        assert!(!interval.is_clear());
        assert!(Interval::of(&[1.0, 1.1, 0.9]).unwrap().is_clear());
    }

    /// With two degrees of freedom p is 1 − t/√(2 + t²), and t is √7 here. Holm's are those of R's
    /// `p.adjust(c(0.01, 0.04, 0.03), "holm")`.
    #[test]
    fn probabilities_are_students_and_holms() {
        let p = Interval::p(&[1.0, 2.0, 4.0]).unwrap();
        assert!((p - (1.0 - 7_f64.sqrt() / 3.0)).abs() < 1e-9, "{p}");
        assert_eq!(Interval::p(&[1.0]), None);
        let corrected = holm(&[0.01, 0.04, 0.03]);
        for (found, expected) in corrected.iter().zip([0.03, 0.06, 0.06]) {
            assert!((found - expected).abs() < 1e-12, "{corrected:?}");
        }
    }

    #[test]
    fn values_between_rates_and_lengths_are_interpolated() {
        let losses = [(1e-4, 3.0), (1e-3, 1.0), (1e-2, 2.0)];
        assert_eq!(at_log(&losses, 1e-3), Some(1.0));
        let middle = at_log(&losses, 10_f64.powf(-3.5)).unwrap();
        assert!((middle - 2.0).abs() < 1e-9, "{middle}");
        assert_eq!(at_log(&losses, 5e-5), None);
        let lengths = [(50, 4.0), (100, 1.0), (200, 0.25)];
        assert_eq!(length_to(&lengths, 5.0), Some(50.0));
        let half = length_to(&lengths, 2.0).unwrap();
        assert!((half - 75.0).abs() < 1e-9, "{half}");
        assert_eq!(length_to(&lengths, 0.1), None);
    }

    #[test]
    fn the_median_of_two_is_between_them() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn one_value_has_no_spread() {
        assert_eq!(Interval::of(&[1.0]), None);
        assert_eq!(deviation(&[1.0]), None);
    }

    #[test]
    fn a_target_is_met_between_evaluations() {
        let curve = [(0, 4.0), (10, 2.0), (20, 2.5), (30, 1.0)];
        assert_eq!(steps_to(&curve, 3.0), Some(5.0));
        // It is down to 2 at step 10, but not for good.
        let stays = steps_to(&curve, 2.0).unwrap();
        assert!((stays - 70.0 / 3.0).abs() < 1e-9, "{stays}");
        assert_eq!(steps_to(&curve, 1.75), Some(25.0));
        assert_eq!(steps_to(&curve, 0.5), None);
        assert_eq!(steps_to(&curve, 5.0), Some(0.0));
        assert_eq!(steps_to(&[(0, 4.0), (10, 1.0), (20, 2.5)], 2.0), None);
        assert_eq!(steps_to(&[], 5.0), None);
    }

    #[test]
    fn the_area_weighs_by_steps() {
        assert_eq!(area(&[(0, 4.0), (10, 2.0), (40, 2.0)]), Some(90.0 / 40.0));
        assert_eq!(area(&[(0, 4.0)]), None);
    }
}
