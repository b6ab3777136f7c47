//! The result of a run, written into its directory.

use std::path::PathBuf;

use olora_adapter::{PeftAdapter, TaskType, WriteOptions};
use olora_files::StagedDirectory;
use olora_model::{save, weights_fingerprint};

use crate::{
    RunError,
    card::base_name,
    prepare::Prepared,
    recipe::{Trained, Weights},
    strategy::SaveResult,
    trainee::Trainee,
};

/// Writes the adapter, or the whole model, into the run directory.
pub(crate) fn saver(prepared: &Prepared, result: PathBuf) -> SaveResult {
    let recipe = &prepared.recipe;
    let config = prepared.config.clone();
    let base = recipe.model.path.clone();
    let name = base_name(recipe);
    let section = recipe.adapter.clone();
    let checkpoint = recipe.model.weights == Weights::Checkpoint;
    let dtype = recipe.output.dtype.unwrap_or_default();
    Box::new(move |trainee: &Trainee| {
        match section.trained(trainee.llama.lm_head.is_some()) {
            Trained::Adapter(config) => {
                let mut adapter = PeftAdapter::of(&trainee.llama, &config, section.form)?;
                adapter.task = Some(TaskType::CausalLm);
                adapter.base = Some(name.clone());
                if checkpoint {
                    adapter.base_fingerprint = Some(weights_fingerprint(&base)?);
                }
                adapter.write(&result, &WriteOptions::default())?;
            }
            Trained::Everything => {
                // A model that is there already stays until the new one is whole.
                let failed = |source| RunError::io("writing", &result, source);
                let staged = StagedDirectory::new(&result).map_err(failed)?;
                save(&trainee.llama, &config, dtype, Some(&base), staged.path())?;
                staged.replace().map_err(failed)?;
            }
        }
        Ok(())
    })
}
