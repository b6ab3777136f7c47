//! Adapters in forms that people have: other files, other names, other sizes.
//! Golden logits are PEFT's and mlx-lm's (`fixtures/make_found.py`,
//! `make_mlx.py`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use common::{fixture, floats, host, ids, max_diff};
use olora_adapter::{AdapterError, MLX_TENSOR_FILE, PeftAdapter, TENSOR_FILE, WriteOptions, merge};
use olora_model::{Dtype, Llama, ModelConfig, load};
use safetensors::{SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

fn model(name: &str) -> Llama {
    load(&fixture(name), Dtype::F32, &Device::flex()).unwrap().0
}

fn logits_of(llama: &Llama, golden: &Path) -> Vec<f32> {
    host(llama.forward(ids(golden, "input_ids", &Device::flex())))
}

fn logits(llama: &Llama) -> Vec<f32> {
    logits_of(llama, &fixture("llama").join("golden.safetensors"))
}

fn read(directory: &Path) -> PeftAdapter {
    PeftAdapter::read(directory).unwrap()
}

fn found(name: &str) -> PathBuf {
    fixture("peft/found").join(name)
}

/// Tensors in f32 by name.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn tensors(file: &Path) -> Tensors {
    let bytes = fs::read(file).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let names = all.names().into_iter();
    names
        .map(|name| (name.to_owned(), floats(file, name)))
        .collect()
}

