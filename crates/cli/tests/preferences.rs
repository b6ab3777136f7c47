//! Pairs of answers on the command line: trained on, looked at, evaluated.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use common::{olora, refused, stderr, stdout};
use serde_json::Value;

const BASE: &str = "recipes/quickstart/base";
const PAIRS: &str = "recipes/quickstart/pairs-valid.jsonl";

fn json(arguments: &[&str]) -> Value {
    let output = olora(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

#[test]
fn pairs_are_trained_on_inspected_and_evaluated() {
    let out = tempfile::tempdir().unwrap();
    let directory = format!("output.directory=\"{}\"", out.path().display());
    let output = olora(&[
        "train",
        "recipes/quickstart-dpo.toml",
        "--set",
        &directory,
        "--set",
        "training.max_steps=3",
        "--set",
        "training.log_every=1",
        "--set",
        "samples.prompts=[]",
    ]);
    let told = stderr(&output);
    assert!(output.status.success(), "{told}");
    for part in [
        "448 records of chosen and rejected, no template: 896 answers of",
        "plan: 3 steps of 16 pairs",
        "over 448 pairs",
        "step 0: validation loss 2.9",
        ", margin 0.000, accuracy 0.000, chosen 0.000, rejected 0.000, log-likelihoods",
        "validation, after: margin ",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }

    let adapter = out.path().join("quickstart-dpo");
    let adapter = adapter.to_str().unwrap();
    let learnt = json(&["evaluate", "--adapter", adapter, "--data", PAIRS]);
    assert_eq!(
        (&learnt["objective"], &learnt["pairs"]),
        (&"DPO".into(), &112.into())
    );
    assert!(
        learnt["measures"]["rewards/margins"].as_f64().unwrap() > 0.0,
        "{learnt}"
    );
    // Compared with itself, nothing has been learnt.
    let itself = json(&[
        "evaluate",
        "--adapter",
        adapter,
        "--reference",
        adapter,
        "--data",
        PAIRS,
    ]);
    let base = json(&["evaluate", "--model", BASE, "--data", PAIRS]);
    for found in [&itself, &base] {
        assert_eq!(found["measures"]["rewards/margins"], 0.0, "{found}");
        assert_eq!(found["measures"]["rewards/chosen"], 0.0, "{found}");
    }
    let likelihood = |of: &Value| of["measures"]["logps/chosen"].as_f64().unwrap();
    assert!(likelihood(&learnt) > likelihood(&base));
    assert_eq!(likelihood(&learnt), likelihood(&itself));

    let kto = ["--set", "objective.method=kto"];
    let taken_apart = json(&[&["evaluate", "--model", BASE, "--data", PAIRS][..], &kto].concat());
    assert_eq!(
        (&taken_apart["objective"], &taken_apart["answers"]),
        (&"KTO".into(), &224.into())
    );
}

#[test]
fn a_pair_is_shown_whole() {
    let output = olora(&["inspect", "data", PAIRS, "--model", BASE]);
    let told = stderr(&output);
    assert!(output.status.success(), "{told}");
    assert!(
        told.contains("note: these are pairs of a chosen and a rejected answer"),
        "{told}"
    );
    assert!(
        told.contains("sample 0 of 224, the chosen answer of a pair"),
        "{told}"
    );
    assert!(
        told.contains("sample 1 of 224, the rejected answer of a pair"),
        "{told}"
    );
    let shown = stdout(&output);
    assert!(shown.contains("⟦ Hear ye, hear ye! "), "{shown}");
    let asked = olora(&[
        "inspect",
        "data",
        PAIRS,
        "--model",
        BASE,
        "--set",
        "objective.method=dpo",
    ]);
    assert!(!stderr(&asked).contains("note:") && stdout(&asked) == shown);
}

#[test]
fn what_has_no_use_is_refused() {
    let evaluate = ["evaluate", "--model", BASE, "--data", PAIRS];
    for (more, message) in [
        (
            &["--train-on-prompt"][..],
            "--train-on-prompt has no use where answers are compared",
        ),
        (
            &["--reference", BASE, "--set", "objective.method=orpo"],
            "--reference is what DPO and KTO compare with",
        ),
        (
            &["--set", "objective.beta=0"],
            "`objective.beta` has no use",
        ),
        (
            &["--set", "objective.method=dpo", "--set", "objective.beta=0"],
            "`objective.beta` is 0",
        ),
    ] {
        let text = refused(&olora(&[&evaluate[..], more].concat()), 2);
        assert!(text.contains(message), "{text}");
    }
}
