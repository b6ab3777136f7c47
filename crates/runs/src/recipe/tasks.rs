//! `[tasks]`: what a run is scored on at each evaluation.

use std::{fmt, path::PathBuf};

use olora_tasks::TaskName;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `[tasks]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TasksSection {
    /// The tasks, by the names of `olora evaluate --tasks`.
    #[schemars(schema_with = "super::schema::task_names")]
    pub names: Vec<TaskName>,
    /// The directory with a file for each, such as `arc_easy.jsonl`. Required with `names`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-type" = "path"))]
    pub data: Option<PathBuf>,
    /// Only the first so many items of each.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1), extend("x-default" = "all"))]
    pub limit: Option<usize>,
}

impl TasksSection {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What evaluations are compared by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BestBy {
    /// The validation loss, the lowest of which is best.
    #[default]
    Loss,
    /// What is scored on a task, the highest of which is best.
    Task(TaskName),
}

/// The loss's name.
const LOSS: &str = "loss";

impl BestBy {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
    pub(crate) fn is_loss(&self) -> bool {
        *self == Self::Loss
    }

    /// The task, if it is one.
    pub fn task(self) -> Option<TaskName> {
        match self {
            Self::Loss => None,
            Self::Task(task) => Some(task),
        }
    }
}

impl fmt::Display for BestBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.task().map_or(LOSS, TaskName::as_str))
    }
}

impl Serialize for BestBy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BestBy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let mut tasks = TaskName::ALL.into_iter();
        match tasks.find(|task| task.as_str() == name) {
            Some(task) => Ok(Self::Task(task)),
            None if name == LOSS => Ok(Self::Loss),
            None => {
                let names = TaskName::ALL.map(|task| format!("`{}`", task.as_str()));
                Err(serde::de::Error::custom(format!(
                    "unknown variant `{name}`, expected `{LOSS}` or a task: {}",
                    names.join(", ")
                )))
            }
        }
    }
}
