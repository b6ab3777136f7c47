//! The decoder, top to bottom: model → block → attention → MLP → norm.
//!
//! One stack for LLaMA ([arXiv 2302.13971](https://arxiv.org/abs/2302.13971)),
//! Mistral, Qwen2, Qwen3, Gemma ([arXiv 2403.08295](https://arxiv.org/abs/2403.08295))
//! and OPT ([arXiv 2205.01068](https://arxiv.org/abs/2205.01068)), which differ
//! only in what [`ModelConfig`] says, each as its file in `families/` reads it.
//! It follows the files of `transformers/models/` in their eager form, dtype by
//! dtype: norms and softmax in f32, everything else in the dtype that the model
//! computes in, which is the weights' own unless [`Llama::computing_in`] says
//! otherwise.
//!
//! Fields that own tensors have the names of LLaMA's checkpoints, and a
//! parameter's path is its name in the file
//! (`model.layers.0.self_attn.q_proj.weight`); OPT's other names are given by
//! [`Named`]. Linear layers are called through [`Project`]: adapters attach to
//! them without a change here.
//!
//! LLaMA's norm, rotation, attention and gate are `olora-operations`, each with a
//! backward pass of its own; other norms and activations are compositions of
//! Burn's. Here is how they are put together.

use burn::{
    module::{Initializer, Module},
    nn::{Embedding, EmbeddingConfig, Linear, LinearConfig},
    tensor::{DType, Device, Int, Tensor, TensorData},
};
use olora_adapter::{Embed, Project, has_dropout, is_adapted, packed_of, tied_weight, to_dtype};
use olora_operations::{AttentionMask, Weight, attention, project};

use crate::{
    Activation, Dtype, KvCache, ModelConfig, Named, Norm, NormKind,
    rope::{Rotation, frequencies, positions_in_documents},
};

/// Rows of OPT's table of positions before that of the first position.
const POSITION_OFFSET: usize = 2;

/// A causal language model.
#[derive(Module, Debug)]
pub struct Llama {
    /// Embedding, blocks and final norm.
    pub model: Named<Decoder>,
    /// From hidden states to vocabulary; `None` when tied to the embedding.
    pub lm_head: Option<Linear>,
}

/// Everything below the vocabulary projection.
#[derive(Module, Debug)]
pub struct Decoder {
    /// Token embedding, `[vocab_size, hidden_size]`.
    pub embed_tokens: Embedding,
    /// What is learned of each position, `[max_position_embeddings + 2,
    /// hidden_size]` (OPT); `None` where positions are rotary.
    pub embed_positions: Option<Embedding>,
    /// The blocks.
    pub layers: Vec<Block>,
    /// The norm after the last block.
    pub norm: Norm,
    /// What embedded tokens are multiplied by (Gemma).
    embedding_scale: Option<f32>,
    #[module(skip)]
    rope_frequencies: Vec<f32>,
    #[module(skip)]
    compute: Option<Dtype>,
}

/// One decoder block: attention, then MLP, each added to the residual stream.
#[derive(Module, Debug)]
pub struct Block {
    /// Attention.
    pub self_attn: Attention,
    /// Feed-forward network.
    pub mlp: Mlp,
    /// The norm before attention.
    pub input_layernorm: Norm,
    /// The norm before the MLP.
    pub post_attention_layernorm: Norm,
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
    pub q_norm: Option<Norm>,
    /// Norm over each key head (Qwen3).
    pub k_norm: Option<Norm>,
    n_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
}

/// The feed-forward network: `down(act(gate(x)) · up(x))`, or without a gate
/// `down(act(up(x)))`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[hidden_size, intermediate_size]`; `None` without a gate (OPT).
    pub gate_proj: Option<Linear>,
    /// `[hidden_size, intermediate_size]`.
    pub up_proj: Linear,
    /// `[intermediate_size, hidden_size]`.
    pub down_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

