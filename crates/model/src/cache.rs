//! Keys and values of the tokens already seen.

use burn::tensor::{Int, Tensor, TensorData};

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

    /// A cache of other rows: row `i` of it is row `rows[i]` of this one, so
    /// that one sequence can be continued in several ways, or some of a batch
    /// left out.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    #[must_use]
    pub fn rows(&self, rows: &[usize]) -> Self {
        let ids: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        let select = |held: &Tensor<4>| {
            let n_rows = held.dims()[0];
            assert!(
                rows.iter().all(|&row| row < n_rows),
                "rows {rows:?} of a cache of {n_rows}"
            );
            let ids = TensorData::new(ids.clone(), [ids.len()]);
            let ids = Tensor::<1, Int>::from_data(ids, &held.device());
            held.clone().select(0, ids)
        };
        let of_layer =
            |held: &Option<[Tensor<4>; 2]>| held.as_ref().map(|both| both.each_ref().map(select));
        Self {
            layers: self.layers.iter().map(of_layer).collect(),
            len: self.len,
        }
    }

    pub(crate) fn layer(&mut self, layer_idx: usize) -> &mut Option<[Tensor<4>; 2]> {
        &mut self.layers[layer_idx]
    }

    pub(crate) fn advance(&mut self, n_positions: usize) {
        self.len += n_positions;
    }
}
