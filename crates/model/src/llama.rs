//! The decoder, top to bottom: model → block → attention → MLP → norm.
//!
//! One stack for LLaMA ([arXiv 2302.13971](https://arxiv.org/abs/2302.13971)) and
//! all families of `families/`, which differ only in what [`ModelConfig`] says,
//! each as its file there reads it.
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
//! Burn's. Here is how they are put together; what is inside a block is in
//! [`Attention`] and [`FeedForward`].

use std::ops::Range;

use burn::{
    module::{Initializer, Module},
    nn::{Embedding, EmbeddingConfig, Linear, LinearConfig},
    tensor::{DType, Device, Int, Tensor, TensorData},
};
use olora_adapter::{Embed, Project, has_dropout, is_adapted, packed_of, tied_weight, to_dtype};
use olora_operations::{AttentionMask, OutputHead, Weight, project, weight::soft_capped};

use crate::{
    Attention, Dtype, FeedForward, KvCache, ModelConfig, Named, Norm, NormOrder, Rope,
    cache::Caches,
    rope::{Rotation, positions_in_documents},
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
    /// What embedded tokens are multiplied by (Gemma, Granite).
    embedding_scale: Option<f64>,
    /// What the hidden states after the final norm are multiplied by, so that
    /// logits are scaled (Granite); 1 else.
    logit_scale: f64,
    /// What bends logits (Gemma 2).
    logit_cap: Option<f64>,
    #[module(skip)]
    ropes: Vec<Rope>,
    #[module(skip)]
    query_growth: Option<(f64, f64)>,
    /// Whether a cache is given up where rotations change (Phi-3).
    cache_ends: bool,
    #[module(skip)]
    compute: Option<Dtype>,
}

