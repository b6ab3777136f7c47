//! Everything that is known of a run before its weights are in memory.

use std::sync::Arc;

use burn::tensor::Device;
use olora_adapter::{Kind, PeftAdapter, is_saved_with, params};
use olora_data::{Corpus, Padding, Tokenizer};
use olora_model::{ModelConfig, Packing, Products, drawn_matrices, packed_matrices};
use olora_training::Decay;

use crate::{
    Event, MemoryEstimate, Observer, Precision, Recipe, RunError,
    attach::gradient_batches,
    counts::Counts,
    estimate::{PackedShare, Workload},
    judge::Judge,
    learner::keeps_start,
    recipe::{Rate, Weights},
    resize::{check_from, resized},
    run_data::{Data, fingerprint},
    start_from::{filled_in, fingerprint_with},
    steps::Steps,
};

/// A recipe with its data, its steps and what it will take.
pub(crate) struct Prepared {
    /// With everything decided that the device decides.
    pub(crate) recipe: Recipe,
    pub(crate) config: ModelConfig,
    /// Whether the vocabulary has more rows than the checkpoint's.
    pub(crate) resized: bool,
    pub(crate) precision: Precision,
    /// The adapter that the run starts from, if not afresh.
    pub(crate) from: Option<PeftAdapter>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) data: Data,
    pub(crate) padding: Padding,
    /// The tasks that are scored on the way.
    pub(crate) judge: Option<Judge>,
    pub(crate) steps: Steps,
    /// As they follow from the recipe.
    pub(crate) counts: Counts,
    packed: PackedShare,
    accelerator: bool,
    /// The processes that share out each step's micro-batches.
    pub(crate) n_ranks: usize,
}

/// A recipe as it is written to its run's directory. Of the model, nothing but
/// its configuration and its tokenizer have been read.
pub(crate) struct Resolved {
    /// With everything decided that the device decides.
    pub(crate) recipe: Recipe,
    tokenizer: Tokenizer,
    /// Whether the vocabulary has more rows than the checkpoint's.
    resized: bool,
    config: ModelConfig,
    precision: Precision,
    from: Option<PeftAdapter>,
    accelerator: bool,
}

impl Resolved {
    pub(crate) fn new(
        recipe: &Recipe,
        device: &Device,
        accelerator: bool,
        observer: &dyn Observer,
    ) -> Result<Self, RunError> {
        let config = ModelConfig::from_path(&recipe.model.path)?;
        let tokenizer = Tokenizer::from_path(&recipe.model.path)?;
        let of_checkpoint = config.vocab_size;
        // An adapter of a run that was resized fits the base as it will be.
        let rows = recipe.model.resize_embeddings.rows(tokenizer.n_vocab());
        let wide = match rows.filter(|rows| *rows > of_checkpoint) {
            Some(rows) => config.clone().with_vocabulary(rows),
            None => config.clone(),
        };
        let (recipe, from) = filled_in(recipe, &wide, observer)?;
        let (recipe, config) = resized(recipe, config, &tokenizer, observer)?;
        let resized = config.vocab_size > of_checkpoint;
        if let Some(from) = from.as_ref().filter(|_| resized) {
            check_from(from, config.vocab_size)?;
        }
        let (recipe, precision) = recipe.resolved(&config, device, accelerator)?;
        let tokenizer = tokenizer.with_rows(config.vocab_size);
        Ok(Self {
            recipe,
            tokenizer,
            resized,
            config,
            precision,
            from,
            accelerator,
        })
    }
}

impl Prepared {
    pub(crate) fn new(resolved: Resolved, observer: &dyn Observer) -> Result<Self, RunError> {
        let Resolved {
            recipe,
            tokenizer,
            resized,
            config,
            precision,
            from,
            accelerator,
        } = resolved;
        let notes = tokenizer.notes().iter().cloned();
        for note in notes.chain(tokenizer.note_of_rows()) {
            observer.on(&Event::Note(note));
        }
        let tokenizer = Arc::new(tokenizer);
        let judge = Judge::new(&recipe, &config, &tokenizer, accelerator)?;
        let data = Data::load(&recipe, &tokenizer, observer)?;
        data.check_against(&config, &tokenizer)?;
        let padding = Padding {
            id: tokenizer.pad_id(),
            multiple: recipe.training.pad_to_multiple_of.unwrap_or(1),
        };
        let steps = Steps::new(&recipe, &data.train, padding)?;
        let training = &recipe.training;
        let warmup = training.warmup(steps.total);
        if warmup != training.warmup_steps {
            observer.on(&Event::Note(format!(
                "training.warmup_steps = {} is no less than the run's {} steps: shortened to {warmup}, so that \
                 learning_rate is reached",
                training.warmup_steps, steps.total
            )));
        }
        let (decay, left) = (
            training.decay(steps.total),
            steps.total.saturating_sub(warmup),
        );
        if training.schedule == Decay::Wsd && decay > left {
            observer.on(&Event::Note(format!(
                "training.decay_steps = {decay} is more than the {left} steps that are left after warm-up: the decay \
                 begins after it"
            )));
        }
        let counts = Counts::expected(&recipe, &config)?;
        let packed = packed_share(&recipe, &config, &precision)?;
        if let (Packing::As(quantize), Some(note)) = (recipe.packing(), packed.left_dense()) {
            observer.on(&Event::Note(format!(
                "model.quantize = \"{quantize}\": {note}"
            )));
        }
        if config.with_pictures {
            observer.on(&Event::Note(
                "the base reads pictures too: its text model alone is trained, and what is saved whole or \
                 merged is that alone. `olora convert BASE --output DIR` writes it, for PEFT to load the adapter \
                 onto"
                    .to_owned(),
            ));
        }
        if config.experts.is_some() && recipe.packing() != Packing::None {
            observer.on(&Event::Note(
                "experts and what chooses among them stay dense, and take no adapter".to_owned(),
            ));
        }
        Ok(Self {
            recipe,
            config,
            resized,
            precision,
            from,
            tokenizer,
            data,
            padding,
            judge,
            steps,
            counts,
            packed,
            accelerator,
            n_ranks: 1,
        })
    }

