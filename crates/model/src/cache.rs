//! Keys and values of the tokens already seen.

use burn::tensor::{Int, Tensor, TensorData};
use olora_operations::is_host;

/// The cache of one sequence, or of one batch of equally long ones.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<Option<Held>>,
    len: usize,
}

/// Keys (already rotated) and values of one block, `[batch, kv_heads, room,
/// head_dim]`, of which the first `len` positions are there.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    both: [Tensor<4>; 2],
    len: usize,
}

/// What one block is given of the caches of those whose tokens it sees.
pub(crate) enum Caches<'a> {
    /// Nothing is kept.
    None,
    /// One for all rows, which are equally long.
    One(&'a mut Option<Held>),
    /// One for each row.
    Each(Vec<&'a mut Option<Held>>),
}

impl Held {
    /// Positions that there is room for beyond those that there are, at least, where
    /// tokens come one by one.
    const ROOM: usize = 128;

    /// Puts new keys and values, `[batch, kv_heads, n, head_dim]`, behind those that
    /// are held, and returns all.
    ///
    /// On the CPU there is room left behind them, so that nothing is copied but what
    /// is new. Elsewhere a view into a larger tensor would be copied to be read.
    pub(crate) fn append(held: &mut Option<Self>, new: [Tensor<4>; 2]) -> [Tensor<4>; 2] {
        let [_, _, n, _] = new[0].dims();
        let Some(Self { both, len }) = held.take() else {
            *held = Some(Self {
                both: new.clone(),
                len: n,
            });
            return new;
        };
        if !is_host(&new[0].device()) {
            let [new_k, new_v] = new;
            let [old_k, old_v] = both;
            let both = [
                Tensor::cat(vec![old_k, new_k], 2),
                Tensor::cat(vec![old_v, new_v], 2),
            ];
            return held.insert(Self { both, len: len + n }).both.clone();
        }
        let append = |mut all: Tensor<4>, new: Tensor<4>| {
            let [batch, heads, room, head_dim] = all.dims();
            if room < len + n {
                // Several at once may be the last: of single ones others follow.
                let beyond = if n == 1 { Self::ROOM.max(len / 2) } else { 0 };
                let room = len + n + beyond;
                let on = (&all.device(), all.dtype());
                let larger = Tensor::zeros([batch, heads, room, head_dim], on);
                let old = all.narrow(2, 0, len);
                all = larger.slice_assign([0..batch, 0..heads, 0..len, 0..head_dim], old);
            }
            // Where nobody else has it, in its place.
            all.slice_assign([0..batch, 0..heads, len..len + n, 0..head_dim], new)
        };
        let ([k, v], [new_k, new_v]) = (both, new);
        let both = [append(k, new_k), append(v, new_v)];
        let all = both.each_ref().map(|all| all.clone().narrow(2, 0, len + n));
        *held = Some(Self { both, len: len + n });
        all
    }
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
        let select = |held: &Tensor<4>, len: usize| {
            let n_rows = held.dims()[0];
            assert!(
                rows.iter().all(|&row| row < n_rows),
                "rows {rows:?} of a cache of {n_rows}"
            );
            let ids = TensorData::new(ids.clone(), [ids.len()]);
            let ids = Tensor::<1, Int>::from_data(ids, &held.device());
            held.clone().narrow(2, 0, len).select(0, ids)
        };
        let of_layer = |held: &Option<Held>| {
            held.as_ref().map(|held| Held {
                both: held.both.each_ref().map(|all| select(all, held.len)),
                len: held.len,
            })
        };
        Self {
            layers: self.layers.iter().map(of_layer).collect(),
            len: self.len,
        }
    }

    pub(crate) fn layer(&mut self, layer_idx: usize) -> &mut Option<Held> {
        &mut self.layers[layer_idx]
    }

    pub(crate) fn advance(&mut self, n_positions: usize) {
        self.len += n_positions;
    }
}
