//! Attention of all families: projections, norms of queries and keys, rotation,
//! cache.

use burn::{
    module::Module,
    nn::Linear,
    tensor::{Device, Tensor},
};
use olora_adapter::{Project, packed_of, project_each};
use olora_operations::{Products, at_once, attention, is_host};

use crate::{
    ModelConfig, Norm, NormKind, QkNorm,
    cache::{Caches, Held},
    llama::Positions,
};

/// Causal self-attention with grouped queries.
#[derive(Module, Debug)]
pub struct Attention {
    /// What makes queries, keys and values.
    pub projections: Projections,
    /// Output, `[n_heads · head_dim, hidden_size]`.
    pub o_proj: Linear,
    /// Norm over each query head (Qwen3, Gemma 3), or over all (`OLMo` 2).
    pub q_norm: Option<Norm>,
    /// Norm over each key head, or over all.
    pub k_norm: Option<Norm>,
    #[module(skip)]
    shape: Shape,
}

/// What makes queries, keys and values. In a checkpoint's names there is no such
/// level.
#[derive(Module, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "a model has a few of these, and their tensors are elsewhere"
)]
pub enum Projections {
    /// One projection each.
    Apart(Apart),
    /// One for all three (Phi-3).
    Fused(Fused),
}

/// A projection each.
#[derive(Module, Debug)]
pub struct Apart {
    /// Queries, `[hidden_size, n_heads · head_dim]`.
    pub q_proj: Linear,
    /// Keys, `[hidden_size, kv_heads · head_dim]`.
    pub k_proj: Linear,
    /// Values, `[hidden_size, kv_heads · head_dim]`.
    pub v_proj: Linear,
}

/// One projection for all three.
#[derive(Module, Debug)]
pub struct Fused {
    /// Queries, then keys, then values,
    /// `[hidden_size, (n_heads + 2 · kv_heads) · head_dim]`.
    pub qkv_proj: Linear,
}

/// What is no tensor.
#[derive(Clone, Copy, Debug)]
struct Shape {
    n_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// Whether norms of queries and keys go over all heads together.
    norm_whole: bool,
    window: Option<usize>,
    /// Which of the rotations; `None` is none.
    rope: Option<usize>,
    scale: Option<f64>,
    soft_cap: Option<f64>,
}

impl Attention {
    /// The attention of one block, `dense` making its projections.
    pub(crate) fn new(
        config: &ModelConfig,
        layer_idx: usize,
        dense: impl Fn(usize, usize, bool) -> Linear,
        device: &Device,
    ) -> Self {
        let d_model = config.hidden_size;
        let shape = Shape {
            n_heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            norm_whole: config.qk_norm == QkNorm::Whole,
            window: config.sliding_windows.get(layer_idx).copied().flatten(),
            rope: config.layer_ropes.get(layer_idx).copied().flatten(),
            scale: config.attention_scale,
            soft_cap: config.attention_cap,
        };
        let q_width = shape.n_heads * shape.head_dim;
        let kv_width = shape.kv_heads * shape.head_dim;
        let projections = if config.fused {
            let qkv_proj = dense(d_model, q_width + 2 * kv_width, config.qkv_bias);
            Projections::Fused(Fused { qkv_proj })
        } else {
            Projections::Apart(Apart {
                q_proj: dense(d_model, q_width, config.qkv_bias),
                k_proj: dense(d_model, kv_width, config.qkv_bias),
                v_proj: dense(d_model, kv_width, config.qkv_bias),
            })
        };
        // Gemma's norms of heads are about one as its others are; the rest have LLaMA's form.
        let kind = match config.norm {
            NormKind::Layer | NormKind::PlainLayer => NormKind::Rms,
            kind => kind,
        };
        let norm = |width: usize| {
            let width = match config.qk_norm {
                QkNorm::None => return None,
                QkNorm::PerHead => shape.head_dim,
                QkNorm::Whole => width,
            };
            Some(Norm::new(kind, width, config.norm_eps, device))
        };
        Self {
            projections,
            o_proj: dense(q_width, d_model, config.o_bias),
            q_norm: norm(q_width),
            k_norm: norm(kv_width),
            shape,
        }
    }

