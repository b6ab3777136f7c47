//! Every method on a whole model, through everything that can be done with it:
//! the rows and columns of the table in docs/methods.md.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use burn::{
    module::Module,
    tensor::{Device, Int, Tensor, TensorData},
};
use common::{Moved, fixture, floats, host, ids, ints, max_diff};
use olora_adapter::{
    AdapterConfig, AdapterError, Combination, Directions, Method, PeftAdapter, PeftForm, Rows,
    WriteOptions, attach, attach_along, attach_empty, factors, has_moved, merge, without_adapter,
};
use olora_model::{Dtype, Llama, load};

fn base() -> Llama {
    load(&fixture("llama"), Dtype::F32, &Device::flex())
        .unwrap()
        .0
}

fn logits(llama: &Llama) -> Vec<f32> {
    let golden = fixture("llama").join("golden.safetensors");
    host(llama.forward(ids(&golden, "input_ids", &Device::flex())))
}

/// The CPU backend has one random generator per process.
fn alone() -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    let guard = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    Device::flex().seed(3);
    guard
}

/// Moves what trains away from its start, as training would.
fn moved(model: Llama, config: &AdapterConfig) -> Llama {
    model.map(&mut Moved::new(&config.modules_to_save))
}

fn plain(method: Method) -> AdapterConfig {
    AdapterConfig {
        method,
        rank: 4,
        alpha: 6.0,
        exclude: vec!["lm_head".to_owned()],
        ..AdapterConfig::default()
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// The rows of the table in docs/methods.md, with the name of each.
fn rows() -> Vec<(&'static str, AdapterConfig)> {
    let rows = [
        ("lora", plain(Method::Lora)),
        ("lora-gaussian", plain(Method::LoraGaussian)),
        ("lora-orthogonal", plain(Method::LoraOrthogonal)),
        ("olora", plain(Method::Olora)),
        ("olora-tail", plain(Method::OloraTail)),
        ("pissa", plain(Method::Pissa)),
        (
            "pissa, randomised",
            AdapterConfig {
                iterations: Some(4),
                ..plain(Method::Pissa)
            },
        ),
        ("milora", plain(Method::Milora)),
        (
            "lora + rslora",
            AdapterConfig {
                rslora: true,
                ..plain(Method::Lora)
            },
        ),
        (
            "olora + rslora",
            AdapterConfig {
                rslora: true,
                ..plain(Method::Olora)
            },
        ),
        (
            "lora + dora",
            AdapterConfig {
                dora: true,
                ..plain(Method::Lora)
            },
        ),
        (
            "olora + dora",
            AdapterConfig {
                dora: true,
                ..plain(Method::Olora)
            },
        ),
        (
            "patterns, layers",
            AdapterConfig {
                rank_pattern: BTreeMap::from([("q_proj".to_owned(), 2)]),
                alpha_pattern: BTreeMap::from([("model.layers.1.mlp.up_proj".to_owned(), 9.0)]),
                layers: Some(vec![1]),
                ..plain(Method::Olora)
            },
        ),
        (
            "modules_to_save",
            AdapterConfig {
                targets: names(&["q_proj", "down_proj"]),
                exclude: Vec::new(),
                modules_to_save: names(&["lm_head", "model.norm"]),
                ..plain(Method::Olora)
            },
        ),
        (
            "embedding, lm_head",
            AdapterConfig {
                targets: names(&["embed_tokens", "q_proj", "lm_head"]),
                exclude: Vec::new(),
                ..plain(Method::Lora)
            },
        ),
    ];
    rows.into()
}

fn attached(config: &AdapterConfig) -> Llama {
    attach(base(), config, 1, &mut |_, _| {}).unwrap()
}

#[test]
fn initialise_every_method_starts_as_the_base() {
    let expected = logits(&base());
    for (name, config) in rows() {
        let model = attached(&config);
        assert!(!factors(&model).is_empty(), "{name}");
        assert!(
            !has_moved(&model).unwrap() || config.method == Method::LoraOrthogonal,
            "{name}"
        );
        let found = logits(&model);
        if config.method == Method::LoraOrthogonal {
            // Its product is zero up to rounding only, in PEFT too.
            let diff = max_diff(&found, &expected);
            assert!(diff < 1e-5, "{name}: {diff}");
        } else {
            assert_eq!(found, expected, "{name}");
        }
    }
}

#[test]
fn save_and_load_keep_the_function_in_both_forms() {
    let _alone = alone();
    for (name, config) in rows() {
        let model = moved(attached(&config), &config);
        let expected = logits(&model);
        assert!(max_diff(&expected, &logits(&base())) > 0.05, "{name}");
        assert!(has_moved(&model).unwrap(), "{name}");
        for form in [PeftForm::Plain, PeftForm::Native] {
            if form.check(&config).is_err() {
                continue;
            }
            let out = tempfile::tempdir().unwrap();
            let adapter = PeftAdapter::of(&model, &config, form).unwrap();
            adapter.write(out.path(), &WriteOptions::default()).unwrap();
            let read = PeftAdapter::read(out.path()).unwrap();
            assert_eq!(read.config.dora, config.dora, "{name}");
            assert_eq!(read.num_params(), adapter.num_params(), "{name}");
            let loaded = read.attach(base()).unwrap();
            let diff = max_diff(&logits(&loaded), &expected);
            assert!(diff < 1e-4, "{name}, {form:?}: {diff}");
        }
    }
}

#[test]
fn merge_gives_the_same_function_without_an_adapter() {
    let _alone = alone();
    for (name, config) in rows() {
        let model = moved(attached(&config), &config);
        let merged = merge(model.clone()).unwrap();
        assert!(factors(&merged).is_empty());
        let diff = max_diff(&logits(&merged), &logits(&model));
        assert!(diff < 1e-4, "{name}: {diff}");
        if config.modules_to_save.is_empty() {
            let off = without_adapter(model).unwrap();
            assert_eq!(logits(&off), logits(&base()), "{name}");
        }
    }
}

#[test]
fn convert_from_native_to_plain_and_back() {
    let _alone = alone();
    for method in [Method::Olora, Method::Pissa] {
        let config = plain(method);
        let model = moved(attached(&config), &config);
        let expected = logits(&model);
        let native = PeftAdapter::of(&model, &config, PeftForm::Native).unwrap();
        assert!(native.plain_layers("anything").is_err());
        let loaded = native.attach(base()).unwrap();
        let plain = PeftAdapter::of(&loaded, &config, PeftForm::Plain).unwrap();
        assert_eq!(plain.config.rank, 8);
        assert_eq!(plain.plain_layers("anything").unwrap().len(), 14);
        let diff = max_diff(&logits(&plain.clone().attach(base()).unwrap()), &expected);
        assert!(diff < 1e-4, "{method:?}: {diff}");
        let back = plain.clone().into_native(&base(), method).unwrap();
        assert_eq!((back.config.rank, back.config.method), (4, method));
        let diff = max_diff(&logits(&back.attach(base()).unwrap()), &expected);
        assert!(diff < 1e-4, "{method:?}, back: {diff}");

        // The other method's start is not in the file.
        let other = if method == Method::Olora {
            Method::Pissa
        } else {
            Method::Olora
        };
        let error = plain.into_native(&base(), other).unwrap_err().to_string();
        assert!(error.contains("start on this base"), "{error}");
    }
}

#[test]
fn what_plain_lora_cannot_express_is_refused_by_name() {
    let expected = [
        ("lora + dora", "magnitudes"),
        ("modules_to_save", "saved whole"),
        ("embedding, lm_head", "embedding"),
    ];
    for (row, reason) in expected {
        let rows = rows();
        let (_, config) = rows.iter().find(|(name, _)| *name == row).unwrap();
        let adapter = PeftAdapter::of(&attached(config), config, PeftForm::Plain).unwrap();
        let error = adapter
            .plain_layers("a GGUF adapter")
            .unwrap_err()
            .to_string();
        assert!(error.contains(reason) && error.contains("GGUF"), "{error}");
    }
}

#[test]
fn two_adapters_side_by_side_are_the_sum_of_their_updates() {
    let _alone = alone();
    let update = |adapter: PeftAdapter, path: &str| {
        let model = adapter.attach(base()).unwrap();
        let merged = merge(model).unwrap();
        let weight = |model: &Llama| {
            let layers = olora_adapter::linear_layers(model).into_iter();
            let found = layers.into_iter().find(|layer| layer.path == path).unwrap();
            host(found.weight())
        };
        let before = weight(&base());
        let after = weight(&merged).into_iter().zip(before);
        after
            .map(|(after, before)| after - before)
            .collect::<Vec<f32>>()
    };
    let adapter = |config: &AdapterConfig| {
        let model = moved(attached(config), config);
        PeftAdapter::of(&model, config, PeftForm::Plain).unwrap()
    };
    let first = adapter(&plain(Method::Olora));
    let second = adapter(&AdapterConfig {
        rslora: true,
        rank: 2,
        ..plain(Method::Lora)
    });
    let both = vec![(first.clone(), 0.5), (second.clone(), -1.5)];
    let both = PeftAdapter::combined(both, Combination::Cat).unwrap();
    assert_eq!(both.config.rank, 10);
    let path = "model.layers.1.mlp.down_proj";
    let (first, second, both) = (
        update(first, path),
        update(second, path),
        update(both, path),
    );
    let size = first.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
    assert!(size > 0.01, "{size}");
    for ((first, second), both) in first.iter().zip(&second).zip(&both) {
        assert!((0.5 * first - 1.5 * second - both).abs() < 1e-4 * size.max(1.0));
    }
}

#[test]
fn what_a_method_cannot_do_is_refused_by_name() {
    let error = |config: &AdapterConfig| {
        let refused = attach(base(), config, 1, &mut |_, _| {}).map(|_| ());
        refused.unwrap_err().to_string()
    };
    let cases = [
        (
            AdapterConfig {
                targets: names(&["embed_tokens"]),
                exclude: Vec::new(),
                ..plain(Method::Olora)
            },
            "`model.embed_tokens` cannot have `method = \"olora\"`",
        ),
        (
            AdapterConfig {
                targets: names(&["embed_tokens"]),
                exclude: Vec::new(),
                dora: true,
                ..plain(Method::Lora)
            },
            "cannot have `dora`",
        ),
        (
            AdapterConfig {
                layers: Some(vec![0, 2]),
                ..plain(Method::Lora)
            },
            "block 2",
        ),
        (
            AdapterConfig {
                rank_pattern: BTreeMap::from([("lm_head".to_owned(), 2)]),
                ..plain(Method::Lora)
            },
            "`lm_head` in `rank_pattern` names none",
        ),
        (
            AdapterConfig {
                rank_pattern: BTreeMap::from([
                    ("q_proj".to_owned(), 2),
                    ("self_attn.q_proj".to_owned(), 3),
                ]),
                ..plain(Method::Lora)
            },
            "two entries of `rank_pattern`",
        ),
        (
            AdapterConfig {
                modules_to_save: names(&["q_proj"]),
                ..plain(Method::Lora)
            },
            "`modules_to_save`",
        ),
        (
            AdapterConfig {
                modules_to_save: names(&["score"]),
                ..plain(Method::Lora)
            },
            "`score` in `modules_to_save` is no module",
        ),
        (plain(Method::Eva), "pass over data"),
    ];
    for (config, expected) in cases {
        let message = error(&config);
        assert!(message.contains(expected), "{expected}: {message}");
    }
    let form = PeftForm::Native.check(&plain(Method::Milora)).unwrap_err();
    assert!(matches!(form, AdapterError::Impossible { .. }), "{form}");
}

#[test]
fn what_peft_trained_by_every_method_is_read_and_merges() {
    for name in [
        "train-pissa",
        "train-dora",
        "train-dora-olora",
        "train-rslora",
        "train-olora-rslora",
        "train-patterns",
        "train-modules-to-save",
        "train-modules-to-save-norm",
        "train-embedding",
        "train-eva",
        "llama-layers",
    ] {
        let directory = fixture("peft").join(name);
        let file = directory.join("logits.safetensors");
        let expected = floats(&file, "logits").1;
        let input = ids(&file, "input_ids", &Device::flex());
        let mut forms = vec!["final", "converted", ""];
        forms.retain(|form| directory.join(form).join("adapter_config.json").exists());
        assert!(!forms.is_empty(), "{name}");
        for form in forms {
            let adapter = PeftAdapter::read(&directory.join(form)).unwrap();
            assert!(adapter.notes.is_empty(), "{name}: {:?}", adapter.notes);
            let model = adapter.attach(base()).unwrap();
            let diff = max_diff(&host(model.forward(input.clone())), &expected);
            assert!(diff < 1e-4, "{name}/{form}: {diff}");
            let merged = merge(model).unwrap();
            let diff = max_diff(&host(merged.forward(input.clone())), &expected);
            assert!(diff < 1e-4, "{name}/{form}, merged: {diff}");
        }
    }
}

#[test]
fn what_peft_named_by_block_and_exclusion_is_written_layer_by_layer() {
    let directory = fixture("peft/llama-layers");
    let file = directory.join("logits.safetensors");
    let expected = floats(&file, "logits").1;
    let out = tempfile::tempdir().unwrap();
    let adapter = PeftAdapter::read(&directory).unwrap();
    adapter.write(out.path(), &WriteOptions::default()).unwrap();
    let again = PeftAdapter::read(out.path())
        .unwrap()
        .attach(base())
        .unwrap();
    let found = host(again.forward(ids(&file, "input_ids", &Device::flex())));
    assert!(max_diff(&found, &expected) < 1e-4);
}

#[test]
fn an_adapter_that_does_not_fit_itself_is_not_written() {
    let out = tempfile::tempdir().unwrap();
    let from = fixture("peft/train-rslora/final");
    let copied = out.path().join("copied");
    fs::create_dir(&copied).unwrap();
    let tensors = "adapter_model.safetensors";
    fs::copy(from.join(tensors), copied.join(tensors)).unwrap();
    let config = fs::read_to_string(from.join("adapter_config.json")).unwrap();
    let config = config.replace("\"r\": 4", "\"r\": 8");
    fs::write(copied.join("adapter_config.json"), config).unwrap();
    let adapter = PeftAdapter::read(&copied).unwrap();
    let written = out.path().join("written");
    let error = adapter
        .write(&written, &WriteOptions::default())
        .unwrap_err();
    assert!(error.to_string().contains("but its rank is 8"), "{error}");
    assert!(!written.exists());
    assert!(adapter.clone().reduced(2).is_err());
    assert!(PeftAdapter::combined(vec![(adapter, 1.0)], Combination::Cat).is_err());
}

#[test]
fn layers_that_were_found_to_need_no_rank_need_none_in_a_resumed_run() {
    let ranks = BTreeMap::from([("model.layers.0.self_attn.q_proj".to_owned(), 2)]);
    let model = attach_empty(base(), &eva_config(1), &ranks).unwrap();
    let layers = factors(&model);
    assert_eq!(layers.len(), 1);
    assert_eq!(layers[0].a.dims(), [32, 2]);
}

#[test]
fn a_random_start_of_pefts_is_read_with_a_word_of_warning() {
    let adapter = PeftAdapter::read(&fixture("peft").join("llama-pissa-niter")).unwrap();
    assert!(
        adapter.notes[0].contains("pissa_niter_4"),
        "{:?}",
        adapter.notes
    );
    assert!(adapter.attach(base()).is_ok());
}

#[test]
fn an_adapter_that_changes_nothing_says_so() {
    let adapter = PeftAdapter::read(&fixture("peft/train-lora/initial")).unwrap();
    assert!(
        adapter.notes[0].contains("every `lora_B` is zero"),
        "{:?}",
        adapter.notes
    );
}

/// One of PEFT's EVA cases, found by us on the same batches.
fn eva(case: &str, config: &AdapterConfig, rho: f64, tolerance: f32) {
    let batches = fixture("peft/eva").join("batches.safetensors");
    let (shape, tokens) = ints(&batches, "input_ids");
    let [n, rows, seq] = [shape[0], shape[1], shape[2]];
    let mask = ints(&batches, "attention_mask").1;
    let labels = ints(&batches, "labels").1;
    let n_passes = Mutex::new(0);
    let run = |model: &Llama, batch: usize| {
        *n_passes.lock().unwrap() += 1;
        let cells = (batch % n) * rows * seq..(batch % n + 1) * rows * seq;
        let data = TensorData::new(tokens[cells.clone()].to_vec(), [rows, seq]);
        model.forward(Tensor::<2, Int>::from_data(data, &Device::flex()));
        let chosen = mask[cells.clone()].iter().zip(&labels[cells]);
        let counts = chosen.map(|(mask, label)| *mask == 1 && *label != -100);
        let places = counts.enumerate().filter(|(_, counts)| *counts);
        Ok::<_, AdapterError>(Rows {
            chosen: places.map(|(place, _)| place as i32).collect(),
            picked: Vec::new(),
        })
    };
    let directions = Directions::find(base(), config, rho, 64, run).unwrap();
    assert!(directions.settled());
    let reference: serde_json::Value =
        serde_json::from_slice(&fs::read(fixture("peft/eva").join("reference.json")).unwrap())
            .unwrap();
    let reference = &reference[case];
    assert_eq!(
        *n_passes.lock().unwrap(),
        reference["passes"].as_u64().unwrap(),
        "{case}"
    );

    let ours = attach_along(base(), config, &directions).unwrap();
    let folder = fixture("peft/eva").join(reference["adapter"].as_str().unwrap());
    let theirs = PeftAdapter::read(Path::new(&folder))
        .unwrap()
        .attach(base())
        .unwrap();
    let (ours, theirs) = (factors(&ours), factors(&theirs));
    assert_eq!(ours.len(), theirs.len(), "{case}");
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours.path, theirs.path, "{case}");
        assert_eq!(ours.a.dims(), theirs.a.dims(), "{case}: {}", ours.path);
        let apart = (ours.a.clone() - theirs.a.clone())
            .abs()
            .max()
            .into_scalar::<f32>();
        assert!(
            apart < tolerance,
            "{case}: {} is {apart} from PEFT's",
            ours.path
        );
    }
    // Saved with the ranks and alphas that PEFT wrote.
    let found = attach_along(base(), config, &directions).unwrap();
    let saved = PeftAdapter::of(&found, config, PeftForm::Plain).unwrap();
    let theirs = PeftAdapter::read(Path::new(&folder)).unwrap();
    assert_eq!(
        saved.config.rank_pattern, theirs.config.rank_pattern,
        "{case}"
    );
    assert_eq!(
        saved.config.alpha_pattern, theirs.config.alpha_pattern,
        "{case}"
    );
}

fn eva_config(rank: usize) -> AdapterConfig {
    AdapterConfig {
        method: Method::Eva,
        rank,
        alpha: rank as f64,
        targets: names(&["q_proj", "v_proj", "down_proj"]),
        ..AdapterConfig::default()
    }
}

#[test]
fn eva_finds_pefts_directions_without_redistribution() {
    eva("rho-1", &eva_config(4), 1.0, 1e-3);
}

#[test]
fn eva_finds_pefts_directions_and_ranks() {
    eva("rho-2", &eva_config(4), 2.0, 1e-4);
}

#[test]
fn eva_takes_an_adapter_off_a_layer_that_explains_too_little() {
    eva("rank-0", &eva_config(1), 4.0, 1e-4);
}