    /// Names the samples, the base, and the adapter that the run starts from.
    pub(crate) fn fingerprint(&self) -> Result<u64, RunError> {
        let fingerprint = fingerprint(&self.data, &self.recipe)?;
        Ok(fingerprint_with(fingerprint, self.from.as_ref()))
    }

    /// Whether every weight trains, rather than an adapter.
    pub(crate) fn trains_everything(&self) -> bool {
        self.recipe.adapter.everything
    }

    /// The memory that the run takes, of a model of these parameters.
    pub(crate) fn memory(&self, counts: &Counts) -> MemoryEstimate {
        let recipe = &self.recipe;
        let (train, validation) = (&self.data.train, &self.data.validation);
        let all = [train.corpus()].into_iter().chain(validation).cloned();
        // The tokens, and the order of an epoch.
        let samples = Corpus::join(all).resident_bytes() as u64 + 12 * train.len() as u64;
        let workload = Workload {
            counts: *counts,
            packed: self.packed,
            dora: recipe.adapter.config.dora,
            trains_whole: !recipe.adapter.config.modules_to_save.is_empty(),
            dropout: recipe.adapter.config.dropout > 0.0,
            keeps_start: keeps_start(recipe),
            micro_batches: recipe.training.accumulation / self.n_ranks.max(1),
            n_ranks: self.n_ranks,
            base: self.precision.of_weights(),
            compute: self.precision.of_activations(),
            rounds: self.precision.in_bf16 == Some(Products::Rounded),
            recompute: recipe.training.recompute,
            finds_rate: recipe.training.learning_rate == Rate::Auto,
            gradient_batches: gradient_batches(recipe, self.steps.n_batches),
            accelerator: self.accelerator,
            rows: self.steps.largest.n_rows,
            seq: self.steps.largest.seq_len,
            targets: self.steps.largest.n_targets,
            samples,
            tokenizer: self.tokenizer.n_bytes() as u64,
        };
        MemoryEstimate::new(&self.config, &workload, &*recipe.objective())
    }
}

/// What of the base stays packed; what trains whole beside an adapter does not.
fn packed_share(
    recipe: &Recipe,
    config: &ModelConfig,
    precision: &Precision,
) -> Result<PackedShare, RunError> {
    let matrices = precision.matrices(recipe.packing());
    let matrices = match recipe.model.weights {
        Weights::Checkpoint => packed_matrices(&recipe.model.path, config, matrices)?,
        // Drawn, and held as those of a checkpoint would be.
        Weights::Random | Weights::Timing => drawn_matrices(config, matrices),
    };
    if matrices.is_empty() && !matches!(recipe.packing(), Packing::As(_)) {
        return Ok(PackedShare::default());
    }
    let mut share = PackedShare::default();
    #[allow(
        clippy::default_trait_access,
        reason = "any device will do: nothing is put on it"
    )]
    let model = config.init(&Default::default());
    for param in params(&model) {
        let is_linear =
            param.place().kind == Some(Kind::Linear) && param.place().name() == "weight";
        share.linear += usize::from(is_linear && param.path() != "lm_head.weight");
        let saved = &recipe.adapter.config.modules_to_save;
        let is_saved = saved.iter().any(|name| is_saved_with(param.path(), name));
        if let Some(matrix) = matrices.get(param.path()).filter(|_| !is_saved) {
            share.elements += param.num_elements();
            share.bytes += matrix.bytes;
            share.placed += matrix.placed;
            let is_tied =
                config.tie_word_embeddings && param.path().ends_with("embed_tokens.weight");
            share.head |= is_tied || param.path() == "lm_head.weight";
            let widest = param.shape().into_iter().max().unwrap_or(0);
            // The vocabulary projection goes by panels of its rows, as wide as the model.
            if is_linear && param.path() != "lm_head.weight" {
                share.packed_linear += usize::from(!matrix.is_plain());
                share.widest = share.widest.max(widest);
            }
        }
    }
    if let Packing::As(quantize) = recipe.packing()
        && share.packed_linear == 0
    {
        let size = quantize.format().block_values();
        return Err(RunError::Recipe {
            recipe: format!("model.quantize = \"{quantize}\""),
            reason: format!(
                "none of the {} linear layers would be packed: no row divides into blocks of {size} values; choose \
                 a format with smaller blocks, such as q8_0 or q4_0",
                share.linear
            ),
        });
    }
    Ok(share)
}
