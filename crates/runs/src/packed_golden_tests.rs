//! A base in each packed format against PEFT and torch on the same base in
//! f32: logits before training, and ten steps of `LoRA` and of `OLoRA`. See
//! `fixtures/README.md`.

use std::fs;

use burn::tensor::Device;
use olora_adapter::{AdapterConfig, Method, PeftAdapter, attach, packed_weights};
use olora_model::{Dtype, Llama};
use serde_json::Value;

use crate::golden_tests::{Outcome, batches, fixture, logits_diff, numbers, run_adapted};

/// The reference's run of a method on a format, with the optimiser of all runs.
fn reference(format: &str, method: Method) -> Value {
    let bytes = fs::read(fixture("packed-losses/reference.json")).unwrap();
    let all: Value = serde_json::from_slice(&bytes).unwrap();
    let runs = all["runs"].as_array().unwrap();
    let mut run = runs
        .iter()
        .find(|run| run["format"] == format && run["method"] == method.name())
        .unwrap()
        .clone();
    for key in ["batches", "optimiser", "r", "alpha"] {
        run[key] = all[key].clone();
    }
    run
}

fn base(reference: &Value) -> Llama {
    let path = fixture("packed-losses").join(reference["base"].as_str().unwrap());
    let (llama, _) = olora_model::load(&path, Dtype::F32, &Device::flex()).unwrap();
    // Seven linear layers and the embedding; of bitsandbytes' those whose rows divide into blocks.
    let expected = if path.is_dir() { 5 } else { 8 };
    assert_eq!(packed_weights(&llama).len(), expected);
    llama
}

fn check_logits(format: &str) {
    let llama = base(&reference(format, Method::Lora));
    let bytes = fs::read(fixture("packed-losses/logits.safetensors")).unwrap();
    let diff = logits_diff(&bytes, format, &llama);
    assert!(diff < 1e-4, "{format}: logits differ by {diff}");
}

/// Losses and norms of ten steps; `OLoRA` starts from our own factors, which
/// come from the packed weights.
fn check_steps(format: &str, method: Method) {
    let reference = reference(format, method);
    let llama = base(&reference);
    let llama = if method == Method::Lora {
        let initial = PeftAdapter::read(&fixture("packed-losses/initial")).unwrap();
        initial.attach(llama).unwrap()
    } else {
        let config = AdapterConfig {
            method,
            rank: usize::try_from(reference["r"].as_u64().unwrap()).unwrap(),
            alpha: reference["alpha"].as_f64().unwrap(),
            ..AdapterConfig::default()
        };
        attach(llama, &config, 0, &mut |_, _| {}).unwrap()
    };
    let file = fixture("packed-losses").join(reference["batches"].as_str().unwrap());
    let Outcome { steps, .. } = run_adapted(llama, &reference, batches(file.parent().unwrap()), 1);
    let losses = numbers(&reference, "losses");
    let norms = numbers(&reference, "grad_norms");
    assert_eq!((steps.len(), losses.len()), (10, 10));
    for (step, (loss, norm)) in steps.into_iter().enumerate() {
        let (loss_ref, norm_ref) = (losses[step], norms[step]);
        assert!(
            (loss - loss_ref).abs() < 1e-4,
            "{format} step {}: loss {loss}, PEFT {loss_ref}",
            step + 1
        );
        assert!(
            (norm - norm_ref).abs() < 1e-3 * norm_ref.max(1.0),
            "{format} step {}: norm {norm}, PEFT {norm_ref}",
            step + 1
        );
    }
}

/// The three tests of a format.
macro_rules! golden {
    ($($module:ident $format:literal)*) => {$(
        mod $module {
            use super::{Method, check_logits, check_steps};

            #[test]
            fn its_logits_equal_transformers() {
                check_logits($format);
            }

            #[test]
            fn ten_steps_of_lora_equal_pefts() {
                check_steps($format, Method::Lora);
            }

            #[test]
            fn ten_steps_of_olora_equal_pefts() {
                check_steps($format, Method::Olora);
            }
        }
    )*};
}

golden! {
    q4_0 "Q4_0"
    q4_1 "Q4_1"
    q5_0 "Q5_0"
    q5_1 "Q5_1"
    q8_0 "Q8_0"
    q4_k "Q4_K"
    q5_k "Q5_K"
    q6_k "Q6_K"
    nf4 "NF4"
}
