//! `olora convert`: adapters into other forms, fewer ranks, or one of several. Of
//! a model, [`convert_model`] is the same.

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result, bail};
use olora_adapter::{Combination, Method, PeftAdapter, PeftForm, WriteOptions};
use olora_devices::KernelOptions;
use olora_files::StagedDirectory;
use olora_gguf::LoraLayer;
use olora_model::{Dtype, Llama, ModelConfig};
use serde_json::json;

use crate::{
    Usage,
    args::{Combine, ConvertArgs, Form, MergedFormat},
    commands::read_adapter,
    convert_model::convert_model,
    devices,
    mistaken::is_model,
    models::{Base, Purpose, announce, attached, base_of, load_base, packing_of},
    terminal::{emit, say, say_note},
    written::{is_gguf_name, refuse_existing},
};

pub(crate) fn convert(args: &ConvertArgs, kernels: KernelOptions) -> Result<ExitCode> {
    let output = &args.output;
    if let [path] = args.paths.as_slice()
        && is_model(path)?
    {
        return convert_model(path, args, kernels);
    }
    refuse_existing(output)?;
    let to_gguf = is_gguf_name(output);
    refuse_contradictions(args, to_gguf)?;
    let read = args.paths.iter().map(|path| read_adapter(path));
    let read = read.collect::<Result<Vec<PeftAdapter>>>()?;
    let bases: Vec<_> = read.iter().map(|adapter| adapter.base.clone()).collect();
    if args.model.is_none() && bases.iter().any(|base| *base != bases[0]) {
        bail!(
            "the adapters name different bases ({bases:?}): give the one that is meant with --model"
        );
    }
    let recorded = bases.into_iter().next().flatten();
    let mut base = None;
    let mut plain = Vec::with_capacity(read.len());
    for mut adapter in read {
        announce(&adapter);
        adapter.notes.clear();
        adapter.warnings.clear();
        if let Some(method) = args.method
            && adapter.config.method.is_anchored()
            && adapter.config.method != Method::from(method)
        {
            bail!(
                "an adapter is in PEFT's own form of `{}` already: convert it to plain first",
                adapter.config.method.name()
            );
        }
        if args.model.is_some() {
            needed(&mut base, args, &adapter)?;
        }
        plain.push(
            if adapter.config.method.is_anchored() && args.form != Form::Native {
                // Its start is made from the base's weights.
                let base = needed(&mut base, args, &adapter)?;
                to_plain(adapter, &base.path, args, kernels)?
            } else {
                adapter
            },
        );
    }
    let mut adapter = as_one(plain, args)?;
    for note in &adapter.notes {
        say_note(note);
    }
    if let Some(rank) = args.rank {
        let (reduced, reduction) = adapter.reduced(rank)?;
        adapter = reduced;
        let (layer, worst) = &reduction.worst;
        say(&format!(
            "rank {rank}: the update is off by {:.2} % of its size, in {layer} by {:.2} %",
            100.0 * reduction.error,
            100.0 * worst
        ));
        emit(&json!({
            "event": "reduced", "rank": rank, "error": reduction.error, "worst_layer": layer,
            "worst_error": worst,
        }));
    }
    if args.form == Form::Native && !adapter.config.method.is_anchored() {
        let method = Method::from(args.method.unwrap_or_default());
        let base = needed(&mut base, args, &adapter)?;
        let llama = loaded(&base.path, &adapter, args, kernels)?;
        adapter = adapter.into_native(&llama, method)?;
    }
    adapter.base = base
        .as_ref()
        .filter(|_| args.model.is_some())
        .map(|base| {
            let path = || base.path.display().to_string();
            base.name.clone().unwrap_or_else(path)
        })
        .or(recorded);
    if to_gguf {
        let base = needed(&mut base, args, &adapter)?;
        write_gguf(&adapter, &base.path, output)?;
    } else {
        write_directory(&adapter, args)?;
    }
    say(&format!(
        "wrote {} ({} layers, rank {})",
        output.display(),
        adapter.shapes().len(),
        adapter.config.rank
    ));
    emit(&json!({
        "event": "written", "path": output.display().to_string(), "format": if to_gguf { "GGUF adapter" } else { "adapter" },
        "layers": adapter.shapes().len(), "rank": adapter.config.rank,
    }));
    Ok(ExitCode::SUCCESS)
}

/// As PEFT or mlx-lm reads it: all of its files or none, since a kill or a full
/// disk is to leave nothing that looks like an adapter.
fn write_directory(adapter: &PeftAdapter, args: &ConvertArgs) -> Result<()> {
    // mlx-lm says what an adapter is in its own words.
    let card = (args.form != Form::Mlx).then(|| card(adapter, args));
    let options = WriteOptions {
        dtype: args
            .dtype
            .and_then(MergedFormat::weights)
            .unwrap_or_default(),
        card,
    };
    let failed = || format!("writing {}", args.output.display());
    let staged = StagedDirectory::new(&args.output).with_context(failed)?;
    if args.form == Form::Mlx {
        adapter.write_mlx(staged.path(), &options)?;
    } else {
        adapter.write(staged.path(), &options)?;
    }
    staged.commit().with_context(failed)
}

