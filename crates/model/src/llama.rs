//! The decoder, top to bottom: model → block → attention → MLP → norm.
//!
//! One stack for LLaMA ([arXiv 2302.13971](https://arxiv.org/abs/2302.13971)),
//! Mistral, Qwen2 and Qwen3, which differ only in what [`ModelConfig`] says. It
//! follows `transformers/models/llama/modeling_llama.py` in its eager form,
//! dtype by dtype: norms and softmax in f32, everything else in the dtype that
//! the model computes in, which is the weights' own unless
//! [`Llama::computing_in`] says otherwise.
//!
//! Fields that own tensors have the checkpoint's names, so a parameter's path
//! is its name in the file (`model.layers.0.self_attn.q_proj.weight`). Linear
//! layers are called through [`Project`]: adapters attach to them without a
//! change here.
//!
//! In shapes, `kv_heads · groups = n_heads`.

use burn::{
    module::{Initializer, Module, Param},
    nn::{Embedding, EmbeddingConfig, Linear, LinearConfig},
    tensor::{
        DType, Device, Int, Tensor, TensorData,
        activation::{silu, softmax},
        module::linear,
    },
};
use olora_adapter::{Project, to_dtype};

use crate::{
    KvCache, ModelConfig, WeightType,
    rope::{Rotation, frequencies},
};

/// A causal language model.
#[derive(Module, Debug)]
pub struct Llama {
    /// Embedding, blocks and final norm.
    pub model: Decoder,
    /// From hidden states to vocabulary; `None` when tied to the embedding.
    pub lm_head: Option<Linear>,
}

/// Everything below the vocabulary projection.
#[derive(Module, Debug)]
pub struct Decoder {
    /// Token embedding, `[vocab_size, hidden_size]`.
    pub embed_tokens: Embedding,
    /// The blocks.
    pub layers: Vec<Block>,
    /// The norm after the last block.
    pub norm: RmsNorm,
    #[module(skip)]
    rope_frequencies: Vec<f32>,
    #[module(skip)]
    compute: Option<WeightType>,
}

/// One decoder block: attention, then MLP, each added to the residual stream.
#[derive(Module, Debug)]
pub struct Block {
    /// Attention.
    pub self_attn: Attention,
    /// Feed-forward network.
    pub mlp: Mlp,
    /// The norm before attention.
    pub input_layernorm: RmsNorm,
    /// The norm before the MLP.
    pub post_attention_layernorm: RmsNorm,
}

/// Causal self-attention with grouped queries.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries, `[hidden_size, n_heads · head_dim]`.
    pub q_proj: Linear,
    /// Keys, `[hidden_size, kv_heads · head_dim]`.
    pub k_proj: Linear,
    /// Values, `[hidden_size, kv_heads · head_dim]`.
    pub v_proj: Linear,
    /// Output, `[n_heads · head_dim, hidden_size]`.
    pub o_proj: Linear,
    /// Norm over each query head (Qwen3).
    pub q_norm: Option<RmsNorm>,
    /// Norm over each key head (Qwen3).
    pub k_norm: Option<RmsNorm>,
    n_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
}

/// The gated feed-forward network: `down(silu(gate(x)) · up(x))`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[hidden_size, intermediate_size]`.
    pub gate_proj: Linear,
    /// `[hidden_size, intermediate_size]`.
    pub up_proj: Linear,
    /// `[intermediate_size, hidden_size]`.
    pub down_proj: Linear,
}

/// Root-mean-square norm over the last axis.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[width]`.
    pub weight: Param<Tensor<1>>,
    /// Added to the mean square.
    pub eps: f64,
}

impl Llama {
    /// The same model, computing in `dtype` whatever its weights are held in:
    /// activations are of that dtype, and each weight is cast where it is used.
    /// Autodiff holds on to the cast copies until the backward pass, so this
    /// buys speed or precision, not memory.
    #[must_use]
    pub fn computing_in(mut self, dtype: WeightType) -> Self {
        self.model.compute = Some(dtype);
        self
    }

