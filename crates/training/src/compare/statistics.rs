//! What a few seeds can tell.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// A step, counted from 0, and the validation loss after it.
pub(crate) type Point = (usize, f64);

pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
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

/// The first step, interpolated between evaluations, at which the loss is down
/// to `target`; `None` if it never is.
pub(crate) fn steps_to(curve: &[Point], target: f64) -> Option<f64> {
    let first = curve.first()?;
    if first.1 <= target {
        return Some(first.0 as f64);
    }
    curve.windows(2).find_map(|pair| {
        let [(from, above), (to, below)] = *pair else {
            return None;
        };
        let crosses = below <= target && above > target;
        let share = (above - target) / (above - below);
        crosses.then(|| from as f64 + share * (to - from) as f64)
    })
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
    fn one_value_has_no_spread() {
        assert_eq!(Interval::of(&[1.0]), None);
        assert_eq!(deviation(&[1.0]), None);
    }

    #[test]
    fn a_target_is_met_between_evaluations() {
        let curve = [(0, 4.0), (10, 2.0), (20, 2.5), (30, 1.0)];
        assert_eq!(steps_to(&curve, 3.0), Some(5.0));
        assert_eq!(steps_to(&curve, 2.0), Some(10.0));
        assert_eq!(steps_to(&curve, 1.75), Some(25.0));
        assert_eq!(steps_to(&curve, 0.5), None);
        assert_eq!(steps_to(&curve, 5.0), Some(0.0));
        assert_eq!(steps_to(&[], 5.0), None);
    }

    #[test]
    fn the_area_weighs_by_steps() {
        assert_eq!(area(&[(0, 4.0), (10, 2.0), (40, 2.0)]), Some(90.0 / 40.0));
        assert_eq!(area(&[(0, 4.0)]), None);
    }
}
