//! Keys and values of the tokens already seen.

use burn::tensor::Tensor;

/// The cache of one sequence, or of one batch of equally long ones.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// Per block, keys (already rotated) and values:
    /// `[batch, kv_heads, len, head_dim]`.
    layers: Vec<Option<[Tensor<4>; 2]>>,
    len: usize,
}

impl KvCache {
    /// An empty cache for a model of `n_layers` blocks.
    pub fn new(n_layers: usize) -> Self {
        Self {
            layers: vec![None; n_layers],
            len: 0,
        }
    }

    /// Number of positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn layer(&mut self, layer_idx: usize) -> &mut Option<[Tensor<4>; 2]> {
        &mut self.layers[layer_idx]
    }

    pub(crate) fn advance(&mut self, n_positions: usize) {
        self.len += n_positions;
    }
}