    /// Hidden states after the final norm, without a cache: the training path.
    ///
    /// # Shapes
    ///
    /// - ids: `[batch, seq]`; rows may be padded on the right, since no token
    ///   sees those after it
    /// - output: `[batch, seq, hidden_size]`
    pub fn hidden(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        self.model.forward(ids, None)
    }

    /// Scores over the vocabulary, in the dtype of `hidden`.
    ///
    /// # Shapes
    ///
    /// - hidden: `[.., hidden_size]`
    /// - output: `[.., vocab_size]`
    pub fn logits<const D: usize>(&self, hidden: Tensor<D>) -> Tensor<D> {
        match &self.lm_head {
            Some(lm_head) => lm_head.project(hidden),
            None => {
                let embedding = to_dtype(self.model.embed_tokens.weight.val(), hidden.dtype());
                linear(hidden, embedding.transpose(), None)
            }
        }
    }

    /// Logits at every position.
    ///
    /// # Shapes
    ///
    /// - ids: `[batch, seq]`
    /// - output: `[batch, seq, vocab_size]`
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        self.logits(self.hidden(ids))
    }

    /// Logits after the last of `ids`, which continue what `cache` holds.
    ///
    /// # Shapes
    ///
    /// - ids: `[batch, seq]`, without padding
    /// - output: `[batch, vocab_size]`
    pub fn next_token_logits(&self, ids: Tensor<2, Int>, cache: &mut KvCache) -> Tensor<2> {
        let hidden = self.model.forward(ids, Some(cache));
        let [batch, seq, width] = hidden.dims();
        self.logits(hidden.narrow(1, seq - 1, 1).reshape([batch, width]))
    }

    /// The device that the model is on.
    pub fn device(&self) -> Device {
        self.model.embed_tokens.weight.lazy_device()
    }

    /// Number of rows of the embedding.
    pub fn vocab_size(&self) -> usize {
        self.model.embed_tokens.weight.lazy_shape()[0]
    }
}

impl Decoder {
    fn forward(&self, ids: Tensor<2, Int>, mut cache: Option<&mut KvCache>) -> Tensor<3> {
        let [_, seq] = ids.dims();
        let start = cache.as_ref().map_or(0, |cache| cache.len());
        let mut x = self.embed_tokens.forward(ids);
        if let Some(compute) = self.compute {
            x = to_dtype(x, compute.into());
        }
        // Tables are constants: they live on the plain device, and meet tracked tensors on x's.
        let device = x.device();
        let rotation = Rotation::new(&self.rope_frequencies, start, seq, x.dtype(), &device);
        let mut masks = Masks::new(start, seq, device);
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            let mask = masks.get(&layer.self_attn);
            let layer_cache = cache.as_mut().map(|cache| cache.layer(layer_idx));
            x = layer.forward(x, &rotation, mask, layer_cache);
        }
        if let Some(cache) = cache {
            cache.advance(seq);
        }
        self.norm.forward(x)
    }
}

impl Block {
    fn forward(
        &self,
        x: Tensor<3>,
        rotation: &Rotation,
        mask: Option<Tensor<4>>,
        cache: Option<&mut Option<[Tensor<4>; 2]>>,
    ) -> Tensor<3> {
        let x = x.clone()
            + self
                .self_attn
                .forward(self.input_layernorm.forward(x), rotation, mask, cache);
        x.clone() + self.mlp.forward(self.post_attention_layernorm.forward(x))
    }
}

