//! The result of a run, written into its directory.

use std::path::PathBuf;

use olora_adapter::{PeftAdapter, TaskType, WriteOptions};
use olora_files::StagedDirectory;
use olora_model::{Companions, Packing, save, weights_fingerprint};

use crate::{
    RunError,
    card::base_name,
    prepare::Prepared,
    recipe::{Trained, Weights},
    strategy::SaveResult,
    trainee::Trainee,
};

/// Writes the adapter, or the whole model, into the run directory.
///
/// What that takes of the base is read now: the base may be gone after hours of
/// training, and its fingerprint is to be that of what was trained on.
pub(crate) fn saver(prepared: &Prepared, result: PathBuf) -> Result<SaveResult, RunError> {
    let recipe = &prepared.recipe;
    let config = prepared.config.clone();
    let base = &recipe.model.path;
    let name = base_name(recipe);
    let section = recipe.adapter.clone();
    let full = section.everything;
    let has_files = recipe.model.weights == Weights::Checkpoint;
    let fingerprint = (has_files && !full)
        .then(|| weights_fingerprint(base))
        .transpose()?;
    // An adapter that brings a vocabulary of another size goes with the tokenizer of it.
    let resized = prepared.resized && !full;
    let companions = (full || resized)
        .then(|| Companions::read(base))
        .transpose()?;
    let companions = companions.unwrap_or_default();
    let packing = recipe.model.quantize;
    // Unpacked values are those of the file: only new ones are worth a note.
    let packing = matches!(packing, Packing::As(_)).then(|| packing.name().to_owned());
    let dtype = recipe.output.dtype.unwrap_or_default();
    Ok(Box::new(move |trainee: &Trainee| {
        match section.trained(trainee.llama.lm_head.is_some()) {
            Trained::Adapter(config) => {
                let mut adapter = PeftAdapter::of(&trainee.llama, &config, section.form)?;
                adapter.task = Some(TaskType::CausalLm);
                adapter.base = Some(name.clone());
                adapter.base_fingerprint.clone_from(&fingerprint);
                adapter.base_packing.clone_from(&packing);
                // Where one weight is embedding and vocabulary projection, it is trained as both.
                adapter.ties_weights =
                    trainee.llama.lm_head.is_none() && adapter.trains_embedding();
                if resized {
                    companions.write(&result)?;
                }
                adapter.write(&result, &WriteOptions::default())?;
            }
            Trained::Everything => {
                // A model that is there already stays until the new one is whole.
                let failed = |source| RunError::io("writing", &result, source);
                let staged = StagedDirectory::new(&result).map_err(failed)?;
                save(&trainee.llama, &config, dtype, None, staged.path())?;
                companions.write(staged.path())?;
                staged.replace().map_err(failed)?;
            }
        }
        Ok(())
    }))
}
