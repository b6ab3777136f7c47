//! `olora push`, as a person meets it, with the hub's server of its own tests.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;
#[path = "../../hub/tests/upload_hub/mod.rs"]
mod upload_hub;

use std::{fs, path::Path, process::Output};

use assert_cmd::Command;
use common::{olora, refused, root, stderr, stdout, train};
use upload_hub::{Hub, NAME, TOKEN};

const ADAPTER: &str = "fixtures/peft/train-lora/final";

fn push(arguments: &[&str], hub: &Hub, home: &Path) -> Output {
    Command::cargo_bin("olora")
        .unwrap()
        .current_dir(root())
        .env("HF_ENDPOINT", &hub.endpoint)
        .env("HF_HOME", home)
        .env("OLORA_CACHE", home)
        .env("HF_TOKEN", TOKEN)
        .env_remove("HF_HUB_OFFLINE")
        .arg("push")
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn an_adapter_is_listed_sent_and_found_to_be_there() {
    let (hub, home) = (Hub::start(), tempfile::tempdir().unwrap());
    let list = |output: &Output| {
        let text = stdout(output);
        let names = text.lines().map(|line| line.split("  ").next().unwrap());
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    let dry = push(&[ADAPTER, NAME, "--dry-run"], &hub, home.path());
    assert!(dry.status.success(), "{}", stderr(&dry));
    assert!(
        stderr(&dry).contains("nothing was sent"),
        "{}",
        stderr(&dry)
    );
    assert!(hub.requests().is_empty());
    // A base that is a path of this machine is warned of.
    let copy = home.path().join("adapter");
    fs::create_dir(&copy).unwrap();
    let config = fs::read(root().join(ADAPTER).join("adapter_config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    for (base, warned) in [("/models/base", true), ("owner/base", false)] {
        config["base_model_name_or_path"] = base.into();
        fs::write(copy.join("adapter_config.json"), config.to_string()).unwrap();
        let dry = push(
            &[copy.to_str().unwrap(), NAME, "--dry-run"],
            &hub,
            home.path(),
        );
        assert_eq!(
            stderr(&dry).contains("names the base by a path"),
            warned,
            "{base}"
        );
    }

    let output = push(&[ADAPTER, NAME], &hub, home.path());
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("made owner/name, private"), "{said}");
    assert!(said.contains("/commit/") && !said.contains(TOKEN), "{said}");
    let sent: Vec<String> = hub.files().into_keys().collect();
    assert_eq!(sent, list(&output));
    assert_eq!(sent, list(&dry));

    let again = push(&[ADAPTER, NAME], &hub, home.path());
    assert!(
        stderr(&again).contains("nothing to do"),
        "{}",
        stderr(&again)
    );
}

/// Only of a run that is finished is it clear what is meant, and no directory of
/// a run is sent as it is.
#[test]
fn a_finished_run_is_its_adapter_and_others_are_refused() {
    let (hub, home) = (Hub::start(), tempfile::tempdir().unwrap());
    let out = tempfile::tempdir().unwrap();
    let output = train(&out, &["training.checkpoint_every=1"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let run = out.path().join("quickstart");
    let dry = |path: &Path| {
        push(
            &[path.to_str().unwrap(), NAME, "--dry-run"],
            &hub,
            home.path(),
        )
    };
    let output = dry(&run);
    let listed = stdout(&output);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(listed.contains("adapter_model.safetensors"), "{listed}");
    assert!(!listed.contains("recipe.toml"), "{listed}");
    let checkpoint = run.join("checkpoints/step-000002");
    let refused_with = |path: &Path, what: &str| {
        let text = refused(&dry(path), 1);
        assert!(text.contains(what), "{text}");
        let command = format!("olora convert {} --output DIR", path.display());
        assert!(text.contains(&command), "{text}");
    };
    refused_with(&checkpoint, "a checkpoint of a run");
    fs::remove_file(run.join("summary.json")).unwrap();
    refused_with(&run, "has not finished");
    fs::remove_dir_all(run.join("adapter")).unwrap();
    refused_with(&run, "has not finished");
}

#[test]
fn what_stands_for_a_file_is_not_sent_in_its_place() {
    let (hub, home) = (Hub::start(), tempfile::tempdir().unwrap());
    let model = home.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::write(model.join("config.json"), "{}").unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4096\n";
    fs::write(model.join("model.safetensors"), pointer).unwrap();
    let output = push(&[model.to_str().unwrap(), NAME], &hub, home.path());
    let text = refused(&output, 1);
    assert!(
        text.contains("model.safetensors") && text.contains("git lfs pull"),
        "{text}"
    );
    assert!(hub.requests().is_empty());
}

#[test]
fn a_push_that_cannot_be_is_refused() {
    let hub = Hub::start();
    let home = tempfile::tempdir().unwrap();
    let text = refused(
        &push(&[ADAPTER, NAME, "--message", " "], &hub, home.path()),
        2,
    );
    assert!(text.contains("--message is empty"), "{text}");
    for (arguments, expected) in [
        (&[ADAPTER, "name"][..], "owner/name"),
        (&["no/such/place", NAME], "no/such/place"),
        (
            &[ADAPTER, NAME, "--branch", "other"],
            "no such repository or branch",
        ),
    ] {
        let output = push(arguments, &hub, home.path());
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
    assert!(hub.files().is_empty());
    let offline = olora(&["push", ADAPTER, NAME]);
    assert!(!offline.status.success());
    assert!(
        stderr(&offline).contains("HF_HUB_OFFLINE"),
        "{}",
        stderr(&offline)
    );
}
