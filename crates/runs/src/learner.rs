//! Burn's learner for a recipe: what it goes through, its optimiser, its launch.

use std::sync::{Arc, PoisonError};

use burn::{
    data::dataloader::DataLoader,
    optim::{AdamWConfig, ModuleOptimizer, SgdConfig},
    train::{
        Interrupter, Learner, SupervisedTraining, TrainingStrategy,
        metric::{LearningRateMetric, LossMetric},
        renderer::MetricsRenderer,
    },
};
use olora_data::Batch;
use olora_model::Llama;
use olora_training::{Passes, Reference, caught};

use crate::{
    Recipe, RunError,
    by_steps::BySteps,
    quiet::Quiet,
    recipe::{OptimizerKind, TrainingSection},
    state::Outcome,
    strategy::StepStrategy,
    trainee::Trainee,
};

/// How a recipe's run goes through its micro-batches, of a model as it starts.
pub(crate) fn passes(recipe: &Recipe, llama: &Llama) -> Result<Passes, RunError> {
    let reference = if keeps_start(recipe) {
        Reference::frozen(llama)
    } else {
        Reference::Base
    };
    let passes = Passes::with_reference(recipe.objective(), llama, reference)?;
    Ok(passes.with_recompute(recipe.training.recompute))
}

/// Whether what trains is kept as it was at the start, to compare with: where the
/// start is another adapter, and where modules of the base train whole, switching
/// the adapter off would not give it.
pub(crate) fn keeps_start(recipe: &Recipe) -> bool {
    let adapter = &recipe.adapter;
    let starts_at_base =
        adapter.from.is_none() && !adapter.everything && adapter.config.modules_to_save.is_empty();
    recipe.objective.method.has_reference() && !starts_at_base
}

/// The recipe's update rule.
pub(crate) fn optimizer(training: &TrainingSection) -> ModuleOptimizer {
    match training.optimizer {
        OptimizerKind::Sgd => SgdConfig::new().init(),
        OptimizerKind::Adamw => AdamWConfig::new()
            .with_beta_1(training.beta1 as f32)
            .with_beta_2(training.beta2 as f32)
            .with_epsilon(training.epsilon as f32)
            .with_weight_decay(training.weight_decay as f32)
            .init(),
    }
}

/// Hands everything to Burn's `SupervisedTraining` and waits for it.
pub(crate) fn run_learner(
    strategy: &Arc<StepStrategy>,
    learner: Learner<Trainee>,
    train: Arc<dyn DataLoader<Batch>>,
    valid: Arc<dyn DataLoader<Batch>>,
    renderer: Option<Box<dyn MetricsRenderer>>,
    interrupter: Interrupter,
) -> Result<(Llama, Outcome), RunError> {
    let training = SupervisedTraining::new(strategy.directory.path(), train, valid)
        .with_metric_logger(Quiet)
        // The log is ours, and so is the panic hook that Burn's would set.
        .with_application_logger(None)
        .metric_train_numeric(LossMetric::new())
        .metric_valid_numeric(LossMetric::new())
        .metric_train_numeric(LearningRateMetric::new())
        .with_interrupter(interrupter)
        .renderer(match renderer {
            None => Box::new(Quiet),
            Some(renderer) => Box::new(BySteps::new(
                renderer,
                strategy.epochs,
                strategy.left.clone(),
                strategy.start.step,
            )),
        })
        .with_training_strategy(TrainingStrategy::Custom(strategy.clone()))
        .num_epochs(1);
    let result = caught(|| training.launch(learner));
    let outcome = strategy
        .outcome
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    // The loop's own error says more than what Burn makes of it.
    let outcome = outcome.transpose()?;
    let result = result.map_err(|said| RunError::device(&said))?;
    let outcome = outcome.ok_or_else(|| RunError::burn(&"the loop did not run"))?;
    if let Some(error) = result.error {
        return Err(RunError::burn(&error));
    }
    Ok((result.model.llama, outcome))
}