impl Llama {
    /// The same model, computing in `dtype` whatever its weights are held in:
    /// activations are of that dtype, and each weight is cast where it is used.
    /// Autodiff holds on to the cast copies until the backward pass, so this
    /// buys speed or precision, not memory.
    #[must_use]
    pub fn computing_in(mut self, dtype: Dtype) -> Self {
        self.model.compute = Some(dtype);
        self
    }

    /// Whether an adapter on one of its layers drops some of its input in
    /// training.
    pub fn has_dropout(&self) -> bool {
        let of_blocks = self.model.layers.iter().flat_map(|layer| {
            let Attention {
                q_proj,
                k_proj,
                v_proj,
                o_proj,
                ..
            } = &layer.self_attn;
            let Mlp {
                gate_proj,
                up_proj,
                down_proj,
                ..
            } = &layer.mlp;
            let always = [q_proj, k_proj, v_proj, o_proj, up_proj, down_proj];
            always.into_iter().chain(gate_proj)
        });
        let mut linear = of_blocks.chain(&self.lm_head);
        linear.any(|layer| has_dropout(&layer.weight))
            || has_dropout(&self.model.embed_tokens.weight)
    }

    /// Hidden states after the final norm, without a cache: the training path.
    ///
    /// # Shapes
    ///
    /// - ids: `[batch, seq]`; rows may be padded on the right, since no token
    ///   sees those after it
    /// - output: `[batch, seq, hidden_size]`
    pub fn hidden(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        self.through_blocks(ids, None)
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
                let weight = tied_weight(&self.model.embed_tokens.weight);
                let weight = weight.to_dtype(hidden.dtype());
                project(hidden, weight, None, None)
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
        let hidden = self.hidden_after(ids, cache);
        let [batch, seq, width] = hidden.dims();
        self.logits(hidden.narrow(1, seq - 1, 1).reshape([batch, width]))
    }

    /// Hidden states after the final norm, of `ids` that continue what `cache`
    /// holds; the cache holds them too from then on.
    ///
    /// # Shapes
    ///
    /// - ids: `[batch, seq]`; rows may be padded on the right if the cache is
    ///   not continued any further, since no token sees those after it
    /// - output: `[batch, seq, hidden_size]`
    pub fn hidden_after(&self, ids: Tensor<2, Int>, cache: &mut KvCache) -> Tensor<3> {
        self.through_blocks(ids, Some(cache))
    }

