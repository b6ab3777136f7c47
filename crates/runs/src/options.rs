//! What the caller decides about a run.

use burn::{
    tensor::Device,
    train::{Interrupter, renderer::MetricsRenderer},
};
use olora_devices::Details;

use crate::ranks::Ranks;

/// Whether a run begins or goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// A new run. Its directory must not hold anything.
    #[default]
    New,
    /// From the newest checkpoint of the run directory, which must be whole. If
    /// there is none yet, the run starts again in its directory.
    Resume,
    /// Whichever of both fits, for those who start the same command again and
    /// again: without a directory as [`New`](Self::New), else as
    /// [`Resume`](Self::Resume). A damaged checkpoint is put aside, and the run
    /// goes on from the one before it.
    Auto,
}

/// What the caller decides about a run beyond its recipe.
#[derive(Default)]
pub struct TrainOptions {
    /// Whether the run begins or goes on.
    pub start: Start,
    /// Stops the run from another thread.
    pub interrupter: Interrupter,
    /// Burn's view of the run, for its terminal interface; none if not given. It is
    /// told of steps and epochs as that interface has to be to show them.
    pub renderer: Option<Box<dyn MetricsRenderer>>,
    /// The source commit of this build, for `summary.json`.
    pub commit: Option<String>,
    /// What the caller knows of the device.
    pub device: Details,
    /// A device whose gradients are right, the CPU. If given, the run's device
    /// is compared with it before the first step, and refused if it differs.
    pub reference: Option<Device>,
    /// The processes that make the run together, this one among them. All are
    /// given the same recipe; the first alone writes.
    pub ranks: Ranks,
}
