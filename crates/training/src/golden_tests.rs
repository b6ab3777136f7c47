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
    lr_scheduler::module_lr_scheduler::ModuleLrScheduler,
    module::Module,
    optim::AdamWConfig,
    tensor::{Device, Tensor},
    train::{Interrupter, Learner},
};
use olora_adapter::{PeftAdapter, factors};
use olora_data::{Batch, Sample};
use olora_model::{Llama, WeightType};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::{
    DeviceTraits, Event, Observer, Recipe, checkpoint::RunState, failure::Circumstances,
    learning_rate::Stepper, passes::Passes, run::run_learner, run_directory::RunDirectory,
    strategy::StepStrategy, trainee::Trainee,
};

fn fixture(name: &str) -> PathBuf {
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
fn batches(run: &Path) -> Vec<Batch> {
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
            Sample {
                tokens: ids[cells.clone()].iter().map(|&id| id as u32).collect(),
                trained: labels[cells].iter().map(|&label| label != -100).collect(),
            }
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

struct Outcome {
    steps: Vec<(f64, f64)>,
    llama: Llama,
}

/// Runs our loop, through Burn's learner, as the reference was run.
fn run(reference: &Value, batches: Vec<Batch>, accumulation: usize, initial: &Path) -> Outcome {
    let out = tempfile::tempdir().unwrap();
    let optimiser = &reference["optimiser"];
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
    let device = Device::flex();
    let (llama, _) = olora_model::load(&fixture("llama"), WeightType::F32, &device).unwrap();
    let llama = PeftAdapter::read(initial).unwrap().attach(llama).unwrap();
    let recorder = Arc::new(Recorder::default());
    let trainee = Module::train(Trainee::new(llama, Passes::default()));
    let strategy = Arc::new(StepStrategy {
        training: recipe.training.clone(),
        full: false,
        keep: recipe.output.keep,
        total_steps: total,
        dropout: None,
        device: trainee.llama.device(),
        accelerator: false,
        circumstances: Circumstances::new(&DeviceTraits::default(), ""),
        has_validation: false,
        directory: RunDirectory::create(&recipe).unwrap(),
        observer: recorder.clone(),
        save_result: Box::new(|_| Ok(())),
        start: RunState::default(),
        outcome: Mutex::new(None),
    });
    let optim = AdamWConfig::new()
        .with_epsilon(optimiser["eps"].as_f64().unwrap() as f32)
        .with_weight_decay(optimiser["weight_decay"].as_f64().unwrap() as f32)
        .init();
    let scheduler = ModuleLrScheduler::new(Stepper {
        rate: recipe.training.learning_rate(total),
        step: 0,
    });
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

fn check(name: &str, accumulation: usize) {
    let directory = fixture("peft").join(name);
    let reference: Value =
        serde_json::from_slice(&fs::read(directory.join("reference.json")).unwrap()).unwrap();
    let outcome = run(
        &reference,
        batches(&directory),
        accumulation,
        &directory.join("initial"),
    );
    let numbers = |key: &str| -> Vec<f64> {
        reference[key]
            .as_array()
            .unwrap()
            .iter()
            .map(|x| x.as_f64().unwrap())
            .collect()
    };
    let (losses, norms) = (numbers("losses"), numbers("grad_norms"));
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
            (norm - norm_ref).abs() < 1e-3,
            "{name} step {}: norm {norm}, PEFT {norm_ref}",
            step + 1
        );
    }

    let (base, _) = olora_model::load(&fixture("llama"), WeightType::F32, &Device::flex()).unwrap();
    let last = PeftAdapter::read(&directory.join("final"))
        .unwrap()
        .attach(base)
        .unwrap();
    assert_eq!(factors(&last).len(), 14);
    assert_eq!(factors(&outcome.llama).len(), 14);
    for (ours, theirs) in factors(&outcome.llama).iter().zip(factors(&last)) {
        assert_eq!(ours.path, theirs.path);
        for (ours, theirs) in [(&ours.a, theirs.a), (&ours.b, theirs.b)] {
            let diff = max_diff(ours.clone(), theirs);
            assert!(diff < 1e-3, "{name}: factors differ by {diff}");
        }
    }
}

fn max_diff(a: Tensor<2>, b: Tensor<2>) -> f32 {
    (a - b).abs().max().into_scalar()
}

#[test]
fn ten_steps_of_lora_equal_pefts() {
    check("train-lora", 1);
}

#[test]
fn ten_steps_of_olora_equal_pefts() {
    check("train-olora", 1);
}

#[test]
fn three_steps_of_two_unequal_micro_batches_equal_torchs() {
    check("train-accumulate", 2);
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

    let together = run(&reference, whole, 1, &directory.join("initial"));
    let apart = run(&reference, rows, 3, &directory.join("initial"));
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
            let (positions, targets): (Vec<i32>, Vec<i32>) = batch
                .positions
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
                positions,
                targets,
                n_tokens: batch.seq_len,
                segments: None,
            }
        })
        .collect()
}
