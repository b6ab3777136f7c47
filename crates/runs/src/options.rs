//! What the caller decides about a run.

use burn::{
    tensor::Device,
    train::{Interrupter, renderer::MetricsRenderer},
};
use olora_devices::Details;

/// What the caller decides about a run beyond its recipe.
#[derive(Default)]
pub struct TrainOptions {
    /// Continue from the newest checkpoint of the run directory.
    pub resume: bool,
    /// Stops the run from another thread.
    pub interrupter: Interrupter,
    /// Burn's view of the run, for its terminal interface; none if not given.
    pub renderer: Option<Box<dyn MetricsRenderer>>,
    /// The source commit of this build, for `summary.json`.
    pub commit: Option<String>,
    /// What the caller knows of the device.
    pub device: Details,
    /// A device whose gradients are right, the CPU. If given, the run's device
    /// is compared with it before the first step, and refused if it differs.
    pub reference: Option<Device>,
}
