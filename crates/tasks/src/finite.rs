//! Where a model's numbers stop being finite, as the error that follows.

use burn::tensor::{Int, Tensor};
use olora_model::{Llama, ModelError, first_not_finite};

use crate::TaskError;

/// The error of a model whose numbers for these tokens, `[batch, seq]`, are not
/// finite, naming the first tensor or layer that is not.
pub(crate) fn not_finite(llama: &Llama, what: &str, ids: Tensor<2, Int>) -> TaskError {
    let embedded = llama.embed(ids);
    let positions = llama.positions(&embedded, 0);
    match first_not_finite(llama, embedded, &positions) {
        Ok(first) => ModelError::NotFinite {
            what: what.to_owned(),
            first,
        }
        .into(),
        Err(error) => error.into(),
    }
}
