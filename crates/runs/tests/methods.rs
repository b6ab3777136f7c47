//! Training by every method: it learns, and a run that was cut in two is the
//! run that was not, bit for bit.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, path::Path};

use burn::tensor::Device;
use common::{recipe, recorded, run};
use olora_adapter::PeftAdapter;
use olora_model::{Dtype, load};

fn adapter(out: &Path, name: &str) -> Vec<u8> {
    fs::read(out.join(name).join("adapter/adapter_model.safetensors")).unwrap()
}

/// Eight steps at once and four by four.
fn check(method: &[&str]) {
    let out = tempfile::tempdir().unwrap();
    let settings = [
        "training.max_steps=8",
        "training.checkpoint_every=4",
        "training.learning_rate=2e-3",
        "training.batch_size=4",
    ];
    let settings = [&settings[..], method].concat();
    let (summary, losses) = run(&recipe(out.path(), "straight", &settings), false, None);
    let summary = summary.unwrap();
    assert!(summary.finished && losses.len() == 8, "{method:?}");
    assert!(
        losses[7].1 < 0.98 * losses[0].1,
        "{method:?} learned nothing: {losses:?}"
    );

    let resumed = recipe(out.path(), "resumed", &settings);
    run(&resumed, false, None).0.unwrap();
    let directory = out.path().join("resumed");
    fs::remove_dir_all(directory.join("checkpoints/step-000008")).unwrap();
    fs::remove_dir_all(directory.join("adapter")).unwrap();
    fs::remove_file(directory.join("summary.json")).unwrap();
    let (_, later) = run(&resumed, true, None);
    assert_eq!(later, losses[4..], "{method:?}");
    assert!(
        adapter(out.path(), "resumed") == adapter(out.path(), "straight"),
        "{method:?}: adapters differ"
    );

    // What was saved is an adapter for the base, with a card beside it.
    let saved = PeftAdapter::read(&summary.result).unwrap();
    assert!(saved.base_fingerprint.is_some());
    let (base, _) = load(
        &common::root().join("recipes/quickstart/base"),
        Dtype::F32,
        &Device::flex(),
    )
    .unwrap();
    saved.attach(base).unwrap();
    let card = fs::read_to_string(summary.result.join("README.md")).unwrap();
    assert!(
        card.starts_with("---\nbase_model:") && card.contains("train.jsonl"),
        "{card}"
    );
}

macro_rules! methods {
    ($($name:ident: $settings:expr;)*) => {
        $(
            #[test]
            fn $name() {
                check(&$settings);
            }
        )*
    };
}

methods! {
    lora: ["adapter.method=lora"];
    lora_gaussian: ["adapter.method=lora-gaussian"];
    lora_orthogonal: ["adapter.method=lora-orthogonal"];
    olora: ["adapter.method=olora"];
    olora_tail: ["adapter.method=olora-tail"];
    pissa: ["adapter.method=pissa"];
    pissa_residual: ["adapter.method=pissa", "adapter.placement=residual"];
    pissa_randomised: ["adapter.method=pissa", "adapter.iterations=4"];
    milora: ["adapter.method=milora"];
    eva: ["adapter.method=eva"];
    olora_gradient: ["adapter.method=olora-gradient"];
    olora_gradient_shorter_of_two_batches_under_dora: [
        "adapter.method=olora-gradient",
        "adapter.gradient_batches=2",
        "adapter.gradient_scale=0.5",
        "adapter.dora=true",
    ];
    lora_gradient: ["adapter.method=lora-gradient"];
    rank_stabilised: ["adapter.method=olora", "adapter.rslora=true", "adapter.alpha=2.0"];
    dora: ["adapter.method=lora", "adapter.dora=true"];
    dora_on_olora_with_dropout: ["adapter.dora=true", "adapter.dropout=0.1"];
    lora_plus: ["adapter.method=lora", "training.loraplus_ratio=4.0"];
    patterns_and_layers: [
        "adapter.rank_pattern={ q_proj = 2 }",
        "adapter.alpha_pattern={ v_proj = 9.0 }",
        "adapter.layers=[0]",
    ];
    modules_that_train_whole: [
        "adapter.targets=[\"q_proj\", \"down_proj\"]",
        "adapter.modules_to_save=[\"model.norm\"]",
    ];
    an_embedding: [
        "adapter.method=lora",
        "adapter.targets=[\"embed_tokens\", \"q_proj\", \"up_proj\", \"down_proj\"]",
    ];
}

