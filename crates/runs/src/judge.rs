//! The tasks that a run is scored on at each evaluation.

use std::{collections::BTreeMap, sync::Arc};

use olora_data::Tokenizer;
use olora_model::{Llama, ModelConfig};
use olora_tasks::{Task, TaskError, TaskOptions, TaskResult, load, score_together};
use olora_training::Exchange;

use crate::{Recipe, RunError};

/// What stands before a task's name among the measures of an evaluation.
pub(crate) const TASKS: &str = "tasks/";

/// Puts a model to the recipe's tasks.
#[derive(Clone, Debug)]
pub(crate) struct Judge {
    tasks: Arc<Vec<Task>>,
    options: TaskOptions,
    tokenizer: Arc<Tokenizer>,
}

impl Judge {
    /// With the tasks' files read, so that what is wrong with them is told before training; `None`
    /// if the recipe has no tasks.
    pub(crate) fn new(
        recipe: &Recipe,
        config: &ModelConfig,
        tokenizer: &Arc<Tokenizer>,
        accelerator: bool,
    ) -> Result<Option<Self>, RunError> {
        let section = &recipe.tasks;
        let Some(directory) = section
            .data
            .as_deref()
            .filter(|_| !section.names.is_empty())
        else {
            return Ok(None);
        };
        let tasks = load(&section.names, directory, section.limit).map_err(error)?;
        Ok(Some(Self {
            tasks: Arc::new(tasks),
            options: TaskOptions::new(config, tokenizer, accelerator),
            tokenizer: Arc::clone(tokenizer),
        }))
    }

    /// The score of each task, by its name with [`TASKS`] before it: the share that is right.
    pub(crate) fn scores(
        &self,
        exchange: &dyn Exchange,
        llama: &Llama,
    ) -> Result<BTreeMap<String, f64>, RunError> {
        let (tasks, options) = (&self.tasks, &self.options);
        let results = score_together(
            exchange,
            llama,
            &self.tokenizer,
            tasks,
            options,
            &mut |_| {},
        );
        let results = results.map_err(error)?;
        Ok(results
            .iter()
            .filter_map(|result| {
                Some((format!("{TASKS}{}", result.task.as_str()), primary(result)?))
            })
            .collect())
    }
}

/// The metric that the harness's tables lead with.
fn primary(result: &TaskResult) -> Option<f64> {
    let names = ["acc_norm", "acc", "exact_match,strict-match"];
    let found = names.iter().find_map(|name| result.metrics.get(*name));
    found.map(|score| score.value)
}

fn error(error: TaskError) -> RunError {
    match error {
        TaskError::Train(error) => error.into(),
        other => RunError::Recipe {
            recipe: "[tasks]".to_owned(),
            reason: other.to_string(),
        },
    }
}
