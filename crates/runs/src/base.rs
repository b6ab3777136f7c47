//! The base model, loaded or drawn.

use std::time::Instant;

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, Tensor},
};
use olora_adapter::{packed_weights, to_dtype};
use olora_model::{Dtype, Llama, ModelConfig, hold_in_bf16, load_as};

use crate::{Event, Observer, Precision, Recipe, RunError, recipe::Weights};

/// The base model of a recipe on its device.
///
/// # Errors
///
/// When a file cannot be read or does not fit, or the device fails.
pub fn load_base(
    recipe: &Recipe,
    config: &ModelConfig,
    precision: &Precision,
    device: &Device,
    observer: &dyn Observer,
) -> Result<Llama, RunError> {
    let loading = Instant::now();
    let base = precision.of_weights();
    let matrices = precision.matrices(recipe.packing());
    let llama = match recipe.model.weights {
        Weights::Checkpoint => load_as(&recipe.model.path, base, matrices, device)?.0,
        Weights::Random | Weights::Timing => {
            let random = config.init(device);
            match precision.in_bf16 {
                Some(products) => hold_in_bf16(random, products)?,
                None if base == Dtype::F32 => random,
                None => random.map(&mut CastTo(base)),
            }
        }
    };
    // After rounding: new rows are those of the weights that the run has.
    let mut llama = llama;
    llama.resize_embeddings(config.vocab_size, recipe.seed);
    let compute = precision.of_activations();
    let llama = if compute == base {
        llama
    } else {
        llama.computing_in(compute)
    };
    observer.on(&Event::ModelLoaded {
        path: recipe.model.path.clone(),
        n_params: llama.num_params(),
        n_packed: packed_weights(&llama)
            .values()
            .filter(|base| !base.tensor.packed().format().is_plain())
            .count(),
        seconds: loading.elapsed().as_secs_f64(),
    });
    Ok(llama)
}

/// Rounds every weight, one after another.
struct CastTo(Dtype);

impl ModuleMapper for CastTo {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|weight| to_dtype(weight, self.0.into()))
    }
}
