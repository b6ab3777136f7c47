//! The gradients of frozen weights, block by block, and the directions that an
//! adapter starts along, against PyTorch's in float64.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc};

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};
use olora_adapter::{
    AdapterConfig, GradientDirections, Method, attach_along_gradient, factors, params, probed,
};
use olora_data::{Batch, Sample};
use olora_model::{Dtype, Llama, Packing, load, load_as};
use olora_training::{CrossEntropy, Dpo, Objective, Passes, Reference, TrainError, loss_sum};
use safetensors::SafeTensors;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(name)
}

fn base() -> Llama {
    load(&fixture("llama"), Dtype::F32, &Device::flex())
        .unwrap()
        .0
}

/// What PyTorch computed, by name: shape and bits.
struct Golden(Vec<u8>);

impl Golden {
    fn read() -> Self {
        Self(fs::read(fixture("gradients/golden.safetensors")).unwrap())
    }

    fn bits(&self, name: &str) -> (Vec<usize>, Vec<[u8; 4]>) {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        let bits = tensor.data().chunks_exact(4);
        (
            tensor.shape().to_vec(),
            bits.map(|bits| bits.try_into().unwrap()).collect(),
        )
    }

    fn ints(&self, name: &str) -> Vec<i32> {
        self.bits(name)
            .1
            .into_iter()
            .map(i32::from_le_bytes)
            .collect()
    }

    fn floats(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let (shape, bits) = self.bits(name);
        (shape, bits.into_iter().map(f32::from_le_bytes).collect())
    }

    fn samples(&self) -> Vec<Sample> {
        let lengths = self.ints("lengths");
        let (tokens, trained) = (self.ints("tokens"), self.ints("trained"));
        let width = tokens.len() / lengths.len();
        let rows = lengths.iter().enumerate();
        rows.map(|(row, &length)| {
            let cells = row * width..row * width + length as usize;
            Sample::new(
                tokens[cells.clone()].iter().map(|&id| id as u32).collect(),
                trained[cells].iter().map(|&is| is == 1).collect(),
            )
        })
        .collect()
    }

    /// The layers that there are gradients of.
    fn layers(&self) -> Vec<String> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let names = tensors.names().into_iter();
        names
            .filter_map(|name| Some(name.strip_suffix(".gradient")?.to_owned()))
            .collect()
    }
}

fn config(method: Method, targets: &[&str]) -> AdapterConfig {
    AdapterConfig {
        method,
        rank: 4,
        alpha: 6.0,
        targets: targets.iter().map(|&name| name.to_owned()).collect(),
        ..AdapterConfig::default()
    }
}

/// Two micro-batches, of which the second is padded.
fn batches(golden: &Golden) -> Vec<Batch> {
    let samples = golden.samples();
    samples
        .chunks(2)
        .map(|samples| Batch::from_samples(samples, 0))
        .collect()
}

fn gradients(
    llama: &Llama,
    config: &AdapterConfig,
    objective: Arc<dyn Objective>,
    batches: &[Batch],
) -> BTreeMap<String, Tensor<2>> {
    let passes = Passes::with_reference(objective, llama, Reference::frozen(llama)).unwrap();
    let (probed, probes) = probed(Module::train(llama.clone()), config).unwrap();
    let mut found = BTreeMap::new();
    let each = |path: &str, gradient: Tensor<2>| {
        let before = found.insert(path.to_owned(), gradient);
        assert!(before.is_none(), "{path} comes twice");
        Ok::<_, TrainError>(())
    };
    passes
        .weight_gradients(&probed, &probes, batches, each)
        .unwrap();
    found
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

fn size(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |size, x| size.max(x.abs()))
}

fn apart(one: &[f32], other: &[f32]) -> f32 {
    assert_eq!(one.len(), other.len());
    let pairs = one.iter().zip(other);
    pairs.fold(0.0, |apart, (a, b)| apart.max((a - b).abs()))
}

const ALL: [&str; 2] = ["all-linear", "lm_head"];

#[test]
fn they_are_pytorchs() {
    let golden = Golden::read();
    let llama = base();
    let batches = batches(&golden);
    let loss: f32 = batches
        .iter()
        .map(|batch| loss_sum(&llama, batch).into_scalar::<f32>())
        .sum();
    assert!((loss - golden.floats("loss").1[0]).abs() < 1e-3, "{loss}");
    let config = config(Method::OloraGradient, &ALL);
    let found = gradients(&llama, &config, Arc::new(CrossEntropy), &batches);
    assert_eq!(found.len(), 15, "seven layers of two blocks, and the last");
    for layer in golden.layers() {
        let ours = values(found[&layer].clone().transpose());
        let (_, theirs) = golden.floats(&format!("{layer}.gradient"));
        let most = size(&theirs);
        let apart = apart(&ours, &theirs);
        assert!(apart < 1e-4 * most, "{layer}: {apart} of {most}");
    }
}

