//! Rotary position embedding in the half-split form of Hugging Face
//! checkpoints: feature `i` turns with feature `i + head_dim / 2`.
//!
//! Burn's own `RotaryEncoding` pairs neighbours, as Meta's files do. Using it
//! would mean permuting `q_proj` and `k_proj`, and with them every adapter.

use std::f64::consts::TAU;

use burn::tensor::{DType, Device, Tensor, TensorData};
use olora_operations::rotate;

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

/// The positions of rows of several documents, each counted from zero, row
/// after row; `lengths` are those of each row's documents, and what follows the
/// last is one too.
pub(crate) fn positions_in_documents(lengths: &[Vec<usize>], seq: usize) -> Vec<usize> {
    let rows = lengths.iter().flat_map(|lengths| {
        let used: usize = lengths.iter().sum();
        let all = lengths.iter().copied().chain([seq.saturating_sub(used)]);
        all.flat_map(|length| 0..length).take(seq)
    });
    rows.collect()
}

/// Cosines and sines for the positions of one forward pass, each
/// `[1 or batch, 1, seq, head_dim / 2]`, shared by all blocks.
#[derive(Clone, Debug)]
pub struct Rotation {
    cos: Tensor<4>,
    sin: Tensor<4>,
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
        let positions: Vec<usize> = (start..start + seq).collect();
        Self::of(frequencies, &positions, [1, seq], dtype, device)
    }

    /// For the given positions, row after row.
    pub(crate) fn of(
        frequencies: &[f32],
        positions: &[usize],
        [rows, seq]: [usize; 2],
        dtype: DType,
        device: &Device,
    ) -> Self {
        let angles = positions.iter().flat_map(|position| {
            frequencies
                .iter()
                .map(move |frequency| *position as f32 * frequency)
        });
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            angles.map(|angle| (angle.cos(), angle.sin())).unzip();
        let table = |values: Vec<f32>| {
            let data = TensorData::new(values, [rows, 1, seq, frequencies.len()]);
            Tensor::<4>::from_data(data, (device, DType::F32)).cast(dtype)
        };
        Self {
            cos: table(cos),
            sin: table(sin),
        }
    }

    /// Cosines and sines, each `[1 or batch, 1, seq, head_dim / 2]`.
    pub fn tables(&self) -> [Tensor<4>; 2] {
        [self.cos.clone(), self.sin.clone()]
    }

    /// Turns queries or keys.
    ///
    /// # Shapes
    ///
    /// - x: `[batch, n_heads, seq, head_dim]`
    /// - output: the same
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        rotate(x, self.cos.clone(), self.sin.clone())
    }
}
