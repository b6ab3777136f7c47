//! The loop against PEFT and torch: ten losses, ten gradient norms, and where
//! the factors end. See `fixtures/README.md`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use burn::{
    data::{
        dataloader::{DataLoader, DataLoaderIterator, Progress},
        dataset::DatasetError,
    },
    module::Module,
    optim::AdamWConfig,
    tensor::{Device, Int, Tensor, TensorData},
    train::{Interrupter, Learner},
};
use olora_adapter::{LayerFactors, PeftAdapter, factors};
use olora_data::{Batch, DataOptions, Sample, Tokenizer, load_samples_cached};
use olora_model::{Dtype, Llama};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::ranks::Ranks;
use crate::{
    Event, Observer, Recipe, epochs::Epochs, learner::run_learner, pace::SecondsLeft,
    run_directory::RunDirectory, state::RunState, strategy::StepStrategy, trainee::Trainee,
};
use olora_training::{FailureContext, Passes, scheduler};

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(name)
}

/// Micro-batches in a fixed order.
#[derive(Clone)]
struct Fixed(Vec<Batch>);

struct FixedIterator {
    batches: std::vec::IntoIter<Batch>,
}

impl Iterator for FixedIterator {
    type Item = Result<Batch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.batches.next().map(Ok)
    }
}

impl DataLoaderIterator<Batch> for FixedIterator {
    fn progress(&self) -> Progress {
        Progress::new(0, 1, None)
    }
}

impl DataLoader<Batch> for Fixed {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<Batch> + 'a> {
        Box::new(FixedIterator {
            batches: self.0.clone().into_iter(),
        })
    }
    fn num_items(&self) -> usize {
        self.0.len()
    }
    fn to_device(&self, _device: &Device) -> Arc<dyn DataLoader<Batch>> {
        Arc::new(self.clone())
    }
    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<Batch>> {
        Arc::new(Self(self.0[start..end].to_vec()))
    }
}

/// The reference's batches, one entry per micro-batch.
pub(crate) fn batches(run: &Path) -> Vec<Batch> {
    let bytes = fs::read(run.join("batches.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let ints = |name: &str| -> Vec<i32> {
        let view = tensors.tensor(name).unwrap();
        view.data()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&b| i32::from_le_bytes(b))
            .collect()
    };
    let shape = tensors.tensor("input_ids").unwrap().shape().to_vec();
    let (rows, width) = (shape[shape.len() - 2], shape[shape.len() - 1]);
    let (ids, labels, lengths) = (ints("input_ids"), ints("labels"), ints("lengths"));
    let samples: Vec<Sample> = lengths
        .iter()
        .enumerate()
        .map(|(row, &length)| {
            let cells = row * width..row * width + length as usize;
            Sample::new(
                ids[cells.clone()].iter().map(|&id| id as u32).collect(),
                labels[cells].iter().map(|&label| label != -100).collect(),
            )
        })
        .collect();
    samples
        .chunks(rows)
        .map(|rows| Batch::from_samples(rows, 0))
        .collect()
}

#[derive(Default)]
struct Recorder(Mutex<Vec<(f64, f64)>>);

impl Observer for Recorder {
    fn on(&self, event: &Event) {
        if let Event::Step(report) = event {
            self.0.lock().unwrap().push((report.loss, report.grad_norm));
        }
    }
}

pub(crate) struct Outcome {
    /// Loss and gradient norm of each step.
    pub(crate) steps: Vec<(f64, f64)>,
    llama: Llama,
}

/// The model that a reference was trained on.
fn base(reference: &Value) -> PathBuf {
    fixture(reference["base"].as_str().unwrap_or("llama"))
}