/// Several adapters as one, or the only one, with its weight if it has one.
fn as_one(mut plain: Vec<PeftAdapter>, args: &ConvertArgs) -> Result<PeftAdapter> {
    Ok(match (plain.pop(), plain.is_empty()) {
        (Some(only), true) if args.weights.is_empty() => only,
        (last, _) => {
            plain.extend(last);
            let weights = args.weights.iter().copied().chain(std::iter::repeat(1.0));
            let combination = match args.combine.unwrap_or_default() {
                Combine::Cat => Combination::Cat,
                Combine::Linear => Combination::Linear,
            };
            PeftAdapter::combined(plain.into_iter().zip(weights).collect(), combination)?
        }
    })
}

/// What was asked for and does not go together.
fn refuse_contradictions(args: &ConvertArgs, to_gguf: bool) -> Result<()> {
    let of_models = [
        (args.shard_size.is_some(), "--shard-size"),
        (args.modelfile, "--modelfile"),
    ];
    let format = match args.dtype {
        Some(MergedFormat::Gguf(format)) => Some(format!("--dtype {}", format.name())),
        _ => None,
    };
    let named = of_models
        .iter()
        .find_map(|(given, name)| given.then(|| (*name).to_owned()))
        .or(format);
    if let Some(name) = named {
        let adapter = args.paths[0].display();
        return Err(Usage::new(&format!(
            "{name} is for models, and {adapter} is an adapter: leave it out, or make one model of the \
             adapter and its base with `olora merge --adapter {adapter} --output {}`",
            args.output.display()
        )));
    }
    if to_gguf && (args.form != Form::Plain || args.dtype.is_some()) {
        return Err(Usage::new(
            "a GGUF adapter is plain LoRA in float32: leave out --form and --dtype",
        ));
    }
    if args.method.is_some() && args.form != Form::Native {
        return Err(Usage::new("--method is for `--form native`"));
    }
    if args.rank.is_some() && args.form == Form::Native {
        return Err(Usage::new(
            "a smaller rank is plain LoRA: leave out `--form native`",
        ));
    }
    let n_weights = args.weights.len();
    if n_weights > 0 && n_weights != args.paths.len() {
        return Err(Usage::new(&format!(
            "--weights has {n_weights} numbers for {} adapters",
            args.paths.len()
        )));
    }
    Ok(())
}

/// What a converted adapter is, for people and for the hub.
fn card(adapter: &PeftAdapter, args: &ConvertArgs) -> String {
    let base = adapter.base.as_deref().unwrap_or("unknown");
    let name = |path: &Path| {
        let name = path.file_name().unwrap_or(path.as_os_str());
        format!("`{}`", name.to_string_lossy())
    };
    let sources: Vec<String> = args.paths.iter().map(|path| name(path)).collect();
    let weighted = match args.weights.as_slice() {
        [] => String::new(),
        weights => format!(", weighted {weights:?}"),
    };
    let cut = args.rank.map_or_else(String::new, |rank| {
        format!(", each layer cut to rank {rank} at most")
    });
    let how = format!(
        "Converted by olora from {}{weighted}{cut}",
        sources.join(" and ")
    );
    format!(
        "---\nbase_model: {}\nlibrary_name: peft\ntags: [\"lora\", \"olora\"]\n---\n\n\
         An adapter for `{base}`. {how}.\n\n\
         | | |\n|---|---|\n| method | {}, {} |\n| rank, alpha | {}, {} |\n| adapted layers | {} |\n",
        serde_json::Value::from(base),
        adapter.config.method.name(),
        if args.form == Form::Native {
            "PEFT's own form"
        } else {
            "plain"
        },
        adapter.config.rank,
        adapter.config.alpha,
        adapter.shapes().len()
    )
}

/// The base, found once.
fn needed<'a>(
    base: &'a mut Option<Base>,
    args: &ConvertArgs,
    adapter: &PeftAdapter,
) -> Result<&'a Base> {
    if base.is_none() {
        *base = Some(base_of(args.model.as_deref(), Some(adapter))?);
    }
    match base {
        Some(base) => Ok(base),
        None => bail!("the base was not found"),
    }
}

/// The base as the adapter was trained on it.
fn loaded(
    base: &Path,
    adapter: &PeftAdapter,
    args: &ConvertArgs,
    kernels: KernelOptions,
) -> Result<Llama> {
    let device = devices::open(&args.device, kernels)?.device;
    let packing = packing_of(args.quantize, Some(adapter))?;
    let (llama, _) = load_base(base, Dtype::F32, packing, &device, Purpose::Write)?;
    Ok(llama)
}

/// Exactly the same update, measured from the base itself.
fn to_plain(
    adapter: PeftAdapter,
    base: &Path,
    args: &ConvertArgs,
    kernels: KernelOptions,
) -> Result<PeftAdapter> {
    let llama = loaded(base, &adapter, args, kernels)?;
    let config = adapter.config.clone();
    let (task, fingerprint) = (adapter.task.clone(), adapter.base_fingerprint.clone());
    let packed = adapter.base_packing.clone();
    let mut plain = PeftAdapter::of(&attached(adapter, llama)?, &config, PeftForm::Plain)?;
    (plain.task, plain.base_fingerprint) = (task, fingerprint);
    plain.base_packing = packed;
    Ok(plain)
}

fn write_gguf(adapter: &PeftAdapter, base: &Path, output: &Path) -> Result<()> {
    let config = ModelConfig::from_path(base)?;
    let layers = adapter.plain_layers("a GGUF adapter")?;
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| LoraLayer {
            module: layer.path,
            a: layer.a,
            b: layer.b,
            rank: layer.dims[0],
            scale: layer.scale,
        })
        .collect();
    olora_gguf::write_adapter(output, config.json(), adapter.config.alpha, &layers)?;
    Ok(())
}
