//! What a run tells whoever is watching. This crate prints nothing.

use std::{collections::BTreeMap, path::PathBuf};

use olora_training::Evaluation;
use serde::Serialize;

use crate::{RunPlan, Summary};

/// Receives the events of a run, from the thread that trains.
pub trait Observer: Send + Sync {
    /// Called for each event, in order.
    fn on(&self, event: &Event);
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The data has been read: which file, and what the reader reports.
    Data {
        /// `training` or `validation`.
        role: &'static str,
        /// The file.
        path: PathBuf,
        /// The reader's report, for people.
        report: String,
    },
    /// The base model is in memory.
    ModelLoaded {
        /// Its directory.
        path: PathBuf,
        /// All of its parameters.
        n_params: usize,
        /// Its matrices that are packed.
        n_packed: usize,
        /// Seconds it took.
        seconds: f64,
    },
    /// Adapters are being initialised: layers done, layers in all.
    Attaching(usize, usize),
    /// Data is being looked at to find where factors start: the batch, from 1.
    Looking(usize),
    /// Something to know that stops nothing.
    Note(String),
    /// More than most want to know.
    Detail(String),
    /// A stage has ended.
    Took {
        /// What it was.
        stage: &'static str,
        /// Seconds it took.
        seconds: f64,
    },
    /// From here on, until each shape has occurred once, the device makes
    /// kernels, and chooses among those that it has not chosen among in an
    /// earlier run.
    MakingKernels {
        /// Whether it measures which of several is fastest.
        measured: bool,
    },
    /// The first step is done.
    FirstStep {
        /// Seconds that it took, most of them for kernels if any were new.
        seconds: f64,
        /// For how many shapes a kernel has been chosen since the process
        /// began.
        n_choices: usize,
    },
    /// The device computes what the CPU computes.
    DeviceChecked {
        /// The number format it was checked in.
        dtype: &'static str,
        /// The largest relative difference that was found.
        worst: f64,
        /// Seconds it took.
        seconds: f64,
    },
    /// Everything is in place.
    Ready(RunPlan),
    /// The run continues from a checkpoint of this step.
    Resumed(usize),
    /// A sample was generated.
    Sample {
        /// `before` or `after`.
        when: &'static str,
        /// The recipe's prompt.
        prompt: String,
        /// The continuation.
        text: String,
    },
    /// Steps are done. Where a device works on its own, this comes only when it has
    /// been waited for.
    Progress(Progress),
    /// A step was logged.
    Step(StepReport),
    /// A validation pass has finished.
    Evaluated {
        /// After this many steps.
        step: usize,
        /// The result.
        evaluation: Evaluation,
    },
    /// A checkpoint was written.
    Checkpoint {
        /// After this many steps.
        step: usize,
        /// Where.
        path: PathBuf,
    },
    /// The run was interrupted after this step; a checkpoint is there.
    Interrupted(usize),
    /// The run is complete.
    Finished(Box<Summary>),
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Progress {
    /// The last step that is done.
    pub step: usize,
    /// Steps in all.
    pub total_steps: usize,
    /// Seconds until the last step is done, by what steps have taken since the first
    /// stretch of the session, with the evaluations and checkpoints that are still to
    /// come at the time that the last of them took.
    pub seconds_left: Option<f64>,
}

/// One logged line: means over the steps since the line before.
#[derive(Clone, Debug, Serialize)]
pub struct StepReport {
    /// The last step of the stretch.
    pub step: usize,
    /// Mean loss per trained token, in nats.
    pub loss: f64,
    /// The step's learning rate.
    pub learning_rate: f64,
    /// The step's global gradient norm, before clipping.
    pub grad_norm: f64,
    /// Unpadded input tokens since the run began.
    pub tokens: u64,
    /// Unpadded input tokens per second of training.
    pub tokens_per_second: f64,
    /// Seconds of training since the run began, without evaluation.
    pub seconds: f64,
    /// Peak resident memory of the process, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
    /// Memory held by the device's allocator, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_memory: Option<u64>,
    /// An objective's other means, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub measures: BTreeMap<String, f64>,
    /// Of a run of several processes, where their time went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranks: Option<RanksReport>,
}

/// Where the time of several processes went since the line before.
#[derive(Clone, Debug, Serialize)]
pub struct RanksReport {
    /// How many there are.
    pub n: usize,
    /// Seconds in which sums were on their way between them.
    pub exchange_seconds: f64,
    /// The one whose shares took longest, for people.
    pub slowest: String,
    /// Seconds that they took.
    pub slowest_seconds: f64,
    /// Seconds that those of the median process took.
    pub median_seconds: f64,
}
