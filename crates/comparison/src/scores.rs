//! What tasks say of a comparison's base, and of the adapters that came of it.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::tensor::Device;
use olora_adapter::PeftAdapter;
use olora_data::Tokenizer;
use olora_files::Fnv1a;
use olora_model::{Llama, ModelConfig};
use olora_runs::{Precision, Recipe, load_base};
use olora_tasks::{DEFINITION, ItemResults, Score, Task, TaskName, TaskOptions, TaskResult, score};
use serde::{Deserialize, Serialize};

use crate::{
    CompareOptions, Comparison, ComparisonError, ComparisonEvent, ComparisonObserver, Muted,
    protocol::{read_json, write_json},
    report::{Group, Report},
    statistics::Interval,
    trial::Trial,
};

/// Where scores are, below a comparison's directory.
const SCORES: &str = "scores";
/// The file of what the base scored.
const BASE: &str = "base";

/// What a model scored: `scores/<name>.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scores {
    /// The run whose adapter it is, or `base`.
    name: String,
    /// When that run was finished: one that was made again has another adapter.
    of: Option<String>,
    /// Whose prompts and metrics these are.
    definition: String,
    /// Only so many items of each task, from the first.
    limit: Option<usize>,
    /// What names the items.
    items: String,
    tasks: Vec<Scored>,
}

/// What a model scored on one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scored {
    task: TaskName,
    /// `acc_norm` where the task has it, else `acc` or an exact match.
    metric: String,
    score: Score,
    n_items: usize,
    seconds: f64,
    /// For each item 1 if it is right by the metric, else 0.
    right: String,
}

impl Scored {
    fn of(result: &TaskResult) -> Option<Self> {
        let metrics = ["acc_norm", "acc", "exact_match,flexible-extract"];
        let metric = metrics
            .into_iter()
            .find(|metric| result.metrics.contains_key(*metric))?;
        let right: Vec<bool> = match &result.items {
            ItemResults::Choices(items) => {
                let normalised = metric == "acc_norm";
                let right = items
                    .iter()
                    .map(|item| if normalised { item.acc_norm } else { item.acc });
                right.collect()
            }
            ItemResults::Generations(items) => {
                items.iter().map(|item| item.flexible_match).collect()
            }
        };
        Some(Self {
            task: result.task,
            metric: metric.to_owned(),
            score: *result.metrics.get(metric)?,
            n_items: result.n_items,
            seconds: result.seconds,
            right: right
                .iter()
                .map(|right| if *right { '1' } else { '0' })
                .collect(),
        })
    }

    fn right(&self) -> Vec<f64> {
        let items = self.right.chars();
        items
            .map(|right| f64::from(u8::from(right == '1')))
            .collect()
    }
}

impl Comparison {
    /// Puts the base, and the adapter of each run at its method's best rate, to
    /// tasks. What has been scored is not scored again. Returns whether all
    /// have been; not all have if it was interrupted.
    ///
    /// # Errors
    ///
    /// [`ComparisonError::Comparison`] when there are scores on other tasks or items,
    /// or an adapter is no longer there; or when the device fails.
    pub fn score(
        &self,
        device: &Device,
        options: &CompareOptions,
        (tasks, limit): (&[Task], Option<usize>),
        observer: &Arc<dyn ComparisonObserver>,
    ) -> Result<bool, ComparisonError> {
        let config = ModelConfig::from_path(&self.recipe.model.path)?;
        let accelerator = options.device.accelerator;
        let (recipe, precision) = self.recipe.resolved(&config, device, accelerator)?;
        let tokenizer = Tokenizer::from_path(&recipe.model.path)?;
        let scoring = Scoring {
            directory: self.directory.join(SCORES),
            task_options: TaskOptions::new(&config, &tokenizer, accelerator),
            recipe,
            config,
            precision,
            tokenizer,
            device,
            tasks,
            limit,
            observer,
        };
        let report = Report::read(&self.directory)?;
        let mut trials: Vec<&Trial> = report
            .groups
            .iter()
            .flat_map(|group| &group.trials)
            .collect();
        // Seed by seed, so that what is done of an interrupted scoring has all methods.
        trials.sort_by_key(|trial| trial.seed);
        for trial in std::iter::once(None).chain(trials.into_iter().map(Some)) {
            if options.interrupter.should_stop() {
                return Ok(false);
            }
            scoring.one(trial, &self.directory)?;
        }
        Ok(true)
    }
}

