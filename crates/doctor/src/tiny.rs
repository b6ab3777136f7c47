//! A tiny LLaMA with adapters, the same on every device: its loss, its
//! gradients, and its losses in training.

use std::{path::Path, sync::Arc};

use burn::{
    module::{Module, Param},
    optim::AdamWConfig,
    tensor::{Tensor, TensorData},
};
use olora_adapter::{AdapterConfig, MapParams, Place, attach, map_params};
use olora_data::{Batch, Padding, Sample};
use olora_model::{Dtype, Llama, ModelConfig};
use olora_training::{
    CrossEntropy, Optimized, Passes, Recompute, TrainError, for_each_gradient, step,
};
use serde_json::{Map, Value, json};

use crate::{Bench, Outputs, inputs::numbers, operations::read};

const VOCAB: u32 = 96;

/// Which of the models.
#[derive(Clone, Copy)]
pub(super) struct Variant {
    /// How far back a token sees.
    window: Option<usize>,
    /// Whether every weight trains rather than adapters, and the vocabulary
    /// projection is the embedding's transpose.
    full: bool,
    /// Whether blocks are computed again in the backward pass; in the
    /// reference they never are.
    recomputed: bool,
    /// Whether both sequences share a row; in the reference they never do.
    packed: bool,
}

impl Variant {
    pub(super) const ADAPTED: Self = Self {
        window: None,
        full: false,
        recomputed: false,
        packed: false,
    };
    pub(super) const FULL: Self = Self {
        full: true,
        ..Self::ADAPTED
    };
    pub(super) const RECOMPUTED: Self = Self {
        recomputed: true,
        ..Self::ADAPTED
    };
    pub(super) const PACKED: Self = Self {
        packed: true,
        ..Self::ADAPTED
    };

    pub(super) const fn with_window(mut self, window: usize) -> Self {
        self.window = Some(window);
        self
    }
}

/// Loss and the gradient of everything that trains, for two sequences of
/// unequal length.
pub(super) fn loss_and_gradients(
    bench: &Bench,
    name: &str,
    length: usize,
    variant: Variant,
) -> Outputs {
    let (llama, passes) = model(bench, variant);
    let batch = batch(length, variant.packed && !bench.composed);
    let pass = passes.run(&llama, &batch);
    let mut outputs = vec![read("loss", pass.loss)];
    // The whole model's fault is in what its backward pass hands over.
    let factor = if bench.fault == Some(name) { 1.25 } else { 1.0 };
    for_each_gradient(&llama, &pass.grads, |path, gradient| {
        outputs.push(read(
            &format!("gradient of {path}"),
            gradient.mul_scalar(factor),
        ));
    });
    outputs
}

/// The losses of `n_steps` steps on one batch.
pub(super) fn losses(
    bench: &Bench,
    name: &str,
    length: usize,
    n_steps: usize,
    variant: Variant,
) -> Outputs {
    let (llama, passes) = model(bench, variant);
    let optimizer = AdamWConfig::new().with_weight_decay(0.0).init();
    // Adam forgives a gradient that is too large everywhere; this it does not.
    let learning_rate = if bench.fault == Some(name) {
        5e-3
    } else {
        4e-3
    };
    let mut learner = Optimized::new(llama, optimizer, learning_rate);
    let batch = batch(length, variant.packed && !bench.composed);
    (0..n_steps)
        .map(|index| {
            let result = step(&mut learner, 1, 1.0, |learner, _| {
                Ok::<_, TrainError>(Some(passes.run(&learner.module, &batch)))
            });
            #[expect(
                clippy::expect_used,
                reason = "the batch is a constant with trained tokens, held by the tests; device \
                          failures are caught by whoever runs an operation"
            )]
            let result = result.expect("the doctor's model can be trained");
            read(&format!("loss {index}"), result.loss)
        })
        .collect()
}

/// Two rows, the second about half as long, or one row of both, prompts
/// masked, padded to a multiple of 16.
fn batch(length: usize, packed: bool) -> Batch {
    let sample = |name: &str, length: usize| {
        let tokens: Vec<u32> = numbers(name, length + 1, 1.0)
            .iter()
            .map(|x| ((x + 1.0) * 64.0) as u32 % VOCAB)
            .collect();
        let trained = (0..=length).map(|i| i > length / 4).collect();
        Sample::new(tokens, trained)
    };
    let samples = [
        sample("long row", length),
        sample("short row", length / 2 + 1),
    ];
    let padding = Padding {
        id: 0,
        multiple: 16,
    };
    if packed {
        Batch::packed(&[samples.to_vec()], padding)
    } else {
        Batch::from_samples(&samples, padding)
    }
}

fn model(bench: &Bench, variant: Variant) -> (Llama, Passes) {
    let recompute = if variant.recomputed && !bench.composed {
        Recompute::Blocks
    } else {
        Recompute::None
    };
    let made = build(bench, variant).and_then(|llama| {
        let passes = Passes::new(Arc::new(CrossEntropy), &llama)?;
        Ok((Module::train(llama), passes.with_recompute(recompute)))
    });
    #[expect(
        clippy::expect_used,
        reason = "the configuration is a constant, held by the tests; device failures are caught \
                  by whoever runs an operation"
    )]
    made.expect("the doctor's model can be built")
}

fn build(bench: &Bench, variant: Variant) -> Result<Llama, TrainError> {
    let mut weights = Fill {
        dtype: bench.base,
        factors: false,
    };
    let llama = map_params(config(variant)?.init(bench.device), &mut weights);
    let llama = if bench.base == bench.dtype {
        llama
    } else {
        llama.computing_in(bench.dtype)
    };
    if variant.full {
        return Ok(llama);
    }
    let config = AdapterConfig {
        rank: 8,
        alpha: 12.0,
        exclude: vec!["lm_head".to_owned()],
        ..AdapterConfig::default()
    };
    let adapted = attach(llama, &config, 0, &mut |_, _| {})?;
    let mut factors = Fill {
        dtype: Dtype::F32,
        factors: true,
    };
    Ok(map_params(adapted, &mut factors))
}

/// Mistral's layout has the window; without one it is LLaMA's.
fn config(variant: Variant) -> Result<ModelConfig, olora_model::ModelError> {
    let json = json!({
        "model_type": "mistral", "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 96, "vocab_size": VOCAB, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": variant.full,
        "sliding_window": variant.window,
        "rope_parameters": { "rope_theta": 10000.0, "rope_type": "default" },
    });
    let json: Map<String, Value> = match json {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    ModelConfig::from_json(json, Path::new("the doctor's model"))
}

/// Fills the weights, or the factors, with numbers that their paths decide.
struct Fill {
    dtype: Dtype,
    factors: bool,
}

impl MapParams for Fill {
    fn map<const D: usize>(&mut self, place: &Place, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if place.role.is_adapter() != self.factors {
            return param;
        }
        let path = &place.path;
        // The trained factors differ from where they started, so that the update is not zero.
        let size = if D == 1 {
            1.0
        } else if path.contains("embed_tokens") {
            0.5
        } else {
            // Small enough that attention is not all on one token, where rounding is amplified.
            0.125
        };
        let dtype = self.dtype;
        param.map(|old| {
            let shape = old.shape();
            let mut values = numbers(path, shape.num_elements(), size);
            if D == 1 {
                // Norm weights near 1: 7 bits still hold them.
                for value in &mut values {
                    *value = 1.0 + *value / 4.0;
                    *value = (*value * 64.0).round() / 64.0;
                }
            }
            Tensor::from_data(
                TensorData::new(values, shape),
                (&old.device(), dtype.into()),
            )
        })
    }
}
