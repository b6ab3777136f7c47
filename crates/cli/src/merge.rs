//! `olora merge`: an adapter added into the weights, and written.

use std::{path::Path, process::ExitCode};

use anyhow::{Result, bail};
use olora_adapter::{Kind, PeftAdapter, packed_weights};
use olora_data::{Corpus, DataOptions, Padding, Schedule, TokenCache, load_files, loader};
use olora_devices::{KernelOptions, Opened};
use olora_files::clear_leftovers;
use olora_gguf::{GgufFile, GgufType};
use olora_model::{
    Companions, Dtype, Llama, ModelConfig, ModelError, Packing, SaveOptions, packed_matrices,
};
use olora_runs::check_samples;
use olora_training::CrossEntropy;

use crate::{
    Usage,
    args::{MergeArgs, MergedFormat},
    commands::read_adapter,
    devices,
    inspect::tensor_types,
    models::{attached, base_of, data_files, load_base, packing_of, tokenizer, tokenizer_beside},
    terminal::say,
};

pub(crate) fn merge(args: &MergeArgs, kernels: KernelOptions) -> Result<ExitCode> {
    let output = &args.output;
    clear_leftovers(output);
    if output.is_file()
        || output
            .read_dir()
            .is_ok_and(|mut entries| entries.next().is_some())
    {
        return Err(ModelError::Exists(output.clone()).into());
    }
    let to_file = output
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    if to_file && args.shard_size.is_some() {
        return Err(Usage::new(
            "--shard-size is for directories: a GGUF file is always one file",
        ));
    }
    if let Some(MergedFormat::Gguf(format)) = args.dtype
        && !to_file
    {
        let name = format.name();
        let message =
            format!("{name} is a format of GGUF files: let the name of --output end in .gguf");
        return Err(Usage::new(&message));
    }
    let Opened { device, details } = devices::open(&args.device, kernels)?;
    let adapter = read_adapter(&args.adapter)?;
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
    let written = devices::guarded(&details, advice, || {
        // Added in f32, layer by layer as it is written, and rounded once.
        let (llama, config) = load_base(&base, Dtype::F32, packing, &device)?;
        let config = config.adapted(&adapter)?;
        // Now, as the weights are: the base may be gone when the result is written.
        let companions = if to_file {
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
        if to_file {
            if let Some(MergedFormat::Gguf(GgufType::AsPacked)) = args.dtype {
                say_what_became_dense(&adapted, &config, &base)?;
            }
            write_file(&adapted, &config, args, &base, beside.as_deref())
        } else {
            write_directory(&adapted, &config, args, &companions)
        }
    })?;
    say(&format!("wrote {} ({written})", output.display()));
    if to_file {
        let types = tensor_types(&GgufFile::open(output)?);
        let types = types.iter().map(|(kind, n)| format!("{n} {kind}"));
        say(&format!(
            "tensors: {}",
            types.collect::<Vec<_>>().join(", ")
        ));
    }
    if matches!(args.dtype, Some(MergedFormat::Gguf(_))) && sample.is_none() {
        say(
            "note: rounding to few bits takes much of a small update back: --data FILE says how much",
        );
    }
    if let Some((sample, before)) = sample.zip(before) {
        let after = devices::guarded(&details, advice, || {
            let (merged, _) = olora_model::load(output, Dtype::F32, &device)?;
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

/// The format asked for, else the base's own.
fn weight_type(config: &ModelConfig, args: &MergeArgs) -> Dtype {
    args.dtype
        .and_then(MergedFormat::weights)
        .or(config.stored_dtype())
        .unwrap_or(Dtype::F32)
}

fn write_directory(
    adapted: &Llama,
    config: &ModelConfig,
    args: &MergeArgs,
    companions: &Companions,
) -> Result<&'static str> {
    let mut options = SaveOptions::from(weight_type(config, args));
    if let Some(shard_bytes) = args.shard_size {
        options.shard_bytes = shard_bytes;
    }
    olora_model::save(adapted, config, options, Some(companions), &args.output)?;
    Ok(options.dtype.name())
}

fn write_file(
    adapted: &Llama,
    config: &ModelConfig,
    args: &MergeArgs,
    base: &Path,
    beside: Option<&Path>,
) -> Result<&'static str> {
    let format = match (args.dtype, weight_type(config, args)) {
        (Some(MergedFormat::Gguf(format)), _) => format,
        (_, Dtype::F32) => GgufType::F32,
        (_, Dtype::Bf16) => GgufType::Bf16,
        (_, Dtype::F16) => GgufType::F16,
    };
    olora_model::save_gguf_with(adapted, config, format, base, beside, &args.output)?;
    Ok(format.name())
}
