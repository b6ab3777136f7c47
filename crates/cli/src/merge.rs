//! `olora merge`: an adapter added into the weights, and written.

use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use olora_adapter::{Kind, packed_weights};
use olora_data::{
    Corpus, DataOptions, Padding, Schedule, TokenCache, Tokenizer, load_files, loader,
};
use olora_devices::{KernelOptions, Opened};
use olora_model::{Companions, Dtype, Llama, ModelConfig, Packing, packed_matrices};
use olora_runs::{TrainedRun, check_samples};
use olora_training::CrossEntropy;
use serde_json::json;

use crate::{
    Usage,
    args::MergeArgs,
    commands::read_adapter,
    devices,
    models::{
        Purpose, attached, base_of, data_files, load_base, packing_of, tokenizer, tokenizer_beside,
    },
    terminal::{emit, say, say_note},
    written::Written,
};

pub(crate) fn merge(args: &MergeArgs, kernels: KernelOptions) -> Result<ExitCode> {
    let written = Written::new(&args.output, args.dtype, args.shard_size, args.modelfile)?;
    let Some(adapter_path) = &args.adapter else {
        return Err(Usage::new(
            "`merge` adds an adapter to a model, and none is given: --adapter PATH. A model without one is \
             written in another form by `olora convert MODEL --output PATH`",
        ));
    };
    let Opened { device, details } = devices::open(&args.device, kernels)?;
    let adapter = read_adapter(adapter_path)?;
    let base = base_of(args.model.as_deref(), Some(&adapter))?.path;
    let packing = packing_of(args.quantize, Some(&adapter))?;
    let beside = tokenizer_beside(&adapter, &ModelConfig::from_path(&base)?)?;
    let advice = "Merge on the CPU: leave --device out";
    let config = ModelConfig::from_path(&base)?.adapted(&adapter)?;
    let sample = Sample::new(args, adapter_path, &written, &config, || {
        tokenizer(&base, beside.as_deref())
    })?;
    let mut before = None;
    let format = devices::guarded(&details, advice, || {
        // Added in f32, layer by layer as it is written, and rounded once.
        let (llama, config) = load_base(&base, Dtype::F32, packing, &device, Purpose::Write)?;
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
            .map(|sample| sample.loss(&adapted, None))
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
    if let Some((sample, before)) = sample.zip(before) {
        let after = devices::guarded(&details, advice, || {
            let (merged, _) = olora_model::load(written.output, Dtype::F32, &device)?;
            sample.loss(&merged, Some(before.n_batches))
        })?;
        say(&format!(
            "loss over {} tokens of {}: {:.4} with the adapter on its base, {:.4} merged and rounded to {format} \
             ({:+.4})",
            before.n_tokens,
            sample.name,
            before.loss,
            after.loss,
            after.loss - before.loss
        ));
        emit(&json!({
            "event": "rounded", "data": sample.name, "tokens": before.n_tokens, "format": format,
            "loss_before": before.loss, "loss_after": after.loss,
        }));
    }
    Ok(ExitCode::SUCCESS)
}

/// Data by which the rounding of a merged model is measured.
struct Sample {
    /// As people call it.
    name: String,
    samples: Corpus,
    padding: Padding,
    /// What was not asked for may not take long.
    is_bounded: bool,
}

/// A mean loss, and over what.
struct Measured {
    loss: f64,
    n_tokens: f64,
    n_batches: usize,
}

impl Sample {
    /// The data that was given, or else some of what the adapter's run was
    /// evaluated on, if something is rounded. Where nothing will be measured, that
    /// is said.
    fn new(
        args: &MergeArgs,
        adapter: &Path,
        written: &Written<'_>,
        config: &ModelConfig,
        tokenizer: impl FnOnce() -> Result<Tokenizer>,
    ) -> Result<Option<Self>> {
        if let Some(data) = &args.data {
            return Self::read(data, config, &tokenizer()?).map(Some);
        }
        if !written.rounds(config) || args.no_measure {
            return Ok(None);
        }
        let reason = match TrainedRun::at(adapter)? {
            None => "the adapter is no run, which has validation data".to_owned(),
            Some(run) => match Self::of_run(&run, config, &tokenizer()?) {
                Ok(Some(sample)) => return Ok(Some(sample)),
                Ok(None) => "the adapter's run has no validation data".to_owned(),
                Err(error) => format!("the validation data of the adapter's run: {error:#}"),
            },
        };
        say_note(&format!(
            "what rounding takes back of the update is not measured ({reason}): --data FILE says it"
        ));
        Ok(None)
    }

    fn read(data: &Path, config: &ModelConfig, tokenizer: &Tokenizer) -> Result<Self> {
        let (files, first) = data_files(data)?;
        let options = DataOptions {
            first,
            ..DataOptions::default()
        };
        let cache = TokenCache::from_env();
        let loaded = load_files(&files, tokenizer, &options, cache.as_ref())?;
        check_samples(&loaded.samples, config, tokenizer)?;
        Ok(Self {
            name: data.display().to_string(),
            samples: loaded.samples,
            padding: padding(tokenizer),
            is_bounded: false,
        })
    }

    fn of_run(
        run: &TrainedRun,
        config: &ModelConfig,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Self>> {
        /// Inputs that are gone through at most, before and after.
        const MOST_INPUTS: usize = 1 << 14;
        let Some(samples) = run.validation(tokenizer)? else {
            return Ok(None);
        };
        check_samples(&samples, config, tokenizer)?;
        let mut n_inputs = 0;
        let some = samples.select(|index| {
            n_inputs += samples.n_inputs(index);
            index < samples.unit() || n_inputs <= MOST_INPUTS
        });
        Ok(Some(Self {
            name: "its run's validation data".to_owned(),
            samples: some,
            padding: padding(tokenizer),
            is_bounded: true,
        }))
    }

    /// Over as many batches as are given, or else as fit into the time.
    fn loss(&self, llama: &Llama, n_batches: Option<usize>) -> Result<Measured> {
        const ROWS: usize = 4;
        const LONGEST: Duration = Duration::from_mins(1);
        let schedule = Schedule::sequential(self.samples.clone(), ROWS)?;
        let batches = loader(schedule, self.padding);
        let began = Instant::now();
        let mut taken = 0;
        let some = batches.iter().take_while(|_| {
            let goes_on = match n_batches {
                Some(n) => taken < n,
                None => taken == 0 || !self.is_bounded || began.elapsed() < LONGEST,
            };
            taken += usize::from(goes_on);
            goes_on
        });
        let evaluation = olora_training::evaluate(&CrossEntropy, llama, some)?;
        Ok(Measured {
            loss: evaluation.loss,
            n_tokens: evaluation.count,
            n_batches: taken,
        })
    }
}

fn padding(tokenizer: &Tokenizer) -> Padding {
    Padding {
        id: tokenizer.pad_id(),
        multiple: 1,
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
        say_note(&format!(
            "{} that the base has in blocks came with the adapter or trained whole, and is written in {} (`{first}`{})",
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