    /// A cache that holds nothing yet.
    pub fn empty_cache(&self) -> KvCache {
        KvCache::new(self.model.layers.len())
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

impl Llama {
    /// The embedded tokens, in the dtype that the model computes in.
    ///
    /// # Shapes
    ///
    /// - ids: `[batch, seq]`
    /// - output: `[batch, seq, hidden_size]`
    pub fn embed(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let x = self.model.embed_tokens.embed(ids);
        let x = match self.model.compute {
            Some(compute) => to_dtype(x, compute.into()),
            None => x,
        };
        match self.model.embedding_scale {
            Some(scale) => {
                // Rounded to x's dtype, as transformers' `embed_scale` is.
                let (scale, on) = (TensorData::from([scale]), (&x.device(), DType::F32));
                let scale = Tensor::<1>::from_data(scale, on).unsqueeze();
                let scale = to_dtype(scale, x.dtype());
                x * scale
            }
            None => x,
        }
    }

    /// `x`, which [`Llama::embed`] gave, with what the model learned of its
    /// positions added; `x` itself where positions are rotary. The blocks follow.
    ///
    /// # Shapes
    ///
    /// - x, output: `[batch, seq, hidden_size]`
    pub fn with_positions(&self, x: Tensor<3>, positions: &Positions) -> Tensor<3> {
        match (&self.model.embed_positions, &positions.learned) {
            (Some(table), Some(rows)) => {
                let learned = table.forward(rows.clone());
                let learned = to_dtype(learned, x.dtype());
                x + learned
            }
            _ => x,
        }
    }

    /// What all blocks need to know of the positions of `x`, which
    /// [`Llama::embed`] gave, `start` of them being in a cache already.
    pub fn positions(&self, x: &Tensor<3>, start: usize) -> Positions {
        let positions: Vec<usize> = (start..start + x.dims()[1]).collect();
        self.placed(x, &positions, 1, None)
    }

    /// The same where each row holds several documents, each counted from zero
    /// and seeing itself alone. `lengths` are those of each row's documents, in
    /// order; what follows the last is a document too.
    pub fn positions_in_documents(&self, x: &Tensor<3>, lengths: &[Vec<usize>]) -> Positions {
        let seq = x.dims()[1];
        let positions = positions_in_documents(lengths, seq);
        let documents = AttentionMask::causal(None).within_documents(lengths, seq);
        self.placed(x, &positions, lengths.len(), Some(documents))
    }

    fn placed(
        &self,
        x: &Tensor<3>,
        positions: &[usize],
        rows: usize,
        documents: Option<AttentionMask>,
    ) -> Positions {
        let shape = [rows, x.dims()[1]];
        let learned = self.position_limit().map(|limit| {
            // Only padding stands beyond the last position: longer sequences are refused.
            let row = |at: &usize| (at.min(&(limit - 1)) + POSITION_OFFSET) as i32;
            let rows: Vec<i32> = positions.iter().map(row).collect();
            Tensor::from_data(TensorData::new(rows, shape), &x.device())
        });
        let rotation = learned.is_none().then(|| {
            // Tables are constants: they live on the plain device, and meet tracked tensors on x's.
            let (frequencies, device) = (&self.model.rope_frequencies, x.device().inner());
            Rotation::of(frequencies, positions, shape, x.dtype(), &device)
        });
        Positions {
            rotation,
            learned,
            documents,
        }
    }

    /// How many positions exist at all; see [`ModelConfig::position_limit`].
    pub fn position_limit(&self) -> Option<usize> {
        let table = self.model.embed_positions.as_ref()?;
        Some(table.weight.lazy_shape()[0].saturating_sub(POSITION_OFFSET))
    }

    /// The weight of the vocabulary projection, `[hidden_size, vocab_size]`, in
    /// `dtype`; `None` if an adapter is attached to it.
    pub fn output_weight(&self, dtype: DType) -> Option<Weight> {
        let weight = match &self.lm_head {
            Some(lm_head) if is_adapted(lm_head) => return None,
            Some(lm_head) => match packed_of(&lm_head.weight) {
                Some(packed) => Weight::Packed(packed.tensor.clone()),
                None => Weight::Dense(lm_head.weight.val()),
            },
            // An adapter on the embedding is none on the head, tied or not.
            None => tied_weight(&self.model.embed_tokens.weight),
        };
        Some(weight.to_dtype(dtype))
    }

    fn through_blocks(&self, ids: Tensor<2, Int>, mut cache: Option<&mut KvCache>) -> Tensor<3> {
        let [_, seq] = ids.dims();
        let mut x = self.embed(ids);
        let positions = self.positions(&x, cache.as_ref().map_or(0, |cache| cache.len()));
        x = self.with_positions(x, &positions);
        for (layer_idx, layer) in self.model.layers.iter().enumerate() {
            let layer_cache = cache.as_mut().map(|cache| cache.layer(layer_idx));
            x = layer.continued(x, &positions, layer_cache);
        }
        if let Some(cache) = cache {
            cache.advance(seq);
        }
        self.model.norm.forward(x)
    }
}

/// Where the tokens of one forward pass stand.
#[derive(Clone, Debug)]
pub struct Positions {
    /// How far queries and keys are rotated; `None` where positions are learned.
    rotation: Option<Rotation>,
    /// Rows of the table of learned positions, `[1 or batch, seq]`.
    learned: Option<Tensor<2, Int>>,
    documents: Option<AttentionMask>,
}

impl Positions {
    /// Queries or keys, `[batch, n_heads, seq, head_dim]`, as attention compares
    /// them.
    fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        match &self.rotation {
            Some(rotation) => rotation.apply(x),
            None => x,
        }
    }
}

impl Block {
    /// The residual stream after this block.
    ///
    /// # Shapes
    ///
    /// - x, output: `[batch, seq, hidden_size]`
    pub fn forward(&self, x: Tensor<3>, positions: &Positions) -> Tensor<3> {
        self.continued(x, positions, None)
    }