#[test]
fn an_adapter_starts_along_pytorchs_directions() {
    let golden = Golden::read();
    let llama = base();
    for method in [Method::OloraGradient, Method::LoraGradient] {
        let config = config(method, &ALL);
        let mut directions = GradientDirections::new(&llama, &config, 5).unwrap();
        for (path, gradient) in
            gradients(&llama, &config, Arc::new(CrossEntropy), &batches(&golden))
        {
            directions.take(&path, &gradient).unwrap();
        }
        assert_eq!(directions.progress(), (15, 15));
        let adapted = attach_along_gradient(llama.clone(), &config, &directions, 1.0).unwrap();
        let all: BTreeMap<String, _> = factors(&adapted)
            .into_iter()
            .map(|layer| (layer.path.clone(), layer))
            .collect();
        for layer in golden.layers() {
            // Columns of `A` and rows of `B`, each up to its sign.
            let a = all[&layer].a.clone().transpose();
            let b = all[&layer].b.clone();
            let (_, of_inputs) = golden.floats(&format!("{layer}.in"));
            let (_, of_outputs) = golden.floats(&format!("{layer}.out"));
            let width = of_outputs.len() / 4;
            let of_outputs: Vec<f32> = (0..4)
                .flat_map(|i| (0..width).map(move |j| (i, j)))
                .map(|(i, j)| of_outputs[4 * j + i])
                .collect();
            let mut pairs = vec![(values(a), of_inputs)];
            if method == Method::OloraGradient {
                pairs.push((values(b), of_outputs));
            }
            for (ours, theirs) in pairs {
                let width = ours.len() / 4;
                for (ours, theirs) in ours.chunks(width).zip(theirs.chunks(width)) {
                    let turned: Vec<f32> = ours.iter().map(|x| -x).collect();
                    let apart = apart(ours, theirs).min(apart(&turned, theirs));
                    assert!(apart < 1e-3, "{method:?} {layer}: {apart}");
                }
            }
        }
    }
}

#[test]
fn one_micro_batch_or_several_add_up_to_the_same() {
    let golden = Golden::read();
    let llama = base();
    let config = config(Method::OloraGradient, &ALL);
    let whole = [Batch::from_samples(&golden.samples(), 0)];
    let together = gradients(&llama, &config, Arc::new(CrossEntropy), &whole);
    let apart_from = gradients(&llama, &config, Arc::new(CrossEntropy), &batches(&golden));
    for (path, one) in together {
        let (one, other) = (values(one), values(apart_from[&path].clone()));
        let most = size(&one);
        assert!(apart(&one, &other) < 1e-5 * most, "{path}");
    }
}

/// Blocks before the first targeted layer are not gone back through.
#[test]
fn only_layers_that_are_asked_for_come() {
    let golden = Golden::read();
    let llama = base();
    let mut of_last = config(Method::OloraGradient, &["q_proj", "up_proj"]);
    of_last.layers = Some(vec![1]);
    let found = gradients(&llama, &of_last, Arc::new(CrossEntropy), &batches(&golden));
    let paths: Vec<&String> = found.keys().collect();
    assert_eq!(
        paths,
        [
            "model.layers.1.mlp.up_proj",
            "model.layers.1.self_attn.q_proj"
        ]
    );
    let of_head = config(Method::OloraGradient, &["lm_head"]);
    let found = gradients(&llama, &of_head, Arc::new(CrossEntropy), &batches(&golden));
    let paths: Vec<&String> = found.keys().collect();
    assert_eq!(paths, ["lm_head"]);
}

/// A packed base has the gradients of what it is unpacked to.
#[test]
fn a_packed_base_has_those_of_its_values() {
    let golden = Golden::read();
    let packing = Packing::As("q8_0".parse().unwrap());
    let device = Device::flex();
    let (packed, _) = load_as(&fixture("llama"), Dtype::F32, packing, &device).unwrap();
    let dense = packed.clone().materialize();
    let config = config(Method::OloraGradient, &["all-linear"]);
    let of_packed = gradients(&packed, &config, Arc::new(CrossEntropy), &batches(&golden));
    let of_dense = gradients(&dense, &config, Arc::new(CrossEntropy), &batches(&golden));
    assert!(of_packed.len() > 13);
    for (path, one) in of_packed {
        let (one, other) = (values(one), values(of_dense[&path].clone()));
        let most = size(&other);
        assert!(apart(&one, &other) < 1e-4 * most, "{path}");
    }
}

/// Under an objective with a reference, which is the base before anything is adapted.
#[test]
fn they_are_of_the_run_s_own_objective() {
    let llama = base();
    let judged = |seed: u32, length: u32, preferred| Sample {
        preferred: Some(preferred),
        ..Sample::new(
            (0..length)
                .map(|i| if i < 4 { i + 5 } else { (i * seed + 3) % 64 })
                .collect(),
            (0..length).map(|i| i > 3).collect(),
        )
    };
    let pair = vec![judged(7, 12, true), judged(5, 10, false)];
    let batch = Batch::of_pairs(&[pair], 0);
    let config = config(Method::OloraGradient, &["q_proj"]);
    let dpo = Arc::new(Dpo {
        beta: 0.3,
        ..Dpo::default()
    });
    let found = gradients(&llama, &config, dpo.clone(), std::slice::from_ref(&batch));
    // Against autodiff's own of weights that train.
    let trained = Module::train(llama.clone());
    let passes = Passes::with_reference(dpo, &trained, Reference::frozen(&llama)).unwrap();
    let pass = passes.run(&trained, &batch);
    for param in params(&trained) {
        let Some(layer) = param.path().strip_suffix(".weight") else {
            continue;
        };
        let Some(ours) = found.get(layer) else {
            continue;
        };
        let theirs: Tensor<2> = pass.grads.get(param.id()).unwrap();
        let (ours, theirs) = (values(ours.clone()), values(theirs));
        let most = size(&theirs);
        assert!(most > 1e-4, "{layer}: {most} proves nothing");
        assert!(apart(&ours, &theirs) < 1e-4 * most, "{layer}");
    }
    assert_eq!(found.len(), 2);
}
