//! Llama 3's scaling of the rotary frequencies, which configurations describe
//! by four numbers and GGUF files by a factor for each frequency.

use std::f64::consts::TAU;

use serde_json::{Map, Value, json};

/// What `rope_scaling` of Llama 3.1 and later holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Llama3 {
    pub(crate) factor: f64,
    pub(crate) low_freq_factor: f64,
    pub(crate) high_freq_factor: f64,
    pub(crate) original: f64,
}

impl Llama3 {
    /// What each frequency is divided by (`generate_extra_tensors` of
    /// `conversion/llama.py`).
    pub(crate) fn factors(&self, head_dim: usize, theta: f64) -> Vec<f32> {
        wavelengths(head_dim, theta)
            .map(|wavelength| {
                let factor = if wavelength < self.original / self.high_freq_factor {
                    1.0
                } else if wavelength > self.original / self.low_freq_factor {
                    self.factor
                } else {
                    let kept = (self.original / wavelength - self.low_freq_factor)
                        / (self.high_freq_factor - self.low_freq_factor);
                    1.0 / ((1.0 - kept) / self.factor + kept)
                };
                factor as f32
            })
            .collect()
    }

    fn gives(&self, factors: &[f32], head_dim: usize, theta: f64) -> bool {
        let own = self.factors(head_dim, theta);
        own.len() == factors.len()
            && own
                .iter()
                .zip(factors)
                .all(|(own, given)| (own - given).abs() <= 1e-4 * given.abs())
    }

    fn json(&self) -> Map<String, Value> {
        let value = json!({
            "rope_type": "llama3",
            "factor": self.factor,
            "low_freq_factor": self.low_freq_factor,
            "high_freq_factor": self.high_freq_factor,
            "original_max_position_embeddings": self.original as u64,
        });
        value.as_object().cloned().unwrap_or_default()
    }
}

/// Positions in a turn of each pair of dimensions.
fn wavelengths(head_dim: usize, theta: f64) -> impl Iterator<Item = f64> {
    (0..head_dim / 2).map(move |i| TAU * theta.powf(2.0 * i as f64 / head_dim as f64))
}

/// The `rope_scaling` behind a tensor of factors: `Some(None)` if it scales
/// nothing, `None` if it is not Llama 3's.
///
/// The factors leave the scale of three of the four numbers open: twice the
/// original length with both frequency factors doubled scales the same. The
/// numbers that all of Meta's models have are tried first.
#[expect(
    clippy::option_option,
    reason = "the outer one is whether the factors are understood"
)]
pub(crate) fn from_factors(
    factors: &[f32],
    head_dim: usize,
    theta: f64,
    original: Option<f64>,
) -> Option<Option<Map<String, Value>>> {
    if factors.iter().all(|&factor| factor == 1.0) {
        return Some(None);
    }
    // Before as many are computed as the metadata claims.
    if factors.len() != head_dim / 2 {
        return None;
    }
    let factor = f64::from(factors.iter().copied().fold(0.0, f32::max));
    let usual = Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original: original.unwrap_or(8192.0),
    };
    [Some(usual), fitted(factors, factor, head_dim, theta)]
        .into_iter()
        .flatten()
        .find(|scaling| scaling.gives(factors, head_dim, theta))
        .map(|scaling| Some(scaling.json()))
}

/// Draws the line through two factors between the extremes: how much of a
/// frequency is kept falls linearly with its wavelength's inverse.
fn fitted(factors: &[f32], factor: f64, head_dim: usize, theta: f64) -> Option<Llama3> {
    let mut between = wavelengths(head_dim, theta)
        .zip(factors)
        .map(|(wavelength, &given)| (1.0 / wavelength, f64::from(given)))
        .filter(|(_, given)| *given > 1.0 && *given < factor * 0.999)
        .map(|(inverse, given)| {
            let kept = (1.0 / given - 1.0 / factor) / (1.0 - 1.0 / factor);
            (inverse, kept)
        });
    let (first, last) = (between.next()?, between.last()?);
    let slope = (first.1 - last.1) / (first.0 - last.0);
    // kept = slope / wavelength - offset; with low_freq_factor taken as 1.
    let offset = slope * first.0 - first.1;
    let high_freq_factor = 1.0 + 1.0 / offset;
    Some(Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor,
        original: (slope / offset).round(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recovered(scaling: Llama3, head_dim: usize) -> Llama3 {
        let factors = scaling.factors(head_dim, 500_000.0);
        let json = from_factors(&factors, head_dim, 500_000.0, None)
            .flatten()
            .unwrap_or_default();
        let number = |key: &str| json.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
        Llama3 {
            factor: number("factor"),
            low_freq_factor: number("low_freq_factor"),
            high_freq_factor: number("high_freq_factor"),
            original: number("original_max_position_embeddings"),
        }
    }

    #[test]
    fn the_scaling_of_metas_models_is_recovered_exactly() {
        for factor in [8.0, 32.0] {
            let scaling = Llama3 {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original: 8192.0,
            };
            assert_eq!(recovered(scaling, 128), scaling);
        }
    }

    #[test]
    fn other_numbers_are_recovered_from_the_line_between_the_extremes() {
        let scaling = Llama3 {
            factor: 16.0,
            low_freq_factor: 2.0,
            high_freq_factor: 10.0,
            original: 4096.0,
        };
        let found = recovered(scaling, 128);
        assert_eq!(found.original, 2048.0);
        assert!((found.high_freq_factor - 5.0).abs() < 1e-3, "{found:?}");
    }

    #[test]
    fn other_factors_are_not_taken_for_llama_3() {
        let factors: Vec<_> = (0..64).map(|i| 1.0 + i as f32 / 10.0).collect();
        assert_eq!(from_factors(&factors, 128, 500_000.0, None), None);
    }
}
