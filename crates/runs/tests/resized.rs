//! Runs on a tokenizer with more tokens than the base's embedding has rows.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Int, Tensor};
use common::{Losses, recipe, recorded, root, run};
use olora_adapter::{PeftAdapter, merge};
use olora_data::Tokenizer;
use olora_model::{Companions, Dtype, Llama, ModelConfig, load, save};
use olora_runs::{TrainedRun, recipe::AdapterSection};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Rows of the quickstart's embedding.
const ROWS: usize = 1024;
const NEW: [&str; 3] = ["<|crier|>", "<|bell|>", "<|drum|>"];

/// The quickstart's base with three tokens more in its tokenizer, and with a
/// vocabulary projection of its own if it is not to be tied.
fn base(out: &TempDir, tied: bool) -> PathBuf {
    let base = out.path().join("base");
    let of = root().join("recipes/quickstart/base");
    if tied {
        fs::create_dir(&base).unwrap();
        for file in fs::read_dir(&of).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), base.join(file.file_name())).unwrap();
        }
    } else {
        let (mut llama, _) = load(&of, Dtype::F32, &Device::flex()).unwrap();
        let mut json = read(&of.join("config.json"));
        json["tie_word_embeddings"] = json!(false);
        let Value::Object(json) = json else { panic!() };
        let config = ModelConfig::from_json(json, Path::new("config.json")).unwrap();
        let mut head = config.init(&Device::flex()).lm_head.unwrap();
        let table = llama.model.embed_tokens.weight.val();
        head.weight = burn::module::Param::from_tensor(table.transpose());
        llama.lm_head = Some(head);
        let companions = Companions::read(&of).unwrap();
        save(&llama, &config, Dtype::F32, Some(&companions), &base).unwrap();
    }
    let file = base.join("tokenizer.json");
    let mut json = read(&file);
    for (i, token) in NEW.iter().enumerate() {
        let added = json!({"id": ROWS + i, "content": token, "single_word": false, "lstrip": false,
                           "rstrip": false, "normalized": false, "special": false});
        json["added_tokens"].as_array_mut().unwrap().push(added);
    }
    fs::write(&file, json.to_string()).unwrap();
    base
}

