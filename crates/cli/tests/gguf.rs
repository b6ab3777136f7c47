//! A GGUF file in the place of a checkpoint's directory, for every command.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, path::Path};

use common::{olora, refused, stderr, stdout, train};
use serde_json::Value;
use tempfile::TempDir;

#[test]
fn a_gguf_file_stands_where_a_directory_does() {
    let out = TempDir::new().unwrap();
    assert!(train(&out, &[]).status.success());
    let run = out.path().join("quickstart");
    let merge = |name: &str, dtype: &str| {
        let path = out.path().join(name).display().to_string();
        let run = run.to_str().unwrap();
        let merge = [
            "merge",
            "--adapter",
            run,
            "--output",
            &path,
            "--dtype",
            dtype,
        ];
        (olora(&merge), path)
    };
    let (output, directory) = merge("merged", "float32");
    assert!(output.status.success(), "{}", stderr(&output));
    let (output, file) = merge("merged.gguf", "float32");
    assert!(output.status.success(), "{}", stderr(&output));
    let beside = out.path().join("beside/merged.gguf");
    let (run_path, beside) = (run.to_str().unwrap(), beside.to_str().unwrap());
    let modelfile = [
        "merge",
        "--adapter",
        run_path,
        "--output",
        beside,
        "--modelfile",
    ];
    let output = olora(&modelfile);
    assert!(output.status.success(), "{}", stderr(&output));
    let modelfile = fs::read_to_string(out.path().join("beside/Modelfile")).unwrap();
    assert!(modelfile.starts_with("FROM ./merged.gguf\n"), "{modelfile}");
    let text = refused(&merge("merged.gguf", "float32").0, 1);
    assert!(text.contains("exists already"), "{text}");
    let text = refused(&merge("another", "q8_0").0, 2);
    assert!(text.contains(".gguf"), "{text}");

    let json = |arguments: &[&str]| -> Value {
        let output = olora(&[arguments, &["--json"]].concat());
        serde_json::from_str(&stdout(&output)).unwrap_or_else(|_| panic!("{}", stderr(&output)))
    };
    let loss = |model: &str| {
        let data = "recipes/quickstart/valid.jsonl";
        json(&["evaluate", "--model", model, "--data", data])["loss"]
            .as_f64()
            .unwrap()
    };
    assert!((loss(&file) - loss(&directory)).abs() < 1e-5);
    let prompt = [
        "--prompt",
        "Where does Alder live?",
        "--max-new-tokens",
        "6",
    ];
    let text = |model| {
        stdout(&olora(
            &[&["generate", "--model", model][..], &prompt].concat(),
        ))
    };
    assert_eq!(text(&file), text(&directory));
    let facts = json(&["inspect", "model", &file]);
    assert_eq!(facts["tensor_types"]["F32"], 38);
    assert_eq!(facts["layers"], 4);

    // It trains, and what it was trained on is held against the file.
    let other = TempDir::new().unwrap();
    let path = format!("model.path=\"{file}\"");
    let output = train(&other, &[&path]);
    assert!(output.status.success(), "{}", stderr(&output));
    let resumed = || {
        let directory = format!("output.directory=\"{}\"", other.path().display());
        let recipe = ["train", "recipes/quickstart.toml", "--resume"];
        let settings = [&directory, &path, "training.epochs=0.02"];
        let settings = settings.iter().flat_map(|setting| ["--set", setting]);
        let more = [
            "--set",
            "samples.max_new_tokens=4",
            "--set",
            "training.evaluate_every=0",
        ];
        let arguments: Vec<&str> = recipe.into_iter().chain(settings).chain(more).collect();
        refused(&olora(&arguments), 1)
    };
    assert!(resumed().contains("complete"), "{}", resumed());
    let mut bytes = fs::read(&file).unwrap();
    bytes[(1 << 20) + 1] ^= 1;
    fs::write(&file, bytes).unwrap();
    assert!(
        resumed().contains("not what the run was started on"),
        "{}",
        resumed()
    );
}