/// What it takes to score a model.
struct Scoring<'a> {
    directory: PathBuf,
    recipe: Recipe,
    config: ModelConfig,
    precision: Precision,
    tokenizer: Tokenizer,
    task_options: TaskOptions,
    device: &'a Device,
    tasks: &'a [Task],
    limit: Option<usize>,
    observer: &'a Arc<dyn ComparisonObserver>,
}

impl Scoring<'_> {
    /// Scores the base or a run's adapter, unless that has been done.
    fn one(&self, trial: Option<&Trial>, comparison: &Path) -> Result<(), ComparisonError> {
        let name = trial.map_or(BASE, |trial| trial.recipe.name.as_str());
        let wanted = Scores {
            name: name.to_owned(),
            of: trial.map(|trial| trial.finished.clone()),
            definition: DEFINITION.to_owned(),
            limit: self.limit,
            items: name_of(self.tasks),
            tasks: Vec::new(),
        };
        let path = self.directory.join(format!("{name}.json"));
        if path.exists() {
            let there: Scores = read_json(&path)?;
            if there.items != wanted.items || there.definition != wanted.definition {
                return Err(ComparisonError::Comparison {
                    path,
                    reason: "it holds scores on other tasks, or on other items of them: remove its directory to \
                             have all models scored again"
                        .to_owned(),
                });
            }
            if there.of == wanted.of {
                return Ok(());
            }
        }
        self.observer.on(&ComparisonEvent::Scoring(name));
        let adapter = trial.map(|trial| trial.run_directory(comparison).join("adapter"));
        let llama = self.model(adapter.as_deref())?;
        let results = score(
            &llama,
            &self.tokenizer,
            self.tasks,
            &self.task_options,
            &mut |_| {},
        )?;
        let scores = Scores {
            tasks: results.iter().filter_map(Scored::of).collect(),
            ..wanted
        };
        write_json(&path, &scores)
    }

    fn model(&self, adapter: Option<&Path>) -> Result<Llama, ComparisonError> {
        let muted = Muted(self.observer.clone());
        let llama = load_base(
            &self.recipe,
            &self.config,
            &self.precision,
            self.device,
            &muted,
        )?;
        let Some(directory) = adapter else {
            return Ok(llama);
        };
        if !directory.exists() {
            return Err(ComparisonError::Comparison {
                path: directory.to_owned(),
                reason: "the adapter is no longer there: remove the run's file in `cells` to have it made again"
                    .to_owned(),
            });
        }
        Ok(PeftAdapter::read(directory)?.attach(llama)?)
    }
}

/// A number that changes with the tasks and their items: 64-bit FNV-1a of all
/// that is asked.
fn name_of(tasks: &[Task]) -> String {
    let mut hash = Fnv1a::default();
    for task in tasks {
        hash.add(format!("{}{:?}", task.name, task.items).as_bytes());
    }
    format!("{:016x}", hash.value())
}

/// The scores that are there of the base and of these groups' runs; `None`
/// without the base's.
pub(crate) fn table(directory: &Path, groups: &[Group]) -> Result<Option<String>, ComparisonError> {
    let directory = directory.join(SCORES);
    let of = |name: &str| -> Result<Option<Scores>, ComparisonError> {
        let path = directory.join(format!("{name}.json"));
        path.exists().then(|| read_json(&path)).transpose()
    };
    let Some(base) = of(BASE)? else {
        return Ok(None);
    };
    let mut text = String::new();
    let mut rows = Vec::new();
    for group in groups {
        let names = group.trials.iter().map(|trial| of(&trial.recipe.name));
        let scores: Vec<Scores> = names
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .flatten()
            .collect();
        if !scores.is_empty() {
            rows.push((group, scores));
        }
    }
    // Writing to a string cannot fail.
    let _ = write_table(&mut text, &base, &rows);
    Ok(Some(text))
}

