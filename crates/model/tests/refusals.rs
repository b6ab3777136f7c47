//! Bad checkpoints: what is wrong is named, and nothing is half done.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, path::Path};

use burn::tensor::Device;
use common::fixture;
use olora_model::{Activation, Dtype, ModelConfig, Sampling, generate, load, save};
use safetensors::{SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

fn copy(name: &str) -> tempfile::TempDir {
    let copied = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copied.path().join(entry.file_name())).unwrap();
    }
    copied
}

fn error(directory: &Path) -> String {
    load(directory, Dtype::F32, &Device::flex())
        .map(|_| ())
        .unwrap_err()
        .to_string()
}

/// The error after setting one key of the fixture's config.
fn config_error(name: &str, key: &str, value: Value) -> String {
    let copied = copy(name);
    let path = copied.path().join("config.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    json[key] = value;
    fs::write(&path, json.to_string()).unwrap();
    ModelConfig::from_dir(copied.path())
        .unwrap_err()
        .to_string()
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn what_the_config_asks_for_and_we_do_not_do_is_named() {
    let cases = [
        ("model_type", json!("gpt2"), "model_type: gpt2"),
        (
            "rope_parameters",
            json!({"rope_type": "mrope", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}),
            "rope_type: mrope",
        ),
        (
            "quantization_config",
            json!({"bits": 4}),
            "quantization_config",
        ),
        ("hidden_act", json!("gelu"), "hidden_act: gelu"),
        ("mlp_bias", json!(true), "mlp_bias"),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        ("num_key_value_heads", json!(3), "num_key_value_heads (3)"),
        ("hidden_size", json!("wide"), "hidden_size"),
        ("vocab_size", json!(null), "`vocab_size` is missing"),
    ];
    for (key, value, expected) in cases {
        let message = config_error("llama", key, value);
        assert!(
            message.contains(expected) && message.contains("config.json"),
            "{key}: {message}"
        );
    }
    for (name, key, value, expected) in [
        (
            "gemma",
            "model_type",
            json!("gemma3n"),
            "model_type: gemma3n",
        ),
        ("gemma", "model_type", json!("gemma3"), "`text_config`"),
        (
            "llama",
            "residual_multiplier",
            json!(0.22),
            "residual_multiplier: 0.22",
        ),
        (
            "llama",
            "no_rope_layers",
            json!([1, 0]),
            "no_rope_layers: [1,0]",
        ),
        (
            "llama",
            "num_local_experts",
            json!(8),
            "num_local_experts: 8",
        ),
        (
            "gemma",
            "final_logit_softcapping",
            json!(30.0),
            "final_logit_softcapping: 30",
        ),
        (
            "gemma",
            "attn_logit_softcapping",
            json!(50.0),
            "attn_logit_softcapping: 50",
        ),
        ("gemma", "hidden_act", json!("silu"), "hidden_act: silu"),
        (
            "gemma",
            "hidden_activation",
            json!("gelu"),
            "hidden_activation: gelu",
        ),
        (
            "gemma",
            "use_bidirectional_attention",
            json!(true),
            "use_bidirectional_attention",
        ),
        (
            "opt",
            "do_layer_norm_before",
            json!(false),
            "do_layer_norm_before: false",
        ),
        (
            "opt",
            "_remove_final_layer_norm",
            json!(true),
            "_remove_final_layer_norm: true",
        ),
        (
            "opt",
            "word_embed_proj_dim",
            json!(16),
            "word_embed_proj_dim: 16",
        ),
        (
            "opt",
            "activation_function",
            json!("silu"),
            "activation_function: silu",
        ),
        ("opt", "ffn_dim", json!(null), "`ffn_dim` is missing"),
        ("opt", "num_attention_heads", json!(5), "hidden_size (32)"),
    ] {
        let message = config_error(name, key, value);
        assert!(
            message.contains(expected) && message.contains("config.json"),
            "{name}, {key}: {message}"
        );
    }
    let message = config_error("mistral", "attention_bias", json!(true));
    assert!(message.contains("attention_bias"), "{message}");
}

#[test]
fn heads_that_do_not_divide_the_width_are_refused() {
    let message = config_error("llama-v4", "num_attention_heads", json!(64));
    assert!(
        message.contains("hidden_size (32)") && message.contains("head_dim"),
        "{message}"
    );
}

#[test]
fn absent_keys_have_the_familys_defaults() {
    let copied = copy("mistral");
    let path = copied.path().join("config.json");
    let text = fs::read(&path).unwrap();
    let window = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let mut json: Value = serde_json::from_slice(&text).unwrap();
        change(json.as_object_mut().unwrap());
        fs::write(&path, json.to_string()).unwrap();
        ModelConfig::from_dir(copied.path())
            .unwrap()
            .sliding_windows[0]
    };
    assert_eq!(window(&|_| {}), Some(5));
    assert_eq!(
        window(&|json| drop(json.remove("sliding_window"))),
        Some(4096)
    );
    assert_eq!(
        window(&|json| drop(json.insert("sliding_window".to_owned(), json!(null)))),
        None
    );
}

/// The first of Gemma's checkpoints say "gelu" and mean its approximation.
#[test]
fn gemmas_activation_is_read_as_transformers_reads_it() {
    let copied = copy("gemma");
    let path = copied.path().join("config.json");
    let text = fs::read(&path).unwrap();
    for (hidden_act, hidden_activation) in [
        (json!("gelu"), json!(null)),
        (json!("gelu_pytorch_tanh"), json!(null)),
        (json!("gelu"), json!("gelu_pytorch_tanh")),
        (json!(null), json!(null)),
    ] {
        let mut json: Value = serde_json::from_slice(&text).unwrap();
        json["hidden_act"] = hidden_act;
        json["hidden_activation"] = hidden_activation;
        fs::write(&path, json.to_string()).unwrap();
        let config = ModelConfig::from_dir(copied.path()).unwrap();
        assert_eq!(config.activation, Activation::GeluTanh);
    }
}

#[test]
fn families_tie_embeddings_where_the_file_does_not_say() {
    for (name, expected) in [("llama-tied", false), ("gemma", true), ("opt", true)] {
        let copied = copy(name);
        let path = copied.path().join("config.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        json.as_object_mut().unwrap().remove("tie_word_embeddings");
        fs::write(&path, json.to_string()).unwrap();
        let config = ModelConfig::from_dir(copied.path()).unwrap();
        assert_eq!(config.tie_word_embeddings, expected, "{name}");
    }
}

/// OPT has 48 positions, and the last new token is never read.
#[test]
fn more_tokens_than_positions_are_refused_before_the_first() {
    let (model, config) = load(&fixture("opt"), Dtype::F32, &Device::flex()).unwrap();
    let attempt = |n_prompt: usize, max_new_tokens| {
        let mut n_new = 0;
        let prompt = vec![5; n_prompt];
        let greedy = Sampling::default();
        let result = generate(&model, &prompt, max_new_tokens, &greedy, &[], |_| {
            n_new += 1;
            std::ops::ControlFlow::Continue(())
        });
        assert_eq!(
            config.check_generation(n_prompt, max_new_tokens).is_ok(),
            result.is_ok()
        );
        (n_new, result.err().map(|error| error.to_string()))
    };
    assert_eq!(attempt(47, 2), (2, None));
    assert_eq!(attempt(48, 1), (1, None));
    let (n_new, message) = attempt(47, 3);
    let message = message.unwrap();
    assert!(n_new == 0 && message.contains("at most 2"), "{message}");
    let (n_new, message) = attempt(49, 1);
    let message = message.unwrap();
    assert!(
        n_new == 0 && message.contains("shorten the prompt"),
        "{message}"
    );
    let (_, rotary) = load(&fixture("gemma"), Dtype::F32, &Device::flex()).unwrap();
    assert!(rotary.check_generation(4000, 4000).is_ok());
    let limit = rotary.max_position_embeddings;
    assert!(rotary.check_prompt(limit).is_ok());
    let error = rotary.check_prompt(60_000).unwrap_err().to_string();
    let expected = format!("60000 tokens long, but must be at most {limit}");
    assert!(error.contains(&expected), "{error}");
}

#[test]
fn a_missing_checkpoint_is_named() {
    let message = error(&fixture("no-such-model"));
    assert!(
        message.contains("no-such-model") && message.contains("config.json"),
        "{message}"
    );
    let copied = copy("llama");
    fs::remove_file(copied.path().join("model.safetensors")).unwrap();
    let message = error(copied.path());
    assert!(
        message.contains("no weights") && message.contains("model.safetensors"),
        "{message}"
    );
}

#[test]
fn a_truncated_checkpoint_is_named() {
    let copied = copy("llama");
    let path = copied.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    for length in [0, 4, 100, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        let message = error(copied.path());
        assert!(
            message.contains("model.safetensors") && message.contains("complete"),
            "{length}: {message}"
        );
    }
}

#[test]
fn missing_unused_and_misshapen_tensors_are_listed_together() {
    let copied = copy("llama");
    let path = copied.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let odd = [0_u8; 16];
    let mut changed: Vec<(String, TensorView<'_>)> = tensors
        .tensors()
        .into_iter()
        .filter(|(name, _)| {
            name != "model.layers.1.mlp.up_proj.weight" && name != "model.norm.weight"
        })
        .collect();
    changed.push((
        "model.norm.weight".to_owned(),
        TensorView::new(safetensors::Dtype::F32, vec![4], &odd).unwrap(),
    ));
    changed.push((
        "model.layers.2.extra".to_owned(),
        TensorView::new(safetensors::Dtype::F32, vec![2, 2], &odd).unwrap(),
    ));
    fs::write(&path, safetensors::serialize(changed, None).unwrap()).unwrap();

    let message = error(copied.path());
    assert!(
        message.contains("missing: `model.layers.1.mlp.up_proj.weight`, expected as [48, 32]"),
        "{message}"
    );
    assert!(
        message.contains("misshapen: `model.norm.weight` is [4], expected [32]"),
        "{message}"
    );
    assert!(
        message.contains("unused: `model.layers.2.extra`"),
        "{message}"
    );
}

#[test]
fn a_weight_that_the_format_cannot_hold_is_named_and_nothing_is_left() {
    let copied = copy("llama");
    let path = copied.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let name = "model.layers.1.mlp.up_proj.weight";
    let weights = SafeTensors::deserialize(&bytes).unwrap();
    let data = weights.tensor(name).unwrap().data();
    let start = data.as_ptr() as usize - bytes.as_ptr() as usize;
    bytes[start + 4..start + 8].copy_from_slice(&(-7e4_f32).to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let (model, config) = load(copied.path(), Dtype::F32, &Device::flex()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let saved = out.path().join("saved");
    let message = save(&model, &config, Dtype::F16, None, &saved)
        .unwrap_err()
        .to_string();
    for part in [name, "7e4", "float16", "6.55"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    save(&model, &config, Dtype::Bf16, None, &saved).unwrap();
}

#[test]
fn saving_over_something_is_refused() {
    let (model, config) = load(&fixture("llama"), Dtype::F32, &Device::flex()).unwrap();
    let out = tempfile::tempdir().unwrap();
    fs::write(out.path().join("precious"), "data").unwrap();
    let message = save(&model, &config, Dtype::F32, None, out.path())
        .unwrap_err()
        .to_string();
    assert!(message.contains("exists already"), "{message}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1);
}

#[test]
fn impossible_generation_requests_are_named() {
    let (model, _) = load(&fixture("llama"), Dtype::F32, &Device::flex()).unwrap();
    let error = |prompt: &[u32], sampling: Sampling| {
        let result = generate(&model, prompt, 4, &sampling, &[], |_| {
            std::ops::ControlFlow::Continue(())
        });
        result.unwrap_err().to_string()
    };
    assert!(error(&[], Sampling::default()).contains("prompt"));
    assert!(error(&[64], Sampling::default()).contains("token 64"));
    assert!(
        error(
            &[1],
            Sampling {
                temperature: -1.0,
                ..Sampling::default()
            }
        )
        .contains("temperature")
    );
    assert!(
        error(
            &[1],
            Sampling {
                top_p: 0.0,
                ..Sampling::default()
            }
        )
        .contains("top-p")
    );
}

#[test]
fn sizes_that_no_model_has_are_refused_before_anything_is_made() {
    let most = u64::MAX;
    for (key, value, expected) in [
        ("num_hidden_layers", json!(1_000_000_000), "is 1000000000"),
        ("num_hidden_layers", json!(9_999), "21 tensors"),
        ("vocab_size", json!(most), "is 18446744073709551615"),
        ("vocab_size", json!(u32::MAX), "parameters"),
        ("hidden_size", json!(1_u64 << 63), "is 9223372036854775808"),
        ("hidden_size", json!(u32::MAX), "parameters"),
        ("intermediate_size", json!(1_u64 << 31), "parameters"),
        ("num_attention_heads", json!(0), "is 0"),
        ("num_key_value_heads", json!(0), "is 0"),
        ("num_attention_heads", json!(u32::MAX - 1), "parameters"),
        ("head_dim", json!(1_u64 << 30), "dimensions"),
        ("rms_norm_eps", json!(1e300), "1e"),
        (
            "max_position_embeddings",
            json!(1_u64 << 40),
            "is 1099511627776",
        ),
    ] {
        let copied = copy("llama");
        let path = copied.path().join("config.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        json[key] = value.clone();
        if key == "num_attention_heads" {
            json["num_key_value_heads"] = value.clone();
            json["head_dim"] = json!(8);
        }
        fs::write(&path, json.to_string()).unwrap();
        let message = ModelConfig::from_path(copied.path())
            .unwrap_err()
            .to_string();
        assert!(message.contains(expected), "{key} = {value}: {message}");
    }
}

#[test]
fn a_configuration_without_end_is_refused() {
    let copied = copy("llama");
    let config = format!("{{\"model_type\": \"{}\"}}", "x".repeat(5 << 20));
    fs::write(copied.path().join("config.json"), config).unwrap();
    let message = error(copied.path());
    assert!(
        message.contains("config.json") && message.contains("at most"),
        "{message}"
    );
}

#[test]
fn a_stop_that_is_no_token_is_refused_by_name() {
    for value in [
        json!(-1),
        json!("</s>"),
        json!(64),
        json!([2, -1]),
        json!([[2]]),
        json!(2.5),
    ] {
        let message = config_error("llama", "eos_token_id", value.clone());
        assert!(
            message.contains(&format!("`eos_token_id` is {value}"))
                && message.contains("config.json"),
            "{message}"
        );
        let copied = copy("llama");
        let generation = json!({"eos_token_id": value});
        let path = copied.path().join("generation_config.json");
        fs::write(path, generation.to_string()).unwrap();
        let message = ModelConfig::from_dir(copied.path())
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("`eos_token_id` is") && message.contains("generation_config.json"),
            "{message}"
        );
    }
    for (value, expected) in [(json!(null), vec![]), (json!([5, 63]), vec![5, 63])] {
        let copied = copy("llama");
        let path = copied.path().join("config.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        json["eos_token_id"] = value;
        fs::write(&path, json.to_string()).unwrap();
        let config = ModelConfig::from_dir(copied.path()).unwrap();
        assert_eq!(config.eos_token_ids, expected);
    }
}
