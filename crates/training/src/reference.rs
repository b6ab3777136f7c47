//! What a model is compared with, and by which passes.

use burn::{module::Module, tensor::Tensor};
use olora_adapter::{AdapterError, switched_off};
use olora_data::Batch;
use olora_model::Llama;

use crate::{
    objective::{Beside, Objective, Outputs, sum_by},
    passes::blocks,
};

/// What a model is compared with.
#[derive(Clone, Debug, Default)]
pub enum Reference {
    /// The base: the model itself with its adapter switched off.
    #[default]
    Base,
    /// This model, as it is.
    Model(Box<Llama>),
}

impl Reference {
    /// A model as it is now, however it is trained further. The two share what does
    /// not train; a second copy of what does is kept.
    pub fn frozen(llama: &Llama) -> Self {
        let plain = if llama.device().is_autodiff() {
            llama.valid()
        } else {
            llama.clone()
        };
        Self::Model(Box::new(plain.no_grad()))
    }

    /// The reference of a model without autodiff.
    pub(crate) fn of(&self, llama: Llama) -> Result<Llama, AdapterError> {
        match self {
            Self::Base => switched_off(llama),
            Self::Model(model) => Ok((**model).clone()),
        }
    }
}

/// What the objective compares with, by passes without autodiff. `llama` is
/// without it too.
pub(crate) fn beside(
    objective: &dyn Objective,
    llama: &Llama,
    reference: Option<&Llama>,
    batch: &Batch,
) -> Beside {
    let Some(reference) = reference else {
        return Beside::default();
    };
    let unrelated = objective.unrelated(batch).map(|batch| {
        let gained = log_likelihoods(llama, &batch) - log_likelihoods(reference, &batch);
        sum_by(gained, batch.target_samples(), batch.n_samples())
    });
    Beside {
        reference: Some(log_likelihoods(reference, batch)),
        unrelated,
    }
}

/// Of each trained token, for a model without autodiff.
fn log_likelihoods(llama: &Llama, batch: &Batch) -> Tensor<1> {
    let residual = blocks(llama, batch, None);
    Outputs::new(llama, residual, batch, Beside::NOTHING).token_log_likelihoods()
}