fn write_table(
    text: &mut String,
    base: &Scores,
    rows: &[(&Group, Vec<Scores>)],
) -> std::fmt::Result {
    let items = match base.limit {
        Some(limit) => format!("the first {limit} items of each task"),
        None => "all items".to_owned(),
    };
    writeln!(
        text,
        "\n## Scores on tasks before and after\n\n\
         By {}, on {items}. In brackets the difference to the base, the mean over seeds, with the 95 % interval over \
         items, each against itself; it does not hold the spread over seeds.\n",
        base.definition
    )?;
    let heads = base.tasks.iter().map(|scored| {
        format!(
            "{} ({}, n = {})",
            scored.task, scored.metric, scored.n_items
        )
    });
    let heads: Vec<String> = heads.collect();
    writeln!(text, "| method | rank | seeds | {} |", heads.join(" | "))?;
    writeln!(text, "|---|---:|---:|{}", "---:|".repeat(heads.len()))?;
    let scores = base.tasks.iter().map(|scored| {
        let width = Interval::of(&scored.right()).map(|interval| interval.half_width);
        let width = width.map(|width| format!(" ± {width:.3}"));
        format!("{:.3}{}", scored.score.value, width.unwrap_or_default())
    });
    let scores: Vec<String> = scores.collect();
    writeln!(text, "| base | – | – | {} |", scores.join(" | "))?;
    for (group, scores) in rows {
        let cells: Vec<String> = base
            .tasks
            .iter()
            .map(|before| against(before, scores))
            .collect();
        writeln!(
            text,
            "| {} | {} | {} | {} |",
            group.variant,
            group.rank,
            scores.len(),
            cells.join(" | ")
        )?;
    }
    Ok(())
}

/// The mean score of several seeds, and the difference to the base's.
fn against(before: &Scored, seeds: &[Scores]) -> String {
    let after: Vec<Vec<f64>> = seeds
        .iter()
        .flat_map(|scores| &scores.tasks)
        .filter(|scored| scored.task == before.task)
        .map(Scored::right)
        .filter(|right| right.len() == before.right.len())
        .collect();
    if after.is_empty() {
        return "–".to_owned();
    }
    let n = after.len() as f64;
    let before = before.right();
    let means: Vec<f64> = (0..before.len())
        .map(|item| after.iter().map(|right| right[item]).sum::<f64>() / n)
        .collect();
    let differences: Vec<f64> = means.iter().zip(&before).map(|(a, b)| a - b).collect();
    let value = means.iter().sum::<f64>() / means.len() as f64;
    Interval::of(&differences).map_or_else(
        || format!("{value:.3}"),
        |Interval { mean, half_width }| format!("{value:.3} ({mean:+.3} ± {half_width:.3})"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(right: &str) -> Scores {
        Scores {
            name: "x".to_owned(),
            of: None,
            items: String::new(),
            definition: DEFINITION.to_owned(),
            limit: Some(4),
            tasks: vec![Scored {
                task: TaskName::BoolQ,
                metric: "acc".to_owned(),
                score: Score {
                    value: 0.5,
                    stderr: None,
                },
                n_items: right.len(),
                seconds: 1.0,
                right: right.to_owned(),
            }],
        }
    }

    /// By item, the two seeds' means are 1, 1, 0.5, 0.5 against 1, 1, 0, 0:
    /// differences 0, 0, 0.5, 0.5.
    #[test]
    fn seeds_are_averaged_item_by_item() {
        let base = scores("1100");
        let text = against(&base.tasks[0], &[scores("1110"), scores("1101")]);
        let width = 3.182_446 * (1.0_f64 / 12.0).sqrt() / 2.0;
        assert_eq!(text, format!("0.750 (+0.250 ± {width:.3})"));
    }

    #[test]
    fn scores_on_other_items_are_not_compared() {
        assert_eq!(against(&scores("1100").tasks[0], &[scores("110")]), "–");
    }
}
