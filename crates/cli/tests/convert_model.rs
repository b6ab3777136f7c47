//! `olora convert MODEL`, as a person meets it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, path::Path};

use common::{olora, root, stderr, stdout};
use serde_json::Value;
use tempfile::TempDir;

const MODEL: &str = "fixtures/pure/model.gguf";

fn at(out: &TempDir, name: &str) -> String {
    out.path().join(name).to_str().unwrap().to_owned()
}

fn done(arguments: &[&str]) -> String {
    let output = olora(arguments);
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        stderr(&output)
    );
    assert_eq!(stdout(&output), "");
    stderr(&output)
}

/// Refused with this code, and nothing is written.
fn refused(arguments: &[&str], code: i32, out: &TempDir) -> String {
    let list = || {
        let entries = fs::read_dir(out.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = list();
    let text = common::refused(&olora(arguments), code);
    assert_eq!(list(), before, "{arguments:?}");
    text
}

fn greedy(model: &str) -> String {
    let prompt = ["--raw", "--prompt", "ABC", "--max-new-tokens", "6"];
    let output = olora(&[&["generate", "--model", model][..], &prompt].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

#[test]
fn a_model_goes_from_gguf_to_a_directory_and_back() {
    let out = tempfile::tempdir().unwrap();
    let (directory, file) = (at(&out, "model"), at(&out, "back.gguf"));
    let said = done(&["convert", MODEL, "--output", &directory]);
    assert!(said.contains("(float16)"), "{said}");
    done(&["convert", &directory, "--output", &file]);
    assert_eq!(greedy(&directory), greedy(MODEL));
    assert_eq!(greedy(&file), greedy(MODEL));
    // Nothing is overwritten.
    let text = refused(&["convert", &directory, "--output", &file], 1, &out);
    assert!(text.contains("exists already"), "{text}");
    let shards = at(&out, "shards");
    let shard = ["--shard-size", "20kB", "--dtype", "bf16"];
    done(&[&["convert", MODEL, "--output", &shards], &shard[..]].concat());
    assert!(
        Path::new(&shards)
            .join("model.safetensors.index.json")
            .exists()
    );
}

#[test]
fn packed_weights_are_unpacked_or_rounded_again_and_that_is_said() {
    let out = tempfile::tempdir().unwrap();
    let (file, again) = (at(&out, "a.gguf"), at(&out, "b.gguf"));
    let said = done(&["convert", MODEL, "--output", &file, "--dtype", "q4_k"]);
    assert!(said.contains("tensors: 3 F32, 1 Q4_K, 8 Q5_0"), "{said}");
    let said = done(&["convert", &file, "--output", &again, "--dtype", "q8_0"]);
    assert!(
        said.contains("note: 1 matrix in Q4_K is rounded once more, into q8_0"),
        "{said}"
    );
    let said = done(&["convert", &file, "--output", &at(&out, "dense")]);
    assert!(
        said.contains("8 matrices in Q5_0 are unpacked into"),
        "{said}"
    );
    let gptq = "fixtures/quantised/gptq";
    let said = done(&["convert", gptq, "--output", &at(&out, "gptq")]);
    assert!(said.contains("are unpacked into"), "{said}");
}

#[test]
fn a_modelfile_stands_beside_a_gguf_file_if_it_is_asked_for() {
    let out = tempfile::tempdir().unwrap();
    let (file, modelfile) = (at(&out, "x.gguf"), at(&out, "Modelfile"));
    let said = done(&["convert", MODEL, "--output", &file, "--modelfile"]);
    assert!(said.contains("ollama create NAME -f"), "{said}");
    let text = fs::read_to_string(&modelfile).unwrap();
    assert_eq!(
        text,
        "FROM ./x.gguf\n\
         # The form of the turns of the model's own template, without tools and thoughts.\n\
         TEMPLATE \"\"\"{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}\
         {{ range .Messages }}\
         {{ if eq .Role \"user\" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n\
         {{ else if eq .Role \"assistant\" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n\
         {{ end }}{{ end }}<|im_start|>assistant\n\"\"\"\n\
         PARAMETER stop \"<|im_end|>\"\n"
    );
    let again = at(&out, "y.gguf");
    let text = refused(
        &["convert", MODEL, "--output", &again, "--modelfile"],
        1,
        &out,
    );
    assert!(text.contains("Modelfile exists already"), "{text}");
    let directory = at(&out, "z");
    let text = refused(
        &["convert", MODEL, "--output", &directory, "--modelfile"],
        2,
        &out,
    );
    assert!(text.contains("--modelfile is for a GGUF file"), "{text}");
}

#[test]
fn mlx_gets_a_directory_that_says_so() {
    let out = tempfile::tempdir().unwrap();
    let to = at(&out, "mlx");
    done(&["convert", MODEL, "--output", &to, "--form", "mlx"]);
    let header = fs::read(Path::new(&to).join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(header[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&header[8..][..length]).unwrap();
    assert_eq!(header["__metadata__"]["format"], "mlx");
    assert_eq!(greedy(&to), greedy(MODEL));
    let file = at(&out, "mlx.gguf");
    let text = refused(
        &["convert", MODEL, "--output", &file, "--form", "mlx"],
        2,
        &out,
    );
    assert!(text.contains("MLX's form is a directory"), "{text}");
}

#[test]
fn options_of_adapters_are_refused_for_models_and_the_reverse() {
    let out = tempfile::tempdir().unwrap();
    let to = at(&out, "to");
    let adapter = "fixtures/peft/train-lora/final";
    let cases: [(&str, &[&str], &str); 12] = [
        (MODEL, &["--rank", "2"], "--rank is for adapters"),
        (
            MODEL,
            &["--form", "native"],
            "--form native is for adapters",
        ),
        (MODEL, &["--weights", "2"], "--weights is for adapters"),
        (MODEL, &["--combine", "cat"], "--combine is for adapters"),
        (
            MODEL,
            &["--model", "fixtures/llama"],
            "--model is for adapters",
        ),
        (
            MODEL,
            &["--quantize", "nf4"],
            "--dtype says what it is written in",
        ),
        (MODEL, &["--device", "wgpu"], "without a device"),
        (
            MODEL,
            &["--dtype", "q4_0"],
            "let the name of --output end in .gguf",
        ),
        (adapter, &["--dtype", "q4_0"], "--dtype q4_0 is for models"),
        (adapter, &["--shard-size", "1GB"], "olora merge --adapter"),
        (adapter, &["--modelfile"], "--modelfile is for models"),
        ("nobody/nothing", &["--rank", "2"], "is not on this machine"),
    ];
    for (path, options, expected) in cases {
        let arguments = [&["convert", path, "--output", &to], options].concat();
        let text = refused(&arguments, 2, &out);
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
    let empty = tempfile::tempdir().unwrap();
    let text = refused(
        &["convert", empty.path().to_str().unwrap(), "--output", &to],
        1,
        &out,
    );
    assert!(text.contains("neither a model nor an adapter"), "{text}");
    let text = refused(&["convert", "nobody/nothing", "--output", &to], 1, &out);
    assert!(text.contains("nobody/nothing"), "{text}");
    let merge = ["merge", "--model", MODEL, "--output", &to];
    let text = refused(&merge, 2, &out);
    assert!(text.contains("olora convert MODEL"), "{text}");
}

/// The system kills a process that writes more than it may.
#[test]
#[cfg(unix)]
fn a_converted_model_is_there_whole_or_not_at_all() {
    for name in ["x.gguf", "directory"] {
        let out = tempfile::tempdir().unwrap();
        let place = out.path().join(name);
        let convert = |limit: &str| {
            let script = format!("ulimit -f {limit}; exec \"$0\" \"$@\"");
            let mut command = std::process::Command::new("sh");
            command.args(["-c", &script, env!("CARGO_BIN_EXE_olora"), "convert", MODEL]);
            command.arg("--output").arg(&place).current_dir(root());
            command.output().unwrap().status
        };
        for limit in ["1", "30", "90"] {
            assert!(!convert(limit).success(), "{name} {limit}");
            assert!(!place.exists(), "{name} {limit}");
        }
        assert!(convert("unlimited").success());
        let left = fs::read_dir(out.path()).unwrap().count();
        assert_eq!(left, 1, "{name}");
    }
}
