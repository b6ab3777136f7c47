//! `olora convert`: adapters into other forms, fewer ranks, or one of several.

use std::{path::Path, process::ExitCode};

use anyhow::{Result, bail};
use olora_adapter::{Combination, FactorType, Method, PeftAdapter, PeftForm, WriteOptions};
use olora_devices::KernelOptions;
use olora_gguf::LoraLayer;
use olora_model::{ModelConfig, WeightType};

use crate::{
    Usage,
    args::{Combine, ConvertArgs, Dtype, Form},
    commands::read_adapter,
    devices,
    models::{Base, base_of},
    progress::say,
};

pub(crate) fn convert(args: &ConvertArgs, kernels: KernelOptions) -> Result<ExitCode> {
    let output = &args.output;
    if output.is_file()
        || output
            .read_dir()
            .is_ok_and(|mut entries| entries.next().is_some())
    {
        bail!(
            "{} exists already: give another name, or remove it first",
            output.display()
        );
    }
    let to_gguf = output
        .extension()
        .is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
    refuse_contradictions(args, to_gguf)?;
    let read = args.adapters.iter().map(|path| read_adapter(path));
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
    for adapter in read {
        for note in &adapter.notes {
            say(&format!("note: {note}"));
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
    let mut adapter = match (plain.pop(), plain.is_empty()) {
        (Some(only), true) if args.weights.is_empty() => only,
        (last, _) => {
            plain.extend(last);
            let weights = args.weights.iter().copied().chain(std::iter::repeat(1.0));
            let combination = match args.combine {
                Combine::Cat => Combination::Cat,
                Combine::Linear => Combination::Linear,
            };
            PeftAdapter::combined(plain.into_iter().zip(weights).collect(), combination)?
        }
    };
    if let Some(rank) = args.rank {
        let (reduced, reduction) = adapter.reduced(rank)?;
        adapter = reduced;
        let (layer, worst) = &reduction.worst;
        say(&format!(
            "rank {rank}: the update is off by {:.2} % of its size, in {layer} by {:.2} %",
            100.0 * reduction.error,
            100.0 * worst
        ));
    }
    if args.form == Form::Native && !adapter.config.method.is_anchored() {
        let method = match args.method.unwrap_or_default() {
            crate::args::NativeMethod::Olora => Method::Olora,
            crate::args::NativeMethod::Pissa => Method::Pissa,
        };
        let base = needed(&mut base, args, &adapter)?;
        let device = devices::open(&args.device, kernels)?.device;
        let (llama, _) = olora_model::load(&base.path, WeightType::F32, &device)?;
        adapter = adapter.into_native(&llama, method)?;
    }
    adapter.base = base
        .as_ref()
        .and_then(|base| base.name.clone())
        .or(recorded);
    if to_gguf {
        let base = needed(&mut base, args, &adapter)?;
        write_gguf(&adapter, &base.path, output)?;
    } else {
        let dtype = match args.dtype {
            None | Some(Dtype::Float32) => FactorType::F32,
            Some(Dtype::Float16) => FactorType::F16,
            Some(Dtype::Bfloat16) => FactorType::Bf16,
        };
        let options = WriteOptions { dtype, card: None };
        adapter.write(output, &options)?;
    }
    say(&format!(
        "wrote {} ({} layers, rank {})",
        output.display(),
        adapter.shapes().len(),
        adapter.config.rank
    ));
    Ok(ExitCode::SUCCESS)
}

/// What was asked for and does not go together.
fn refuse_contradictions(args: &ConvertArgs, to_gguf: bool) -> Result<()> {
    if to_gguf && (args.form == Form::Native || args.dtype.is_some()) {
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
    if n_weights > 0 && n_weights != args.adapters.len() {
        return Err(Usage::new(&format!(
            "--weights has {n_weights} numbers for {} adapters",
            args.adapters.len()
        )));
    }
    Ok(())
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

/// Exactly the same update, measured from the base itself.
fn to_plain(
    adapter: PeftAdapter,
    base: &Path,
    args: &ConvertArgs,
    kernels: KernelOptions,
) -> Result<PeftAdapter> {
    let device = devices::open(&args.device, kernels)?.device;
    let (llama, _) = olora_model::load(base, WeightType::F32, &device)?;
    let config = adapter.config.clone();
    let fingerprint = adapter.base_fingerprint.clone();
    let mut plain = PeftAdapter::of(&adapter.attach(llama)?, &config, PeftForm::Plain)?;
    plain.base_fingerprint = fingerprint;
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
