//! Rotary position embedding in the half-split form of Hugging Face
//! checkpoints: feature `i` turns with feature `i + head_dim / 2`.
//!
//! Burn's own `RotaryEncoding` pairs neighbours, as Meta's files do. Using it
//! would mean permuting `q_proj` and `k_proj`, and with them every adapter.

use std::f64::consts::TAU;

use burn::tensor::{DType, Device, Tensor, TensorData};
use olora_operations::rotate;

/// One way of rotating queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How many features of a head are rotated, the first ones; an even number.
    pub rotary_dim: usize,
    /// What rescales the frequencies.
    pub scaling: RopeScaling,
}

/// What rescales the rotary frequencies beyond the trained context, as
/// `transformers/modeling_rope_utils.py` computes it.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// `rope_type: "default"`.
    None,
    /// `rope_type: "linear"`: positions divided by the factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// `rope_type: "dynamic"`: a larger base where a sequence is longer than the
    /// trained context, by how much longer it is.
    Dynamic {
        /// The factor.
        factor: f64,
        /// The context that the model was trained with.
        max_position_embeddings: f64,
    },
    /// `rope_type: "llama3"`: low frequencies divided by the factor, high ones
    /// kept, those between interpolated.
    Llama3 {
        /// The factor for low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are scaled.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The context length the base was trained with.
        original_max_position_embeddings: f64,
    },
    /// `rope_type: "yarn"` ([arXiv 2309.00071](https://arxiv.org/abs/2309.00071)):
    /// as llama3's, over another range, and with scores that grow.
    Yarn {
        /// The factor for low frequencies.
        factor: f64,
        /// The context length the base was trained with.
        original_max_position_embeddings: f64,
        /// Features that turn more often than this within it are kept.
        beta_fast: f64,
        /// Features that turn less often than this within it are scaled.
        beta_slow: f64,
        /// Whether the bounds of the range are rounded outwards.
        truncate: bool,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
    },
    /// `rope_type: "longrope"` ([arXiv 2402.13753](https://arxiv.org/abs/2402.13753)):
    /// a factor for each frequency, of one list up to the trained context and of
    /// another where a sequence is longer.
    LongRope {
        /// The factors up to the trained context.
        short_factor: Vec<f64>,
        /// The factors beyond it.
        long_factor: Vec<f64>,
        /// The context length the base was trained with.
        original_max_position_embeddings: f64,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
    },
}

impl Rope {
    /// The frequencies, in radians per position, one per feature pair, for
    /// sequences of `length` positions. In f32, as transformers has them.
    pub fn frequencies(&self, length: usize) -> Vec<f32> {
        let (pairs, dim) = (self.rotary_dim / 2, self.rotary_dim as f32);
        let theta = match self.scaling {
            RopeScaling::Dynamic {
                factor,
                max_position_embeddings: trained,
            } => {
                let longer = (length as f64).max(trained) / trained;
                let dim = self.rotary_dim as f64;
                self.theta * (factor * longer - (factor - 1.0)).powf(dim / (dim - 2.0))
            }
            _ => self.theta,
        };
        let power = |pair: usize| (theta as f32).powf((2 * pair) as f32 / dim);
        (0..pairs)
            .map(|pair| self.scaled(pair, power(pair), length))
            .collect()
    }

    /// The frequency of one pair, whose base to its power is `power`.
    fn scaled(&self, pair: usize, power: f32, length: usize) -> f32 {
        let frequency = 1.0 / power;
        match &self.scaling {
            RopeScaling::None | RopeScaling::Dynamic { .. } => frequency,
            RopeScaling::Linear { factor } => frequency / *factor as f32,
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
            RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: original,
                beta_fast,
                beta_slow,
                truncate,
                ..
            } => {
                let [low, high] = self.turning(*original, [*beta_fast, *beta_slow], *truncate);
                // Equal bounds would divide by zero.
                let high = if low == high { high + 0.001 } else { high };
                let ramp = ((pair as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                let divided = 1.0 / (*factor as f32 * power);
                divided * ramp + frequency * (1.0 - ramp)
            }
            RopeScaling::LongRope {
                short_factor,
                long_factor,
                original_max_position_embeddings: original,
                ..
            } => {
                let factors = if length as f64 > *original {
                    long_factor
                } else {
                    short_factor
                };
                let factor = factors.get(pair).copied().unwrap_or(1.0);
                1.0 / (factor as f32 * power)
            }
        }
    }

    /// The pairs that make so many turns within the trained context, which are
    /// the bounds of `YaRN`'s range (`find_correction_range`).
    fn turning(&self, original: f64, turns: [f64; 2], truncate: bool) -> [f64; 2] {
        let dim = self.rotary_dim as f64;
        let [low, high] =
            turns.map(|turns| dim * (original / (turns * TAU)).ln() / (2.0 * self.theta.ln()));
        let [low, high] = if truncate {
            [low.floor(), high.ceil()]
        } else {
            [low, high]
        };
        [low.max(0.0), high.min(dim - 1.0)]
    }

    /// The length beyond which all positions are rotated otherwise, if there is
    /// one.
    pub fn changes_beyond(&self) -> Option<usize> {
        match self.scaling {
            RopeScaling::Dynamic {
                max_position_embeddings: trained,
                ..
            }
            | RopeScaling::LongRope {
                original_max_position_embeddings: trained,
                ..
            } => Some(trained as usize),
            _ => None,
        }
    }

    /// What cosines and sines are multiplied by.
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn {
                attention_factor, ..
            }
            | RopeScaling::LongRope {
                attention_factor, ..
            } => attention_factor,
            _ => 1.0,
        }
    }
}