/// Runs our loop, through Burn's learner, as the reference was run.
fn run_on(
    base: &Path,
    reference: &Value,
    batches: Vec<Batch>,
    accumulation: usize,
    initial: &Path,
) -> Outcome {
    let (llama, _) = olora_model::load(base, Dtype::F32, &Device::flex()).unwrap();
    let (llama, _) = llama.adapted(PeftAdapter::read(initial).unwrap()).unwrap();
    run_adapted(llama, reference, batches, accumulation)
}

/// The same from a model that has its adapter.
pub(crate) fn run_adapted(
    llama: Llama,
    reference: &Value,
    batches: Vec<Batch>,
    accumulation: usize,
) -> Outcome {
    let out = tempfile::tempdir().unwrap();
    let optimiser = &reference["optimiser"];
    let ratio = optimiser["loraplus_lr_ratio"].as_f64();
    let total = batches.len() / accumulation;
    let text = format!(
        "name = \"run\"\n[model]\npath = \"none\"\n[adapter]\n[data]\ntrain = \"none\"\n\
         [training]\nmax_steps = {total}\naccumulation = {accumulation}\nschedule = \"constant\"\n\
         warmup_steps = 0\nlearning_rate = {}\nmax_grad_norm = {}\nlog_every = 1\ncheckpoint_every = 0\n\
         [output]\ndirectory = \"{}\"\n",
        optimiser["lr"],
        reference["max_grad_norm"],
        out.path().display()
    );
    let recipe = Recipe::parse(&text, "golden", &[]).unwrap();
    let recorder = Arc::new(Recorder::default());
    let passes = Passes::new(recipe.objective(), &llama).unwrap();
    let trainee = Module::train(Trainee::new(llama, passes.clone()));
    let directory = RunDirectory::at(recipe.run_directory());
    directory.begin(&recipe).unwrap();
    let strategy = Arc::new(StepStrategy {
        training: recipe.training.clone(),
        passes,
        seed: recipe.seed,
        keep: recipe.keep(),
        total_steps: total,
        epochs: Epochs {
            total_steps: total,
            n_batches: batches.len(),
            batches_per_epoch: batches.len(),
            accumulation,
        },
        left: SecondsLeft::default(),
        device: trainee.llama.device(),
        accelerator: false,
        failure: FailureContext::new(false, None, ""),
        has_validation: false,
        judge: None,
        directory,
        ranks: Ranks::default(),
        last_checkpoint: None,
        observer: recorder.clone(),
        save_result: Box::new(|_| Ok(())),
        start: RunState::default(),
        outcome: Mutex::new(None),
    });
    let optim = AdamWConfig::new()
        .with_epsilon(optimiser["eps"].as_f64().unwrap() as f32)
        .with_weight_decay(optimiser["weight_decay"].as_f64().unwrap() as f32)
        .init();
    let rate = recipe.training.learning_rate(total);
    let scheduler = scheduler(&rate, ratio, 0, &trainee);
    let learner = Learner::new(trainee, optim, scheduler);
    let loader: Arc<dyn DataLoader<Batch>> = Arc::new(Fixed(batches));
    let (llama, _) = run_learner(
        &strategy,
        learner,
        loader.clone(),
        loader,
        None,
        Interrupter::new(),
    )
    .unwrap();
    let steps = recorder.0.lock().unwrap().clone();
    Outcome { steps, llama }
}

pub(crate) fn numbers(reference: &Value, key: &str) -> Vec<f64> {
    reference[key]
        .as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_f64().unwrap())
        .collect()
}

