//! What to do when the device of a run fails.

use burn::tensor::{DType, Device};
use olora_devices::Details;
use olora_model::Dtype;
use olora_training::FailureContext;

use crate::Recipe;

/// What is known about a run if its device fails.
pub(crate) fn failure_context(
    recipe: &Recipe,
    device: &Device,
    details: &Details,
) -> FailureContext {
    let is_full = recipe.adapter.everything;
    let is_half = recipe.model.dtype.is_some_and(|dtype| dtype != Dtype::F32);
    let half = if is_full || is_half || !device.supports_dtype(DType::BF16) {
        ""
    } else {
        ", or hold the base in half precision (model.dtype = \"bfloat16\")"
    };
    let advice = format!(
        "Lower training.batch_size (training.accumulation makes up for it) or data.max_length{half}"
    );
    FailureContext::new(details.accelerator, details.memory, &advice)
}