/// The positions of rows of several documents, each counted from zero, row
/// after row; `lengths` are those of each row's documents, and what follows the
/// last is padding.
pub(crate) fn positions_in_documents(lengths: &[Vec<usize>], seq: usize) -> Vec<usize> {
    let rows = lengths.iter().flat_map(|lengths| {
        let used: usize = lengths.iter().sum();
        // Padding stands at the first position, so that it is never the longest document, which
        // some ways of scaling go by.
        let padding = std::iter::repeat_n(0, seq.saturating_sub(used));
        let all = lengths.iter().flat_map(|length| 0..*length).take(seq);
        all.chain(padding)
    });
    rows.collect()
}

/// Cosines and sines for the positions of one forward pass, each
/// `[1 or batch, 1, seq, rotary_dim / 2]`, shared by all blocks.
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
        Self::tables_of(frequencies, 1.0, &positions, [1, seq], dtype, device)
    }

    /// For the given positions, row after row. The longest decides where
    /// frequencies depend on the length.
    pub(crate) fn of(
        rope: &Rope,
        positions: &[usize],
        shape: [usize; 2],
        dtype: DType,
        device: &Device,
    ) -> Self {
        let length = positions.iter().max().map_or(0, |last| last + 1);
        let frequencies = rope.frequencies(length);
        let factor = rope.attention_factor() as f32;
        Self::tables_of(&frequencies, factor, positions, shape, dtype, device)
    }

    /// For one token of each of several texts, at their positions: each turns as the last
    /// token of a text of its length does.
    pub(crate) fn of_texts(rope: &Rope, places: &[usize], dtype: DType, device: &Device) -> Self {
        let each = places
            .iter()
            .map(|place| Self::of(rope, &[*place], [1, 1], dtype, device));
        let (cos, sin) = each.map(|one| (one.cos, one.sin)).unzip();
        Self {
            cos: Tensor::cat(cos, 0),
            sin: Tensor::cat(sin, 0),
        }
    }

    fn tables_of(
        frequencies: &[f32],
        factor: f32,
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
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles
            .map(|angle| (angle.cos() * factor, angle.sin() * factor))
            .unzip();
        let table = |values: Vec<f32>| {
            let data = TensorData::new(values, [rows, 1, seq, frequencies.len()]);
            Tensor::<4>::from_data(data, (device, DType::F32)).cast(dtype)
        };
        Self {
            cos: table(cos),
            sin: table(sin),
        }
    }

    /// Cosines and sines, each `[1 or batch, 1, seq, rotary_dim / 2]`.
    pub fn tables(&self) -> [Tensor<4>; 2] {
        [self.cos.clone(), self.sin.clone()]
    }

    /// Turns the first features of queries or keys, as many as the tables are
    /// for: usually all.
    ///
    /// # Shapes
    ///
    /// - x: `[batch, n_heads, seq, head_dim]`
    /// - output: the same
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let rotate = |x| rotate(x, self.cos.clone(), self.sin.clone());
        let (head_dim, turned) = (x.dims()[3], 2 * self.cos.dims()[3]);
        if turned == head_dim {
            return rotate(x);
        }
        let first = rotate(x.clone().narrow(3, 0, turned));
        Tensor::cat(vec![first, x.narrow(3, turned, head_dim - turned)], 3)
    }
}
