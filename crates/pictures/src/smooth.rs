//! Curves without their noise.

/// The exponential moving average of a curve, as `TensorBoard` smooths: each
/// value is `weight` of the average so far and `1 - weight` of the point, and
/// what the average's start at zero takes away is given back, so that the first
/// value is the first point's. Points that are not finite are left out.
pub fn smoothed(points: &[(f64, f64)], weight: f64) -> Vec<(f64, f64)> {
    let (mut average, mut missing) = (0.0, 1.0);
    points
        .iter()
        .filter(|(_, y)| y.is_finite())
        .map(|&(x, y)| {
            average = weight * average + (1.0 - weight) * y;
            missing *= weight;
            (x, average / (1.0 - missing))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: 4, then (0.6·0.4·4 + 0.4·2)/(1 − 0.36), then
    /// (0.6·(0.6·0.4·4 + 0.4·2) + 0.4·1)/(1 − 0.216).
    #[test]
    fn smoothing_is_corrected_for_its_start() {
        let smooth = smoothed(&[(1.0, 4.0), (2.0, 2.0), (3.0, 1.0)], 0.6);
        for (found, expected) in smooth.iter().zip([4.0, 1.76 / 0.64, 1.456 / 0.784]) {
            assert!((found.1 - expected).abs() < 1e-12, "{smooth:?}");
        }
    }

    #[test]
    fn a_value_that_is_none_changes_no_other() {
        let with = smoothed(&[(1.0, 4.0), (2.0, f64::NAN), (3.0, 1.0)], 0.6);
        let without = smoothed(&[(1.0, 4.0), (3.0, 1.0)], 0.6);
        assert_eq!(with, without);
    }
}