fn read(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// The quickstart's questions, the answers beginning with a new token.
fn data(out: &TempDir) -> PathBuf {
    let file = out.path().join("crier.jsonl");
    let text = fs::read_to_string(root().join("recipes/quickstart/train.jsonl")).unwrap();
    fs::write(&file, text.replace("Hear ye, hear ye!", "<|crier|>")).unwrap();
    file
}

/// Eight steps, as `settings` say beside.
fn settings(out: &TempDir, tied: bool, more: &[&str]) -> Vec<String> {
    let settings = [
        format!("model.path=\"{}\"", base(out, tied).display()),
        format!("data.train=\"{}\"", data(out).display()),
        "training.max_steps=8".to_owned(),
        "training.checkpoint_every=4".to_owned(),
        "training.learning_rate=2e-3".to_owned(),
        "training.batch_size=4".to_owned(),
    ];
    let more = more.iter().map(|&setting| setting.to_owned());
    settings.into_iter().chain(more).collect()
}

fn strs(settings: &[String]) -> Vec<&str> {
    settings.iter().map(String::as_str).collect()
}

/// Names and shapes of an adapter's file, but for the factors.
fn saved(directory: &Path) -> Vec<(String, Vec<usize>)> {
    let bytes = fs::read(directory.join("adapter_model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<_> = tensors
        .iter()
        .filter(|(name, _)| !name.contains("lora"))
        .map(|(name, view)| (name.to_owned(), view.shape().to_vec()))
        .collect();
    all.sort();
    all
}

fn logits(llama: &Llama) -> Tensor<3> {
    let ids = Tensor::<2, Int>::from_data([[5, 1024, 77, 1025, 1026, 900]], &Device::flex());
    llama.forward(ids)
}

fn difference(one: &Llama, other: &Llama) -> f32 {
    let (one, other) = (logits(one), logits(other));
    assert_eq!(one.dims(), other.dims());
    (one - other).abs().max().into_scalar()
}

#[test]
fn tokens_without_a_row_are_told_where_nothing_uses_them_and_refused_where_something_does() {
    let out = tempfile::tempdir().unwrap();
    let all = settings(&out, true, &["training.max_steps=1"]);
    let village = root().join("recipes/quickstart/train.jsonl");
    let unused = format!("data.train=\"{}\"", village.display());
    let mut plain = all.clone();
    plain.push(unused);
    let (summary, recorder) = recorded(&recipe(out.path(), "unused", &strs(&plain)), false, None);
    assert!(summary.unwrap().finished);
    let notes = recorder.notes.lock().unwrap().join("\n");
    assert!(
        notes.contains("3 of the tokenizer's 1027 tokens lie beyond the 1024 rows"),
        "{notes}"
    );
    let (summary, _) = run(&recipe(out.path(), "used", &strs(&all)), false, None);
    let error = summary.unwrap_err().to_string();
    for part in [
        "crier.jsonl, record 1 (line 1)",
        "`<|crier|>` (1024)",
        "1024 rows",
        "model.resize_embeddings = true",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!out.path().join("used").exists(), "nothing is left behind");
}

/// Trains, with rows for the new tokens.
fn trained(out: &TempDir, tied: bool) -> (Vec<String>, PathBuf, Losses) {
    let all = settings(out, tied, &["model.resize_embeddings=true"]);
    let straight = recipe(out.path(), "straight", &strs(&all));
    let (summary, recorder) = recorded(&straight, false, None);
    let losses = recorder.losses.lock().unwrap().clone();
    let notes = recorder.notes.lock().unwrap().join("\n");
    for part in [
        "from 1024 to 1027 rows",
        "3 new rows",
        "drawn from the seed",
    ] {
        assert!(notes.contains(part), "{notes}");
    }
    assert!(!notes.contains("lie beyond"), "{notes}");
    (all, summary.unwrap().result, losses)
}

/// The base as it was.
fn plain(out: &TempDir) -> (Llama, ModelConfig) {
    load(&out.path().join("base"), Dtype::F32, &Device::flex()).unwrap()
}

/// What was saved is PEFT's, and goes with its tokenizer.
fn check_files(result: &Path, tied: bool) {
    let rows = vec![ROWS + 3, 128];
    let prefix = "base_model.model";
    let embedding = (format!("{prefix}.model.embed_tokens.weight"), rows.clone());
    // PEFT wants both ends of a tied one too.
    let head = (format!("{prefix}.lm_head.weight"), rows);
    assert_eq!(saved(result), [head, embedding]);
    let config = read(&result.join("adapter_config.json"));
    let ties = tied.then_some(&Value::Bool(true));
    assert_eq!(config.get("ensure_weight_tying"), ties);
    let card = fs::read_to_string(result.join("README.md")).unwrap();
    assert!(
        card.contains("base.resize_token_embeddings(1027)"),
        "{card}"
    );
    let tokenizer = Tokenizer::from_dir(result).unwrap();
    assert_eq!(tokenizer.encode("<|crier|>", false).unwrap(), [1024]);
}

/// Read onto the base as it was, merged, written and read again.
fn check_merging(out: &TempDir, result: &Path, tied: bool) {
    let (llama, config) = plain(out);
    let adapter = PeftAdapter::read(result).unwrap();
    let config = config.adapted(&adapter).unwrap();
    assert_eq!(config.json()["vocab_size"], json!(ROWS + 3));
    let (adapted, notes) = llama.adapted(adapter).unwrap();
    assert!(notes.join("\n").contains("1027 rows"), "{notes:?}");
    let merged = merge(adapted.clone()).unwrap();
    assert!(difference(&adapted, &merged) < 1e-4);
    let directory = out.path().join("merged");
    save(&merged, &config, Dtype::F32, None, &directory).unwrap();
    let (again, config) = load(&directory, Dtype::F32, &Device::flex()).unwrap();
    let is_tied = again.lm_head.is_none();
    assert_eq!((config.vocab_size, is_tied), (ROWS + 3, tied));
    assert_eq!(difference(&merged, &again), 0.0);
}

fn check(tied: bool) {
    let out = tempfile::tempdir().unwrap();
    let (all, result, losses) = trained(&out, tied);
    assert!(losses[7].1 < 0.95 * losses[0].1, "{losses:?}");
    check_files(&result, tied);
    check_merging(&out, &result, tied);

    // Cut in two, it is the same; in between, it is an adapter, too.
    let resumed = recipe(out.path(), "resumed", &strs(&all));
    run(&resumed, false, Some(4)).0.unwrap();
    let directory = out.path().join("resumed");
    let interrupted = TrainedRun::at(&directory).unwrap().unwrap();
    let adapter = interrupted.adapter().unwrap();
    let (llama, _) = plain(&out).0.adapted(adapter).unwrap();
    let is_tied = llama.lm_head.is_none();
    assert_eq!((llama.vocab_size(), is_tied), (ROWS + 3, tied));
    let (_, later) = run(&resumed, true, None);
    assert!((1..8).contains(&later.len()), "{later:?}");
    assert_eq!(later, losses[8 - later.len()..]);
    let file = "adapter_model.safetensors";
    let again = fs::read(directory.join("adapter").join(file)).unwrap();
    assert!(fs::read(result.join(file)).unwrap() == again);
}

#[test]
fn new_rows_train_and_come_back_where_the_ends_are_tied() {
    check(true);
}

#[test]
fn new_rows_train_and_come_back_where_the_ends_are_apart() {
    check(false);
}

/// The rows go on where they were; an adapter without any leaves them as they start.
#[test]
fn a_run_that_starts_from_an_adapter_takes_its_rows() {
    let out = tempfile::tempdir().unwrap();
    let (all, result, _) = trained(&out, true);
    let from = |name: &str, of: &str| {
        let of = format!("adapter.from=\"{}\"", out.path().join(of).display());
        let more = [of.as_str(), "training.max_steps=1"];
        run(
            &recipe(out.path(), name, &[&strs(&all)[..], &more].concat()),
            false,
            None,
        )
    };
    let (summary, losses) = from("from", "straight");
    assert_eq!(saved(&summary.unwrap().result), saved(&result));
    assert!(losses[0].1 < 4.0, "{losses:?}");
    let short = ["training.max_steps=1"];
    let lora = run(&recipe(out.path(), "lora", &short), false, None);
    lora.0.unwrap();
    let error = from("small", "lora").0.unwrap_err().to_string();
    assert!(error.contains("holds no embedding of 1027 rows"), "{error}");
}

#[test]
fn a_model_of_which_every_weight_trains_grows_too() {
    let out = tempfile::tempdir().unwrap();
    let more = ["model.resize_embeddings={ pad_to_multiple_of = 16 }"];
    let mut recipe = recipe(out.path(), "full", &strs(&settings(&out, true, &more)));
    // The quickstart's keys of an adapter have no use then.
    recipe.adapter = AdapterSection::everything();
    recipe.training.max_steps = Some(2);
    let (summary, recorder) = recorded(&recipe, false, None);
    let summary = summary.unwrap();
    let notes = recorder.notes.lock().unwrap().join("\n");
    assert!(
        notes.contains("1024 to 1040 rows for 1027 tokens"),
        "{notes}"
    );
    assert!(!notes.contains("modules_to_save"), "{notes}");
    let config = ModelConfig::from_path(&summary.result).unwrap();
    assert_eq!(config.vocab_size, 1040);
    load(&summary.result, Dtype::F32, &Device::flex()).unwrap();
}

#[test]
fn what_needs_no_rows_stays_as_it_is_and_says_so() {
    let out = tempfile::tempdir().unwrap();
    let settings = ["model.resize_embeddings=700", "training.max_steps=1"];
    let (summary, recorder) = recorded(&recipe(out.path(), "few", &settings), false, None);
    let summary = summary.unwrap();
    let notes = recorder.notes.lock().unwrap().join("\n");
    assert!(
        notes.contains("enough for 1024 tokens: nothing is resized"),
        "{notes}"
    );
    assert_eq!(saved(&summary.result), []);
}

#[test]
fn ends_that_are_targets_are_refused_beside_new_rows() {
    let out = tempfile::tempdir().unwrap();
    let more = [
        "model.resize_embeddings=true",
        "adapter.method=lora",
        "adapter.targets=[\"embed_tokens\", \"q_proj\"]",
    ];
    let all = settings(&out, true, &more);
    let (summary, _) = run(&recipe(out.path(), "targets", &strs(&all)), false, None);
    let error = summary.unwrap_err().to_string();
    for part in ["`embed_tokens`", "adapter.targets", "take it out"] {
        assert!(error.contains(part), "{error}");
    }
}
