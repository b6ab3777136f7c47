//! Adapters exchanged with PEFT, on a whole model.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use burn::{module::Module, tensor::Device};
use common::{Moved, fixture, floats, host, ids, max_diff};
use olora_adapter::{
    AdapterConfig, AdapterError, Method, PeftAdapter, PeftForm, TaskType, attach, factors, merge,
    save_peft, without_adapter,
};
use olora_model::{Dtype, Llama, load};
use safetensors::SafeTensors;
use serde_json::{Value, json};

fn model(name: &str) -> Llama {
    load(&fixture(name), Dtype::F32, &Device::flex()).unwrap().0
}

fn base() -> Llama {
    model("llama")
}

fn adapted(directory: &Path) -> Llama {
    PeftAdapter::read(directory)
        .unwrap()
        .attach(base())
        .unwrap()
}

fn logits(llama: &Llama) -> Vec<f32> {
    let golden = fixture("llama").join("golden.safetensors");
    host(llama.forward(ids(&golden, "input_ids", &Device::flex())))
}

fn config(method: Method) -> AdapterConfig {
    AdapterConfig {
        method,
        rank: 4,
        alpha: 6.0,
        exclude: vec!["lm_head".to_owned()],
        ..AdapterConfig::default()
    }
}

/// The CPU backend has one random generator per process.
static GENERATOR: Mutex<()> = Mutex::new(());

/// An adapter moved away from its start, as training would.
fn trained(method: Method) -> Llama {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    Device::flex().seed(3);
    attach(base(), &config(method), 1, &mut |_, _| {})
        .unwrap()
        .map(&mut Moved::new(&[]))
}

#[test]
fn what_peft_wrote_gives_pefts_logits() {
    let without = logits(&base());
    for name in [
        "llama-lora",
        "llama-rslora",
        "llama-olora",
        "llama-olora-converted",
    ] {
        let directory = fixture("peft").join(name);
        let golden = floats(&directory.join("logits.safetensors"), "logits").1;
        let model = adapted(&directory);
        let diff = max_diff(&logits(&model), &golden);
        assert!(diff < 1e-4, "{name}: logits differ by {diff}");
        assert!(
            max_diff(&without, &golden) > 0.1,
            "{name}: this adapter changes nothing"
        );
        let merged = merge(model).unwrap();
        assert!(max_diff(&logits(&merged), &golden) < 1e-4, "{name}, merged");
    }
}

#[test]
fn what_peft_wrote_for_other_families_gives_pefts_logits() {
    for family in ["gemma", "opt"] {
        let without = logits(&model(family));
        let directory = fixture("peft").join(format!("{family}-lora"));
        let golden = floats(&directory.join("logits.safetensors"), "logits").1;
        let adapted = PeftAdapter::read(&directory)
            .unwrap()
            .attach(model(family))
            .unwrap();
        let diff = max_diff(&logits(&adapted), &golden);
        assert!(diff < 1e-4, "{family}: logits differ by {diff}");
        assert!(max_diff(&without, &golden) > 0.1, "{family}");
        let merged = merge(adapted).unwrap();
        let diff = max_diff(&logits(&merged), &golden);
        assert!(diff < 1e-4, "{family}, merged: logits differ by {diff}");
    }
}

/// Every linear layer is found under its name in the file, and nothing changes
/// before the first step.
#[test]
fn adapters_on_all_layers_of_other_families_start_as_the_base() {
    let names = [
        (
            "gemma",
            "model.layers.1.mlp.up_proj",
            vec![
                "down_proj",
                "gate_proj",
                "k_proj",
                "o_proj",
                "q_proj",
                "up_proj",
                "v_proj",
            ],
        ),
        (
            "opt",
            "model.decoder.layers.1.fc1",
            vec!["fc1", "fc2", "k_proj", "out_proj", "q_proj", "v_proj"],
        ),
    ];
    for (family, path, expected) in names {
        for method in [Method::Lora, Method::Olora] {
            let config = AdapterConfig {
                exclude: Vec::new(),
                ..config(method)
            };
            let before = model(family);
            let after = attach(model(family), &config, 1, &mut |_, _| {}).unwrap();
            assert_eq!(logits(&after), logits(&before), "{family}, {method:?}");

            let paths: Vec<String> = factors(&after).into_iter().map(|f| f.path).collect();
            assert!(paths.iter().any(|found| found == path), "{paths:?}");
            let last = |path: &String| path.rsplit('.').next().unwrap().to_owned();
            let found: BTreeSet<String> = paths.iter().map(last).collect();
            assert!(found.iter().eq(&expected), "{found:?}");
        }
    }
}

