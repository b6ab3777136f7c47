//! The binary, as a person uses it: results on stdout, everything else on
//! stderr, exit code 0, 1 (failed) or 2 (wrong usage), nothing half-written.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, path::Path, process::Output};

use common::{olora, refused, root, stderr, stdout, train};
use serde_json::Value;
use tempfile::TempDir;

/// The run directory of a refused run must not be there.
fn refused_before_writing(out: &TempDir, output: &Output, code: i32) -> String {
    let text = refused(output, code);
    assert!(
        !out.path().join("quickstart").exists(),
        "something was written: {text}"
    );
    text
}

#[test]
fn train_then_evaluate_generate_merge_and_inspect() {
    let out = TempDir::new().unwrap();
    let output = train(&out, &[]);
    let text = stderr(&output);
    assert!(output.status.success(), "{text}");
    let result = stdout(&output);
    for expected in ["finished:", "validation loss:", "adapter:", "to try it:"] {
        assert!(
            result.contains(expected),
            "`{expected}` is not in\n{result}"
        );
    }
    for expected in [
        "trainable:",
        "plan:",
        "sample before",
        "sample after",
        "step 2/2 | loss",
        "validation loss",
    ] {
        assert!(text.contains(expected), "`{expected}` is not in\n{text}");
    }

    let run = out.path().join("quickstart");
    let run = run.to_str().unwrap();
    let valid = "recipes/quickstart/valid.jsonl";
    let evaluated = olora(&["evaluate", "--adapter", run, "--data", valid, "--json"]);
    let json: Value = serde_json::from_str(&stdout(&evaluated))
        .unwrap_or_else(|_| panic!("{}", stderr(&evaluated)));
    let summary = fs::read(Path::new(run).join("summary.json")).unwrap();
    let summary: Value = serde_json::from_slice(&summary).unwrap();
    let (ours, theirs) = (
        json["loss"].as_f64().unwrap(),
        summary["validation_loss"].as_f64().unwrap(),
    );
    assert!(
        (ours - theirs).abs() < 1e-4,
        "evaluate says {ours}, the run said {theirs}"
    );

    let merged = out.path().join("merged");
    let merged = merged.to_str().unwrap();
    let output = olora(&[
        "merge",
        "--adapter",
        run,
        "--output",
        merged,
        "--dtype",
        "float32",
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let evaluated = olora(&["evaluate", "--model", merged, "--data", valid, "--json"]);
    let again: Value = serde_json::from_str(&stdout(&evaluated)).unwrap();
    assert!((again["loss"].as_f64().unwrap() - ours).abs() < 1e-4);

    // The same greedy text with the adapter and merged, and nothing else on stdout.
    let prompt = [
        "--prompt",
        "Where does Alder live?",
        "--max-new-tokens",
        "6",
    ];
    let adapted = stdout(&olora(
        &[&["generate", "--adapter", run][..], &prompt].concat(),
    ));
    let plain = stdout(&olora(
        &[&["generate", "--model", merged][..], &prompt].concat(),
    ));
    assert_eq!(adapted, plain);
    assert!(!adapted.trim().is_empty());

    let json: Value =
        serde_json::from_str(&stdout(&olora(&["inspect", "adapter", run, "--json"]))).unwrap();
    // As it was trained, and as it is saved.
    for (key, value) in [
        ("method", Value::from("olora")),
        ("rank", 8.into()),
        ("saved_method", "lora".into()),
        ("saved_rank", 16.into()),
        ("adapted_layers", 28.into()),
    ] {
        assert_eq!(json[key], value, "{key}");
    }
    let json: Value =
        serde_json::from_str(&stdout(&olora(&["inspect", "model", merged, "--json"]))).unwrap();
    assert_eq!(json["layers"], 4);

    // Neither the merged model nor the run is overwritten.
    let text = refused(&olora(&["merge", "--adapter", run, "--output", merged]), 1);
    assert!(text.contains("exists already"), "{text}");
    let text = refused(&train(&out, &[]), 1);
    assert!(
        text.contains("exists already") && text.contains("--resume"),
        "{text}"
    );
}

#[test]
fn a_scheduler_gives_the_same_command_again_and_again() {
    let out = TempDir::new().unwrap();
    let directory = format!("output.directory=\"{}\"", out.path().display());
    let train = |more: &[&str]| {
        let mut arguments = vec!["train", "recipes/quickstart.toml", "--auto-resume"];
        for setting in [
            &directory,
            "training.epochs=0.02",
            "training.evaluate_every=0",
            "samples.prompts=[]",
        ] {
            arguments.extend(["--set", setting]);
        }
        olora(&[&arguments[..], more].concat())
    };
    let text = refused_before_writing(&out, &train(&["--resume"]), 2);
    assert!(text.contains("--auto-resume"), "{text}");
    let output = train(&[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let output = train(&[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stderr(&output);
    assert!(
        text.contains("is complete: there is nothing to do"),
        "{text}"
    );
    // Another recipe is not what was done.
    let text = refused(&train(&["--set", "training.batch_size=3"]), 1);
    assert!(text.contains("training.batch_size: was"), "{text}");
}

#[test]
fn inspect_data_marks_what_is_trained() {
    let output = olora(&[
        "inspect",
        "data",
        "recipes/quickstart/valid.jsonl",
        "--model",
        "recipes/quickstart/base",
    ]);
    let text = stdout(&output);
    let (prompt, trained) = text.split_once('⟦').expect("trained tokens are marked");
    assert!(prompt.trim_end().ends_with('?'), "{text}");
    assert!(
        trained.contains("Hear ye") && trained.contains("<|end|>⟧"),
        "{text}"
    );
}

#[test]
fn devices_lists_what_is_compiled_in_and_how_to_add_the_rest() {
    let text = stdout(&olora(&["devices"]));
    assert!(text.lines().any(|line| line.starts_with("cpu")), "{text}");
    for feature in ["cuda", "wgpu", "vulkan", "metal", "rocm"] {
        assert!(text.contains(feature), "{text}");
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let out = TempDir::new().unwrap();
    assert_eq!(olora(&["train"]).status.code(), Some(2));
    assert_eq!(olora(&["generate", "--prompt", "x"]).status.code(), Some(2));
    let text = refused_before_writing(&out, &train(&out, &["training.learnig_rate=1"]), 2);
    assert!(text.contains("learnig_rate"), "{text}");
    let text = refused_before_writing(&out, &train(&out, &["device=tpu"]), 2);
    assert!(
        text.contains("`tpu`") && text.contains("cpu, cuda"),
        "{text}"
    );
    let text = refused_before_writing(&out, &train(&out, &["device=cpu:7"]), 2);
    assert!(text.contains("cpu:7"), "{text}");
    if cfg!(not(feature = "cuda")) {
        let text = refused_before_writing(&out, &train(&out, &["device=cuda"]), 2);
        assert!(
            text.contains("not compiled") && text.contains("--features cuda"),
            "{text}"
        );
    }
}

#[test]
fn targets_that_match_nothing_are_named() {
    let out = TempDir::new().unwrap();
    let output = train(&out, &["adapter.targets=[\"q_proj\", \"query\"]"]);
    let text = refused_before_writing(&out, &output, 1);
    assert!(
        text.contains("`query`") && text.contains("`q_proj`"),
        "{text}"
    );
    let text = refused_before_writing(&out, &train(&out, &["adapter.rank=100"]), 1);
    assert!(
        text.contains("rank 100") && text.contains("k_proj"),
        "{text}"
    );
}

#[test]
fn bad_data_is_named_with_its_line() {
    let out = TempDir::new().unwrap();
    let file = out.path().join("bad.jsonl");
    let good = r#"{"prompt": "Where?", "completion": " Here."}"#;
    let cases = [
        (String::new(), "empty"),
        (format!("{good}\n{{\"prompt\": \"x\", \n"), "line 2"),
        (
            format!("{good}\n\n{{\"prompt\": \"x\"}}\n{{\"prompt\": \"y\"}}\n"),
            "line 3",
        ),
        (
            "{\"prompt\": \"x\", \"completion\": \"\"}\n".to_owned(),
            "line 1",
        ),
        (
            format!("{good}\n{{\"prompt\": \"x\", \"completion\": \"y\", \"label\": false}}\n"),
            "`label` (1 record, the first record 2 (line 2)",
        ),
        ("{\"question\": 1}\n".to_owned(), "question"),
    ];
    let setting = format!("data.train=\"{}\"", file.display());
    for (content, expected) in cases {
        fs::write(&file, &content).unwrap();
        let text = refused_before_writing(&out, &train(&out, &[&setting]), 1);
        assert!(
            text.contains("bad.jsonl") && text.contains(expected),
            "{content:?}: {text}"
        );
    }
    let missing = format!("data.train=\"{}\"", out.path().join("none.jsonl").display());
    let text = refused_before_writing(&out, &train(&out, &[&missing]), 1);
    assert!(text.contains("none.jsonl"), "{text}");
    assert_eq!(text.matches("does not exist").count(), 1, "{text}");
}

#[test]
fn long_sequences_are_cut_and_counted() {
    let out = TempDir::new().unwrap();
    let output = train(&out, &["data.max_length=34"]);
    let text = stderr(&output);
    assert!(output.status.success(), "{text}");
    let cut = text
        .lines()
        .find(|line| line.contains("cut") || line.contains("truncated"));
    assert!(cut.is_some_and(|line| line.contains("34")), "{text}");
}

#[test]
fn a_missing_or_truncated_checkpoint_is_named() {
    let out = TempDir::new().unwrap();
    let text = refused_before_writing(&out, &train(&out, &["model.path=no/such/model"]), 1);
    assert!(text.contains("no/such/model"), "{text}");

    let base = out.path().join("base");
    fs::create_dir(&base).unwrap();
    for entry in fs::read_dir(root().join("recipes/quickstart/base")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), base.join(entry.file_name())).unwrap();
    }
    let weights = base.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 100]).unwrap();
    let path = format!("model.path=\"{}\"", base.display());
    let text = refused_before_writing(&out, &train(&out, &[&path]), 1);
    assert!(
        text.contains("model.safetensors") && text.contains("complete"),
        "{text}"
    );
}

#[test]
fn a_loss_that_is_no_number_is_exit_code_1_and_says_where_to_go_on() {
    let out = TempDir::new().unwrap();
    let output = train(
        &out,
        &[
            "training.epochs=1",
            "training.optimizer=sgd",
            "training.learning_rate=1e20",
            "training.max_grad_norm=0",
            "training.warmup_steps=0",
            "training.checkpoint_every=1",
        ],
    );
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("at step") && text.contains("last good checkpoint"),
        "{text}"
    );
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn generate_refuses_what_it_cannot_do() {
    let base = ["--model", "recipes/quickstart/base", "--prompt", "Where?"];
    let generate = |more: &[&str]| olora(&[&["generate"][..], &base, more].concat());
    let text = refused(&generate(&["--temperature", "-1"]), 2);
    assert!(text.contains("temperature"), "{text}");
    let text = refused(&generate(&["--top-k", "5"]), 2);
    assert!(
        text.contains("--top-k") && text.contains("temperature"),
        "{text}"
    );
    let text = refused(
        &olora(&["generate", "--model", "recipes/quickstart/base"]),
        2,
    );
    assert!(text.contains("--prompt"), "{text}");
    let text = refused(
        &olora(&["generate", "--adapter", "recipes", "--prompt", "x"]),
        1,
    );
    assert!(text.contains("adapter_config.json"), "{text}");
    let seeded = [
        "--temperature",
        "1.5",
        "--seed",
        "3",
        "--max-new-tokens",
        "8",
    ];
    assert_eq!(stdout(&generate(&seeded)), stdout(&generate(&seeded)));
}

#[test]
fn generate_and_evaluate_fail_on_weights_that_are_no_numbers() {
    let base = root().join("recipes/quickstart/base");
    let spoilt = TempDir::new().unwrap();
    for entry in fs::read_dir(base).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), spoilt.path().join(entry.file_name())).unwrap();
    }
    // The last number of the file, which is the last norm's.
    let path = spoilt.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 2..].fill(0xff);
    fs::write(&path, bytes).unwrap();
    let model = ["--model", spoilt.path().to_str().unwrap()];
    for more in [&[][..], &["--temperature", "0.8"]] {
        let arguments = [&["generate"][..], &model, &["--prompt", "Where?"], more].concat();
        let text = refused(&olora(&arguments), 1);
        assert!(text.contains("`model.norm.weight`"), "{text}");
        assert!(text.contains("holds NaN"), "{text}");
    }
    let data = root().join("recipes/quickstart/valid.jsonl");
    let tasks = TempDir::new().unwrap();
    let open = r#"{"question": "How many?", "answer": "Four. #### 4"}"#;
    fs::write(tasks.path().join("gsm8k.jsonl"), open).unwrap();
    let choice = r#"{"query": "Question: Where?", "choices": ["here", "there"], "gold": 0}"#;
    fs::write(tasks.path().join("piqa.jsonl"), choice).unwrap();
    let data = ["--data", data.to_str().unwrap(), "--json"];
    let directory = tasks.path().to_str().unwrap();
    let task = ["--task-data", directory, "--tasks"];
    let open = [&task[..], &["gsm8k", "--max-new-tokens", "8"]].concat();
    let choice = [&task[..], &["piqa"]].concat();
    for more in [&data[..], &open, &choice] {
        let arguments = [&["evaluate"][..], &model, more].concat();
        let text = refused(&olora(&arguments), 1);
        assert!(text.contains("`model.norm.weight`"), "{text}");
        assert!(text.contains("holds NaN"), "{text}");
    }
}