    /// Its linear layers.
    pub fn linear_layers(&self) -> Vec<&Linear> {
        match &self.projections {
            Projections::Apart(Apart {
                q_proj,
                k_proj,
                v_proj,
            }) => vec![q_proj, k_proj, v_proj, &self.o_proj],
            Projections::Fused(Fused { qkv_proj }) => vec![qkv_proj, &self.o_proj],
        }
    }

    /// # Shapes
    ///
    /// - x, output: `[batch, seq, hidden_size]`
    pub(crate) fn forward(
        &self,
        x: Tensor<3>,
        positions: &Positions,
        cache: Caches<'_>,
    ) -> Tensor<3> {
        let Shape {
            n_heads,
            kv_heads,
            head_dim,
            rope,
            ..
        } = self.shape;
        let [batch, seq, _] = x.dims();
        let heads = |x: Tensor<3>, n: usize| x.reshape([batch, seq, n, head_dim]);
        let [q, k, v] = self.projected(x);
        let q = self.normed(q, self.q_norm.as_ref(), n_heads);
        let k = self.normed(k, self.k_norm.as_ref(), kv_heads);
        let q = positions.rotate(q.swap_dims(1, 2), rope); // [batch, n_heads, seq, head_dim]
        let k = positions.rotate(k.swap_dims(1, 2), rope); // [batch, kv_heads, seq, head_dim]
        let q = positions.grow(q);
        let v = heads(v, kv_heads).swap_dims(1, 2);
        let mask = positions
            .documents()
            .within_window(self.shape.window)
            .with_scale(self.shape.scale)
            .with_soft_cap(self.shape.soft_cap)
            .with_products(products_of(&self.o_proj));
        let mixed = match cache {
            Caches::None => attention(q, k, v, &mask),
            Caches::One(held) => {
                let [k, v] = Held::append(held, [k, v]);
                attention(q, k, v, &mask)
            }
            Caches::Each(held) => {
                let one = |(row, held): (usize, &mut Option<Held>)| {
                    let [q, k, v] = [&q, &k, &v].map(|x| x.clone().narrow(0, row, 1));
                    let [k, v] = Held::append(held, [k, v]);
                    attention(q, k, v, &mask)
                };
                // Each is small: a device has them one after the other, the CPU at once.
                let rows: Vec<_> = held.into_iter().enumerate().collect();
                let mixed = if is_host(&q.device()) {
                    at_once(rows, one)
                } else {
                    rows.into_iter().map(one).collect()
                };
                Tensor::cat(mixed, 0)
            }
        };
        let mixed = mixed.swap_dims(1, 2); // [batch, seq, n_heads, head_dim]
        self.o_proj
            .project(mixed.reshape([batch, seq, n_heads * head_dim]))
    }

    /// Queries, keys and values, each `[batch, seq, heads · head_dim]`.
    fn projected(&self, x: Tensor<3>) -> [Tensor<3>; 3] {
        match &self.projections {
            Projections::Apart(Apart {
                q_proj,
                k_proj,
                v_proj,
            }) => project_each([q_proj, k_proj, v_proj], &x),
            Projections::Fused(Fused { qkv_proj }) => {
                let all = qkv_proj.project(x);
                let q_width = self.shape.n_heads * self.shape.head_dim;
                let kv_width = self.shape.kv_heads * self.shape.head_dim;
                [
                    all.clone().narrow(2, 0, q_width),
                    all.clone().narrow(2, q_width, kv_width),
                    all.narrow(2, q_width + kv_width, kv_width),
                ]
            }
        }
    }

    /// Queries or keys, normed, as `[batch, seq, heads, head_dim]`.
    fn normed(&self, x: Tensor<3>, norm: Option<&Norm>, n_heads: usize) -> Tensor<4> {
        let [batch, seq, _] = x.dims();
        let shape = [batch, seq, n_heads, self.shape.head_dim];
        match norm {
            None => x.reshape(shape),
            Some(norm) if self.shape.norm_whole => norm.forward(x).reshape(shape),
            Some(norm) => norm.forward(x.reshape(shape)),
        }
    }
}

/// How the CPU multiplies with the weight of a layer, and so with what goes in and out of it.
fn products_of(layer: &Linear) -> Products {
    packed_of(&layer.weight).map_or(Products::Exact, |packed| packed.tensor.products())
}