impl Attention {
    fn forward(
        &self,
        x: Tensor<3>,
        rotation: &Rotation,
        mask: Option<Tensor<4>>,
        cache: Option<&mut Option<[Tensor<4>; 2]>>,
    ) -> Tensor<3> {
        let [batch, seq, _] = x.dims();
        let heads = |x: Tensor<3>, n: usize| x.reshape([batch, seq, n, self.head_dim]);
        let mut q = heads(self.q_proj.project(x.clone()), self.n_heads);
        let mut k = heads(self.k_proj.project(x.clone()), self.kv_heads);
        let v = heads(self.v_proj.project(x), self.kv_heads).swap_dims(1, 2);
        if let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) {
            q = q_norm.forward(q);
            k = k_norm.forward(k);
        }
        let q = rotation.apply(q.swap_dims(1, 2)); // [batch, n_heads, seq, head_dim]
        let k = rotation.apply(k.swap_dims(1, 2)); // [batch, kv_heads, seq, head_dim]
        let [k, v] = match cache {
            None => [k, v],
            Some(past) => {
                let all = match past.take() {
                    None => [k, v],
                    Some([old_k, old_v]) => [
                        Tensor::cat(vec![old_k, k], 2),
                        Tensor::cat(vec![old_v, v], 2),
                    ],
                };
                past.insert(all).clone()
            }
        };

        let mixed = attention(q, k, v, mask).swap_dims(1, 2).reshape([
            batch,
            seq,
            self.n_heads * self.head_dim,
        ]);
        self.o_proj.project(mixed)
    }
}

/// `softmax(q·kᵀ / √head_dim + mask)·v`, with the softmax in f32.
///
/// Query heads that share a key head are stacked along the sequence, so that
/// keys and values are never repeated: `groups · seq` queries against one head
/// of keys.
///
/// # Shapes
///
/// - q: `[batch, kv_heads · groups, seq, head_dim]`
/// - k, v: `[batch, kv_heads, keys, head_dim]`
/// - mask: `[1, 1, groups · seq, keys]`, f32, added to the scores; see
///   [`causal_mask`]
/// - output: as q
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: Option<Tensor<4>>) -> Tensor<4> {
    let [batch, n_heads, seq, head_dim] = q.dims();
    let kv_heads = k.dims()[1];
    let q = q.reshape([batch, kv_heads, n_heads / kv_heads * seq, head_dim]);
    let scale = 1.0 / (head_dim as f64).sqrt();
    let dtype = q.dtype();
    let scores = q.mul_scalar(scale).matmul(k.transpose()); // [batch, kv_heads, groups · seq, keys]
    let mut scores = to_dtype(scores, DType::F32);
    if let Some(mask) = mask {
        scores = scores + mask;
    }
    let weights = to_dtype(softmax(scores, 3), dtype);
    weights.matmul(v).reshape([batch, n_heads, seq, head_dim])
}

impl Mlp {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = self.gate_proj.project(x.clone());
        self.down_proj
            .project(swiglu(gate, self.up_proj.project(x)))
    }
}

/// `silu(gate) · up`, the gate of the feed-forward network
/// ([arXiv 2002.05202](https://arxiv.org/abs/2002.05202)).
///
/// # Shapes
///
/// - gate, up, output: the same
pub fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    silu(gate) * up
}

impl RmsNorm {
    /// Normalises in f32 and multiplies by the weight in the input's dtype, as
    /// `LlamaRMSNorm` does.
    ///
    /// # Shapes
    ///
    /// - x: `[.., width]`
    /// - output: the same
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let dtype = x.dtype();
        let x = to_dtype(x, DType::F32);
        let mean_square = x.clone().square().mean_dim(D - 1);
        let normed = x * mean_square.add_scalar(self.eps).sqrt().recip();
        to_dtype(normed, dtype) * to_dtype(self.weight.val(), dtype).unsqueeze()
    }
}

/// The additive masks of one forward pass, built once per distinct shape.
struct Masks {
    start: usize,
    seq: usize,
    device: Device,
    built: Vec<(Option<usize>, usize, Option<Tensor<4>>)>,
}

impl Masks {
    fn new(start: usize, seq: usize, device: Device) -> Self {
        Self {
            start,
            seq,
            device,
            built: Vec::new(),
        }
    }

