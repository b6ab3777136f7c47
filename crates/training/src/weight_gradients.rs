//! The gradients of frozen weights, a few at a time.

use std::collections::BTreeMap;

use burn::{
    module::Module,
    tensor::{Gradients, Tensor},
};
use olora_adapter::{Probes, is_probed};
use olora_data::Batch;
use olora_model::{Llama, Positions};

use crate::{
    Passes, TrainError,
    objective::{Beside, Outputs},
    passes::{backward_from, embed, leaf},
    reference::beside,
};

/// A micro-batch on its way back through the blocks.
struct Going {
    positions: Positions,
    /// What each block that is still to be gone through was given.
    inputs: Vec<Tensor<3>>,
    /// The gradient of what the last of them gave.
    grad: Option<Tensor<3>>,
}

impl Passes {
    /// The gradient of each probed layer's weight, `[d_in, d_out]`, f32, summed over these
    /// micro-batches, handed to `each` with the layer's path.
    ///
    /// `llama` is probed ([`olora_adapter::probed`]), on a device with autodiff. Of a micro-batch
    /// what each block was given is kept, and the blocks are run again, last to first, each for
    /// all micro-batches. So the gradients of one block are there at a time, and of one layer if
    /// there is one micro-batch.
    ///
    /// # Errors
    ///
    /// What `each` returns.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    pub fn weight_gradients<E: From<TrainError>>(
        &self,
        llama: &Llama,
        probes: &Probes,
        batches: &[Batch],
        mut each: impl FnMut(&str, Tensor<2>) -> Result<(), E>,
    ) -> Result<(), E> {
        let layers = &llama.model.layers;
        let mut sums = Sums::default();
        let mut going = Vec::with_capacity(batches.len());
        for (index, batch) in batches.iter().enumerate() {
            let (micro, mut gradients) = self.to_the_end(llama, batch);
            going.push(micro);
            let is_last = index + 1 == batches.len();
            sums.add(probes, &mut gradients, is_last, &mut each)?;
        }
        let Some(first) = layers.iter().position(is_probed) else {
            return Ok(());
        };
        for layer_idx in (first..layers.len()).rev() {
            for (index, micro) in going.iter_mut().enumerate() {
                let (Some(input), Some(grad_output)) = (micro.inputs.pop(), micro.grad.take())
                else {
                    continue;
                };
                let input = leaf(input, layer_idx > first);
                let output = layers[layer_idx].forward(input.clone(), &micro.positions);
                let mut gradients = backward_from(output, grad_output);
                micro.grad = input.grad_remove(&mut gradients);
                let is_last = index + 1 == batches.len();
                sums.add(probes, &mut gradients, is_last, &mut each)?;
            }
        }
        Ok(())
    }

    /// Forward through all blocks without a graph, and back from the loss to the last of them.
    fn to_the_end(&self, llama: &Llama, batch: &Batch) -> (Going, Gradients) {
        let plain = llama.valid();
        let beside = match self.reference(&plain) {
            None => Beside::default(),
            Some(reference) => beside(self.objective(), &plain, Some(&reference), batch),
        };
        let (embedded, positions) = embed(llama, batch, &llama.device());
        let mut x = embedded.inner();
        let mut inputs = Vec::with_capacity(plain.model.layers.len());
        for layer in &plain.model.layers {
            inputs.push(x.clone());
            x = layer.forward(x, &positions);
        }
        let last = leaf(x, true);
        let outputs = Outputs::new(llama, last.clone(), batch, &beside);
        let mut gradients = self.objective().loss(&outputs).sum.backward();
        let going = Going {
            positions,
            inputs,
            grad: last.grad_remove(&mut gradients),
        };
        (going, gradients)
    }
}

/// What has been added up of the block at hand.
#[derive(Default)]
struct Sums(BTreeMap<String, Tensor<2>>);

impl Sums {
    /// Adds what a backward pass has found, and hands it on with the last micro-batch.
    fn add<E>(
        &mut self,
        probes: &Probes,
        gradients: &mut Gradients,
        is_last: bool,
        each: &mut impl FnMut(&str, Tensor<2>) -> Result<(), E>,
    ) -> Result<(), E> {
        for probed in probes.take(gradients) {
            let path = probed.path.clone();
            let gradient = probed.weight_gradient();
            let gradient = match self.0.remove(&path) {
                Some(sum) => sum + gradient,
                None => gradient,
            };
            if is_last {
                each(&path, gradient)?;
            } else {
                self.0.insert(path, gradient);
            }
        }
        Ok(())
    }
}
