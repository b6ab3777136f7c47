//! DPO, ORPO, `SimPO` and KTO against TRL's own trainers: its tokens, ten losses and
//! gradient norms, the first step's gradients, and what it measures. See
//! `fixtures/make_preferences.py`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::{
    module::{Module, ModuleMapper, Param},
    optim::AdamWConfig,
    tensor::{Device, Tensor},
};
use olora_adapter::{AdapterConfig, Method, PeftAdapter, attach};
use olora_data::{Answers, Batch, Corpus, DataOptions, Sample, Tokenizer, load_samples_cached};
use olora_model::{Dtype, Llama, load};
use olora_training::{
    Dpo, DpoLoss, Kto, Objective, Optimized, Orpo, Passes, Recompute, Reference, SimPo, TrainError,
    for_each_gradient, means, step,
};
use safetensors::SafeTensors;
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(name)
}

fn reference() -> Value {
    serde_json::from_slice(&fs::read(fixture("preferences/reference.json")).unwrap()).unwrap()
}

/// The base, without the chat template that it has: prompts are words.
fn base() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for name in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        let from = fixture("chat-losses/model").join(name);
        fs::copy(from, directory.path().join(name)).unwrap();
    }
    directory
}

fn samples(base: &Path, method: &str, max_length: usize) -> Corpus {
    let tokenizer = Tokenizer::from_path(base).unwrap();
    let (file, answers) = match method {
        "kto" => ("labelled.jsonl", Answers::Labelled),
        _ => ("pairs.jsonl", Answers::Pair),
    };
    let options = DataOptions {
        answers,
        max_length,
        // ORPO's cross-entropy is of the whole chosen text.
        train_on_prompt: method == "orpo",
        ..DataOptions::default()
    };
    let path = fixture("preferences").join(file);
    load_samples_cached(&path, &tokenizer, &options, None)
        .unwrap()
        .samples
}

/// As a recipe would have it.
fn objective(case: &Value) -> Arc<dyn Objective> {
    let said = &case["objective"];
    let number = |key: &str, default: f64| said[key].as_f64().unwrap_or(default);
    let (beta, label_smoothing) = (number("beta", f64::NAN), number("label_smoothing", 0.0));
    let rpo_alpha = number("rpo_alpha", 0.0);
    match said["method"].as_str().unwrap() {
        "dpo" => Arc::new(Dpo {
            beta,
            loss: match said["loss"].as_str() {
                None => DpoLoss::Sigmoid,
                Some("robust") => DpoLoss::Robust,
                Some("hinge") => DpoLoss::Hinge,
                Some("ipo") => DpoLoss::Ipo,
                Some("sigmoid-norm") => DpoLoss::SigmoidNorm,
                other => panic!("{other:?}"),
            },
            label_smoothing,
            rpo_alpha,
        }),
        "orpo" => Arc::new(Orpo { beta }),
        "simpo" => Arc::new(SimPo {
            beta,
            gamma: number("gamma", f64::NAN),
            label_smoothing,
            rpo_alpha,
        }),
        "kto" => Arc::new(Kto {
            desirable_weight: number("desirable_weight", 1.0),
            undesirable_weight: number("undesirable_weight", 1.0),
            ..Kto::new(beta, case["max_length"].as_u64().unwrap() as usize)
        }),
        other => panic!("{other}"),
    }
}

fn numbers(values: &Value) -> Vec<f64> {
    let values = values.as_array().unwrap().iter();
    values.map(|value| value.as_f64().unwrap()).collect()
}

type Gradients = Vec<(String, Vec<f32>)>;

/// What ten steps gave.
struct Run {
    losses: Vec<f64>,
    norms: Vec<f64>,
    measures: Vec<BTreeMap<String, f64>>,
    first: Gradients,
}

