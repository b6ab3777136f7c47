//! `olora inspect`: what a model, an adapter or a data file holds.

use std::{collections::BTreeMap, io::Write, process::ExitCode};

use anyhow::Result;
use burn::{module::Module, tensor::Device};
use olora_adapter::PeftAdapter;
use olora_gguf::{GgufFile, is_gguf};
use olora_model::{ModelConfig, Packing, packed_matrices, weight_files};
use olora_runs::{TrainedRun, recipe::AdapterSection};
use serde_json::{Value, json};

use crate::{
    Usage,
    args::{InspectArgs, What},
    commands::read_adapter,
    inspect_data,
    models::{announce, locate},
    progress::parameters,
    terminal::{out, say},
};

pub(crate) fn inspect(args: &InspectArgs) -> Result<ExitCode> {
    let for_data = args.model.is_some()
        || args.sample.is_some()
        || args.samples.is_some()
        || args.max_length.is_some()
        || !args.set.is_empty();
    if for_data && !matches!(args.what, What::Data) {
        return Err(Usage::new(
            "--model, --sample, --samples, --max-length and --set are for `inspect data`",
        ));
    }
    match args.what {
        What::Model => model(args),
        What::Adapter => adapter(args),
        What::Data => inspect_data::data(args),
    }
}

fn model(args: &InspectArgs) -> Result<ExitCode> {
    let path = locate(&args.path.to_string_lossy())?.path;
    let config = ModelConfig::from_path(&path)?;
    // Nothing is allocated: only the shapes are asked for.
    let llama = config.init(&Device::default());
    let n_params = llama.num_params();
    let windows: Vec<_> = config.sliding_windows.iter().flatten().collect();
    let rope = config.ropes.first();
    let mut facts = json!({
        "family": config.family.model_type(),
        "parameters": n_params,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "rope_theta": rope.map(|rope| rope.theta),
        "rope_scaling": rope.map(|rope| format!("{:?}", rope.scaling)),
        "sliding_window": windows.first(),
        "tied_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": config.max_position_embeddings,
        "eos_token_ids": config.eos_token_ids,
        "dtype": config.stored_dtype().map(olora_model::Dtype::name),
    });
    if is_gguf(&path) {
        facts["tensor_types"] = json!(tensor_types(&GgufFile::open(&path)?));
    }
    // A directory with a configuration alone is shown too.
    let packed = if weight_files(&path).is_ok() {
        packed_matrices(&path, &config, Packing::Stored)?
    } else {
        BTreeMap::new()
    };
    if !packed.is_empty() {
        let mut formats = BTreeMap::<String, usize>::new();
        for matrix in packed.values() {
            *formats.entry(matrix.format.to_string()).or_default() += 1;
        }
        facts["packed"] = json!(formats);
        facts["packed_bytes"] = json!(packed.values().map(|matrix| matrix.bytes).sum::<u64>());
    }
    print_facts(&facts, args.json)?;
    if !args.json {
        let layers = olora_adapter::linear_paths(&llama);
        let mut names: Vec<&str> = layers
            .iter()
            .filter_map(|(path, _)| path.rsplit('.').next())
            .collect();
        names.sort_unstable();
        names.dedup();
        say(&format!(
            "{}; linear layers: {} ({})",
            parameters(n_params),
            layers.len(),
            names.join(", ")
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// In how many tensors each format is used.
pub(crate) fn tensor_types(file: &GgufFile) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for kind in file.names().filter_map(|name| file.stored_type(name)) {
        *counts.entry(kind).or_default() += 1;
    }
    counts
}

fn adapter(args: &InspectArgs) -> Result<ExitCode> {
    let adapter = read_adapter(&args.path)?;
    announce(&adapter);
    let shapes = adapter.shapes();
    let mut facts = json!({
        "method": adapter.config.method,
        "rank": adapter.config.rank,
        "alpha": adapter.config.alpha,
        "scale": adapter.config.scale(),
        "dropout": adapter.config.dropout,
        "base": adapter.base,
        "base_packing": adapter.base_packing,
        "target_modules": adapter.config.targets,
        "adapted_layers": shapes.len(),
        "parameters": adapter.num_params(),
    });
    // What trained has another rank than its file where an anchor became further ranks.
    if let Some(run) = TrainedRun::at(&args.path)? {
        as_trained(&mut facts, &run.section()?, &adapter);
    }
    print_facts(&facts, args.json)?;
    if !args.json {
        let mut out = out();
        for (path, a, b) in shapes {
            writeln!(out, "  {path}  lora_A {a:?}  lora_B {b:?}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Says of a run's adapter what was trained, and what it is saved as where that
/// differs.
fn as_trained(facts: &mut Value, section: &AdapterSection, adapter: &PeftAdapter) {
    let (trained, saved) = (&section.config, &adapter.config);
    facts["method"] = json!(section.method_name());
    facts["rank"] = json!(trained.rank);
    facts["alpha"] = json!(trained.alpha);
    facts["scale"] = json!(trained.scale());
    facts["rslora"] = json!(trained.rslora);
    facts["dora"] = json!(trained.dora);
    let differs = trained.method != saved.method || trained.rank != saved.rank;
    if differs {
        facts["saved_method"] = json!(saved.method);
        facts["saved_rank"] = json!(saved.rank);
        facts["saved_alpha"] = json!(saved.alpha);
        facts["saved_scale"] = json!(saved.scale());
    }
}

fn print_facts(facts: &Value, json: bool) -> Result<()> {
    let mut out = out();
    if json {
        writeln!(out, "{facts}")?;
        return Ok(());
    }
    for (key, value) in facts.as_object().into_iter().flatten() {
        if !value.is_null() {
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            writeln!(out, "{key:24} {text}")?;
        }
    }
    Ok(())
}