fn check(name: &str, accumulation: usize) {
    let directory = fixture("peft").join(name);
    let reference: Value =
        serde_json::from_slice(&fs::read(directory.join("reference.json")).unwrap()).unwrap();
    let data = match reference["batches"].as_str() {
        Some(file) => directory.join(file).parent().unwrap().to_owned(),
        None => directory.clone(),
    };
    let base = base(&reference);
    let outcome = run_on(
        &base,
        &reference,
        batches(&data),
        accumulation,
        &directory.join("initial"),
    );
    let (losses, norms) = (
        numbers(&reference, "losses"),
        numbers(&reference, "grad_norms"),
    );
    assert_eq!(outcome.steps.len(), losses.len());
    for (step, ((loss, norm), (loss_ref, norm_ref))) in outcome
        .steps
        .iter()
        .zip(losses.iter().zip(&norms))
        .enumerate()
    {
        assert!(
            (loss - loss_ref).abs() < 1e-4,
            "{name} step {}: loss {loss}, PEFT {loss_ref}",
            step + 1
        );
        assert!(
            (norm - norm_ref).abs() < 1e-3 * norm_ref.max(1.0),
            "{name} step {}: norm {norm}, PEFT {norm_ref}",
            step + 1
        );
    }

    let (base, _) = olora_model::load(&base, Dtype::F32, &Device::flex()).unwrap();
    let last = PeftAdapter::read(&directory.join("final")).unwrap();
    let (last, _) = base.adapted(last).unwrap();
    let expected = reference["layers"].as_object().map_or_else(
        || 2 * reference["target_modules"].as_array().map_or(7, Vec::len),
        serde_json::Map::len,
    );
    assert!(expected >= 3, "{name}: {expected} layers");
    assert_eq!(factors(&last).len(), factors(&outcome.llama).len());
    for (ours, theirs) in factors(&outcome.llama).iter().zip(factors(&last)) {
        assert_eq!(ours.path, theirs.path);
        let magnitude =
            |layer: &LayerFactors| layer.magnitude.clone().map(|(now, _)| now.unsqueeze());
        let magnitudes = magnitude(ours).zip(magnitude(&theirs));
        assert_eq!(
            magnitudes.is_some(),
            reference["use_dora"].as_bool() == Some(true)
        );
        let factors = [(ours.a.clone(), theirs.a), (ours.b.clone(), theirs.b)];
        for (ours, theirs) in factors.into_iter().chain(magnitudes) {
            let diff = max_diff(ours, theirs);
            assert!(diff < 1e-3, "{name}: factors differ by {diff}");
        }
    }

    // What was trained, the modules that train whole included, as a function.
    let logits = fs::read(directory.join("logits.safetensors"));
    let Ok(bytes) = logits else {
        return;
    };
    for (what, llama) in [("trained", outcome.llama.valid()), ("loaded", last)] {
        let diff = logits_diff(&bytes, "logits", &llama);
        let bar = if what == "loaded" { 1e-4 } else { 2e-3 };
        assert!(
            diff < bar,
            "{name}: logits of the {what} adapter differ by {diff}"
        );
    }
}

/// How far the model's logits are from those of the file, which have a name in it.
pub(crate) fn logits_diff(bytes: &[u8], expected: &str, llama: &Llama) -> f32 {
    let tensors = SafeTensors::deserialize(bytes).unwrap();
    let words = |name: &str| -> Vec<[u8; 4]> {
        tensors
            .tensor(name)
            .unwrap()
            .data()
            .as_chunks::<4>()
            .0
            .to_vec()
    };
    let shape = tensors.tensor("input_ids").unwrap().shape().to_vec();
    let ids: Vec<i32> = words("input_ids")
        .into_iter()
        .map(i32::from_le_bytes)
        .collect();
    let expected: Vec<f32> = words(expected)
        .into_iter()
        .map(f32::from_le_bytes)
        .collect();
    let device = Device::flex();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [shape[0], shape[1]]), &device);
    let logits = llama.forward(ids);
    let expected = Tensor::<3>::from_data(TensorData::new(expected, logits.dims()), &device);
    (logits - expected).abs().max().into_scalar()
}

fn max_diff(a: Tensor<2>, b: Tensor<2>) -> f32 {
    (a - b).abs().max().into_scalar()
}

#[test]
fn ten_steps_of_lora_equal_pefts() {
    check("train-lora", 1);
}

