//! `olora convert MODEL`: a model in another form, one tensor at a time.

use std::{path::Path, process::ExitCode};

use anyhow::Result;
use olora_devices::KernelOptions;
use olora_gguf::GgufType;
use olora_model::{Companions, Layout, StoredModel};

use crate::{
    Usage,
    args::{ConvertArgs, Form},
    models::locate,
    terminal::say_note,
    written::Written,
};

pub(crate) fn convert_model(
    path: &Path,
    args: &ConvertArgs,
    kernels: KernelOptions,
) -> Result<ExitCode> {
    refuse_options_of_adapters(path, args, kernels)?;
    let written = Written::new(&args.output, args.dtype, args.shard_size, args.modelfile)?;
    if written.to_file && args.form == Form::Mlx {
        return Err(Usage::new(
            "MLX's form is a directory, and --output is to be a GGUF file: give the name of a directory, or \
             leave out --form",
        ));
    }
    let base = locate(&path.to_string_lossy())?.path;
    let model = StoredModel::open(&base)?;
    let format = if written.to_file {
        let format = written.gguf_type(model.config());
        say_what_is_unpacked(&model, Some(format), format.name());
        model.save_gguf(format, &base, written.output)?;
        format.name()
    } else {
        let mut options = written.options(model.config());
        if args.form == Form::Mlx {
            options.layout = Layout::Mlx;
        }
        say_what_is_unpacked(&model, None, options.dtype.name());
        let companions = Companions::read(&base)?;
        model.save(options, Some(&companions), written.output)?;
        options.dtype.name()
    };
    written.finish(format)?;
    Ok(ExitCode::SUCCESS)
}

/// Says which matrices lose the form that they are packed in.
fn say_what_is_unpacked(model: &StoredModel, to: Option<GgufType>, name: &str) {
    for (packed, n) in model.unpacked(to) {
        let matrices = if n == 1 { "matrix" } else { "matrices" };
        let are = if n == 1 { "is" } else { "are" };
        say_note(&match to {
            Some(GgufType::Blocks(_)) => format!(
                "{n} {matrices} in {packed} {are} rounded once more, into {name}: from the weights before \
                 they were packed, the result would be better"
            ),
            _ => format!(
                "{n} {matrices} in {packed} {are} unpacked into {}",
                if to == Some(GgufType::AsPacked) {
                    "the model's number format"
                } else {
                    name
                }
            ),
        });
    }
}

/// What has no meaning for a model, by the first of them that is given.
fn refuse_options_of_adapters(
    path: &Path,
    args: &ConvertArgs,
    kernels: KernelOptions,
) -> Result<()> {
    let given = [
        (args.form == Form::Native, "--form native"),
        (args.method.is_some(), "--method"),
        (args.rank.is_some(), "--rank"),
        (args.combine.is_some(), "--combine"),
        (!args.weights.is_empty(), "--weights"),
        (args.model.is_some(), "--model"),
    ];
    let shown = path.display();
    if let Some((_, name)) = given.iter().find(|(given, _)| *given) {
        let what = if path.exists() {
            format!("{shown} is a model")
        } else {
            format!("{shown} is not on this machine, and so is looked for as a model of the hub")
        };
        return Err(Usage::new(&format!(
            "{name} is for adapters, and {what}: leave {name} out, or give the adapter's directory"
        )));
    }
    if args.quantize.is_some() {
        return Err(Usage::new(&format!(
            "--quantize says what the base of adapters is held in, and {shown} is a model: --dtype says what it \
             is written in, such as q4_k"
        )));
    }
    if args.device != "cpu" || kernels != KernelOptions::default() {
        return Err(Usage::new(
            "a model is converted without a device: leave out --device and the options on kernels",
        ));
    }
    Ok(())
}