    fn get(&mut self, attention: &Attention) -> Option<Tensor<4>> {
        let (window, groups) = (attention.window, attention.n_heads / attention.kv_heads);
        if let Some((.., mask)) = self
            .built
            .iter()
            .find(|(w, g, _)| (*w, *g) == (window, groups))
        {
            return mask.clone();
        }
        let mask = causal_mask(self.start, self.seq, window, groups, &self.device);
        self.built.push((window, groups, mask.clone()));
        mask
    }
}

/// What [`attention`] adds to its scores when `seq` queries follow `start`
/// earlier keys: zero where a query sees a key, very negative where it does
/// not. `None` if every query sees every key.
///
/// # Shapes
///
/// - output: `[1, 1, groups · seq, start + seq]`, f32
pub fn causal_mask(
    start: usize,
    seq: usize,
    window: Option<usize>,
    groups: usize,
    device: &Device,
) -> Option<Tensor<4>> {
    // Finite, so that no backend ever computes infinity minus infinity.
    const HIDDEN: f32 = -1e30;
    let keys = start + seq;
    if seq == 1 && window.is_none_or(|window| keys <= window) {
        return None;
    }
    let values: Vec<f32> = (start..keys)
        .flat_map(|query| {
            (0..keys).map(move |key| {
                let seen = key <= query && window.is_none_or(|window| query - key < window);
                if seen { 0.0 } else { HIDDEN }
            })
        })
        .collect();
    let data = TensorData::new(values, [1, 1, seq, keys]);
    let mask = Tensor::from_data(data, (device, DType::F32));
    // Repeated on the device, which gets only one copy.
    Some(if groups == 1 {
        mask
    } else {
        mask.repeat_dim(2, groups)
    })
}

impl ModelConfig {
    /// A model with random weights, normal with standard deviation
    /// `initializer_range`. Nothing is allocated before a weight is first
    /// used, so a checkpoint can be loaded over it at no cost.
    pub fn init(&self, device: &Device) -> Llama {
        let initializer = Initializer::Normal {
            mean: 0.0,
            std: self.initializer_range,
        };
        let dense = |d_in, d_out, bias: bool| {
            let weights = LinearConfig::new(d_in, d_out)
                .with_bias(false)
                .with_initializer(initializer.clone())
                .init(device);
            let bias = bias.then(|| Initializer::Zeros.init([d_out], device));
            Linear { bias, ..weights }
        };
        let norm = |width| RmsNorm {
            weight: Initializer::Ones.init([width], device),
            eps: self.rms_norm_eps,
        };
        let (d_model, head_dim) = (self.hidden_size, self.head_dim);
        let (q_width, kv_width) = (
            self.num_attention_heads * head_dim,
            self.num_key_value_heads * head_dim,
        );
        let block = |layer_idx: usize| Block {
            self_attn: Attention {
                q_proj: dense(d_model, q_width, self.qkv_bias),
                k_proj: dense(d_model, kv_width, self.qkv_bias),
                v_proj: dense(d_model, kv_width, self.qkv_bias),
                o_proj: dense(q_width, d_model, self.o_bias),
                q_norm: self.qk_norm.then(|| norm(head_dim)),
                k_norm: self.qk_norm.then(|| norm(head_dim)),
                n_heads: self.num_attention_heads,
                kv_heads: self.num_key_value_heads,
                head_dim,
                window: self.sliding_windows.get(layer_idx).copied().flatten(),
            },
            mlp: Mlp {
                gate_proj: dense(d_model, self.intermediate_size, false),
                up_proj: dense(d_model, self.intermediate_size, false),
                down_proj: dense(self.intermediate_size, d_model, false),
            },
            input_layernorm: norm(d_model),
            post_attention_layernorm: norm(d_model),
        };
        Llama {
            model: Decoder {
                embed_tokens: EmbeddingConfig::new(self.vocab_size, d_model)
                    .with_initializer(initializer.clone())
                    .init(device),
                layers: (0..self.num_hidden_layers).map(block).collect(),
                norm: norm(d_model),
                rope_frequencies: frequencies(self),
                compute: None,
            },
            lm_head: (!self.tie_word_embeddings).then(|| dense(d_model, self.vocab_size, false)),
        }
    }
}
