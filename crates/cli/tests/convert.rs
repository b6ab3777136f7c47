//! `olora convert`, and adapters on bases that are not theirs, as a person
//! meets them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, path::Path};

use assert_cmd::Command;
use common::{olora, root, stderr};
use serde_json::Value;

fn done(arguments: &[&str]) -> String {
    let output = olora(arguments);
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        stderr(&output)
    );
    stderr(&output)
}

fn refused(arguments: &[&str]) -> String {
    let output = olora(arguments);
    assert!(!output.status.success(), "{arguments:?}");
    let text = stderr(&output);
    assert!(!text.contains("panicked"), "{text}");
    text
}

fn config(directory: &Path) -> Value {
    let bytes = fs::read(directory.join("adapter_config.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn forms_ranks_and_formats_are_converted() {
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name);
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let native = "fixtures/peft/train-olora/final";
    let plain = at("plain");
    done(&["convert", native, "--output", &text(&plain)]);
    assert_eq!(config(&plain)["r"], 8);
    assert_eq!(config(&plain)["init_lora_weights"], true);

    let card = fs::read_to_string(plain.join("README.md")).unwrap();
    assert!(
        card.contains("base_model:") && card.contains("| rank, alpha | 8, 8 |"),
        "{card}"
    );

    let back = at("back");
    done(&[
        "convert",
        &text(&plain),
        "--form",
        "native",
        "--model",
        "fixtures/llama",
        "--output",
        &text(&back),
    ]);
    assert_eq!(config(&back)["r"], 4);
    assert_eq!(config(&back)["init_lora_weights"], "olora");

    let small = at("small");
    let words = done(&[
        "convert",
        &text(&plain),
        "--rank",
        "3",
        "--dtype",
        "bfloat16",
        "--output",
        &text(&small),
    ]);
    assert!(words.contains("off by"), "{words}");
    assert_eq!(config(&small)["r"], 3);
    let size = |directory: &Path| {
        fs::metadata(directory.join("adapter_model.safetensors"))
            .unwrap()
            .len()
    };
    assert!(size(&small) < size(&plain) / 2);

    let both = at("both");
    done(&[
        "convert",
        &text(&plain),
        &text(&small),
        "--weights",
        "0.7,-0.3",
        "--output",
        &text(&both),
    ]);
    assert_eq!(config(&both)["r"], 11);

    let gguf = at("adapter.gguf");
    done(&[
        "convert",
        &text(&plain),
        "--model",
        "fixtures/llama",
        "--output",
        &text(&gguf),
    ]);
    assert_eq!(&fs::read(&gguf).unwrap()[..4], b"GGUF");
    // Nothing is overwritten.
    let before = fs::read(&gguf).unwrap();
    let words = refused(&["convert", &text(&plain), "--output", &text(&gguf)]);
    assert!(words.contains("exists already"), "{words}");
    assert_eq!(fs::read(&gguf).unwrap(), before);
}

#[test]
fn what_cannot_be_converted_is_refused_and_nothing_is_written() {
    let out = tempfile::tempdir().unwrap();
    let to = out.path().join("out");
    let gguf = out.path().join("out.gguf");
    let (to, gguf) = (to.to_str().unwrap(), gguf.to_str().unwrap());
    let cases: [(&[&str], &str); 6] = [
        (
            &[
                "fixtures/peft/train-dora/final",
                "--model",
                "fixtures/llama",
                "--output",
                gguf,
            ],
            "magnitudes",
        ),
        (
            &[
                "fixtures/peft/train-dora/final",
                "--rank",
                "2",
                "--output",
                to,
            ],
            "magnitudes",
        ),
        (
            &[
                "fixtures/peft/train-lora/final",
                "--form",
                "native",
                "--model",
                "fixtures/llama",
                "--output",
                to,
            ],
            "start on this base",
        ),
        (
            &[
                "fixtures/peft/train-lora/final",
                "--method",
                "pissa",
                "--output",
                to,
            ],
            "--form native",
        ),
        (
            &[
                "fixtures/peft/train-lora/final",
                "--weights",
                "1,2",
                "--output",
                to,
            ],
            "2 numbers for 1",
        ),
        (
            &[
                "fixtures/peft/train-lora/final",
                "fixtures/peft/train-patterns/final",
                "--combine",
                "linear",
                "--output",
                to,
            ],
            "linear combination",
        ),
    ];
    for (arguments, expected) in cases {
        let words = refused(&[&["convert"], arguments].concat());
        assert!(words.contains(expected), "{arguments:?}: {words}");
        assert!(
            fs::read_dir(out.path()).unwrap().next().is_none(),
            "{arguments:?}"
        );
    }
}

#[test]
fn an_adapter_for_another_base_is_warned_of_or_refused() {
    // Of the same shapes: it can be put on, and means nothing.
    let generate = |adapter: &str, base: &str| {
        let arguments = [
            "evaluate",
            "--adapter",
            adapter,
            "--model",
            base,
            "--data",
            "nothing.jsonl",
        ];
        refused(&arguments)
    };
    let words = generate("fixtures/peft/train-lora/final", "fixtures/mistral");
    assert!(words.contains("it is put on fixtures/mistral"), "{words}");
    let words = generate("fixtures/peft/train-lora/final", "fixtures/llama");
    assert!(!words.contains("warning"), "{words}");

    // Of other shapes.
    let out = tempfile::tempdir().unwrap();
    let merged = out.path().join("merged");
    let words = refused(&[
        "merge",
        "--adapter",
        "fixtures/peft/train-lora/final",
        "--model",
        "fixtures/llama-head-dim",
        "--output",
        merged.to_str().unwrap(),
    ]);
    assert!(
        words.contains("misshapen: `base_model.model.model.layers.0.self_attn.k_proj"),
        "{words}"
    );
    assert!(!merged.exists());
}

#[test]
fn a_model_that_is_neither_here_nor_in_the_cache_is_named() {
    let out = tempfile::tempdir().unwrap();
    let output = Command::cargo_bin("olora")
        .unwrap()
        .current_dir(root())
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HOME", out.path())
        .args(["inspect", "model", "nobody/nothing"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let words = stderr(&output);
    assert!(
        words.contains("nobody/nothing") && !words.contains("panicked"),
        "{words}"
    );
}

/// The system kills a process that writes more than it may: in the middle of the
/// factors, or, with the same end, between two files.
#[test]
#[cfg(unix)]
fn a_converted_adapter_is_there_whole_or_not_at_all() {
    let out = tempfile::tempdir().unwrap();
    let place = out.path().join("thornby");
    let convert = |limit: &str| {
        let script = format!("ulimit -f {limit}; exec \"$0\" \"$@\"");
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_olora"), "convert"]);
        command
            .arg("fixtures/peft/train-lora/final")
            .arg("--output");
        command.arg(&place).current_dir(root()).status().unwrap()
    };
    for limit in ["0", "1", "4"] {
        assert!(!convert(limit).success(), "{limit}");
        assert!(!place.exists(), "{limit}");
    }
    assert!(convert("unlimited").success());
    // What a killed process has left goes, also where the next is refused.
    let left = out.path().join(".staged-thornby-dEad12");
    fs::create_dir(&left).unwrap();
    assert!(!convert("unlimited").success());
    assert!(!left.exists());
    for file in [
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    ] {
        assert!(place.join(file).exists(), "{file}");
    }
}

#[test]
fn adapters_of_mlx_lm_are_converted_both_ways() {
    let out = tempfile::tempdir().unwrap();
    let at = |name: &str| out.path().join(name).to_str().unwrap().to_owned();
    let words = done(&["convert", "fixtures/mlx/lora", "--output", &at("peft")]);
    assert!(words.contains("an adapter of mlx-lm"), "{words}");
    let peft = config(Path::new(&at("peft")));
    assert_eq!(
        (&peft["r"], &peft["lora_alpha"]),
        (&Value::from(4), &Value::from(12))
    );
    done(&[
        "convert",
        &at("peft"),
        "--form",
        "mlx",
        "--output",
        &at("mlx"),
    ]);
    let mlx = config(Path::new(&at("mlx")));
    assert_eq!(mlx["fine_tune_type"], "lora");
    assert_eq!(mlx["lora_parameters"]["scale"], 3.0);
    assert!(Path::new(&at("mlx")).join("adapters.safetensors").exists());
}

#[test]
fn a_resized_vocabulary_is_merged_with_the_tokenizer_beside_the_adapter() {
    let out = tempfile::tempdir().unwrap();
    let adapter = out.path().join("adapter");
    fs::create_dir(&adapter).unwrap();
    let from = root().join("fixtures/peft/found/resized");
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(from.join(name), adapter.join(name)).unwrap();
    }
    let merged = |name: &str| {
        let to = out.path().join(name);
        let [adapter, to_text] = [&adapter, &to].map(|path| path.to_str().unwrap().to_owned());
        let words = done(&[
            "merge",
            "--model",
            "fixtures/llama",
            "--adapter",
            &adapter,
            "--output",
            &to_text,
        ]);
        let config = fs::read(to.join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["vocab_size"], 70);
        (to, words)
    };
    let (_, words) = merged("without");
    assert!(words.contains("no tokenizer is beside it"), "{words}");
    assert!(words.contains("70 rows"), "{words}");
    let tokenizer = root().join("fixtures/chat_masks/tokenizer.json");
    fs::copy(&tokenizer, adapter.join("tokenizer.json")).unwrap();
    let (to, words) = merged("with");
    assert!(words.contains("the one beside the adapter"), "{words}");
    assert_eq!(
        fs::read(to.join("tokenizer.json")).unwrap(),
        fs::read(&tokenizer).unwrap()
    );
}

#[test]
fn what_is_given_in_anothers_place_is_told_with_the_command_that_would_do() {
    let message = refused(&[
        "merge",
        "--adapter",
        "fixtures/llama",
        "--output",
        "target/never",
    ]);
    assert!(message.contains("is a model, not an adapter"), "{message}");
    let message = refused(&["inspect", "model", "fixtures/peft/llama-lora"]);
    assert!(message.contains("olora merge --model BASE"), "{message}");
}