/// One decoder block: attention, then MLP, each added to the residual stream.
///
/// Norms have the names of LLaMA's checkpoints, which have one before each. What
/// other families call theirs, [`Named`] knows.
#[derive(Module, Debug)]
pub struct Block {
    /// Attention.
    pub self_attn: Attention,
    /// Feed-forward network.
    pub mlp: FeedForward,
    /// The norm before attention; `None` where norms follow only (`OLMo` 2).
    pub input_layernorm: Option<Norm>,
    /// The norm after attention, before its result is added (Gemma 2, `OLMo` 2).
    pub attention_output_norm: Option<Norm>,
    /// The norm before the MLP; `None` where norms follow only.
    pub post_attention_layernorm: Option<Norm>,
    /// The norm after the MLP, before its result is added.
    pub mlp_output_norm: Option<Norm>,
    /// What both are multiplied by before they are added (Granite); 1 else.
    residual_scale: f64,
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
            let of_attention = layer.self_attn.linear_layers();
            of_attention.into_iter().chain(layer.mlp.linear_layers())
        });
        let mut linear = of_blocks.chain(&self.lm_head);
        linear.any(|layer| has_dropout(&layer.weight))
            || has_dropout(&self.model.embed_tokens.weight)
    }

    /// Hidden states as the vocabulary projection takes them, without a cache:
    /// the training path.
    ///
    /// # Shapes
    ///
    /// - ids: `[batch, seq]`; rows may be padded on the right, since no token
    ///   sees those after it
    /// - output: `[batch, seq, hidden_size]`
    pub fn hidden(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        self.through_blocks(ids, None)
    }

    /// What the blocks left, as the vocabulary projection takes it: after the
    /// final norm, scaled where a family scales its logits.
    ///
    /// # Shapes
    ///
    /// - residual, output: `[batch, seq, hidden_size]`
    pub fn finished(&self, residual: Tensor<3>) -> Tensor<3> {
        let hidden = self.model.norm.forward(residual);
        scaled(hidden, self.model.logit_scale)
    }

    /// Scores over the vocabulary, in the dtype of `hidden`.
    ///
    /// # Shapes
    ///
    /// - hidden: `[.., hidden_size]`
    /// - output: `[.., vocab_size]`
    pub fn logits<const D: usize>(&self, hidden: Tensor<D>) -> Tensor<D> {
        let logits = match &self.lm_head {
            Some(lm_head) => lm_head.project(hidden),
            None => {
                let weight = tied_weight(&self.model.embed_tokens.weight);
                let weight = weight.to_dtype(hidden.dtype());
                project(hidden, weight, None, None)
            }
        };
        soft_capped(logits, self.model.logit_cap)
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

    /// Hidden states as the vocabulary projection takes them, of `ids` that
    /// continue what `cache` holds; the cache holds them too from then on.
    ///
    /// # Shapes
    ///
    /// - ids: `[batch, seq]`; rows may be padded on the right if the cache is
    ///   not continued any further, since no token sees those after it
    /// - output: `[batch, seq, hidden_size]`
    pub fn hidden_after(&self, ids: Tensor<2, Int>, cache: &mut KvCache) -> Tensor<3> {
        self.through_blocks(ids, Some(cache))
    }

    /// The same for one token of each of several texts, which have caches of their own.
    ///
    /// # Shapes
    ///
    /// - ids: `[texts, 1]`
    /// - output: `[texts, 1, hidden_size]`
    ///
    /// # Panics
    ///
    /// If there are not as many caches as texts.
    pub fn hidden_after_each(&self, ids: Tensor<2, Int>, caches: &mut [&mut KvCache]) -> Tensor<3> {
        let [n, _] = ids.dims();
        assert_eq!(n, caches.len(), "a cache for each text");
        let mut x = self.embed(ids);
        let places: Vec<usize> = caches.iter().map(|cache| cache.len()).collect();
        let positions = self.positions_of_texts(&x, &places);
        x = self.with_positions(x, &positions);
        for (layer_idx, layer) in self.model.layers.iter().enumerate() {
            let of_layer = caches.iter_mut().map(|cache| cache.layer(layer_idx));
            x = layer.continued(x, &positions, Caches::Each(of_layer.collect()));
        }
        for cache in caches {
            cache.advance(1);
        }
        self.finished(x)
    }

    /// The length of a sequence beyond which its earlier tokens rotate otherwise
    /// too; `None` if the length changes nothing. What was cached before is not
    /// what a sequence beyond it would have.
    pub fn rotation_changes_beyond(&self) -> Option<usize> {
        let changes = self.model.ropes.iter().filter_map(Rope::changes_beyond);
        changes.min()
    }

    /// The same, where the family computes all tokens again when a sequence
    /// grows beyond it; others go on from what is cached.
    pub(crate) fn cache_ends_at(&self) -> Option<usize> {
        let ends = self.model.cache_ends;
        self.rotation_changes_beyond().filter(|_| ends)
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
                let (scale, on) = (TensorData::from([scale as f32]), (&x.device(), DType::F32));
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
    /// order; what follows the last is padding, which sees itself and counts for nothing:
    /// not for ways of scaling that go by the longest document either.
    pub fn positions_in_documents(&self, x: &Tensor<3>, lengths: &[Vec<usize>]) -> Positions {
        let seq = x.dims()[1];
        let positions = positions_in_documents(lengths, seq);
        let documents = AttentionMask::causal(None).within_documents(lengths, seq);
        self.placed(x, &positions, lengths.len(), Some(documents))
    }

    /// The same where a document may continue another one of its row: `continued`
    /// gives for each row and position the positions of the row that come right
    /// before its document's first, from the first one on. Its own are counted from
    /// their number, and they are seen: see [`AttentionMask::continuing`].
    ///
    /// # Panics
    ///
    /// As there.
    pub fn positions_in_continued_documents(
        &self,
        x: &Tensor<3>,
        lengths: &[Vec<usize>],
        continued: Vec<Range<usize>>,
    ) -> Positions {
        let seq = x.dims()[1];
        let mut positions = positions_in_documents(lengths, seq);
        for (position, continued) in positions.iter_mut().zip(&continued) {
            *position += continued.len();
        }
        let documents = AttentionMask::causal(None)
            .within_documents(lengths, seq)
            .continuing(continued);
        self.placed(x, &positions, lengths.len(), Some(documents))
    }

    /// The positions of one token of each of several texts, which do not make each
    /// other longer: some ways of scaling go by the longest.
    fn positions_of_texts(&self, x: &Tensor<3>, places: &[usize]) -> Positions {
        let mut all = self.placed(x, places, places.len(), None);
        if self.rotation_changes_beyond().is_some() {
            let device = x.device().inner();
            let ropes = self.model.ropes.iter();
            let rotations = ropes.map(|rope| Rotation::of_texts(rope, places, x.dtype(), &device));
            all.rotations = rotations.collect();
        }
        all
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
        // Tables are constants: they live on the plain device, and meet tracked tensors on x's.
        let device = x.device().inner();
        let ropes = self.model.ropes.iter();
        let rotations = ropes.map(|rope| Rotation::of(rope, positions, shape, x.dtype(), &device));
        let growth = self.model.query_growth.and_then(|(beta, period)| {
            let of = |at: &usize| (1.0 + beta * (*at as f64 / period).floor().ln_1p()) as f32;
            let growth: Vec<f32> = positions.iter().map(of).collect();
            growth.iter().any(|growth| *growth != 1.0).then(|| {
                let data = TensorData::new(growth, [rows, 1, shape[1], 1]);
                Tensor::<4>::from_data(data, (&device, DType::F32)).cast(x.dtype())
            })
        });
        Positions {
            rotations: rotations.collect(),
            growth,
            learned,
            documents,
        }
    }

    /// How many positions exist at all; see [`ModelConfig::position_limit`].
    pub fn position_limit(&self) -> Option<usize> {
        let table = self.model.embed_positions.as_ref()?;
        Some(table.weight.lazy_shape()[0].saturating_sub(POSITION_OFFSET))
    }

    /// The vocabulary projection, its weight `[hidden_size, vocab_size]` in
    /// `dtype`; `None` if an adapter is attached to it.
    pub fn output_head(&self, dtype: DType) -> Option<OutputHead> {
        let weight = match &self.lm_head {
            Some(lm_head) if is_adapted(lm_head) => return None,
            Some(lm_head) => match packed_of(&lm_head.weight) {
                Some(packed) => Weight::Packed(packed.tensor.clone()),
                None => Weight::Dense(lm_head.weight.val()),
            },
            // An adapter on the embedding is none on the head, tied or not.
            None => tied_weight(&self.model.embed_tokens.weight),
        };
        Some(OutputHead {
            weight: weight.to_dtype(dtype),
            soft_cap: self.model.logit_cap,
        })
    }

    fn through_blocks(&self, ids: Tensor<2, Int>, mut cache: Option<&mut KvCache>) -> Tensor<3> {
        let [_, seq] = ids.dims();
        let mut x = self.embed(ids);
        let positions = self.positions(&x, cache.as_ref().map_or(0, |cache| cache.len()));
        x = self.with_positions(x, &positions);
        for (layer_idx, layer) in self.model.layers.iter().enumerate() {
            let layer_cache = match &mut cache {
                Some(cache) => Caches::One(cache.layer(layer_idx)),
                None => Caches::None,
            };
            x = layer.continued(x, &positions, layer_cache);
        }
        if let Some(cache) = cache {
            cache.advance(seq);
        }
        self.finished(x)
    }
}

/// `x` times `scale`, or as it is.
fn scaled(x: Tensor<3>, scale: f64) -> Tensor<3> {
    if scale == 1.0 { x } else { x.mul_scalar(scale) }
}

/// Where the tokens of one forward pass stand.
#[derive(Clone, Debug)]
pub struct Positions {
    /// How far queries and keys are rotated, in each of the model's ways.
    rotations: Vec<Rotation>,
    /// What queries are multiplied by, `[1 or batch, 1, seq, 1]`, if by anything.
    growth: Option<Tensor<4>>,
    /// Rows of the table of learned positions, `[1 or batch, seq]`.
    learned: Option<Tensor<2, Int>>,
    documents: Option<AttentionMask>,
}

impl Positions {
    /// Queries or keys, `[batch, n_heads, seq, head_dim]`, as attention compares
    /// them, rotated in one of the model's ways or not at all.
    pub(crate) fn rotate(&self, x: Tensor<4>, rope: Option<usize>) -> Tensor<4> {
        match rope.and_then(|rope| self.rotations.get(rope)) {
            Some(rotation) => rotation.apply(x),
            None => x,
        }
    }

    /// Queries, `[batch, n_heads, seq, head_dim]`, as far as they grow with their
    /// position.
    pub(crate) fn grow(&self, q: Tensor<4>) -> Tensor<4> {
        match &self.growth {
            Some(growth) => q * growth.clone(),
            None => q,
        }
    }

    /// Which keys are of a query's own document.
    pub(crate) fn documents(&self) -> AttentionMask {
        self.documents.clone().unwrap_or_default()
    }
}

impl Block {
    /// The residual stream after this block.
    ///
    /// # Shapes
    ///
    /// - x, output: `[batch, seq, hidden_size]`
    pub fn forward(&self, x: Tensor<3>, positions: &Positions) -> Tensor<3> {
        self.continued(x, positions, Caches::None)
    }

    fn continued(&self, x: Tensor<3>, positions: &Positions, cache: Caches<'_>) -> Tensor<3> {
        let normed = normed(self.input_layernorm.as_ref(), x.clone());
        let found = self.self_attn.forward(normed, positions, cache);
        let x = self.added(x, self.attention_output_norm.as_ref(), found);
        let normed = self::normed(self.post_attention_layernorm.as_ref(), x.clone());
        let found = self.mlp.forward(normed);
        self.added(x, self.mlp_output_norm.as_ref(), found)
    }

    /// The residual stream `x` with what attention or the MLP found.
    fn added(&self, x: Tensor<3>, norm: Option<&Norm>, found: Tensor<3>) -> Tensor<3> {
        x + scaled(normed(norm, found), self.residual_scale)
    }
}

/// `x` after a norm, if there is one.
fn normed(norm: Option<&Norm>, x: Tensor<3>) -> Tensor<3> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
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
        let d_model = self.hidden_size;
        let norm = || Norm::new(self.norm, d_model, self.norm_eps, device);
        let before = self.norm_order != NormOrder::After;
        let after = self.norm_order != NormOrder::Before;
        let block = |layer_idx: usize| Block {
            self_attn: Attention::new(self, layer_idx, dense, device),
            mlp: FeedForward::new(self, layer_idx, dense, &initializer, device),
            input_layernorm: before.then(norm),
            attention_output_norm: after.then(norm),
            post_attention_layernorm: before.then(norm),
            mlp_output_norm: after.then(norm),
            residual_scale: self.residual_scale,
        };
        let learned = self.position_limit();
        let decoder = Decoder {
            embed_tokens: embedding(self.vocab_size, d_model),
            embed_positions: learned.map(|limit| embedding(limit + POSITION_OFFSET, d_model)),
            layers: (0..self.num_hidden_layers).map(block).collect(),
            norm: norm(),
            embedding_scale: self.embedding_scale,
            logit_scale: self.logit_scale,
            logit_cap: self.logit_cap,
            ropes: self.ropes.clone(),
            query_growth: self.query_growth,
            cache_ends: self.family.model_type() == "phi3",
            compute: None,
        };
        Llama {
            model: Named::new(decoder, self.family.naming),
            lm_head: (!self.tie_word_embeddings).then(|| dense(d_model, self.vocab_size, false)),
        }
    }
}
