//! A Burn module that is no language model: its files, and what is said of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{fs, path::Path};

use burn::{module::Module, tensor::Device};
use common::{Toy, config, silent};
use olora_adapter::{
    AdapterConfig, CONFIG_FILE, PeftAdapter, PeftForm, Placement, TaskType, WriteOptions, attach,
    is_saved_with, save_peft, summary,
};
use serde_json::Value;

fn adapted(config: &AdapterConfig) -> Toy {
    let toy = Toy::new(6, 8, 4, &Device::flex());
    attach(toy, config, 1, &mut silent()).unwrap()
}

fn json(directory: &Path) -> Value {
    serde_json::from_slice(&fs::read(directory.join(CONFIG_FILE)).unwrap()).unwrap()
}

#[test]
fn a_module_of_ones_own_has_no_task_type_and_a_language_model_has() {
    let config = config(2, 2.0);
    for (task, written) in [
        (None, Value::Null),
        (Some(TaskType::CausalLm), "CAUSAL_LM".into()),
        (Some(TaskType::SequenceClassification), "SEQ_CLS".into()),
    ] {
        let out = tempfile::tempdir().unwrap();
        let model = adapted(&config);
        save_peft(&model, &config, PeftForm::Plain, task, "mine", out.path()).unwrap();
        assert_eq!(json(out.path())["task_type"], written);
    }
}

#[test]
fn the_task_type_of_a_file_is_kept() {
    let config = config(2, 2.0);
    let out = tempfile::tempdir().unwrap();
    let model = adapted(&config);
    save_peft(&model, &config, PeftForm::Plain, None, "mine", out.path()).unwrap();
    let mut json_file = json(out.path());
    for task in [
        Value::Null,
        "CAUSAL_LM".into(),
        "SEQ_2_SEQ_LM".into(),
        "SEQ_CLS".into(),
        "TOKEN_CLS".into(),
        "QUESTION_ANS".into(),
        "FEATURE_EXTRACTION".into(),
        "SOMETHING_NEW".into(),
    ] {
        json_file["task_type"] = task.clone();
        let file = out.path().join(CONFIG_FILE);
        fs::write(&file, serde_json::to_vec(&json_file).unwrap()).unwrap();
        let read = PeftAdapter::read(out.path()).unwrap();
        let known = !matches!(read.task, Some(TaskType::Other(_)));
        assert_eq!(known, task != "SOMETHING_NEW");
        let again = tempfile::tempdir().unwrap();
        read.write(again.path(), &WriteOptions::default()).unwrap();
        assert_eq!(json(again.path())["task_type"], task);
    }
    // As does a configuration that says nothing of it.
    json_file.as_object_mut().unwrap().remove("task_type");
    fs::write(
        out.path().join(CONFIG_FILE),
        serde_json::to_vec(&json_file).unwrap(),
    )
    .unwrap();
    assert_eq!(PeftAdapter::read(out.path()).unwrap().task, None);
}

#[test]
fn a_summary_tells_the_layers_and_what_trains() {
    let all = AdapterConfig {
        dora: true,
        placement: Placement::Residual,
        alpha_pattern: [("down".to_owned(), 3.0)].into(),
        modules_to_save: vec!["embed".to_owned()],
        ..config(2, 2.0)
    };
    let model = adapted(&all);
    let expected = "\
layer  weight  rank  scale  start
up     [6, 8]  2     1      residual, DoRA
down   [8, 4]  2     1.5    residual, DoRA
trained whole: embed.weight [11, 6]
130 of 294 parameters train (44.22 %)";
    assert_eq!(summary(&model, &all).unwrap().to_string(), expected);
    // The same while it trains.
    let training = Module::train(model);
    assert_eq!(summary(&training, &all).unwrap().to_string(), expected);

    let embedding = AdapterConfig {
        method: olora_adapter::Method::Lora,
        targets: vec!["embed".to_owned()],
        ..config(2, 4.0)
    };
    assert_eq!(
        summary(&adapted(&embedding), &embedding)
            .unwrap()
            .to_string(),
        "\
layer  weight   rank  scale  start
embed  [11, 6]  2     2      zero, embedding
34 of 188 parameters train (18.09 %)"
    );
    let toy = Toy::new(6, 8, 4, &Device::flex());
    assert_eq!(
        summary(&toy, &embedding).unwrap().to_string(),
        "no adapter\n154 of 154 parameters train (100.00 %)"
    );
}

#[test]
fn a_parameter_is_saved_with_whole_names_of_its_path_only() {
    let path = "model.layers.10.final_norm.weight";
    for module in [
        "model",
        "layers.10",
        "10",
        "final_norm",
        "model.layers.10.final_norm",
        path,
    ] {
        assert!(is_saved_with(path, module), "{module}");
    }
    for module in [
        "norm", "final", "layers.1", "0", "model.10", "", ".", "weight.x",
    ] {
        assert!(!is_saved_with(path, module), "{module}");
    }
}
