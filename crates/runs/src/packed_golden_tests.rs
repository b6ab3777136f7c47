//! A base in each packed format against PEFT and torch on the same base in
//! f32: logits before training, and ten steps of `LoRA` and of `OLoRA`. See
//! `fixtures/README.md`.

use std::{fs, path::PathBuf};

use burn::tensor::Device;
use olora_adapter::{AdapterConfig, Method, PeftAdapter, attach, packed_weights};
use olora_model::{Dtype, Llama};
use serde_json::Value;

use crate::golden_tests::{Outcome, batches, fixture, logits_diff, numbers, run_adapted};

/// A packed base and what the reference made of it.
struct Golden {
    base: PathBuf,
    initial: PathBuf,
    batches: PathBuf,
    /// Packed matrices in the base.
    packed: usize,
    runs: Vec<Value>,
}

impl Golden {
    /// Of a file with references. `format` picks the runs if they are of several bases.
    fn read(file: &str, format: Option<&str>, packed: usize) -> Self {
        let path = fixture(file);
        let directory = path.parent().unwrap();
        let all: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let mut runs: Vec<Value> = all["runs"].as_array().unwrap().clone();
        runs.retain(|run| format.is_none_or(|format| run["format"] == format));
        for run in &mut runs {
            for key in ["optimiser", "r", "alpha", "target_modules"] {
                run[key] = all[key].clone();
            }
        }
        let base = runs[0]["base"].as_str().unwrap_or(".");
        Self {
            base: directory.join(base),
            initial: directory.join("initial"),
            batches: directory.join(all["batches"].as_str().unwrap()),
            packed,
            runs,
        }
    }

    fn of_format(format: &str) -> Self {
        // Seven linear layers and the embedding; of bitsandbytes' those whose rows divide into blocks.
        let packed = if format == "NF4" { 5 } else { 8 };
        Self::read("packed-losses/reference.json", Some(format), packed)
    }

    fn base(&self) -> Llama {
        let (llama, _) = olora_model::load(&self.base, Dtype::F32, &Device::flex()).unwrap();
        assert_eq!(packed_weights(&llama).len(), self.packed);
        llama
    }
}

fn check_logits(format: &str) {
    let llama = Golden::of_format(format).base();
    let bytes = fs::read(fixture("packed-losses/logits.safetensors")).unwrap();
    let diff = logits_diff(&bytes, format, &llama);
    assert!(diff < 1e-4, "{format}: logits differ by {diff}");
}

/// Losses and norms of ten steps; `OLoRA` starts from our own factors, which
/// come from the packed weights.
fn check_steps(golden: &Golden, method: Method) {
    let mut runs = golden.runs.iter();
    let reference = runs.find(|run| run["method"] == method.name()).unwrap();
    let llama = golden.base();
    let llama = if method == Method::Lora {
        let initial = PeftAdapter::read(&golden.initial).unwrap();
        initial.attach(llama).unwrap()
    } else {
        let config = AdapterConfig {
            method,
            rank: usize::try_from(reference["r"].as_u64().unwrap()).unwrap(),
            alpha: reference["alpha"].as_f64().unwrap(),
            targets: serde_json::from_value(reference["target_modules"].clone()).unwrap(),
            ..AdapterConfig::default()
        };
        attach(llama, &config, 0, &mut |_, _| {}).unwrap()
    };
    let batches = batches(golden.batches.parent().unwrap());
    let Outcome { steps, .. } = run_adapted(llama, reference, batches, 1);
    let losses = numbers(reference, "losses");
    let norms = numbers(reference, "grad_norms");
    assert_eq!((steps.len(), losses.len()), (10, 10));
    for (step, (loss, norm)) in steps.into_iter().enumerate() {
        let (loss_ref, norm_ref) = (losses[step], norms[step]);
        assert!(
            (loss - loss_ref).abs() < 1e-4,
            "step {}: loss {loss}, PEFT {loss_ref}",
            step + 1
        );
        assert!(
            (norm - norm_ref).abs() < 1e-3 * norm_ref.max(1.0),
            "step {}: norm {norm}, PEFT {norm_ref}",
            step + 1
        );
    }
}

/// The three tests of a format.
macro_rules! golden {
    ($($module:ident $format:literal)*) => {$(
        mod $module {
            use super::{Golden, Method, check_logits, check_steps};

            #[test]
            fn its_logits_equal_transformers() {
                check_logits($format);
            }

            #[test]
            fn ten_steps_of_lora_equal_pefts() {
                check_steps(&Golden::of_format($format), Method::Lora);
            }

            #[test]
            fn ten_steps_of_olora_equal_pefts() {
                check_steps(&Golden::of_format($format), Method::Olora);
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

/// The two trainings on a checkpoint of `quantised/`, with as many packed
/// matrices. Its logits are compared in `olora-model`.
macro_rules! golden_checkpoints {
    ($($module:ident $directory:literal $packed:literal)*) => {$(
        mod $module {
            use super::{Golden, Method, check_steps};

            fn golden() -> Golden {
                Golden::read(concat!("quantised/", $directory, "/losses.json"), None, $packed)
            }

            #[test]
            fn ten_steps_of_lora_equal_pefts() {
                check_steps(&golden(), Method::Lora);
            }

            #[test]
            fn ten_steps_of_olora_equal_pefts() {
                check_steps(&golden(), Method::Olora);
            }
        }
    )*};
}

golden_checkpoints! {
    bitsandbytes_nested "bnb-nf4-double" 7
    bitsandbytes "bnb-nf4" 6
    mlx_4_bits "mlx-4" 8
    mlx_8_bits "mlx-8" 8
    gptq "gptq" 7
    awq "awq" 7
}