    fn continued(
        &self,
        x: Tensor<3>,
        positions: &Positions,
        cache: Option<&mut Option<[Tensor<4>; 2]>>,
    ) -> Tensor<3> {
        let normed = self.input_layernorm.forward(x.clone());
        let x = x + self.self_attn.forward(normed, positions, cache);
        let normed = self.post_attention_layernorm.forward(x.clone());
        x + self.mlp.forward(normed)
    }
}

impl Attention {
    fn forward(
        &self,
        x: Tensor<3>,
        positions: &Positions,
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
        let q = positions.rotate(q.swap_dims(1, 2)); // [batch, n_heads, seq, head_dim]
        let k = positions.rotate(k.swap_dims(1, 2)); // [batch, kv_heads, seq, head_dim]
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

        let mask = positions.documents.clone().unwrap_or_default();
        let mixed = attention(q, k, v, &mask.within_window(self.window))
            .swap_dims(1, 2)
            .reshape([batch, seq, self.n_heads * self.head_dim]);
        self.o_proj.project(mixed)
    }
}

impl Mlp {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let inner = match &self.gate_proj {
            Some(gate_proj) => {
                let gate = gate_proj.project(x.clone());
                self.activation.gated(gate, self.up_proj.project(x))
            }
            None => self.activation.forward(self.up_proj.project(x)),
        };
        self.down_proj.project(inner)
    }
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
        let embedding = |rows, width| {
            EmbeddingConfig::new(rows, width)
                .with_initializer(initializer.clone())
                .init(device)
        };
        let norm = |kind, width| Norm::new(kind, width, self.norm_eps, device);
        let head_norm = |width| norm(NormKind::Rms, width);
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
                q_norm: self.qk_norm.then(|| head_norm(head_dim)),
                k_norm: self.qk_norm.then(|| head_norm(head_dim)),
                n_heads: self.num_attention_heads,
                kv_heads: self.num_key_value_heads,
                head_dim,
                window: self.sliding_windows.get(layer_idx).copied().flatten(),
            },
            mlp: Mlp {
                gate_proj: self
                    .gated
                    .then(|| dense(d_model, self.intermediate_size, self.mlp_bias)),
                up_proj: dense(d_model, self.intermediate_size, self.mlp_bias),
                down_proj: dense(self.intermediate_size, d_model, self.mlp_bias),
                activation: self.activation,
            },
            input_layernorm: norm(self.norm, d_model),
            post_attention_layernorm: norm(self.norm, d_model),
        };
        let (embed_positions, rope_frequencies) = match self.position_limit() {
            Some(limit) => (Some(embedding(limit + POSITION_OFFSET, d_model)), vec![]),
            None => (None, frequencies(self)),
        };
        let decoder = Decoder {
            embed_tokens: embedding(self.vocab_size, d_model),
            embed_positions,
            layers: (0..self.num_hidden_layers).map(block).collect(),
            norm: norm(self.norm, d_model),
            embedding_scale: self.scaled_embeddings.then(|| (d_model as f32).sqrt()),
            rope_frequencies,
            compute: None,
        };
        Llama {
            model: Named::new(decoder, self.family.naming),
            lm_head: (!self.tie_word_embeddings).then(|| dense(d_model, self.vocab_size, false)),
        }
    }
}
