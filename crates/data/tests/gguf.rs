//! The tokenizer in a GGUF file, against the same one in a directory.

#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, path::PathBuf};

use common::{CHATML, World};
use olora_data::{DataOptions, Message, TokenCache, Tokenizer, load_samples, load_samples_cached};
use olora_gguf::{GgufType, TensorSpec, TensorValues, TokenizerFiles, write_model};
use serde_json::{Map, Value, json};

/// The world's tokenizer in a file, with the smallest model around it.
fn file(world: &World) -> PathBuf {
    let config = json!({
        "model_type": "llama", "vocab_size": 261, "hidden_size": 4, "intermediate_size": 4,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
        "head_dim": 4, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
        "tie_word_embeddings": true, "rope_theta": 1e4, "hidden_act": "silu",
        "bos_token_id": 0, "eos_token_id": 1,
    });
    let config: Map<String, Value> = serde_json::from_value(config).unwrap();
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![261, 4]),
        ("model.norm.weight".to_owned(), vec![4]),
        (layer("input_layernorm"), vec![4]),
        (layer("post_attention_layernorm"), vec![4]),
    ];
    for name in [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
    ] {
        tensors.push((layer(name), vec![4, 4]));
    }
    for name in ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"] {
        tensors.push((layer(name), vec![4, 4]));
    }
    let tensors: Vec<TensorSpec> = tensors
        .into_iter()
        .map(|(name, shape)| TensorSpec {
            name,
            shape,
            packed: None,
            copied: false,
        })
        .collect();
    let path = world.path("model.gguf");
    let read = |name: &str| fs::read(world.path(name)).unwrap();
    let files = TokenizerFiles {
        tokenizer: &read("tokenizer.json"),
        config: Some(&read("tokenizer_config.json")),
        chat_template: None,
    };
    write_model(&path, &config, files, &tensors, GgufType::F32, |name| {
        let spec = tensors.iter().find(|spec| spec.name == name).unwrap();
        Ok(TensorValues::Floats(vec![0.5; spec.shape.iter().product()]))
    })
    .unwrap();
    path
}

#[test]
fn it_does_all_that_the_directorys_does() {
    let world = World::new(Some(CHATML));
    world.write(
        "config.json",
        &json!({"eos_token_id": 1, "bos_token_id": 0}),
    );
    let file = file(&world);
    let (of_file, of_directory) = (
        Tokenizer::from_path(&file).unwrap(),
        Tokenizer::from_path(world.dir.path()).unwrap(),
    );
    assert_eq!(of_file.bos_id(), of_directory.bos_id());
    assert_eq!(of_file.eos_id(), of_directory.eos_id());
    assert_eq!(of_file.pad_id(), of_directory.pad_id());
    assert_eq!(of_file.stop_ids(), of_directory.stop_ids());
    assert_eq!(of_file.stop_ids(), [1, 3]);
    assert_eq!(of_file.n_vocab(), of_directory.n_vocab());
    let messages = [
        Message::new("user", "Hi y’all"),
        Message::new("assistant", "yes"),
    ];
    let chat = of_directory.render_chat(&messages, true).unwrap();
    assert_eq!(of_file.render_chat(&messages, true).unwrap(), chat);
    for text in ["a yard, you see\n\n  123", "“öß” 你好", chat.as_str()] {
        for special in [false, true] {
            let ids = of_directory.encode(text, special).unwrap();
            assert_eq!(of_file.encode(text, special).unwrap(), ids, "{text:?}");
            let skipped = of_directory.decode(&ids, true).unwrap();
            assert_eq!(of_file.decode(&ids, true).unwrap(), skipped);
        }
    }
    fs::write(
        world.path("data.jsonl"),
        r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "you"}]}"#,
    )
    .unwrap();
    let samples = |tokenizer| {
        let data = world.path("data.jsonl");
        let samples = load_samples(&data, tokenizer, &DataOptions::default());
        samples.unwrap().samples
    };
    assert_eq!(samples(&of_file), samples(&of_directory));
}

#[test]
fn another_template_in_the_file_is_another_key_of_the_cache() {
    let world = World::new(Some(CHATML));
    fs::write(
        world.path("data.jsonl"),
        r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "you"}]}"#,
    )
    .unwrap();
    let cache = TokenCache {
        directory: world.path("cache"),
        min_bytes: 0,
        max_bytes: u64::MAX,
    };
    let cached = || {
        let tokenizer = Tokenizer::from_path(&file(&world)).unwrap();
        let data = world.path("data.jsonl");
        let options = DataOptions::default();
        let samples = load_samples_cached(&data, &tokenizer, &options, Some(&cache));
        samples.unwrap().from_cache
    };
    assert_eq!([cached(), cached()], [false, true]);
    let config = fs::read_to_string(world.path("tokenizer_config.json")).unwrap();
    let changed = config.replace("<|im_end|>", "</s>");
    assert_ne!(config, changed);
    fs::write(world.path("tokenizer_config.json"), changed).unwrap();
    assert_eq!([cached(), cached()], [false, true]);
}

#[test]
fn what_is_no_gguf_file_is_named() {
    let world = World::new(None);
    fs::write(world.path("model.gguf"), "not one").unwrap();
    let error = Tokenizer::from_path(&world.path("model.gguf")).unwrap_err();
    assert!(error.to_string().contains("model.gguf"), "{error}");
}
