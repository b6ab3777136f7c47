//! What a run has trained, as an adapter: its result, or what a checkpoint of it
//! holds.

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::TensorData;
use olora_adapter::{AdapterConfig, CONFIG_FILE, NamedTensor, PeftAdapter, TaskType};
use olora_data::{Corpus, Tokenizer};
use olora_model::{ModelConfig, Packing, weights_fingerprint};
use olora_training::caught;
use serde::Deserialize;

use crate::{
    Recipe, RunError,
    card::base_name,
    checkpoint::{self, TRAINED, Whole},
    finished::SUMMARY,
    recipe::{AdapterSection, Keep, Trained, Weights},
    run_data::validation,
    run_directory::RECIPE,
};

/// The directory of a run, or of a checkpoint in it.
#[derive(Clone, Debug)]
pub struct TrainedRun {
    directory: PathBuf,
    /// That which was given, if one was.
    checkpoint: Option<PathBuf>,
}

/// What a summary says of the result, whichever version has written it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Ended {
    finished: bool,
    steps: usize,
    best_step: Option<usize>,
}

impl TrainedRun {
    /// The run that `path` is the directory of, or a checkpoint of; `None` for
    /// anything else.
    ///
    /// # Errors
    ///
    /// For a checkpoint without the recipe of its run.
    pub fn at(path: &Path) -> Result<Option<Self>, RunError> {
        if checkpoint::is_one(path) {
            let whole =
                fs::canonicalize(path).map_err(|source| RunError::io("finding", path, source))?;
            let run = whole.parent().and_then(Path::parent);
            return match run.filter(|run| run.join(RECIPE).is_file()) {
                Some(run) => Ok(Some(Self {
                    directory: run.to_owned(),
                    checkpoint: Some(path.to_owned()),
                })),
                None => Err(RunError::Checkpoint {
                    path: path.to_owned(),
                    reason: format!(
                        "what its tensors mean is in the {RECIPE} of its run, two directories above, which is not \
                         there: give the checkpoint in its place, as RUN/checkpoints/step-…"
                    ),
                }),
            };
        }
        let holds = |name: &str| path.join(name).exists();
        let is_run = path.join(RECIPE).is_file()
            && ["checkpoints", "adapter", "model", "ranks.json", SUMMARY]
                .into_iter()
                .any(holds);
        Ok(is_run.then(|| Self {
            directory: path.to_owned(),
            checkpoint: None,
        }))
    }

    /// What was attached and trained, by the run's recipe.
    ///
    /// # Errors
    ///
    /// [`RunError::Recipe`] if this version cannot read it.
    pub fn section(&self) -> Result<AdapterSection, RunError> {
        Ok(self.recipe()?.adapter)
    }

    /// What the run was evaluated on; `None` if on nothing. Data sets of the hub
    /// are not looked for.
    ///
    /// # Errors
    ///
    /// When the data is not where it was, or too large to be read for this.
    pub fn validation(&self, tokenizer: &Tokenizer) -> Result<Option<Corpus>, RunError> {
        validation(&self.recipe()?, tokenizer)
    }

    /// The adapter in a form that anything can be done with: the result of a run
    /// that is finished, else the newest checkpoint that is whole, which its notes
    /// say. A run that keeps its best weights has a result before it is finished.
    ///
    /// # Errors
    ///
    /// [`RunError::NoAdapter`] if there is neither, and what reading gives.
    pub fn adapter(&self) -> Result<PeftAdapter, RunError> {
        let result = self.directory.join("adapter");
        let has_result = self.checkpoint.is_none() && result.join(CONFIG_FILE).exists();
        if has_result && self.ended().finished {
            return Ok(PeftAdapter::read(&result)?);
        }
        let recipe = self.recipe()?;
        let shown = self.directory.display();
        if has_result && recipe.keep() == Keep::Best {
            let mut adapter = PeftAdapter::read(&result)?;
            adapter.notes.push(format!(
                "the run in {shown} has not finished: its best weights so far are used"
            ));
            return Ok(adapter);
        }
        match self.newest(&recipe)? {
            Some(adapter) => Ok(adapter.widened()),
            None if has_result => Ok(PeftAdapter::read(&result)?),
            None => Err(self.nothing()),
        }
    }

    /// The adapter as it was trained: with what an anchored one is measured from
    /// beside its factors, at its own rank, as the last checkpoint has it. Where
    /// that is not there, or not what the run's result is, the result.
    ///
    /// # Errors
    ///
    /// As [`adapter`](Self::adapter).
    pub fn as_trained(&self) -> Result<PeftAdapter, RunError> {
        let recipe = self.recipe()?;
        let result = self.directory.join("adapter");
        let ended = self.ended();
        if self.checkpoint.is_some() || !result.join(CONFIG_FILE).exists() {
            return self.newest(&recipe)?.ok_or_else(|| self.nothing());
        }
        let last = match recipe.keep() {
            Keep::Last => Some(ended.steps),
            Keep::Best => ended.best_step,
        };
        let (whole, _) = checkpoint::newest_whole(&self.directory.join("checkpoints"))?;
        match whole.filter(|whole| !ended.finished || last == Some(whole.state.step)) {
            Some(whole) if ended.finished => self.of(&whole, &recipe),
            Some(_) if recipe.keep() == Keep::Last => {
                self.newest(&recipe)?.ok_or_else(|| self.nothing())
            }
            _ => {
                let mut adapter = self.adapter()?;
                if recipe.adapter.config.method.is_anchored() {
                    adapter.notes.push(format!(
                        "no checkpoint of {} holds its result: it is read as it was saved, `{}` of rank {}",
                        self.directory.display(),
                        adapter.config.method.name(),
                        adapter.config.rank
                    ));
                }
                Ok(adapter)
            }
        }
    }

