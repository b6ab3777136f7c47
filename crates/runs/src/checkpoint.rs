//! Checkpoints: what is trained, the optimiser, and where the run stands.
//!
//! `checkpoints/step-000200/` holds `trained.bpk` (factors with their anchors,
//! or the whole model when all of it is trained), `optimizer.bpk` and
//! `state.json`, the first two in Burn's own record format. The directory is
//! written under another name, synced, and renamed: if it is there, it is whole.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{RunError, state::RunState, trainee::Trainee};
use burn::{
    module::{Module, ParamGroup},
    optim::OptimizerRecord,
    store::ModuleRecord,
};
use olora_adapter::{Parameter, params};
use olora_files::StagedDirectory;

const PREFIX: &str = "step-";
const UNFINISHED: &str = ".writing-";
const TRAINED: &str = "trained.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
const STATE: &str = "state.json";

/// Writes a checkpoint and removes all but the newest `keep`.
pub(crate) fn save(
    directory: &Path,
    trainee: &Trainee,
    optimizer: OptimizerRecord,
    state: &RunState,
    keep: usize,
) -> Result<PathBuf, RunError> {
    let path = directory.join(format!("{PREFIX}{:06}", state.step));
    fs::create_dir_all(directory).map_err(|source| RunError::io("creating", directory, source))?;
    remove_leftovers(directory)?;
    let writing = |source| RunError::io("writing", &path, source);
    let staged = StagedDirectory::new(&path).map_err(writing)?;
    let failed = |error: &dyn std::fmt::Display| {
        RunError::io("writing", &path, std::io::Error::other(error.to_string()))
    };
    record(trainee)
        .save(staged.path().join(TRAINED))
        .map_err(|error| failed(&error))?;
    optimizer
        .save(staged.path().join(OPTIMIZER))
        .map_err(|error| failed(&error))?;
    let json = serde_json::to_vec_pretty(state).map_err(|error| failed(&error))?;
    fs::write(staged.path().join(STATE), json).map_err(writing)?;
    staged.replace().map_err(writing)?;

    let all = list(directory)?;
    for (_, old) in all.iter().rev().skip(keep) {
        fs::remove_dir_all(old).map_err(|source| RunError::io("removing", old, source))?;
    }
    Ok(path)
}

/// A process that was killed while it wrote may have left a directory behind,
/// under the name that this version gives it or that earlier ones did.
fn remove_leftovers(directory: &Path) -> Result<(), RunError> {
    let removing = |source| RunError::io("removing what is left in", directory, source);
    olora_files::remove_leftovers(directory).map_err(removing)?;
    for entry in fs::read_dir(directory).map_err(removing)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_dir_all(entry.path()).map_err(removing)?;
        }
    }
    Ok(())
}

/// The complete checkpoints of a run, oldest first.
pub(crate) fn list(directory: &Path) -> Result<Vec<(usize, PathBuf)>, RunError> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let entries =
        fs::read_dir(directory).map_err(|source| RunError::io("reading", directory, source))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| RunError::io("reading", directory, source))?;
        let name = entry.file_name();
        let step = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .and_then(|step| step.parse().ok());
        found.extend(step.map(|step| (step, entry.path())));
    }
    found.sort();
    Ok(found)
}

/// Reads where the run stood.
pub(crate) fn load_state(path: &Path) -> Result<RunState, RunError> {
    let file = path.join(STATE);
    let bytes = fs::read(&file).map_err(|source| RunError::io("reading", &file, source))?;
    serde_json::from_slice(&bytes).map_err(|error| RunError::Checkpoint {
        path: path.to_owned(),
        reason: format!("{STATE}: {error}"),
    })
}

/// Puts the trained values back and reads the optimiser's state.
///
/// Every trained parameter must be in the file and every tensor of the file in
/// the model.
pub(crate) fn load(path: &Path, trainee: Trainee) -> Result<(Trainee, OptimizerRecord), RunError> {
    let refuse = |reason: String| RunError::Checkpoint {
        path: path.to_owned(),
        reason,
    };
    let stored = ModuleRecord::load(path.join(TRAINED))
        .map_err(|error| refuse(format!("{TRAINED}: {error}")))?;
    let expected = record(&trainee).len();
    if stored.len() != expected {
        return Err(refuse(format!(
            "{TRAINED} holds {} tensors, but this model trains {expected}",
            stored.len()
        )));
    }
    let trainee = trainee
        .try_load_record(stored.allow_partial(true))
        .map_err(|error| refuse(format!("{TRAINED}: {error}")))?;
    let optimizer = OptimizerRecord::load(path.join(OPTIMIZER))
        .map_err(|error| refuse(format!("{OPTIMIZER}: {error}")))?;
    Ok((trainee, optimizer))
}

/// What trains, and what of an adapter is constant: the starting factors.
fn record(trainee: &Trainee) -> ModuleRecord {
    let kept = |param: &Parameter| param.trains() || param.role().is_adapter();
    let all = params(trainee);
    if all.iter().all(kept) {
        return trainee.clone().into_record();
    }
    let ids = all.iter().filter(|param| kept(param)).map(Parameter::id);
    let ids = ParamGroup::from_ids(ids.collect::<Vec<_>>());
    trainee.clone().into_record_group(ids)
}

/// The first trained parameter that holds a value that is not finite, by path.
pub(crate) fn not_finite(trainee: &Trainee) -> Result<Option<String>, RunError> {
    for param in params(trainee).iter().filter(|param| param.trains()) {
        let finite = param.flat().is_finite().all();
        let finite = finite.try_into_scalar::<bool>();
        if !finite.map_err(|error| RunError::device(&error))? {
            return Ok(Some(param.path().to_owned()));
        }
    }
    Ok(None)
}

/// Whether a run directory holds a checkpoint to go on from.
///
/// # Errors
///
/// When the directory cannot be read.
pub fn has_checkpoint(run: &Path) -> Result<bool, RunError> {
    Ok(!list(&run.join("checkpoints"))?.is_empty())
}