fn run(case: &Value, recompute: Recompute, packed: bool) -> Run {
    let directory = base();
    let method = case["objective"]["method"].as_str().unwrap();
    let of = |key: &str| case[key].as_u64().unwrap() as usize;
    let samples = samples(directory.path(), method, of("max_length"));
    let (llama, _) = load(directory.path(), Dtype::F32, &Device::flex()).unwrap();
    let start = case["start"].as_str().unwrap();
    let adapter = PeftAdapter::read(&fixture("preferences").join(start)).unwrap();
    let (llama, _) = llama.adapted(adapter).unwrap();
    let compared = if start == "initial" {
        Reference::Base
    } else {
        Reference::frozen(&llama)
    };
    let passes = Passes::with_reference(objective(case), &llama, compared)
        .unwrap()
        .with_recompute(recompute);
    let optimizer = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.0);
    let rate = reference()["learning_rate"].as_f64().unwrap();
    let mut learner = Optimized::new(Module::train(llama), optimizer.init(), rate);
    let unit = samples.unit();
    let (batch, accumulation) = (of("batch"), of("accumulation"));
    let n_batches = samples.n_units() / batch;
    let mut run = Run {
        losses: Vec::new(),
        norms: Vec::new(),
        measures: Vec::new(),
        first: Vec::new(),
    };
    for number in 0..10 {
        let mut first = Vec::new();
        let result = step(&mut learner, accumulation, 0.0, |learner, micro_batch| {
            let at = (number * accumulation + micro_batch) % n_batches;
            let rows: Vec<Sample> = (at * batch * unit..(at + 1) * batch * unit)
                .map(|i| samples.sample(i))
                .collect();
            let batch = match (unit, packed) {
                (1, false) => Batch::from_samples(&rows, 0),
                (1, true) => Batch::packed(&[rows], 0),
                (_, true) => Batch::of_pairs(&[rows], 0),
                (_, false) => {
                    let pairs: Vec<_> = rows.chunks(2).map(<[Sample]>::to_vec).collect();
                    Batch::of_pairs(&pairs, 0)
                }
            };
            let pass = passes.run(&learner.module, &batch);
            if number == 0 && accumulation == 1 {
                for_each_gradient(&learner.module, &pass.grads, |path, gradient| {
                    let gradient = gradient.div_scalar(pass.count as f32).into_data();
                    first.push((path.to_owned(), gradient.try_to_vec().unwrap()));
                });
            }
            Ok::<_, TrainError>(Some(pass))
        })
        .unwrap();
        if number == 0 {
            run.first = first;
        }
        let read = |sum: &Tensor<1>| f64::from(sum.clone().into_scalar::<f32>());
        let sums = result.measures.iter();
        let sums = sums.map(|(name, sum)| ((*name).to_owned(), read(sum)));
        run.measures.push(means(&sums.collect(), result.count));
        run.losses.push(read(&result.loss) / result.count);
        run.norms.push(read(&result.norm));
    }
    run
}

/// Asserts that ten steps are TRL's.
fn check(name: &str) {
    let case = &reference()["cases"][name];
    let ours = run(case, Recompute::None, false);
    for (step, (loss, right)) in ours.losses.iter().zip(numbers(&case["losses"])).enumerate() {
        assert!(
            (loss - right).abs() < 1e-4,
            "{name} step {}: loss {loss}, TRL {right}",
            step + 1
        );
    }
    for (step, (norm, right)) in ours
        .norms
        .iter()
        .zip(numbers(&case["grad_norms"]))
        .enumerate()
    {
        assert!(
            (norm - right).abs() < 1e-4 * right.max(1.0),
            "{name} step {}: norm {norm}, TRL {right}",
            step + 1
        );
    }
    // TRL averages what it measures over micro-batches, whatever is in them.
    if case["accumulation"] == 1 {
        // A reward is a difference of log-likelihoods of hundreds, times beta.
        let beta = case["objective"]["beta"].as_f64().unwrap().max(1.0);
        for (step, theirs) in case["measures"].as_array().unwrap().iter().enumerate() {
            for (key, right) in theirs.as_object().unwrap() {
                let (ours, right) = (ours.measures[step][key], right.as_f64().unwrap());
                assert!(
                    (ours - right).abs() < 1e-4 * right.abs().max(beta),
                    "{name} step {}: {key} {ours}, TRL {right}",
                    step + 1
                );
            }
        }
        check_gradients(name, &ours.first);
    }
}