    /// The checkpoint that was given, or the newest of a run that has not
    /// finished; `None` if it has none that is whole.
    fn newest(&self, recipe: &Recipe) -> Result<Option<PeftAdapter>, RunError> {
        if let Some(path) = &self.checkpoint {
            let state = checkpoint::examined(path)?.map_err(|reason| RunError::Checkpoint {
                path: path.clone(),
                reason,
            })?;
            let path = path.clone();
            return Ok(Some(self.of(&Whole { path, state }, recipe)?));
        }
        let (whole, damaged) = checkpoint::newest_whole(&self.directory.join("checkpoints"))?;
        let Some(whole) = whole else {
            return Ok(None);
        };
        let mut adapter = self.of(&whole, recipe)?;
        for checkpoint::Damaged { path, reason } in damaged {
            adapter.warnings.push(format!(
                "the checkpoint {} cannot be used: {reason}",
                path.display()
            ));
        }
        adapter.notes.push(format!(
            "the run in {} has not finished: its newest whole checkpoint is used, {}",
            self.directory.display(),
            whole.path.display()
        ));
        Ok(Some(adapter))
    }

    /// What a checkpoint holds.
    fn of(&self, whole: &Whole, recipe: &Recipe) -> Result<PeftAdapter, RunError> {
        let Trained::Adapter(config) = recipe.adapter.trained(true) else {
            return Err(self.nothing());
        };
        let tensors = tensors(&whole.path)?;
        let mut adapter = adapter_of(&config, tensors)?.read_from(&whole.path.join(TRAINED));
        adapter.task = Some(TaskType::CausalLm);
        adapter.base = Some(base_name(recipe));
        // Where one weight is embedding and vocabulary projection, it is trained as both.
        let config = ModelConfig::from_path(&recipe.model.path);
        let tied = config.is_ok_and(|config| config.tie_word_embeddings);
        adapter.ties_weights = tied && adapter.trains_embedding();
        if recipe.model.weights == Weights::Checkpoint {
            adapter.base_fingerprint = weights_fingerprint(&recipe.model.path).ok();
        }
        let packing = recipe.model.quantize;
        if matches!(packing, Packing::As(_)) {
            adapter.base_packing = Some(packing.name().to_owned());
        }
        let step = whole.state.step;
        adapter.notes.push(format!("as it was after step {step}"));
        Ok(adapter)
    }

    fn recipe(&self) -> Result<Recipe, RunError> {
        Recipe::kept(&self.directory.join(RECIPE), &[])
    }

    /// A summary that cannot be read is that of no end.
    fn ended(&self) -> Ended {
        let bytes = fs::read(self.directory.join(SUMMARY)).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Why there is no adapter.
    fn nothing(&self) -> RunError {
        let everything = self.section().is_ok_and(|section| section.everything);
        let shown = self.directory.display();
        let reason = if everything {
            format!(
                "it trained every weight and has no adapter: its result is a model, {shown}/model once it is \
                 finished, to be given with --model"
            )
        } else {
            "it was stopped before it had an adapter or a whole checkpoint: go on with it first, by --resume"
                .to_owned()
        };
        RunError::NoAdapter {
            directory: self.directory.clone(),
            reason,
        }
    }
}

fn adapter_of(config: &AdapterConfig, tensors: Vec<NamedTensor>) -> Result<PeftAdapter, RunError> {
    // Every family's embeddings are called so, and none of its linear layers.
    let is_embedding = |path: &str| {
        let name = path.rsplit('.').next().unwrap_or(path);
        name.starts_with("embed_")
    };
    Ok(PeftAdapter::of_tensors(config, tensors, &is_embedding)?)
}

/// Every tensor of a checkpoint's model, by its path in that.
fn tensors(checkpoint: &Path) -> Result<Vec<NamedTensor>, RunError> {
    /// The model's place in what is trained.
    const MODEL: &str = "llama.";
    let refuse = |reason: String| RunError::Checkpoint {
        path: checkpoint.to_owned(),
        reason: format!("{TRAINED}: {reason}"),
    };
    let read = caught(|| {
        let reader = burn_pack::Reader::from_file(checkpoint.join(TRAINED))
            .map_err(|error| error.to_string())?;
        let mut all = Vec::new();
        for tensor in reader.into_tensors().map_err(|error| error.to_string())? {
            let (path, dtype, shape, _, bytes) =
                tensor.into_parts().map_err(|error| error.to_string())?;
            let sides = shape.to_vec();
            let values = TensorData::from_bytes(bytes, shape, dtype)
                .try_into_vec_as::<f32>()
                .map_err(|error| format!("{path}: {error}"))?;
            all.push(NamedTensor {
                path: path.strip_prefix(MODEL).unwrap_or(&path).to_owned(),
                shape: sides,
                values,
            });
        }
        Ok::<_, String>(all)
    });
    read.unwrap_or_else(Err).map_err(refuse)
}
