//! How much memory a run will take, before it takes it.

use olora_model::ModelConfig;
use serde::Serialize;

use crate::recipe::BaseType;

/// Bytes that a training step holds at its peak, by what they are for.
///
/// Counted from the tensors that autodiff keeps for the backward pass of this
/// decoder as it stands: scores and probabilities of attention whole, nothing
/// recomputed. Buffers that a device's allocator keeps beyond that are not in
/// it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// The frozen base, or all weights.
    pub weights: u64,
    /// What trains, its gradients and the optimiser's two moments.
    pub trained: u64,
    /// What the blocks keep for the backward pass.
    pub activations: u64,
    /// Attention's scores, the part that grows with the square of the length.
    pub attention: u64,
    /// Logits, their softmax and gradient.
    pub logits: u64,
}

/// What an estimate follows from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) n_params: usize,
    pub(crate) n_trained_params: usize,
    pub(crate) n_anchor_params: usize,
    pub(crate) n_adapted_layers: usize,
    pub(crate) base: BaseType,
    pub(crate) compute: BaseType,
    pub(crate) rows: usize,
    pub(crate) seq: usize,
    /// Trained positions of the largest batch.
    pub(crate) targets: usize,
}

fn bytes(dtype: BaseType) -> u64 {
    match dtype {
        BaseType::Float32 => 4,
        BaseType::Bfloat16 | BaseType::Float16 => 2,
    }
}

impl MemoryEstimate {
    pub(crate) fn new(config: &ModelConfig, load: &Load) -> Self {
        let n = |x: usize| x as u64;
        let element = bytes(load.compute);
        // Norms, softmax and factors work in f32: a half-precision stream is copied for them.
        let in_f32 = if element == 4 { 0 } else { 4 };
        let tokens = n(load.rows) * n(load.seq);
        let d = n(config.hidden_size);
        let inner = n(config.intermediate_size);
        let q = n(config.num_attention_heads * config.head_dim);
        let kv = n(config.num_key_value_heads * config.head_dim);

        // Two norms keep their input, the normed values in f32 and their result.
        let norms = 2 * d * (element + 4 + in_f32);
        // Projections as they come out and as they are turned, attention's result, two sums.
        let attention_stream = (2 * q + 2 * kv + kv + q) * element + 2 * d * element;
        // Gate, its activation, up, their product.
        let mlp = 4 * inner * element;
        // Each adapted layer keeps its input in f32, once per distinct input.
        let adapters = if load.n_adapted_layers > 0 {
            (2 * d + q + inner) * in_f32
        } else {
            0
        };
        let layers = n(config.num_hidden_layers);
        let activations = layers * tokens * (norms + attention_stream + mlp + adapters);
        // Three f32 tensors of scores and probabilities (measured on the CPU), and a copy in the
        // compute dtype.
        let per_score = 12 + if element == 4 { 0 } else { element };
        let attention = layers
            * n(load.rows)
            * n(config.num_attention_heads)
            * n(load.seq)
            * n(load.seq)
            * per_score;
        // Logits, log-probabilities and the gradient, in f32.
        let logits =
            n(load.targets) * n(config.vocab_size) * (12 + if element == 4 { 0 } else { element });
        let cast_copy = if load.compute == load.base {
            0
        } else {
            n(load.n_params) * element
        };
        let frozen = load.n_params.saturating_sub(load.n_trained_params);
        let is_full = load.n_adapted_layers == 0;
        Self {
            weights: cast_copy
                + if is_full {
                    0
                } else {
                    n(frozen) * bytes(load.base) + n(load.n_anchor_params) * 4
                },
            // The value, its gradient, two moments.
            trained: n(load.n_trained_params) * 16,
            activations,
            attention,
            logits,
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.trained + self.activations + self.attention + self.logits
    }
}

impl std::fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            weights,
            trained,
            activations,
            attention,
            logits,
        } = *self;
        write!(
            f,
            "{} (base {}, trained and its optimiser {}, activations {}, attention scores {}, logits {})",
            size(self.total()),
            size(weights),
            size(trained),
            size(activations),
            size(attention),
            size(logits)
        )
    }
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..10_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        10_000_000..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}