/// On what each family's projections are called, fused ones too; beside experts
/// on attention alone.
#[test]
fn ten_steps_on_each_family_equal_pefts() {
    for family in [
        "gemma2",
        "gemma3",
        "phi3",
        "phi3-olora",
        "smollm3",
        "granite",
        "olmo2",
        "olmo3",
        "ministral3",
        "qwen3-moe",
        "mixtral",
    ] {
        check(&format!("train-{family}"), 1);
    }
}

#[test]
fn ten_steps_of_olora_equal_pefts() {
    check("train-olora", 1);
}

#[test]
fn ten_steps_of_pissa_equal_pefts() {
    check("train-pissa", 1);
}

#[test]
fn ten_steps_of_dora_equal_pefts() {
    check("train-dora", 1);
}

#[test]
fn ten_steps_of_dora_on_olora_equal_pefts() {
    check("train-dora-olora", 1);
}

#[test]
fn ten_steps_of_rank_stabilised_lora_equal_pefts() {
    check("train-rslora", 1);
}

#[test]
fn ten_steps_of_rank_stabilised_olora_equal_pefts() {
    check("train-olora-rslora", 1);
}

#[test]
fn ten_steps_of_lora_plus_equal_pefts() {
    check("train-loraplus", 1);
}

#[test]
fn ten_steps_from_gaussian_factors_equal_pefts() {
    check("train-gaussian", 1);
}

#[test]
fn ten_steps_from_orthogonal_factors_equal_pefts() {
    check("train-orthogonal", 1);
}

#[test]
fn ten_steps_with_rank_and_alpha_patterns_equal_pefts() {
    check("train-patterns", 1);
}

#[test]
fn ten_steps_with_a_module_that_trains_whole_equal_pefts() {
    check("train-modules-to-save", 1);
}

#[test]
fn ten_steps_with_norms_that_train_equal_pefts() {
    check("train-modules-to-save-norm", 1);
}

/// Two tokens more than the base has, which the batches use.
#[test]
fn ten_steps_with_a_vocabulary_that_was_resized_equal_pefts() {
    check("train-resized", 1);
    check("train-resized-tied", 1);
}

#[test]
fn ten_steps_with_an_adapted_embedding_and_head_equal_pefts() {
    check("train-embedding", 1);
}

#[test]
fn ten_steps_from_evas_start_equal_pefts() {
    check("train-eva", 1);
}

#[test]
fn three_steps_of_two_unequal_micro_batches_equal_torchs() {
    check("train-accumulate", 2);
}

/// The reference's samples: their tokens, and which of them are trained.
fn samples(reference: &Value) -> Vec<(Vec<u32>, Vec<bool>)> {
    let sample = |sample: &Value| {
        let ids: Vec<u32> = serde_json::from_value(sample["ids"].clone()).unwrap();
        let runs: Vec<(usize, usize)> = serde_json::from_value(sample["trained"].clone()).unwrap();
        let is_trained = |at: usize| runs.iter().any(|&(begin, end)| (begin..end).contains(&at));
        let trained = (0..ids.len()).map(is_trained).collect();
        (ids, trained)
    };
    reference["samples"]
        .as_array()
        .unwrap()
        .iter()
        .map(sample)
        .collect()
}