fn write(file: &Path, tensors: &Tensors) {
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes());
            (name, shape, bytes.collect())
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(safetensors::Dtype::F32, (*shape).clone(), bytes).unwrap();
        (name.as_str(), view)
    });
    fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn configuration(directory: &Path) -> Value {
    let bytes = fs::read(directory.join("adapter_config.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// An adapter with some of its configuration's keys and all of its tensors
/// changed.
fn changed(directory: &Path, keys: &Value, tensors_of: impl Fn(Tensors) -> Tensors) -> TempDir {
    let out = tempfile::tempdir().unwrap();
    let mut config = configuration(directory);
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    let all = tensors_of(tensors(&directory.join(TENSOR_FILE)));
    write(&out.path().join(TENSOR_FILE), &all);
    fs::write(out.path().join("adapter_config.json"), config.to_string()).unwrap();
    out
}

fn renamed(name: impl Fn(&str) -> String) -> TempDir {
    changed(&fixture("peft/llama-lora"), &json!({}), |all| {
        all.into_iter()
            .map(|(key, value)| (name(&key), value))
            .collect()
    })
}

fn golden(directory: &Path) -> Vec<f32> {
    floats(&directory.join("logits.safetensors"), "logits").1
}

#[test]
fn names_of_wrapped_models_are_read_and_said() {
    let plain = logits(
        &read(&fixture("peft/llama-lora"))
            .attach(model("llama"))
            .unwrap(),
    );
    let variants: Vec<(&str, TempDir)> = vec![
        ("torch.compile", renamed(|name| format!("_orig_mod.{name}"))),
        (
            "torch.compile",
            renamed(|name| name.replace(".layers.", "._orig_mod.layers.")),
        ),
        ("DDP", renamed(|name| format!("module.{name}"))),
        (
            "DDP",
            renamed(|name| name.replace("base_model.model.", "base_model.model.module.")),
        ),
        (
            "FSDP",
            renamed(|name| name.replace("layers.", "layers._fsdp_wrapped_module.")),
        ),
        (
            "activation checkpointing",
            renamed(|name| name.replace(".self_attn", "._checkpoint_wrapped_module.self_attn")),
        ),
        (
            "`.default`",
            renamed(|name| name.replace(".weight", ".default.weight")),
        ),
        (
            "with `base_model.model.`",
            renamed(|name| name.replace("base_model.model.", "")),
        ),
        (
            "with `base_model.model.`",
            renamed(|name| name.replace("base_model.model.", "model.")),
        ),
        ("second", renamed(|name| format!("base_model.model.{name}"))),
    ];
    for (said, directory) in variants {
        let adapter = read(directory.path());
        let notes = adapter.notes.join("\n");
        assert!(notes.contains(said), "{said}: {notes}");
        assert_eq!(adapter.notes.len(), 1, "one line: {notes}");
        assert_eq!(
            logits(&adapter.attach(model("llama")).unwrap()),
            plain,
            "{said}"
        );
    }
    assert_eq!(read(&fixture("peft/llama-lora")).notes, [""; 0]);
}

#[test]
fn names_of_a_part_of_the_model_are_read_and_said() {
    let plain = logits(
        &read(&fixture("peft/llama-lora"))
            .attach(model("llama"))
            .unwrap(),
    );
    let inner = renamed(|name| name.replace("base_model.model.model.", "base_model.model."));
    let outer =
        renamed(|name| name.replace("base_model.model.", "base_model.model.language_model."));
    for (directory, said) in [
        (inner, "lack `model.`"),
        (outer, "without `language_model.`"),
    ] {
        let (adapted, notes) = model("llama").adapted(read(directory.path())).unwrap();
        assert!(notes[0].contains(said), "{notes:?}");
        assert_eq!(logits(&adapted), plain);
    }
    // One layer that would not fit is enough to leave all names alone.
    let mixed = renamed(|name| {
        let name = name.replace("base_model.model.model.", "base_model.model.");
        name.replace("layers.1.mlp", "layers.9.mlp")
    });
    let message = model("llama")
        .adapted(read(mixed.path()))
        .unwrap_err()
        .to_string();
    assert!(message.contains("does not fit the model"), "{message}");
}

#[test]
fn one_tensor_under_two_names_is_read_if_the_values_are_equal() {
    let twice = |factor: f32| {
        changed(&fixture("peft/llama-lora"), &json!({}), |mut all| {
            let (name, (shape, values)) = all.iter().next().unwrap();
            let values = values.iter().map(|value| value * factor).collect();
            let (name, other) = (format!("_orig_mod.{name}"), (shape.clone(), values));
            all.insert(name, other);
            all
        })
    };
    read(twice(1.0).path());
    let message = PeftAdapter::read(twice(1.5).path())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("_orig_mod.") && message.contains("values differ"),
        "{message}"
    );
}

#[test]
fn several_adapters_in_one_file_are_refused_by_their_names() {
    let two = renamed(|name| {
        let adapter = if name.contains("lora_A") {
            "first"
        } else {
            "second"
        };
        name.replace(".weight", &format!(".{adapter}.weight"))
    });
    let message = PeftAdapter::read(two.path()).unwrap_err().to_string();
    assert!(message.contains("`first`, `second`"), "{message}");
}

#[test]
fn pytorch_files_of_adapters_give_pefts_logits() {
    let directory = found("bin");
    let adapted = read(&directory).attach(model("llama")).unwrap();
    let golden = golden(&directory);
    assert!(max_diff(&logits(&adapted), &golden) < 1e-4);
    assert!(max_diff(&logits(&model("llama")), &golden) > 0.1);
}

#[test]
fn nothing_in_a_pytorch_file_of_an_adapter_is_run() {
    let out = tempfile::tempdir().unwrap();
    fs::copy(
        found("bin").join("adapter_config.json"),
        out.path().join("adapter_config.json"),
    )
    .unwrap();
    let evil = fixture("pytorch/evil-zip/pytorch_model.bin");
    fs::copy(evil, out.path().join("adapter_model.bin")).unwrap();
    let message = PeftAdapter::read(out.path()).unwrap_err().to_string();
    assert!(message.contains("the Python object"), "{message}");
}

#[test]
fn safetensors_go_before_a_pytorch_file_and_that_is_said() {
    let both = changed(&fixture("peft/llama-lora"), &json!({}), |all| all);
    fs::write(both.path().join("adapter_model.bin"), "damaged").unwrap();
    let notes = read(both.path()).notes;
    assert!(notes[0].contains("both there"), "{notes:?}");
}

#[test]
fn a_directory_without_tensors_and_a_pointer_in_their_place_are_told() {
    let out = tempfile::tempdir().unwrap();
    fs::copy(
        found("bin").join("adapter_config.json"),
        out.path().join("adapter_config.json"),
    )
    .unwrap();
    let message = PeftAdapter::read(out.path()).unwrap_err().to_string();
    assert!(
        message.contains("neither") && message.contains("adapter_model.bin"),
        "{message}"
    );
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123456\n";
    fs::write(out.path().join(TENSOR_FILE), pointer).unwrap();
    let message = PeftAdapter::read(out.path()).unwrap_err().to_string();
    assert!(
        message.contains("git lfs pull") && message.contains("123456"),
        "{message}"
    );
}

#[test]
fn expressions_that_look_ahead_name_pefts_layers() {
    let directory = found("lookahead");
    let adapted = read(&directory).attach(model("llama")).unwrap();
    assert!(max_diff(&logits(&adapted), &golden(&directory)) < 1e-4);
    // A layer that the expression takes in and the file lacks is still missed.
    let wider = json!({"target_modules": r"^(?!.*(?:visual|lm_head)).*(?:q_proj|v_proj)$"});
    let wider = changed(&directory, &wider, |all| all);
    let message = read(wider.path())
        .attach(model("llama"))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("missing: `base_model.model.model.layers.1"),
        "{message}"
    );
}

#[test]
fn keys_that_are_unknown_and_set_are_warned_of_and_others_are_not() {
    let with = |keys: Value| {
        let directory = changed(&fixture("peft/llama-lora"), &keys, |all| all);
        read(directory.path()).warnings
    };
    let nothing = json!({
        "use_future_thing": false, "future": null, "future_map": {}, "future_list": [], "future_text": "",
        // PEFT's own, that say how it was trained.
        "peft_version": "0.30.0@abc", "megatron_core": "megatron.core", "qalora_group_size": 16,
        "loftq_config": {"loftq_bits": 4}, "runtime_config": {"ephemeral_gpu_offload": false},
        "merge_weights": true, "revision": "main",
    });
    assert_eq!(with(nothing), [""; 0]);
    let set = with(json!({"use_future_thing": true, "future_scale": 2.0, "future_map": {"a": 1}}));
    assert_eq!(set.len(), 3);
    for (warning, key) in
        set.iter()
            .zip(["use_future_thing: true", "future_scale: 2.0", "future_map"])
    {
        assert!(
            warning.contains(key) && warning.contains("does not know"),
            "{warning}"
        );
    }
}

#[test]
fn keys_that_change_the_arithmetic_are_refused_by_name() {
    for (key, value) in [
        ("target_parameters", json!(["mlp.experts.gate_up_proj"])),
        ("alora_invocation_tokens", json!([1, 2])),
        ("use_qalora", json!(true)),
        ("kasa_config", json!({"beta": 1.0})),
        ("enable_lora", json!([true, false, true])),
    ] {
        let directory = changed(&fixture("peft/llama-lora"), &json!({key: value}), |all| all);
        let message = PeftAdapter::read(directory.path()).unwrap_err().to_string();
        assert!(message.contains(&format!("`{key}: ")), "{message}");
    }
}

#[test]
fn many_tensors_that_do_not_fit_are_one_line_with_a_count() {
    let deeper = renamed(|name| name.replace("layers.", "layers.7"));
    let error = read(deeper.path()).attach(model("llama")).unwrap_err();
    let AdapterError::Mismatch { problems, .. } = &error else {
        panic!("{error}");
    };
    let message = error.to_string();
    assert!(problems.len() > 6, "{problems:?}");
    let count = format!("{} tensors (", problems.len());
    assert!(
        message.contains(&count) && message.lines().count() == 1,
        "{message}"
    );
    assert!(
        message.contains("missing: `") && message.contains("unused: "),
        "{message}"
    );
}

#[test]
fn a_resized_vocabulary_comes_with_the_adapter() {
    let directory = found("resized");
    let golden_file = directory.join("logits.safetensors");
    let (shape, expected) = floats(&golden_file, "logits");
    assert_eq!(shape[2], 70, "six more than the base has");
    let (adapted, notes) = model("llama").adapted(read(&directory)).unwrap();
    assert!(
        notes[0].contains("70 rows") && notes[0].contains("64"),
        "{notes:?}"
    );
    let diff = max_diff(&logits_of(&adapted, &golden_file), &expected);
    assert!(diff < 1e-4, "logits differ by {diff}");
    let config = ModelConfig::from_path(&fixture("llama")).unwrap();
    let config = config.adapted(&read(&directory)).unwrap();
    assert_eq!(
        (config.vocab_size, &config.json()["vocab_size"]),
        (70, &json!(70))
    );
    let diff = max_diff(
        &logits_of(&merge(adapted).unwrap(), &golden_file),
        &expected,
    );
    assert!(diff < 1e-4, "merged: {diff}");
}

#[test]
fn a_vocabulary_that_is_resized_at_one_end_is_refused_with_both_sizes() {
    let one = changed(
        &found("resized"),
        &json!({"modules_to_save": ["embed_tokens"]}),
        |mut all| {
            all.retain(|name, _| !name.contains("lm_head"));
            all
        },
    );
    let message = model("llama")
        .adapted(read(one.path()))
        .unwrap_err()
        .to_string();
    for part in ["70 rows", "64", "`lm_head`", "save_embedding_layers"] {
        assert!(message.contains(part), "{message}");
    }
}

/// Two tokens more than the base has, of which the rows alone were trained.
#[test]
fn rows_that_were_trained_alone_give_pefts_logits() {
    for (name, base) in [("token-rows", "llama"), ("token-rows-tied", "llama-tied")] {
        let directory = found(name);
        let adapter = read(&directory);
        let notes = adapter.notes.join("; ");
        assert!(
            notes.contains("2 rows of the embedding were trained"),
            "{notes}"
        );
        let (adapted, _) = model(base).adapted(adapter).unwrap();
        let golden_file = directory.join("logits.safetensors");
        let expected = golden(&directory);
        let diff = max_diff(&logits_of(&adapted, &golden_file), &expected);
        assert!(diff < 1e-4, "{name}: logits differ by {diff}");
        // Written again, it is an embedding that is saved whole.
        let out = TempDir::new().unwrap();
        read(&directory)
            .write(out.path(), &WriteOptions::default())
            .unwrap();
        let (again, _) = model(base).adapted(read(out.path())).unwrap();
        let diff = max_diff(&logits_of(&again, &golden_file), &expected);
        assert!(
            diff < 1e-4,
            "{name}, written again: logits differ by {diff}"
        );
    }
}

#[test]
fn rows_that_do_not_fit_their_table_are_refused_by_name() {
    let refused = |keys: &Value, change: &dyn Fn(&mut Tensors)| {
        let directory = changed(&found("token-rows"), keys, |mut all| {
            change(&mut all);
            all
        });
        PeftAdapter::read(directory.path()).unwrap_err().to_string()
    };
    let same = json!({});
    let message = refused(&same, &|all| {
        all.retain(|name, _| !name.contains("base_layer"));
    });
    assert!(
        message.contains("`trainable_token_indices` without the table"),
        "{message}"
    );
    let message = refused(&same, &|all| {
        all.retain(|name, _| !name.contains("token_adapter"));
    });
    assert!(
        message.contains("of which the file has no rows"),
        "{message}"
    );
    for (ids, part) in [
        (json!([64, 66]), "the token 66, and the table"),
        (json!([64]), "names 1 tokens"),
        (json!("all"), "must be a list of tokens"),
        (json!([-1]), "must be a list of tokens"),
    ] {
        let message = refused(&json!({"trainable_token_indices": ids}), &|_| {});
        assert!(message.contains(part), "{message}");
    }
}

const EMBEDDING: &str = "base_model.model.model.embed_tokens.weight";
const HEAD: &str = "base_model.model.lm_head.weight";

/// The base's own table, as `llama-tied` has it.
fn table() -> (Vec<usize>, Vec<f32>) {
    floats(
        &fixture("llama-tied").join("model.safetensors"),
        "model.embed_tokens.weight",
    )
}

/// The adapter of `ties` with other tensors at the ends of the embedding.
fn ends(keys: &Value, embedding: Option<f32>, head: Option<f32>) -> TempDir {
    changed(&found("ties"), keys, |mut all| {
        all.retain(|name, _| name.contains("lora"));
        for (name, factor) in [(EMBEDDING, embedding), (HEAD, head)] {
            if let Some(factor) = factor {
                let (shape, values) = table();
                let values = values.iter().map(|value| value * factor).collect();
                all.insert(name.to_owned(), (shape, values));
            }
        }
        all
    })
}

#[test]
fn an_embedding_that_was_tied_in_training_gives_pefts_logits() {
    let directory = found("ties");
    let (adapted, _) = model("llama-tied").adapted(read(&directory)).unwrap();
    let golden_file = directory.join("logits.safetensors");
    let expected = golden(&directory);
    let diff = max_diff(&logits_of(&adapted, &golden_file), &expected);
    assert!(diff < 1e-4, "logits differ by {diff}");
    assert!(max_diff(&logits_of(&model("llama-tied"), &golden_file), &expected) > 0.1);
}

#[test]
fn copies_of_a_tied_embedding_are_accepted_and_said() {
    let golden_file = found("ties").join("logits.safetensors");
    let none = json!({"modules_to_save": null, "ensure_weight_tying": false});
    let without = ends(&none, None, None);
    let (plain, notes) = model("llama-tied").adapted(read(without.path())).unwrap();
    assert_eq!(notes, [""; 0]);
    let plain = logits_of(&plain, &golden_file);
    let named = json!({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": false});
    for (keys, embedding, head) in [
        (&none, Some(1.0), Some(1.0)),
        (&none, Some(1.0), None),
        (&none, None, Some(1.0)),
        (&named, Some(1.0), None),
    ] {
        let directory = ends(keys, embedding, head);
        let (adapted, notes) = model("llama-tied").adapted(read(directory.path())).unwrap();
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert_eq!(
            logits_of(&adapted, &golden_file),
            plain,
            "{embedding:?} {head:?}"
        );
    }
}

#[test]
fn both_ends_of_a_tied_embedding_may_be_resized_alike() {
    let keys =
        json!({"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": false});
    let grown = changed(&found("ties"), &keys, |mut all| {
        all.retain(|name, _| name.contains("lora"));
        let (shape, mut values) = table();
        for value in &mut values {
            *value *= 1.5;
        }
        values.extend_from_within(..3 * shape[1]);
        for name in [EMBEDDING, HEAD] {
            all.insert(
                name.to_owned(),
                (vec![shape[0] + 3, shape[1]], values.clone()),
            );
        }
        all
    });
    let (adapted, notes) = model("llama-tied").adapted(read(grown.path())).unwrap();
    assert_eq!(notes.len(), 2, "{notes:?}");
    // The new rows are the first three again, and score as they do.
    let scores = logits_of(&adapted, &found("ties").join("logits.safetensors"));
    for position in scores.chunks(67) {
        assert_eq!(position[..3], position[64..]);
        assert!(position[..64].iter().any(|score| score.abs() > 1.0));
    }
}

#[test]
fn ends_of_a_tied_embedding_that_differ_are_refused_by_name() {
    let both =
        json!({"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": false});
    let one = json!({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": false});
    for (keys, embedding, head, named) in [
        (
            &both,
            Some(1.0),
            Some(2.0),
            "`lm_head.weight` cannot have weights of its own",
        ),
        (
            &one,
            Some(2.0),
            None,
            "`model.embed_tokens.weight` cannot have weights of its own",
        ),
    ] {
        let directory = ends(keys, embedding, head);
        let message = model("llama-tied")
            .adapted(read(directory.path()))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains(named) && message.contains("Untie"),
            "{message}"
        );
    }
}

#[test]
fn adapters_of_mlx_lm_give_its_logits() {
    for name in ["lora", "dora"] {
        let directory = fixture("mlx").join(name);
        let adapter = read(&directory);
        assert!(adapter.notes[0].contains("mlx-lm"), "{:?}", adapter.notes);
        assert_eq!(adapter.base.as_deref(), Some("tests/llama"));
        let adapted = adapter.attach(model("llama")).unwrap();
        let golden = golden(&directory);
        let diff = max_diff(&logits(&adapted), &golden);
        assert!(diff < 1e-4, "{name}: logits differ by {diff}");
        assert!(max_diff(&logits(&model("llama")), &golden) > 0.1);
    }
}

#[test]
fn what_is_written_for_mlx_lm_is_the_same_adapter() {
    // Ranks and alphas that differ between layers, and magnitudes.
    for name in [
        "peft/train-patterns/final",
        "peft/train-dora/final",
        "mlx/lora",
    ] {
        let adapter = read(&fixture(name));
        let out = tempfile::tempdir().unwrap();
        adapter
            .write_mlx(out.path(), &WriteOptions::default())
            .unwrap();
        let again = read(out.path());
        let [before, after] = [adapter, again].map(|a| logits(&a.attach(model("llama")).unwrap()));
        let diff = max_diff(&after, &before);
        assert!(diff < 1e-5, "{name}: logits differ by {diff}");
    }
}

#[test]
fn mlx_lms_file_has_its_orientation_and_its_keys() {
    let out = tempfile::tempdir().unwrap();
    read(&fixture("peft/llama-lora"))
        .write_mlx(out.path(), &WriteOptions::default())
        .unwrap();
    let config = configuration(out.path());
    assert_eq!(config["num_layers"], -1);
    let peft = configuration(&fixture("peft/llama-lora"));
    let scale = peft["lora_alpha"].as_f64().unwrap() / peft["r"].as_f64().unwrap();
    assert_eq!(config["lora_parameters"]["scale"], scale);
    let keys = config["lora_parameters"]["keys"].as_array().unwrap();
    assert!(keys.contains(&json!("self_attn.q_proj")), "{keys:?}");
    let file = out.path().join(MLX_TENSOR_FILE);
    let (shape, _) = floats(&file, "model.layers.0.self_attn.q_proj.lora_a");
    assert_eq!(shape, [32, peft["r"].as_u64().unwrap() as usize]);
}

#[test]
fn what_mlx_lm_cannot_hold_is_refused_by_name() {
    let out = tempfile::tempdir().unwrap();
    let adapter = read(&found("resized"));
    let message = adapter
        .write_mlx(out.path(), &WriteOptions::default())
        .unwrap_err()
        .to_string();
    assert!(message.contains("saved whole"), "{message}");
}

#[test]
fn what_is_not_read_of_mlx_lm_is_refused_with_what_to_do() {
    let refused = |keys: Value| {
        let out = tempfile::tempdir().unwrap();
        let from = fixture("mlx/lora");
        let mut config = configuration(&from);
        for (key, value) in keys.as_object().unwrap() {
            config[key] = value.clone();
        }
        if config["fine_tune_type"].is_null() {
            config.as_object_mut().unwrap().remove("fine_tune_type");
        }
        fs::write(out.path().join("adapter_config.json"), config.to_string()).unwrap();
        fs::copy(from.join(MLX_TENSOR_FILE), out.path().join(MLX_TENSOR_FILE)).unwrap();
        PeftAdapter::read(out.path())
            .err()
            .map(|error| error.to_string())
    };
    let message = refused(json!({"fine_tune_type": "full"})).unwrap();
    assert!(message.contains("mlx_lm.fuse"), "{message}");
    // mlx-lm followed `alpha` before it wrote `fine_tune_type`.
    let parameters = json!({"rank": 4, "scale": 10.0, "alpha": 16, "dropout": 0.0});
    let message = refused(json!({"fine_tune_type": null, "lora_parameters": parameters})).unwrap();
    assert!(
        message.contains("to 40 here") && message.contains("leave it at 10"),
        "{message}"
    );
    assert_eq!(refused(json!({"lora_parameters": parameters})), None);
}

/// What PEFT writes of the same text model within one that reads pictures, by
/// transformers 5 and before.
#[test]
fn an_adapter_of_a_model_with_pictures_goes_onto_its_text_model() {
    let trained = fixture("peft/train-gemma3");
    let golden = trained.join("logits.safetensors");
    for (base, within) in [
        (
            "gemma3-multimodal-v5",
            "base_model.model.model.language_model.",
        ),
        (
            "gemma3-multimodal",
            "base_model.model.language_model.model.",
        ),
    ] {
        let copied = tempfile::tempdir().unwrap();
        let config = fs::read(trained.join("final/adapter_config.json")).unwrap();
        fs::write(copied.path().join("adapter_config.json"), config).unwrap();
        let renamed = tensors(&trained.join("final").join(TENSOR_FILE))
            .into_iter()
            .map(|(name, tensor)| (name.replace("base_model.model.model.", within), tensor));
        // PEFT puts factors on the layers of other parts too; none has seen anything.
        let mut renamed: Tensors = renamed.collect();
        for (side, shape) in [("A", vec![2, 4]), ("B", vec![4, 2])] {
            let name = format!("base_model.model.vision_tower.layers.0.q_proj.lora_{side}.weight");
            let value = if side == "A" { 0.5 } else { 0.0 };
            renamed.insert(name, (shape, vec![value; 8]));
        }
        write(&copied.path().join(TENSOR_FILE), &renamed);
        let mut config = configuration(copied.path());
        config["target_modules"] = json!(r".*language_model.*proj|.*vision_tower.*q_proj");
        let file = copied.path().join("adapter_config.json");
        fs::write(file, config.to_string()).unwrap();
        let (llama, notes) = model(base).adapted(read(copied.path())).unwrap();
        assert!(
            notes.iter().any(|note| note.contains("language_model.")),
            "{notes:?}"
        );
        let plain = read(&trained.join("final")).attach(model(base)).unwrap();
        assert_eq!(logits_of(&llama, &golden), logits_of(&plain, &golden));
        assert_ne!(logits_of(&llama, &golden), logits_of(&model(base), &golden));
    }
}