#[test]
fn what_we_write_for_opt_has_pefts_names() {
    let read = |file: &Path| -> BTreeSet<String> {
        let bytes = fs::read(file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        tensors.names().into_iter().map(str::to_owned).collect()
    };
    let directory = fixture("peft").join("opt-lora");
    let adapted = PeftAdapter::read(&directory)
        .unwrap()
        .attach(model("opt"))
        .unwrap();
    let out = tempfile::tempdir().unwrap();
    let config = config(Method::Lora);
    save_peft(
        &adapted,
        &config,
        PeftForm::Plain,
        Some(TaskType::CausalLm),
        "fixtures/opt",
        out.path(),
    )
    .unwrap();
    let file = "adapter_model.safetensors";
    assert_eq!(read(&out.path().join(file)), read(&directory.join(file)));
}

#[test]
fn what_we_write_has_pefts_names_and_shapes_and_reads_back_equal() {
    let golden = fs::read(fixture("peft").join("llama-lora/names.json")).unwrap();
    let golden: BTreeMap<String, Vec<usize>> = serde_json::from_slice(&golden).unwrap();
    for (method, form, rank) in [
        (Method::Lora, PeftForm::Plain, 4),
        (Method::Olora, PeftForm::Plain, 8),
        (Method::Olora, PeftForm::Native, 4),
    ] {
        let model = trained(method);
        let out = tempfile::tempdir().unwrap();
        save_peft(
            &model,
            &config(method),
            form,
            Some(TaskType::CausalLm),
            "fixtures/llama",
            out.path(),
        )
        .unwrap();
        let bytes = fs::read(out.path().join("adapter_model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let written: BTreeMap<String, Vec<usize>> = tensors
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, view.shape().to_vec()))
            .collect();
        let expected: BTreeMap<String, Vec<usize>> = golden
            .iter()
            .map(|(name, shape)| {
                (
                    name.clone(),
                    shape
                        .iter()
                        .map(|&n| if n == 4 { rank } else { n })
                        .collect(),
                )
            })
            .collect();
        assert_eq!(written, expected);
        let diff = max_diff(&logits(&adapted(out.path())), &logits(&model));
        assert!(diff < 2e-5, "{method:?} as {form:?}: {diff}");
    }
}

/// `fixtures/check_peft.py` has loaded these files with the real PEFT and
/// recorded its logits: what we write today must still be what it read.
#[test]
fn peft_has_read_what_we_write() {
    for (name, method, form) in [
        ("lora", Method::Lora, PeftForm::Plain),
        ("olora-plain", Method::Olora, PeftForm::Plain),
        ("olora-raw", Method::Olora, PeftForm::Native),
    ] {
        let recorded = fixture("exports").join(name);
        let golden = floats(&recorded.join("logits.safetensors"), "logits").1;
        assert!(
            max_diff(&logits(&adapted(&recorded.join("adapter"))), &golden) < 1e-4,
            "{name}"
        );

        // What PEFT has read, loaded and written again, is the same file.
        let out = tempfile::tempdir().unwrap();
        let (config, form) = saved_as(method, form);
        let model = adapted(&recorded.join("adapter"));
        save_peft(
            &model,
            &config,
            form,
            Some(TaskType::CausalLm),
            "fixtures/llama",
            out.path(),
        )
        .unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let read = |directory: PathBuf| fs::read(directory.join(file)).unwrap();
            let same = read(recorded.join("adapter")) == read(out.path().to_owned());
            assert!(same, "{name}: {file} is no longer what PEFT has read");
        }
    }
    let record = fs::read(fixture("exports").join("check.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    let runs = record["results"].as_array().unwrap();
    let mut exported = 0;
    for entry in fs::read_dir(fixture("exports")).unwrap() {
        let recorded = entry.unwrap().path();
        if recorded.is_dir() {
            let golden = floats(&recorded.join("logits.safetensors"), "logits").1;
            let diff = max_diff(&logits(&adapted(&recorded.join("adapter"))), &golden);
            assert!(diff < 1e-4, "{}: {diff}", recorded.display());
            exported += 1;
        }
    }
    assert_eq!(runs.len(), exported);
    assert!(exported > 20, "{exported}");
    for run in runs {
        assert!(
            run["max_abs_diff_adapter"].as_f64().unwrap() < 1e-4,
            "{run}"
        );
        assert!(run["max_abs_diff_base"].as_f64().unwrap() > 0.1, "{run}");
    }
}

/// The configuration under which a loaded export is written as it was: an
/// OLoRA adapter in plain form is LoRA of twice the rank by then.
fn saved_as(method: Method, form: PeftForm) -> (AdapterConfig, PeftForm) {
    if method == Method::Olora && form == PeftForm::Plain {
        let config = AdapterConfig {
            rank: 8,
            alpha: 12.0,
            ..config(Method::Lora)
        };
        return (config, PeftForm::Plain);
    }
    (config(method), form)
}

#[test]
fn layers_are_listed_without_touching_a_weight() {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    let config = olora_model::ModelConfig::from_dir(&fixture("llama")).unwrap();
    let llama = config.init(&Device::flex());
    assert_eq!(olora_adapter::linear_paths(&llama).len(), 15);
    assert!(
        !llama.model.layers[0].mlp.linear_layers()[1]
            .weight
            .is_initialized()
    );
    assert_eq!(olora_adapter::linear_layers(&llama).len(), 15);
    assert!(
        llama.model.layers[0].mlp.linear_layers()[1]
            .weight
            .is_initialized()
    );
}

#[test]
fn an_anchored_start_keeps_the_logits_bit_for_bit_in_f32_and_bf16() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let (llama, _) = load(&fixture("llama-sharded-bf16"), dtype, &Device::flex()).unwrap();
        let before = logits(&llama);
        let model = attach(llama, &config(Method::Olora), 1, &mut |_, _| {}).unwrap();
        assert_eq!(logits(&model), before, "{dtype:?}");
    }
    let model = trained(Method::Olora);
    assert!(max_diff(&logits(&model), &logits(&base())) > 0.1);
    assert_eq!(logits(&without_adapter(model).unwrap()), logits(&base()));
}