#[test]
fn evaluate_refuses_a_tokenizer_larger_than_the_embedding() {
    let out = TempDir::new().unwrap();
    let tokenizer = root().join("recipes/quickstart/base/tokenizer.json");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(
            root().join("fixtures/llama").join(name),
            out.path().join(name),
        )
        .unwrap();
    }
    fs::copy(tokenizer, out.path().join("tokenizer.json")).unwrap();
    let config = root().join("recipes/quickstart/base/tokenizer_config.json");
    fs::copy(config, out.path().join("tokenizer_config.json")).unwrap();
    let model = out.path().to_str().unwrap();
    let output = olora(&[
        "evaluate",
        "--model",
        model,
        "--data",
        "recipes/quickstart/valid.jsonl",
    ]);
    let text = refused(&output, 1);
    assert!(
        text.contains("1024 tokens") && text.contains("64 rows"),
        "{text}"
    );
}

#[test]
fn the_doctor_finds_the_cpu_right() {
    let output = olora(&["doctor", "--device", "cpu", "--lengths", "7,33"]);
    let table = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{table}{}", stderr(&output));
    for (operation, dtype) in [
        ("attention, window", "float32"),
        ("cast", "bfloat16"),
        ("training", "float16"),
    ] {
        let line = table
            .lines()
            .find(|line| line.contains(operation) && line.contains(dtype))
            .unwrap_or_else(|| panic!("{operation} in {dtype}: {table}"));
        assert!(line.trim_end().ends_with("right"), "{line}");
    }
    assert!(
        table.contains("its half precision rounds as expected"),
        "{table}"
    );

    let json = olora(&["doctor", "--device", "cpu", "--lengths", "7", "--json"]);
    let json = stdout(&json);
    let reports: Value = serde_json::from_str(json.lines().last().unwrap()).unwrap();
    assert_eq!(reports[0]["device"], "cpu");
    assert_eq!(reports[0]["good"], true);
}