fn check_gradients(name: &str, ours: &Gradients) {
    let bytes = fs::read(fixture("preferences/gradients.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let prefix = format!("{name}/");
    let theirs = tensors
        .names()
        .into_iter()
        .filter(|key| key.starts_with(&prefix));
    assert_eq!(theirs.count(), ours.len(), "{name}");
    for (path, ours) in ours {
        // `….weight.a` is PEFT's `….lora_A.weight`.
        let (layer, factor) = path.rsplit_once('.').unwrap();
        let layer = layer.split(".weight").next().unwrap();
        let key = format!("{prefix}{layer}.lora_{}.weight", factor.to_uppercase());
        let view = tensors
            .tensor(&key)
            .unwrap_or_else(|_| panic!("{path} is no {key}"));
        // PEFT has the transpose.
        let [n_rows, n_columns] = <[usize; 2]>::try_from(view.shape()).unwrap();
        let right = view.data().as_chunks::<4>().0.iter();
        for (i, right) in right.map(|bytes| f32::from_le_bytes(*bytes)).enumerate() {
            let ours = ours[i % n_columns * n_rows + i / n_columns];
            assert!((ours - right).abs() < 1e-4, "{key}: {ours}, TRL {right}");
        }
        assert_eq!(ours.len(), n_rows * n_columns);
    }
}

#[test]
fn tokens_and_what_of_them_is_an_answer_are_trls() {
    let directory = base();
    let tokens = reference();
    for (kind, method) in [("pairs", "dpo"), ("labelled", "kto")] {
        let samples = samples(directory.path(), method, 128);
        let all = tokens["tokens"][kind].as_array().unwrap();
        let ids = |value: &Value| -> Vec<u32> {
            numbers(value).into_iter().map(|id| id as u32).collect()
        };
        let right = all.iter().flat_map(|row| {
            let (prompt, answers) = row.as_array().unwrap().split_first().unwrap();
            let prompt = ids(prompt);
            let whole = move |answer: &Value| (prompt.clone(), ids(answer));
            answers.iter().map(whole).collect::<Vec<_>>()
        });
        let right: Vec<_> = right.collect();
        assert_eq!(samples.len(), right.len());
        for (i, (prompt, answer)) in right.into_iter().enumerate() {
            let sample = samples.sample(i);
            assert_eq!(sample.tokens, [prompt.clone(), answer.clone()].concat());
            let trained = [vec![false; prompt.len()], vec![true; answer.len()]].concat();
            assert_eq!(sample.trained, trained, "{kind} {i}");
        }
    }
}

#[test]
fn dpo_is_trls() {
    for name in ["dpo-sigmoid", "dpo-accumulated", "dpo-from-adapter"] {
        check(name);
    }
}

#[test]
fn dpo_of_answers_that_are_cut_is_trls() {
    check("dpo-cut");
}

#[test]
fn other_losses_of_dpo_are_trls() {
    for name in [
        "hinge",
        "ipo",
        "sigmoid-norm",
        "robust",
        "conservative",
        "rpo",
    ] {
        check(&format!("dpo-{name}"));
    }
}

#[test]
fn orpo_is_trls() {
    check("orpo");
    check("orpo-accumulated");
}

#[test]
fn simpo_is_trls() {
    check("simpo");
    check("simpo-smoothed");
}

#[test]
fn kto_is_trls() {
    check("kto");
    check("kto-weighted");
}

/// Bit for bit, and packed as near as sums in another order are.
#[test]
fn blocks_computed_again_and_packed_rows_give_the_same() {
    for name in ["dpo-from-adapter", "orpo", "simpo", "kto"] {
        let case = &reference()["cases"][name];
        let [whole, again, packed] = [
            (Recompute::None, false),
            (Recompute::Blocks, false),
            (Recompute::None, true),
        ]
        .map(|(recompute, packed)| run(case, recompute, packed));
        assert_eq!(whole.losses, again.losses, "{name}");
        assert_eq!(whole.norms, again.norms, "{name}");
        assert_eq!(whole.first, again.first, "{name}");
        for (whole, packed) in whole.losses.iter().zip(&packed.losses) {
            assert!((whole - packed).abs() < 1e-4, "{name}: {whole} {packed}");
        }
    }
}

/// Accumulated over micro-batches of unequal size, a step is that of one batch.
#[test]
fn accumulation_is_exact() {
    let directory = base();
    let samples = samples(directory.path(), "dpo", 128);
    let (llama, _) = load(directory.path(), Dtype::F32, &Device::flex()).unwrap();
    let adapter = PeftAdapter::read(&fixture("preferences/start")).unwrap();
    let (llama, _) = llama.adapted(adapter).unwrap();
    let objectives: [Arc<dyn Objective>; 2] =
        [Arc::new(Dpo::default()), Arc::new(SimPo::default())];
    for objective in objectives {
        let passes = Passes::new(objective, &llama).unwrap();
        let norm = |ends: &[usize]| {
            let optimizer = AdamWConfig::new().init();
            let mut learner = Optimized::new(Module::train(llama.clone()), optimizer, 0.0);
            let result = step(&mut learner, ends.len(), 0.0, |learner, i| {
                let from = if i == 0 { 0 } else { ends[i - 1] };
                let rows: Vec<Sample> =
                    (2 * from..2 * ends[i]).map(|i| samples.sample(i)).collect();
                let batch = Batch::from_samples(&rows, 0);
                Ok::<_, TrainError>(Some(passes.run(&learner.module, &batch)))
            });
            let result = result.unwrap();
            let read = |sum: Tensor<1>| sum.into_scalar::<f32>();
            (read(result.loss), read(result.norm), result.count)
        };
        let (whole, parts) = (norm(&[8]), norm(&[1, 3, 8]));
        assert_eq!(whole.2, parts.2);
        assert!(
            (whole.0 - parts.0).abs() < 1e-4 * whole.0,
            "{whole:?} {parts:?}"
        );
        assert!(
            (whole.1 - parts.1).abs() < 1e-4 * whole.1,
            "{whole:?} {parts:?}"
        );
    }
}

/// Every log-ratio is zero, not nearly: no reward, no margin, no general gain.
#[test]
fn at_the_start_the_reference_is_the_model_bit_for_bit() {
    let directory = base();
    for method in [Method::Olora, Method::Pissa, Method::Lora] {
        for (name, objective) in [
            ("dpo", Arc::new(Dpo::default()) as Arc<dyn Objective>),
            ("kto", Arc::new(Kto::new(0.1, 128))),
        ] {
            let (llama, _) = load(directory.path(), Dtype::F32, &Device::flex()).unwrap();
            let config = AdapterConfig {
                method,
                rank: 4,
                alpha: 8.0,
                ..AdapterConfig::default()
            };
            let llama = attach(llama, &config, 3, &mut |_, _| {}).unwrap();
            let from_base = Passes::new(objective.clone(), &llama).unwrap();
            // As where the start is another adapter: away from the base.
            let moved = moved(Module::train(llama.clone()));
            let frozen = Reference::frozen(&moved);
            let from_adapter = Passes::with_reference(objective, &moved, frozen).unwrap();
            let samples = samples(directory.path(), name, 128);
            let rows: Vec<Sample> = samples.iter().take(8).collect();
            let batch = Batch::from_samples(&rows, 0);
            let trained = Module::train(llama);
            for (passes, llama) in [(from_base, &trained), (from_adapter, &moved)] {
                let pass = passes.run(llama, &batch);
                for (measure, sum) in pass.measures {
                    let is_reward = measure.starts_with("rewards/") && !measure.ends_with('#');
                    if is_reward || measure == "kl" {
                        assert_eq!(sum.into_scalar::<f32>(), 0.0, "{method:?} {name} {measure}");
                    }
                }
            }
        }
    }
}

/// Factors away from where they started.
fn moved(llama: Llama) -> Llama {
    struct Move;
    impl ModuleMapper for Move {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if param.base().is_require_grad() {
                param.map(|factor| {
                    factor
                        .mul_scalar(1.3)
                        .add_scalar(0.01)
                        .detach()
                        .require_grad()
                })
            } else {
                param
            }
        }
    }
    llama.map(&mut Move)
}

/// Such as rows that nobody judged, or a chosen answer without a rejected one.
#[test]
fn a_batch_that_is_not_of_pairs_is_refused() {
    let directory = base();
    let samples = samples(directory.path(), "dpo", 128);
    let (llama, _) = load(directory.path(), Dtype::F32, &Device::flex()).unwrap();
    let adapter = PeftAdapter::read(&fixture("preferences/start")).unwrap();
    let (llama, _) = llama.adapted(adapter).unwrap();
    let chosen = samples.sample(0);
    let unjudged = Sample {
        preferred: None,
        ..chosen.clone()
    };
    let objectives: [(Arc<dyn Objective>, Sample); 4] = [
        (Arc::new(Dpo::default()), chosen.clone()),
        (Arc::new(Orpo::default()), chosen.clone()),
        (Arc::new(SimPo::default()), chosen),
        (Arc::new(Kto::new(0.1, 64)), unjudged),
    ];
    for (objective, sample) in objectives {
        let passes = Passes::new(objective, &llama).unwrap();
        let optimizer = AdamWConfig::new().init();
        let mut learner = Optimized::new(Module::train(llama.clone()), optimizer, 0.1);
        let batch = Batch::from_samples(&[sample], 0);
        let error = step(&mut learner, 1, 0.0, |learner, _| {
            Ok::<_, TrainError>(Some(passes.run(&learner.module, &batch)))
        });
        assert!(error.unwrap_err().to_string().contains("0 / 0"));
    }
}