#[test]
fn exactly_the_targeted_layers_train_and_the_base_is_untouched() {
    let model = attach(base(), &config(Method::Olora), 1, &mut |_, _| {}).unwrap();
    // Two layers of: q, o 32·4 + 4·32; k, v 32·4 + 4·16; gate, up 32·4 + 4·48; down 48·4 + 4·32.
    let expected = 2 * (2 * 256 + 2 * 192 + 2 * 320 + 320);
    let counted: usize = factors(&model)
        .iter()
        .map(|f| f.a.shape().num_elements() + f.b.shape().num_elements())
        .sum();
    assert_eq!((factors(&model).len(), counted), (14, expected));
    for (ours, base) in olora_adapter::linear_layers(&model)
        .iter()
        .zip(olora_adapter::linear_layers(&base()))
    {
        assert_eq!(ours.path, base.path);
        assert_eq!(host(ours.weight()), host(base.weight()), "{}", ours.path);
    }
}

/// Copies an adapter and changes one key of its configuration.
fn with_key(key: &str, value: Value) -> AdapterError {
    let copied = tempfile::tempdir().unwrap();
    let from = fixture("peft").join("llama-lora");
    fs::copy(
        from.join("adapter_model.safetensors"),
        copied.path().join("adapter_model.safetensors"),
    )
    .unwrap();
    let mut config: Value =
        serde_json::from_slice(&fs::read(from.join("adapter_config.json")).unwrap()).unwrap();
    config[key] = value;
    fs::write(
        copied.path().join("adapter_config.json"),
        config.to_string(),
    )
    .unwrap();
    match PeftAdapter::read(copied.path()) {
        Err(error) => error,
        Ok(adapter) => adapter.attach(base()).map(|_| ()).unwrap_err(),
    }
}