#[test]
fn ten_steps_on_chats_whose_template_rewrites_turns_equal_torchs() {
    let directory = fixture("chat-losses");
    let reference: Value =
        serde_json::from_slice(&fs::read(directory.join("reference.json")).unwrap()).unwrap();
    let base = directory.join("model");
    let tokenizer = Tokenizer::from_dir(&base).unwrap();
    let options = DataOptions::default();
    let found = load_samples_cached(&directory.join("chats.jsonl"), &tokenizer, &options, None)
        .unwrap()
        .samples;
    let expected = samples(&reference);
    assert_eq!(found.len(), expected.len());
    for (i, (found, (tokens, trained))) in found.iter().zip(&expected).enumerate() {
        // What follows the last trained token teaches nothing, and may be cut.
        let n = trained.iter().rposition(|&trained| trained).unwrap() + 1;
        assert_eq!(&found.tokens[..n], &tokens[..n], "sample {}", i + 1);
        assert_eq!(&found.trained[..n], &trained[..n], "sample {}", i + 1);
        assert!(!found.trained[n..].contains(&true), "sample {}", i + 1);
    }

    let rows = usize::try_from(reference["rows"].as_u64().unwrap()).unwrap();
    let (losses, norms) = (
        numbers(&reference, "losses"),
        numbers(&reference, "grad_norms"),
    );
    let batches = (0..losses.len())
        .map(|step| {
            let rows: Vec<Sample> = (step * rows..(step + 1) * rows)
                .map(|row| found.sample(row % found.len()))
                .collect();
            Batch::from_samples(&rows, tokenizer.pad_id())
        })
        .collect();
    let outcome = run_on(&base, &reference, batches, 1, &directory.join("initial"));
    assert_eq!(outcome.steps.len(), losses.len());
    for (step, (loss, norm)) in outcome.steps.iter().enumerate() {
        let (loss_ref, norm_ref) = (losses[step], norms[step]);
        assert!(
            (loss - loss_ref).abs() < 1e-5,
            "step {}: loss {loss}, torch {loss_ref}",
            step + 1
        );
        assert!(
            (norm - norm_ref).abs() < 1e-4,
            "step {}: norm {norm}, torch {norm_ref}",
            step + 1
        );
    }
}

#[test]
fn unequal_micro_batches_are_one_batch() {
    let directory = fixture("peft/train-lora");
    let reference: Value =
        serde_json::from_slice(&fs::read(directory.join("reference.json")).unwrap()).unwrap();
    let whole = batches(&directory);
    let rows: Vec<Batch> = whole.iter().flat_map(rows_of).collect();
    let tokens: Vec<usize> = rows.iter().take(3).map(|batch| batch.n_trained).collect();
    assert!(
        tokens.iter().any(|n| *n != tokens[0]),
        "rows of equal weight prove nothing: {tokens:?}"
    );

    let together = run_on(
        &fixture("llama"),
        &reference,
        whole,
        1,
        &directory.join("initial"),
    );
    let apart = run_on(
        &fixture("llama"),
        &reference,
        rows,
        3,
        &directory.join("initial"),
    );
    for ((loss, norm), (loss_apart, norm_apart)) in together.steps.iter().zip(&apart.steps) {
        assert!((loss - loss_apart).abs() < 1e-5 && (norm - norm_apart).abs() < 1e-4);
    }
    for (a, b) in factors(&together.llama).iter().zip(factors(&apart.llama)) {
        assert!(max_diff(a.a.clone(), b.a) < 1e-4 && max_diff(a.b.clone(), b.b) < 1e-4);
    }
}

/// The rows of a batch, each as a batch of its own without padding.
fn rows_of(batch: &Batch) -> Vec<Batch> {
    (0..batch.n_rows)
        .map(|row| {
            let start = row * batch.seq_len;
            let (target_positions, targets): (Vec<i32>, Vec<i32>) = batch
                .target_positions
                .iter()
                .zip(&batch.targets)
                .filter(|(position, _)| {
                    (start..start + batch.seq_len).contains(&(**position as usize))
                })
                .map(|(position, target)| (position - start as i32, *target))
                .unzip();
            Batch {
                inputs: batch.inputs[start..start + batch.seq_len].to_vec(),
                n_rows: 1,
                seq_len: batch.seq_len,
                n_trained: targets.len(),
                weight_sum: targets.len() as f64,
                target_positions,
                targets,
                target_weights: None,
                n_tokens: batch.seq_len,
                segments: None,
                pairs: None,
                preferred: None,
            }
        })
        .collect()
}
