//! `olora merge`: an adapter added into the weights, and written.

use std::{path::Path, process::ExitCode};

use anyhow::{Result, bail};
use olora_adapter::{Kind, PeftAdapter, packed_weights};
use olora_data::{Corpus, DataOptions, Padding, Schedule, TokenCache, load_files, loader};
use olora_devices::{KernelOptions, Opened};
use olora_model::{Companions, Dtype, Llama, ModelConfig, Packing, packed_matrices};
use olora_runs::check_samples;
use olora_training::CrossEntropy;

use crate::{
    Usage,
    args::MergeArgs,
    commands::read_adapter,
    devices,
    models::{attached, base_of, data_files, load_base, packing_of, tokenizer, tokenizer_beside},
    terminal::say,
    written::Written,
};

pub(crate) fn merge(args: &MergeArgs, kernels: KernelOptions) -> Result<ExitCode> {
    let written = Written::new(&args.output, args.dtype, args.shard_size, args.modelfile)?;
    let Some(adapter) = &args.adapter else {
        return Err(Usage::new(
            "`merge` adds an adapter to a model, and none is given: --adapter PATH. A model without one is \
             written in another form by `olora convert MODEL --output PATH`",
        ));
    };
    let Opened { device, details } = devices::open(&args.device, kernels)?;
    let adapter = read_adapter(adapter)?;
    let base = base_of(args.model.as_deref(), Some(&adapter))?.path;
    let packing = packing_of(args.quantize, Some(&adapter))?;
    let beside = tokenizer_beside(&adapter, &ModelConfig::from_path(&base)?)?;
    let advice = "Merge on the CPU: leave --device out";
    let sample = args
        .data
        .as_deref()
        .map(|data| Sample::read(data, &base, &adapter, beside.as_deref()))
        .transpose()?;
    let mut before = None;
    let format = devices::guarded(&details, advice, || {
        // Added in f32, layer by layer as it is written, and rounded once.
        let (llama, config) = load_base(&base, Dtype::F32, packing, &device)?;
        let config = config.adapted(&adapter)?;
        // Now, as the weights are: the base may be gone when the result is written.
        let companions = if written.to_file {
            Companions::default()
        } else {
            Companions::read(&base)?.with(beside.as_deref())?
        };
        let adapted = attached(adapter, llama)?;
        refuse_tied_embedding(&adapted)?;
        before = sample
            .as_ref()
            .map(|sample| sample.loss(&adapted))
            .transpose()?;
        if !written.to_file {
            let options = written.options(&config);
            olora_model::save(
                &adapted,
                &config,
                options,
                Some(&companions),
                written.output,
            )?;
            return Ok(options.dtype.name());
        }
        if written.keeps_blocks() {
            say_what_became_dense(&adapted, &config, &base)?;
        }
        let format = written.gguf_type(&config);
        let beside = beside.as_deref();
        olora_model::save_gguf_with(&adapted, &config, format, &base, beside, written.output)?;
        Ok(format.name())
    })?;
    written.finish(format)?;
    if written.is_packed() && sample.is_none() {
        say(
            "note: rounding to few bits takes much of a small update back: --data FILE says how much",
        );
    }
    if let Some((sample, before)) = sample.zip(before) {
        let after = devices::guarded(&details, advice, || {
            let (merged, _) = olora_model::load(written.output, Dtype::F32, &device)?;
            sample.loss(&merged)
        })?;
        say(&format!(
            "loss over {} tokens: {before:.4} with the adapter on its base, {after:.4} merged ({:+.4})",
            sample.n_tokens,
            after - before
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// Data by which the rounding of a merged model is measured.
struct Sample {
    samples: Corpus,
    padding: Padding,
    n_tokens: usize,
}

impl Sample {
    fn read(
        data: &Path,
        base: &Path,
        adapter: &PeftAdapter,
        beside: Option<&Path>,
    ) -> Result<Self> {
        let tokenizer = tokenizer(base, beside)?;
        let config = ModelConfig::from_path(base)?.adapted(adapter)?;
        let (files, first) = data_files(data)?;
        let options = DataOptions {
            first,
            ..DataOptions::default()
        };
        let data = load_files(
            &files,
            &tokenizer,
            &options,
            TokenCache::from_env().as_ref(),
        )?;
        check_samples(&data.samples, &config, &tokenizer)?;
        Ok(Self {
            n_tokens: data.report.n_trained_tokens,
            samples: data.samples,
            padding: Padding {
                id: tokenizer.pad_id(),
                multiple: 1,
            },
        })
    }

    fn loss(&self, llama: &Llama) -> Result<f64> {
        const ROWS: usize = 4;
        let schedule = Schedule::sequential(self.samples.clone(), ROWS)?;
        let batches = loader(schedule, self.padding);
        let evaluation = olora_training::evaluate(&CrossEntropy, llama, batches.iter())?;
        Ok(evaluation.loss)
    }
}

/// Which matrices have no blocks any more that the base has in blocks.
fn say_what_became_dense(adapted: &Llama, config: &ModelConfig, base: &Path) -> Result<()> {
    let packed = packed_weights(adapted);
    let of_base = packed_matrices(base, config, Packing::Stored)?;
    let dense: Vec<&str> = of_base
        .keys()
        .filter_map(|name| name.strip_suffix(".weight"))
        .filter(|layer| !packed.contains_key(*layer))
        .collect();
    if let Some(first) = dense.first() {
        say(&format!(
            "note: {} that the base has in blocks came with the adapter or trained whole, and is written in {} (`{first}`{})",
            match dense.len() {
                1 => "a matrix".to_owned(),
                n => format!("{n} matrices"),
            },
            config.stored_dtype().unwrap_or(Dtype::F32).name(),
            if dense.len() > 1 { " and others" } else { "" }
        ));
    }
    Ok(())
}

/// An adapter on a tied embedding changes what goes in and not what comes out;
/// a merged embedding would change both.
fn refuse_tied_embedding(llama: &Llama) -> Result<()> {
    let adapted = olora_adapter::factors(llama)
        .into_iter()
        .find(|layer| layer.kind == Kind::Embedding);
    match adapted {
        Some(layer) if llama.lm_head.is_none() => bail!(
            "`{}` has an adapter and is tied to `lm_head`, which has none: one merged weight cannot be \
             both. Use the adapter as it is",
            layer.path
        ),
        _ => Ok(()),
    }
}
