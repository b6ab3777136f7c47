//! Checkpoints: what is trained, the optimiser, and where the run stands.
//!
//! `checkpoints/step-000200/` holds `trained.bpk` (factors with their anchors,
//! or the whole model when all of it is trained), `optimizer.bpk` and
//! `state.json`, the first two in Burn's own record format. The directory is
//! written under another name, synced, and renamed: if it is there, it is whole.
//! What happens to it later, on a disk that fails, is found by the hashes in
//! `state.json`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{RunError, state::RunState, state_file, trainee::Trainee};
use burn::{
    module::{Module, ParamGroup},
    optim::OptimizerRecord,
    store::ModuleRecord,
};
use olora_adapter::{Parameter, params};
use olora_files::{StagedDirectory, remove_directory};
use olora_training::caught;

const PREFIX: &str = "step-";
const UNFINISHED: &str = ".writing-";
pub(crate) const TRAINED: &str = "trained.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
pub(crate) const STATE: &str = "state.json";
/// What a checkpoint holds.
pub(crate) const FILES: [&str; 3] = [TRAINED, OPTIMIZER, STATE];
/// What a damaged checkpoint is called from when it is put aside, before its
/// name.
const DAMAGED: &str = "damaged-";

/// Where the checkpoint after a step is.
pub(crate) fn path_of(directory: &Path, step: usize) -> PathBuf {
    directory.join(format!("{PREFIX}{step:06}"))
}

/// Writes a checkpoint.
pub(crate) fn save(
    directory: &Path,
    trainee: &Trainee,
    optimizer: OptimizerRecord,
    state: &RunState,
) -> Result<PathBuf, RunError> {
    let path = path_of(directory, state.step);
    fs::create_dir_all(directory).map_err(|source| RunError::io("creating", directory, source))?;
    let writing = |source| RunError::io("writing", &path, source);
    let staged = StagedDirectory::new(&path).map_err(writing)?;
    let failed = |error: &dyn std::fmt::Display| {
        RunError::io("writing", &path, std::io::Error::other(error.to_string()))
    };
    // The optimiser's record is a copy on the host: it goes before the other is made.
    optimizer
        .save(staged.path().join(OPTIMIZER))
        .map_err(|error| failed(&error))?;
    record(trainee)
        .save(staged.path().join(TRAINED))
        .map_err(|error| failed(&error))?;
    let json = state_file::write(state, staged.path(), &[TRAINED, OPTIMIZER])
        .map_err(|error| failed(&error))?;
    fs::write(staged.path().join(STATE), json).map_err(writing)?;
    staged.replace().map_err(writing)?;
    Ok(path)
}

/// Removes all checkpoints but the newest `keep`, and what killed processes have
/// left. An old checkpoint is renamed before it is removed: it is whole as long
/// as it is one.
pub(crate) fn tidy(directory: &Path, keep: usize) -> Result<(), RunError> {
    if !directory.exists() {
        return Ok(());
    }
    remove_leftovers(directory)?;
    for (_, old) in list(directory)?.iter().rev().skip(keep) {
        remove_directory(old).map_err(|source| RunError::io("removing", old, source))?;
    }
    Ok(())
}

/// A process that was killed while it wrote or removed may have left a directory
/// behind, under the name that this version gives it or that earlier ones did.
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

/// Whether a path is that of a checkpoint, whole or not.
pub(crate) fn is_one(path: &Path) -> bool {
    path.join(TRAINED).is_file() || path.join(STATE).is_file()
}

/// A checkpoint to go on from.
#[derive(Clone, Debug)]
pub(crate) struct Whole {
    pub(crate) path: PathBuf,
    /// Where the run stood.
    pub(crate) state: RunState,
}

/// A checkpoint that cannot be used, and why.
#[derive(Clone, Debug)]
pub(crate) struct Damaged {
    pub(crate) path: PathBuf,
    pub(crate) reason: String,
}

/// The newest checkpoint that is whole, and those after it that are not, newest
/// first.
pub(crate) fn newest_whole(directory: &Path) -> Result<(Option<Whole>, Vec<Damaged>), RunError> {
    let mut damaged = Vec::new();
    for (_, path) in list(directory)?.into_iter().rev() {
        match examined(&path)? {
            Ok(state) => return Ok((Some(Whole { path, state }), damaged)),
            Err(reason) => damaged.push(Damaged { path, reason }),
        }
    }
    Ok((None, damaged))
}

/// Where the run stood, or why the checkpoint cannot be used. What this process
/// may not read is an error: there may be nothing wrong with it.
pub(crate) fn examined(path: &Path) -> Result<Result<RunState, String>, RunError> {
    let file = path.join(STATE);
    let bytes = match fs::read(&file) {
        Ok(bytes) => bytes,
        Err(source) if source.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(RunError::io("reading", &file, source));
        }
        Err(error) => return Ok(Err(format!("{STATE}: {error}"))),
    };
    let (state, is_checked) = match state_file::read(&bytes, path) {
        Ok(read) => read,
        Err(error) if error.is_forbidden() => {
            return Err(RunError::io("reading", path, error.into()));
        }
        Err(error) => return Ok(Err(error.to_string())),
    };
    if !is_checked {
        // Of a version before hashes: what Burn makes of its files is all that there is.
        let readable = caught(|| {
            ModuleRecord::load(path.join(TRAINED))
                .map_err(|error| format!("{TRAINED}: {error}"))?;
            OptimizerRecord::load(path.join(OPTIMIZER))
                .map_err(|error| format!("{OPTIMIZER}: {error}"))?;
            Ok(())
        });
        if let Err(reason) = readable.unwrap_or_else(Err) {
            return Ok(Err(reason));
        }
    }
    Ok(Ok(state))
}

/// Gives a damaged checkpoint another name, under which it is no longer looked
/// at and never removed.
pub(crate) fn put_aside(path: &Path) -> Result<PathBuf, RunError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = (0..).map(|n| {
        let again = if n == 0 {
            String::new()
        } else {
            format!("-{n}")
        };
        path.with_file_name(format!("{DAMAGED}{name}{again}"))
    });
    let aside = aside.into_iter().find(|aside| !aside.exists());
    let aside = aside.unwrap_or_else(|| path.to_owned());
    fs::rename(path, &aside).map_err(|source| RunError::io("renaming", path, source))?;
    Ok(aside)
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
