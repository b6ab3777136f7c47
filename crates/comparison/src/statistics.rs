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

    /// Whether the interval leaves out zero.
    pub(crate) fn is_clear(&self) -> bool {
        self.mean.abs() > self.half_width
    }
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