/// A small run, merged to blocks of 8 bits; and the loss of what is there.
#[test]
fn a_packed_file_trains_and_is_merged_into_its_own_blocks() {
    const DATA: &str = "recipes/quickstart/valid.jsonl";
    let out = TempDir::new().unwrap();
    assert!(train(&out, &[]).status.success());
    let path = |name: &str| out.path().join(name).display().to_string();
    let merge = |run: &str, name: &str, more: &[&str]| {
        let (run, output) = (path(run), path(name));
        let merge = ["merge", "--adapter", &run, "--output", &output];
        let output = olora(&[&merge, more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stderr(&output)
    };
    let said = merge(
        "quickstart",
        "small.gguf",
        &["--dtype", "q8_0", "--data", DATA],
    );
    assert!(said.contains("with the adapter on its base"), "{said}");
    let (before, after) = losses(&said);
    assert!(before != after && (before - after).abs() < 0.05, "{said}");

    let file = path("small.gguf");
    let evaluate = |quantize: &str| {
        let evaluate = ["evaluate", "--json", "--data", DATA, "--model", &file];
        olora(&[&evaluate[..], &["--quantize", quantize]].concat())
    };
    let loss = |quantize: &str| {
        let output = evaluate(quantize);
        let json: Value = serde_json::from_str(&stdout(&output))
            .unwrap_or_else(|_| panic!("{}", stderr(&output)));
        json["loss"].as_f64().unwrap()
    };
    let packed = loss("stored");
    assert!((packed - after).abs() < 1e-4, "{packed} {after}");
    let unpacked = loss("none");
    assert!((packed - unpacked).abs() < 1e-5, "{packed} {unpacked}");
    let coarser = loss("nf4");
    assert!((packed - coarser).abs() > 1e-4, "{packed} {coarser}");
    // What cannot be packed is told.
    let said = stderr(&evaluate("nf4"));
    assert!(said.contains("of 28 linear layers stay dense"), "{said}");
    let text = refused(&evaluate("q4_k"), 1);
    assert!(text.contains("none of the 28 linear layers"), "{text}");
    let text = refused(&evaluate("q9"), 2);
    assert!(text.contains("q9") && text.contains("nf4"), "{text}");

    let setting = format!("model.path=\"{file}\"");
    let output = train(&out, &[&setting, "name=\"again\""]);
    assert!(output.status.success(), "{}", stderr(&output));
    merge("again", "again.gguf", &["--dtype", "same"]);
    let types = |file: &str| {
        let output = olora(&["inspect", "model", file, "--json"]);
        let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
        json["tensor_types"].clone()
    };
    let again = path("again.gguf");
    assert!(types(&file)["Q8_0"].as_u64().unwrap() > 0);
    assert_eq!(types(&again), types(&file));
}

/// `Q4_0`, whose rows are put into another order where a model generates: what is evaluated is the
/// unpacked model, and what is written has the file's own blocks.
#[test]
fn a_file_in_q4_0_is_evaluated_and_merged_as_it_is() {
    let out = TempDir::new().unwrap();
    let path = |name: &str| out.path().join(name).display().to_string();
    let (file, merged) = (path("small.gguf"), path("merged.gguf"));
    let base = "recipes/quickstart/base";
    let output = olora(&["convert", base, "--dtype", "q4_0", "--output", &file]);
    assert!(output.status.success(), "{}", stderr(&output));
    let of_base = format!("model.path=\"{file}\"");
    let output = train(&out, &[&of_base, "adapter.targets=[\"q_proj\"]"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let run = path("quickstart");

    let loss = |quantize: &str| {
        let data = "recipes/quickstart/valid.jsonl";
        let evaluate = ["evaluate", "--json", "--data", data, "--adapter", &run];
        let output = olora(&[&evaluate[..], &["--quantize", quantize]].concat());
        let json: Value = serde_json::from_str(&stdout(&output))
            .unwrap_or_else(|_| panic!("{}", stderr(&output)));
        json["loss"].as_f64().unwrap()
    };
    let (packed, unpacked) = (loss("stored"), loss("none"));
    assert!((packed - unpacked).abs() < 1e-5, "{packed} {unpacked}");

    let merge = ["merge", "--adapter", &run, "--output", &merged];
    let output = olora(&[&merge[..], &["--dtype", "same"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let [left, right] = [&file, &merged].map(|file| {
        let file = olora_gguf::GgufFile::open(Path::new(file)).unwrap();
        let name = "model.layers.0.mlp.down_proj.weight";
        let packed = file.packed(name).unwrap().unwrap();
        let (format, blocks) = packed.as_blocks().unwrap();
        (format.name(), blocks.into_owned())
    });
    assert_eq!(left.0, "Q4_0");
    assert!(left == right, "a matrix without an update is not copied");
}

/// The two losses of `merge --data`.
fn losses(said: &str) -> (f64, f64) {
    let numbers: Vec<f64> = said
        .lines()
        .find(|line| line.contains("with the adapter on its base"))
        .unwrap()
        .split_whitespace()
        .filter(|word| word.contains('.'))
        .filter_map(|word| word.parse().ok())
        .collect();
    (numbers[0], numbers[1])
}