#[test]
fn anchored_and_residual_train_the_same_function_by_every_method_that_has_both() {
    let out = tempfile::tempdir().unwrap();
    let losses = |method: &str, placement: &str, more: &[&str]| {
        let settings = [
            &format!("adapter.method={method}"),
            &format!("adapter.placement={placement}"),
            "training.max_steps=8",
            "training.checkpoint_every=0",
            "training.learning_rate=5e-4",
        ];
        let settings = [&settings[..], more].concat();
        let name = format!("{method}-{placement}-{}", more.len());
        let (summary, losses) = run(&recipe(out.path(), &name, &settings), false, None);
        summary.unwrap();
        losses
    };
    for (method, more) in [
        ("olora", &["adapter.dora=true"][..]),
        ("olora-tail", &[]),
        ("pissa", &[]),
        ("milora", &[]),
    ] {
        let anchored = losses(method, "anchored", more);
        let residual = losses(method, "residual", more);
        assert_eq!(anchored.len(), 8);
        for ((step, a), (_, r)) in anchored.iter().zip(&residual) {
            assert!(
                (a - r).abs() < 1e-4,
                "{method}, step {step}: anchored {a}, residual {r}"
            );
        }
    }
}

#[test]
fn evas_ranks_do_not_depend_on_padding() {
    let out = tempfile::tempdir().unwrap();
    let ranks = |multiple: usize| {
        let padding = format!("training.pad_to_multiple_of={multiple}");
        let name = format!("padded-{multiple}");

        let settings = ["adapter.method=eva", "training.max_steps=3", &padding];
        run(&recipe(out.path(), &name, &settings), false, None)
            .0
            .unwrap();
        let file = out.path().join(&name).join("ranks.json");
        let json = fs::read_to_string(file).unwrap();
        serde_json::from_str::<std::collections::BTreeMap<String, usize>>(&json).unwrap()
    };
    let plain = ranks(1);
    assert!(
        plain
            .values()
            .any(|rank| *rank != plain["model.layers.0.mlp.up_proj"])
    );
    assert_eq!(ranks(64), plain);
}

/// One row of 64 inputs has 64 targets too, padding included in both: as many
/// rows reach the blocks as the loss picks for the projection behind them.
#[test]
fn evas_directions_do_not_depend_on_padding_where_it_makes_inputs_and_targets_as_many() {
    let out = tempfile::tempdir().unwrap();
    let directions = |multiple: usize| {
        let padding = format!("training.pad_to_multiple_of={multiple}");
        // So small a step that the factors stay where they start.
        let settings = [
            "adapter.method=eva",
            "adapter.rank=2",
            "adapter.targets=[\"layers.0.self_attn.q_proj\"]",
            "training.batch_size=1",
            "training.max_steps=1",
            "training.warmup_steps=0",
            "training.learning_rate=1e-30",
            &padding,
        ];
        let name = format!("padded-{multiple}");
        let summary = run(&recipe(out.path(), &name, &settings), false, None).0;
        let adapter = PeftAdapter::read(&summary.unwrap().result).unwrap();
        let layers = adapter.plain_layers("a test").unwrap();
        layers[0].a.to_vec()
    };
    let (plain, padded) = (directions(1), directions(64));
    assert_eq!(plain.len(), padded.len());
    let apart = plain.iter().zip(&padded).map(|(a, b)| (a - b).abs());
    let apart = apart.fold(0.0, f32::max);
    assert!(apart < 1e-3, "{apart}");
}

#[test]
fn an_adapter_that_has_not_moved_is_reported() {
    let out = tempfile::tempdir().unwrap();
    // So small a step that no factor changes in f32.
    let settings = [
        "training.max_steps=2",
        "training.learning_rate=1e-30",
        "adapter.method=olora",
    ];
    let (summary, recorder) = recorded(&recipe(out.path(), "still", &settings), false, None);
    summary.unwrap();
    let notes = recorder.notes.lock().unwrap();
    assert!(
        notes.iter().any(|note| note.contains("changes nothing")),
        "{notes:?}"
    );
}
