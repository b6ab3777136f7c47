//! The training loop's parts, for a decoder and for any Burn module.
//!
//! | part | what it does |
//! |---|---|
//! | [`Objective`] | what is minimised, from hidden states to a sum and a count |
//! | [`Dpo`], [`Orpo`], [`SimPo`], [`Kto`] | objectives that learn from judged answers |
//! | [`Passes`] | forward and backward through one micro-batch, whole or block by block |
//! | [`step()`] | accumulate, average by the count, clip, update |
//! | [`Exchange`] | how several processes make one step: [`step_together()`] |
//! | [`LearningRate`], [`scheduler`] | the rate of a step, and of each parameter |
//! | [`evaluate`] | the loss over held-out data |
//! | [`on_device`] | what a device's failure means |
//!
//! ```
//! use burn::{
//!     module::Module, nn::{Linear, LinearConfig}, optim::{GradientsParams, SgdConfig},
//!     tensor::{Device, Tensor},
//! };
//! use olora_training::{Backward, Optimized, TrainError, step};
//!
//! let device = Device::flex();
//! let module: Linear = Module::train(LinearConfig::new(3, 1).init(&device));
//! let mut learner = Optimized::new(module, SgdConfig::new().init(), 0.1);
//! // Two micro-batches of unequal size make one step: sums are divided once.
//! let sizes = [4, 2];
//! let result = step(&mut learner, 2, 1.0, |learner, micro_batch| {
//!     let n = sizes[micro_batch];
//!     let x = Tensor::<2>::ones([n, 3], &learner.module.weight.device());
//!     let loss = learner.module.forward(x).square().sum();
//!     Ok::<_, TrainError>(Some(Backward {
//!         loss: loss.clone().inner(),
//!         measures: Vec::new(),
//!         count: n as f64,
//!         grads: GradientsParams::from_grads(loss.backward(), &learner.module),
//!     }))
//! })?;
//! assert_eq!(result.count, 6.0);
//! # Ok::<(), TrainError>(())
//! ```
//!
//! What is deliberately absent: recipes, files, checkpoints and printing
//! (`olora-runs`), and the choice of a backend.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod error;
mod evaluate;
mod exchange;
mod failure;
mod gradients;
mod header;
mod kto;
mod objective;
mod order;
mod panics;
mod passes;
mod preference;
mod rates;
mod reference;
mod shared;
mod step;
mod weight_gradients;

pub use error::TrainError;
pub use evaluate::{Evaluation, evaluate, evaluate_together};
pub use exchange::{Exchange, ExchangeError, Local, share};
pub use failure::{DeviceErrors, FailureContext, on_device};
pub use gradients::{average_and_clip, copied, for_each_gradient};
pub use kto::Kto;
pub use objective::{CrossEntropy, HeadShape, Loss, Measure, Objective, Outputs, means};
pub use panics::{caught, listening, record_panics};
pub use passes::{Passes, Recompute, loss_sum};
pub use preference::{Dpo, DpoLoss, Orpo, SimPo};
pub use rates::{Decay, LearningRate, scheduler};
pub use reference::Reference;
pub use shared::sum_over_ranks;
pub use step::{Backward, Learns, Optimized, RankStep, StepResult, Work, step, step_together};
