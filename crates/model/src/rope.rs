//! Rotary position embedding in the half-split form of Hugging Face
//! checkpoints: feature `i` turns with feature `i + head_dim / 2`.
//!
//! Burn's own `RotaryEncoding` pairs neighbours, as Meta's files do. Using it
//! would mean permuting `q_proj` and `k_proj`, and with them every adapter.

use std::f64::consts::TAU;

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::{ModelConfig, RopeScaling};

/// The frequencies, in radians per position, one per feature pair.
///
/// In f32, like `transformers/modeling_rope_utils.py`, whose three functions
/// `_compute_default_rope_parameters`, `_compute_linear_scaling_rope_parameters`
/// and `_compute_llama3_parameters` these are.
pub(crate) fn frequencies(config: &ModelConfig) -> Vec<f32> {
    let pairs = config.head_dim / 2;
    let base = |pair: usize| {
        let exponent = (2 * pair) as f32 / config.head_dim as f32;
        1.0 / (config.rope_theta as f32).powf(exponent)
    };
    (0..pairs)
        .map(|pair| scaled(base(pair), config.rope_scaling))
        .collect()
}

fn scaled(frequency: f32, scaling: RopeScaling) -> f32 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor as f32,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: original,
        } => {
            let frequency = f64::from(frequency);
            let wavelength = TAU / frequency;
            let result = if wavelength > original / low_freq_factor {
                frequency / factor
            } else if wavelength < original / high_freq_factor {
                frequency
            } else {
                let smooth = (original / wavelength - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            };
            result as f32
        }
    }
}

/// Cosines and sines for one stretch of positions, each
/// `[seq, head_dim / 2]`, shared by all blocks.
#[derive(Clone, Debug)]
pub struct Rotation {
    cos: Tensor<2>,
    sin: Tensor<2>,
}

impl Rotation {
    /// For the positions `start .. start + seq`, turning at `frequencies`, in
    /// radians per position, one per feature pair. Angles are computed in f32
    /// on the host, the tables are of `dtype`.
    pub fn new(
        frequencies: &[f32],
        start: usize,
        seq: usize,
        dtype: DType,
        device: &Device,
    ) -> Self {
        let angles = (start..start + seq).flat_map(|position| {
            frequencies
                .iter()
                .map(move |frequency| position as f32 * frequency)
        });
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            angles.map(|angle| (angle.cos(), angle.sin())).unzip();
        let table = |values: Vec<f32>| {
            let data = TensorData::new(values, [seq, frequencies.len()]);
            Tensor::<2>::from_data(data, (device, DType::F32)).cast(dtype)
        };
        Self {
            cos: table(cos),
            sin: table(sin),
        }
    }

    /// Turns queries or keys.
    ///
    /// # Shapes
    ///
    /// - x: `[batch, n_heads, seq, head_dim]`
    /// - output: the same
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let pairs = self.cos.dims()[1];
        let first = x.clone().narrow(3, 0, pairs);
        let second = x.narrow(3, pairs, pairs);
        let cos = self.cos.clone().unsqueeze::<4>();
        let sin = self.sin.clone().unsqueeze::<4>();
        Tensor::cat(
            vec![
                first.clone() * cos.clone() - second.clone() * sin.clone(),
                second * cos + first * sin,
            ],
            3,
        )
    }
}