#[test]
fn options_that_a_device_has_no_use_for_are_refused() {
    let cases = [
        (
            &["doctor", "--device", "tpu"][..],
            "there is no device `tpu`",
        ),
        (&["doctor", "--lengths", "0"], "between 1 and"),
        (
            &[
                "generate",
                "--model",
                "recipes/quickstart/base",
                "--prompt",
                "x",
                "--no-fusion",
            ],
            "--no-fusion has no use with `cpu`",
        ),
        (
            &[
                "generate",
                "--model",
                "recipes/quickstart/base",
                "--prompt",
                "x",
                "--no-autotune",
            ],
            "--no-autotune has no use with `cpu`",
        ),
        (
            &["doctor", "--device", "cpu", "--autotune"],
            "--autotune has no use with `cpu`",
        ),
        (
            &["inspect", "model", "recipes/quickstart/base", "--no-fusion"],
            "unexpected argument '--no-fusion'",
        ),
        (
            &["train", "recipes/quickstart.toml", "--no-check"],
            "--no-check has no use on the CPU",
        ),
    ];
    for (arguments, expected) in cases {
        let text = refused(&olora(arguments), 2);
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
}

#[test]
fn devices_are_described_for_scripts_too() {
    let output = olora(&["devices", "--json"]);
    let backends: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let cpu = &backends[0];
    assert_eq!(
        (&cpu["backend"], &cpu["compiled_in"]),
        (&"cpu".into(), &true.into())
    );
    let dtypes = cpu["devices"][0]["dtypes"].as_array().unwrap();
    assert_eq!(dtypes.len(), 3);
    assert_eq!(cpu["devices"][0]["accelerator"], false);
}

fn planned(out: &TempDir, overrides: &[&str]) -> Value {
    let directory = format!("output.directory=\"{}\"", out.path().display());
    let mut arguments = vec![
        "plan",
        "recipes/quickstart.toml",
        "--json",
        "--set",
        &directory,
    ];
    arguments.extend(overrides);
    let output = olora(&arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

#[test]
fn plan_says_what_a_run_takes_and_writes_nothing() {
    let out = TempDir::new().unwrap();
    let tried = planned(&out, &[]);
    let computed = planned(&out, &["--no-probe"]);
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    assert!(computed["probe"].is_null());
    assert!(tried["probe"]["train_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(tried["peak_memory"], computed["peak_memory"]);
    // Counted from shapes, against what the run itself counts.
    let output = train(&out, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let summary = fs::read(out.path().join("quickstart/summary.json")).unwrap();
    let summary: Value = serde_json::from_slice(&summary).unwrap();
    for key in ["n_params", "n_trained_params"] {
        assert_eq!(computed[key], summary[key], "{key}");
    }
}

#[test]
fn recomputing_blocks_needs_less_memory_and_gives_the_same_losses() {
    let activations = |recompute: &str| {
        let out = TempDir::new().unwrap();
        let setting = format!("training.recompute=\"{recompute}\"");
        let plan = planned(&out, &["--no-probe", "--set", &setting]);
        let output = train(&out, &[&setting]);
        assert!(output.status.success(), "{}", stderr(&output));
        let metrics = fs::read_to_string(out.path().join("quickstart/metrics.jsonl")).unwrap();
        let losses: Vec<f64> = metrics
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64())
            .collect();
        assert!(!losses.is_empty());
        (plan["memory"]["activations"].as_u64().unwrap(), losses)
    };
    let (whole, blocks) = (activations("none"), activations("blocks"));
    assert!(blocks.0 < whole.0, "{} {}", blocks.0, whole.0);
    assert_eq!(whole.1, blocks.1);
}

#[test]
fn packed_rows_train() {
    let out = TempDir::new().unwrap();
    let output = train(
        &out,
        &[
            "data.packing=true",
            "data.max_length=128",
            "training.batch_size=2",
        ],
    );
    let text = stderr(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("validation loss"), "{text}");
}
