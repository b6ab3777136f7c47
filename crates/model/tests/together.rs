//! Texts that are continued together have the logits that each has alone.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod common;

use std::path::{Path, PathBuf};

use burn::{module::Module, tensor::Device};
use common::{Moved, fixture};
use olora_adapter::{AdapterConfig, Method, attach};
use olora_model::{
    Continuation, Dtype, Llama, Matrices, Packing, Sampling, load, load_as, next_logits_of_all,
};

fn quickstart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/quickstart/base")
}

/// Prompts of several lengths, so that texts stand at several positions.
fn prompts(n_vocab: usize) -> Vec<Vec<u32>> {
    let prompt = |seed: usize, length: usize| {
        let ids = (0..length).map(|i| ((seed * 31 + i * 17) % (n_vocab - 3) + 3) as u32);
        ids.collect()
    };
    vec![
        prompt(1, 3),
        prompt(2, 9),
        prompt(3, 1),
        prompt(4, 5),
        prompt(5, 12),
    ]
}

fn sampling(seed: u64) -> Sampling {
    Sampling {
        temperature: if seed == 2 { 0.0 } else { 1.0 },
        seed,
        ..Sampling::default()
    }
}

/// The bits of all logits and the tokens of each text, alone.
fn alone(model: &Llama, steps: usize) -> Vec<(Vec<u32>, Vec<u32>)> {
    let each = prompts(model.vocab_size()).into_iter().zip(0..);
    each.map(|(prompt, seed)| {
        let mut text = Continuation::new(model, &prompt, steps, sampling(seed)).unwrap();
        let mut bits = Vec::new();
        for _ in 0..steps {
            let mut logits = text.next_logits(model).unwrap();
            bits.extend(logits.iter().map(|x| x.to_bits()));
            text.choose(&mut logits);
        }
        (bits, text.generated().to_vec())
    })
    .collect()
}

/// The same of all texts together, which join one after the other.
fn together(model: &Llama, steps: usize) -> Vec<(Vec<u32>, Vec<u32>)> {
    let prompts = prompts(model.vocab_size());
    let mut texts: Vec<Continuation> = prompts
        .iter()
        .zip(0..)
        .map(|(prompt, seed)| Continuation::new(model, prompt, steps, sampling(seed)).unwrap())
        .collect();
    let mut bits = vec![Vec::new(); texts.len()];
    for round in 0.. {
        let joined = texts.iter_mut().zip(&mut bits).take(round + 1);
        let (new, going): (Vec<_>, Vec<_>) = joined
            .filter(|(text, _)| text.generated().len() < steps)
            .partition(|(text, _)| text.generated().is_empty());
        if new.is_empty() && going.is_empty() {
            break;
        }
        for mut some in new.into_iter().map(|one| vec![one]).chain([going]) {
            let mut of_some: Vec<&mut Continuation> =
                some.iter_mut().map(|(text, _)| &mut **text).collect();
            let logits = next_logits_of_all(model, &mut of_some);
            for ((text, bits), logits) in some.into_iter().zip(logits) {
                let mut logits = logits.unwrap();
                bits.extend(logits.iter().map(|x| x.to_bits()));
                text.choose(&mut logits);
            }
        }
    }
    let tokens = texts.iter().map(|text| text.generated().to_vec());
    bits.into_iter().zip(tokens).collect()
}

fn check(name: &str, model: &Llama) {
    for (i, (one, all)) in alone(model, 10).iter().zip(together(model, 10)).enumerate() {
        assert_eq!(one.1, all.1, "{name}: tokens of text {i}");
        assert!(
            one.0 == all.0,
            "{name}: logits of text {i} differ in some bit"
        );
    }
}

#[test]
fn dense_models_of_every_kind_of_attention() {
    for name in [
        "llama",
        "llama-tied",
        "llama-dynamic",
        "llama-yarn",
        "mistral",
        "qwen3",
        "gemma2",
        "gemma3",
        "olmo2",
        "phi3",
        "phi3-longrope",
        "opt",
        "granite",
        "smollm3",
        "ministral3",
    ] {
        let (model, _) = load(&fixture(name), Dtype::F32, &Device::flex()).unwrap();
        check(name, &model);
    }
}

#[test]
fn however_the_weights_are_held() {
    let device = Device::flex();
    let (model, _) = load(&quickstart(), Dtype::F32, &device).unwrap();
    check("tensors", &model);
    for (dtype, packing) in [
        (Dtype::F32, "stored"),
        (Dtype::Bf16, "stored"),
        (Dtype::F32, "nf4"),
        (Dtype::F32, "q8_0"),
        (Dtype::Bf16, "q4_0"),
    ] {
        let packing: Packing = packing.parse().unwrap();
        let (of_tensors, matrices) = Matrices::to_run(packing, dtype, &device);
        let (model, _) = load_as(&quickstart(), of_tensors, matrices, &device).unwrap();
        check(&format!("{dtype:?} {packing:?}"), &model);
    }
}

#[test]
fn with_adapters_of_every_form() {
    let device = Device::flex();
    device.seed(5);
    for (method, rank, dora) in [
        (Method::Olora, 4, false),
        (Method::Olora, 2, false),
        (Method::Lora, 8, false),
        (Method::Lora, 4, true),
    ] {
        let config = AdapterConfig {
            method,
            rank,
            alpha: 6.0,
            dora,
            ..AdapterConfig::default()
        };
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let (of_tensors, matrices) = Matrices::to_run(Packing::default(), dtype, &device);
            let (model, _) = load_as(&quickstart(), of_tensors, matrices, &device).unwrap();
            let model = attach(model, &config, 1, &mut |_, _| {}).unwrap();
            let model = model.map(&mut Moved::new(&[]));
            check(&format!("{method:?} {rank} dora {dora} {dtype:?}"), &model);
        }
    }
}
