//! The binary on a GPU, or on Debian's software Vulkan where there is none:
//!
//! ```text
//! cargo test --release --workspace --features olora/wgpu,olora/test-hooks --test gpu -- --test-threads=1
//! ```
//!
//! CI has `--profile quick` in the place of `--release`, which takes half an hour to compile there.
//! The device is `wgpu` unless `OLORA_TEST_DEVICE` names another, which is then examined at all of
//! the doctor's lengths.

#![cfg(all(feature = "wgpu", feature = "test-hooks"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

fn olora() -> Command {
    let mut command = Command::cargo_bin("olora").unwrap();
    command.current_dir(root());
    command
}

fn device() -> String {
    std::env::var("OLORA_TEST_DEVICE").unwrap_or_else(|_| "wgpu".to_owned())
}

/// The lengths to examine at: all, or one where a software rasteriser would take minutes for each
/// other. What is examined with an operation broken is of another length.
fn lengths() -> &'static [&'static str] {
    if std::env::var_os("OLORA_TEST_DEVICE").is_some() {
        &[]
    } else {
        &["--lengths", "129"]
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The quickstart on a device, with two records to evaluate on and no samples,
/// which cost a software rasteriser most of the time.
fn quickstart(out: &TempDir, device: &str, settings: &[&str]) -> Command {
    let valid = fs::read_to_string(root().join("recipes/quickstart/valid.jsonl")).unwrap();
    let two: Vec<_> = valid.lines().take(2).collect();
    let validation = out.path().join("two.jsonl");
    fs::write(&validation, two.join("\n")).unwrap();
    let mut command = olora();
    command.args(["train", "recipes/quickstart.toml", "--device", device]);
    let paths = [
        format!("output.directory=\"{}\"", out.path().display()),
        format!("data.validation=\"{}\"", validation.display()),
        "samples.prompts=[]".to_owned(),
        "training.checkpoint_every=4".to_owned(),
    ];
    for setting in paths
        .iter()
        .map(String::as_str)
        .chain(settings.iter().copied())
    {
        command.args(["--set", setting]);
    }
    command
}

fn losses(run: &Path) -> Vec<f64> {
    fs::read_to_string(run.join("metrics.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter_map(|line| line["loss"].as_f64())
        .collect()
}

#[test]
fn the_doctor_finds_the_device_right_with_fusion_and_without() {
    let output = olora()
        .args(["doctor", "--json", "--device", &device()])
        .args(lengths())
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let told = text(&output.stdout);
    let reports: Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    let report = &reports[0];
    assert_eq!(report["good"], true);
    let examinations = report["examinations"].as_array().unwrap();
    let fusion: Vec<_> = examinations
        .iter()
        .map(|examination| examination["fusion"].as_bool().unwrap())
        .collect();
    assert_eq!(fusion, [true, false]);
    for examination in examinations {
        let findings = examination["findings"].as_array().unwrap();
        assert_eq!(examination["planned"], findings.len());
        let model = findings
            .iter()
            .find(|f| f["operation"] == "model" && f["dtype"] == "float32")
            .unwrap();
        // Another device adds in another order: not a single difference would mean that the CPU
        // was compared with itself.
        let worst = model["worst"].as_f64().unwrap();
        assert!(worst > 0.0 && worst < 1e-2, "{worst}");
    }
}

#[test]
fn the_doctor_names_a_broken_operation() {
    let output = olora()
        .args(["doctor", "--device", &device(), "--lengths", "7"])
        .args(["--break", "rotary"])
        .output()
        .unwrap();
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{table}");
    let wrong: Vec<_> = table
        .lines()
        .filter(|line| line.contains("WRONG") && line.contains("float32"))
        .collect();
    assert_eq!(wrong.len(), 1, "{table}");
    assert!(wrong[0].contains("rotary"), "{table}");
    assert!(table.contains("no setting mends it"), "{table}");
}

#[test]
fn the_quickstart_gives_the_cpu_s_losses() {
    let out = TempDir::new().unwrap();
    let ten_steps = |device: &str, name: &str| {
        let name = format!("name={name}");
        let settings = ["training.max_steps=10", "training.log_every=1", &name];
        quickstart(&out, device, &settings).output().unwrap()
    };
    let output = ten_steps("cpu", "cpu");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let expected = losses(&out.path().join("cpu"));
    assert_eq!(expected.len(), 10);

    let output = ten_steps(&device(), "gpu");
    let run = out.path().join("gpu");
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("device check: loss and gradients in float32"),
        "{said}"
    );
    for (step, (found, expected)) in losses(&run).iter().zip(&expected).enumerate() {
        assert!(
            (found - expected).abs() < 2e-3 * expected,
            "step {}: {found}, on the CPU {expected}",
            step + 1
        );
    }
    let summary: Value =
        serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap();
    assert!(summary["peak_device_memory"].as_u64().unwrap() > 0);
    assert!(summary["first_step_seconds"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_device_lost_in_mid_run_leaves_the_last_checkpoint_whole() {
    let out = TempDir::new().unwrap();
    let settings = ["training.max_steps=8", "training.batch_size=2"];
    let run = || {
        let mut command = quickstart(&out, &device(), &settings);
        command.arg("--no-check");
        command
    };
    let output = run()
        .env("OLORA_TEST_LOSE_DEVICE_AT", "6")
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("by step 6 the device failed"), "{said}");
    assert!(said.contains("step-000004"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    let output = run().arg("--resume").output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn what_does_not_fit_is_told_with_its_size_and_what_to_lower() {
    let out = TempDir::new().unwrap();
    // One tensor of half a million rows is more than a buffer may hold.
    let settings = [
        "training.max_steps=1",
        "training.batch_size=3416",
        "data.train=\"recipes/quickstart/base-train.jsonl\"",
    ];
    let output = quickstart(&out, &device(), &settings)
        .arg("--no-check")
        .output()
        .unwrap();
    let run = out.path().join("quickstart");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in [
        "the device is out of memory",
        "By estimate this run takes",
        "training.batch_size",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!run.join("adapter").exists());
}