#[test]
fn what_we_do_not_compute_is_refused_by_key() {
    let cases = [
        ("init_lora_weights", json!("corda")),
        ("init_lora_weights", json!("pissa_niter_few")),
        ("lora_bias", json!(true)),
        ("bias", json!("all")),
        ("rank_pattern", json!({"q_proj": "two"})),
        ("rank_pattern", json!({"q_proj(": 2})),
        ("layers_to_transform", json!("one")),
        ("target_modules", json!(7)),
        ("peft_type", json!("LOHA")),
        ("fan_in_fan_out", json!(true)),
        ("r", json!(0)),
        ("lora_alpha", json!("many")),
    ];
    for (key, value) in cases {
        let message = with_key(key, value).to_string();
        assert!(
            message.contains(key) && message.contains("adapter_config.json"),
            "{key}: {message}"
        );
    }
}

#[test]
fn a_configuration_that_the_tensors_do_not_follow_is_refused_by_name() {
    let magnitude = "layers.1.mlp.up_proj.lora_magnitude_vector";
    let cases = [
        ("use_dora", json!(true), magnitude, 14),
        ("modules_to_save", json!(["norm"]), "model.norm.weight", 1),
        ("rank_pattern", json!({"q_proj": 2}), "but rank 2", 4),
        ("exclude_modules", json!(["k_proj"]), "does not name", 2),
        (
            "target_modules",
            json!(["q_proj", "lm_head"]),
            "lm_head.lora_A",
            13,
        ),
    ];
    for (key, value, expected, n) in cases {
        let AdapterError::Mismatch { problems, .. } = with_key(key, value) else {
            panic!("{key}")
        };
        assert_eq!(problems.len(), n, "{key}: {problems:#?}");
        assert!(
            problems.iter().any(|problem| problem.contains(expected)),
            "{key}: {problems:#?}"
        );
    }
}

#[test]
fn every_tensor_that_does_not_fit_is_listed() {
    // A rank that the tensors do not have: all 28 are misshapen.
    let AdapterError::Mismatch { problems, .. } = with_key("r", json!(5)) else {
        panic!()
    };
    assert_eq!(problems.len(), 28);
    assert!(
        problems[0].contains("is [4, 48], but rank 5") || problems[0].contains("but rank 5"),
        "{}",
        problems[0]
    );

    let copied = tempfile::tempdir().unwrap();
    let from = fixture("peft").join("llama-lora");
    fs::copy(
        from.join("adapter_config.json"),
        copied.path().join("adapter_config.json"),
    )
    .unwrap();
    let bytes = fs::read(from.join("adapter_model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let dropped = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight";
    let renamed = tensors
        .tensors()
        .into_iter()
        .filter(|(name, _)| name != dropped)
        .map(|(name, view)| {
            (
                name.replace("layers.1.self_attn.q_proj", "layers.9.self_attn.q_proj")
                    .replace(
                        "layers.1.mlp.gate_proj.lora_A.weight",
                        "layers.1.mlp.gate_proj.magnitude",
                    ),
                view,
            )
        });
    fs::write(
        copied.path().join("adapter_model.safetensors"),
        safetensors::serialize(renamed, None).unwrap(),
    )
    .unwrap();
    let error = PeftAdapter::read(copied.path())
        .unwrap()
        .attach(base())
        .map(|_| ())
        .unwrap_err();
    let AdapterError::Mismatch { problems, .. } = error else {
        panic!("{error}")
    };
    let all = problems.join("\n");
    for expected in [
        "missing: `base_model.model.model.layers.0.mlp.up_proj.lora_B.weight`",
        "missing: `base_model.model.model.layers.1.mlp.gate_proj.lora_A.weight`",
        "unused: the model has no linear layer `model.layers.9.self_attn.q_proj`",
        "magnitude",
    ] {
        assert!(all.contains(expected), "{expected} is not in {all}");
    }
}

#[test]
fn an_adapter_file_cut_short_is_refused_by_name() {
    let copied = tempfile::tempdir().unwrap();
    let from = fixture("peft").join("llama-lora");
    fs::copy(
        from.join("adapter_config.json"),
        copied.path().join("adapter_config.json"),
    )
    .unwrap();
    let bytes = fs::read(from.join("adapter_model.safetensors")).unwrap();
    fs::write(
        copied.path().join("adapter_model.safetensors"),
        &bytes[..bytes.len() - 8],
    )
    .unwrap();
    let message = PeftAdapter::read(copied.path()).unwrap_err().to_string();
    assert!(message.contains("adapter_model.safetensors"), "{message}");
}
