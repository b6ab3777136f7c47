//! A directory that is given as what it is not: an adapter as a model, a
//! trainer's output as either. Each is told with what would do.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use olora_adapter::{CONFIG_FILE, MLX_TENSOR_FILE, TENSOR_FILE};
use olora_runs::TrainedRun;

use crate::written::is_gguf_name;

const MODEL: &str = "config.json";
/// What holds the weights of a model, one for each format.
const WEIGHTS: [&[&str]; 2] = [
    &["model.safetensors", "model.safetensors.index.json"],
    &["pytorch_model.bin", "pytorch_model.bin.index.json"],
];
const TENSORS: [&str; 3] = [TENSOR_FILE, "adapter_model.bin", MLX_TENSOR_FILE];

/// Whether one of these files is in a directory.
fn first<'a>(directory: &Path, names: &[&'a str]) -> Option<&'a str> {
    names
        .iter()
        .copied()
        .find(|name| directory.join(name).exists())
}

/// The last of a trainer's `checkpoint-N` directories that has a file.
fn last_checkpoint(directory: &Path, file: &str) -> Option<PathBuf> {
    let entries = directory.read_dir().ok()?.flatten();
    let numbered = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let step = name.strip_prefix("checkpoint-")?.parse::<u64>().ok()?;
        entry
            .path()
            .join(file)
            .exists()
            .then(|| (step, entry.path()))
    });
    numbered.max().map(|(_, path)| path)
}

/// Refuses a directory that is given as a model and is something else that is
/// known. What has the files of a model, or nothing known, is left to loading.
pub(crate) fn refuse_as_model(path: &Path) -> Result<()> {
    if !path.is_dir() {
        return Ok(());
    }
    let shown = path.display();
    let is_model = path.join(MODEL).exists();
    let has_weights = WEIGHTS.iter().any(|names| first(path, names).is_some());
    let is_adapter = path.join(CONFIG_FILE).exists() || first(path, &TENSORS).is_some();
    if is_model && (has_weights || !is_adapter) {
        return Ok(());
    }
    if is_adapter {
        bail!(
            "{shown} is an adapter, not a model: give its base with --model and it with --adapter, or make one \
             model of both with `olora merge --model BASE --adapter {shown} --output merged`"
        );
    }
    if let Some(inside) = last_checkpoint(path, MODEL) {
        bail!(
            "{shown} is what a trainer has written, with its models inside: give the last of them, --model {}",
            inside.display()
        );
    }
    if let Some(inside) = last_checkpoint(path, CONFIG_FILE) {
        bail!(
            "{shown} is what a trainer has written, with adapters inside and no model: give the base with \
             --model and the last adapter with --adapter {}",
            inside.display()
        );
    }
    if path.join("model").join(MODEL).exists() {
        bail!(
            "{shown} is the directory of a run: its model is --model {}",
            path.join("model").display()
        );
    }
    let is_run = path.join("recipe.toml").exists() && path.join("checkpoints").is_dir();
    if path.join("adapter").join(CONFIG_FILE).exists() || is_run {
        bail!(
            "{shown} is the directory of a run, which has an adapter and no model: give the base with --model \
             and the run with --adapter {shown}"
        );
    }
    Ok(())
}

/// Whether a path or name stands for a model, where it may stand for an adapter too.
///
/// # Errors
///
/// For a directory that is neither.
pub(crate) fn is_model(path: &Path) -> Result<bool> {
    let adapter_beside = || {
        let directory = path.parent();
        directory.is_some_and(|directory| directory.join(CONFIG_FILE).exists())
    };
    if !path.is_dir() {
        // What is not there may be a name on the hub, where adapters are not looked for.
        return Ok(!path.is_file() || is_gguf_name(path) || !adapter_beside());
    }
    let has_weights = WEIGHTS.iter().any(|names| first(path, names).is_some());
    if path.join(CONFIG_FILE).exists() || path.join("adapter").join(CONFIG_FILE).exists() {
        // Some tools leave the adapter's configuration beside the merged model.
        let merged = has_weights && path.join(MODEL).exists();
        return Ok(merged && first(path, &TENSORS).is_none());
    }
    if path.join(MODEL).exists() || has_weights {
        return Ok(true);
    }
    if first(path, &TENSORS).is_some() {
        return Ok(false);
    }
    if last_checkpoint(path, MODEL).is_some() || path.join("model").join(MODEL).exists() {
        return Ok(true);
    }
    if last_checkpoint(path, CONFIG_FILE).is_some() || TrainedRun::at(path)?.is_some() {
        return Ok(false);
    }
    bail!(
        "{} is neither a model nor an adapter: there is no {MODEL} in it, nor {CONFIG_FILE}, nor an `adapter` or \
         `model` directory with one, as a run has it",
        path.display()
    )
}

/// Which weights are read where a directory has them several times.
pub(crate) fn doubled(path: &Path) -> Option<String> {
    let mut there: Vec<String> = WEIGHTS
        .iter()
        .filter_map(|names| first(path, names))
        .map(str::to_owned)
        .collect();
    let read = there.first()?.clone();
    // Mistral's and Meta's own layouts of the same weights.
    let consolidated = path.read_dir().ok()?.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.starts_with("consolidated.").then_some(name)
    });
    there.extend(consolidated);
    if path.join("original").is_dir() {
        there.push("original/".to_owned());
    }
    (there.len() > 1).then(|| {
        format!(
            "{} has weights in several forms ({}): {read} is read",
            path.display(),
            there.join(", ")
        )
    })
}

/// The adapter that a path stands for: itself, or the one in the directory of a
/// run.
///
/// # Errors
///
/// For what is no adapter, with what it is and what would do.
pub(crate) fn adapter_in(path: &Path) -> Result<PathBuf> {
    if path.join(CONFIG_FILE).exists() {
        return Ok(path.to_owned());
    }
    let inside = path.join("adapter");
    if inside.join(CONFIG_FILE).exists() {
        return Ok(inside);
    }
    let shown = path.display();
    if !path.exists() {
        bail!(
            "there is no adapter at {shown}: an adapter is given as its directory on this machine, or that of \
             the run that made it. Check the spelling; one of the hub is downloaded before, with \
             `hf download OWNER/NAME --local-dir DIRECTORY`"
        );
    }
    if path.is_file() {
        let directory = path
            .parent()
            .filter(|parent| parent.join(CONFIG_FILE).exists());
        match directory {
            Some(directory) => bail!(
                "{shown} is a file, and an adapter is given as its directory: --adapter {}",
                directory.display()
            ),
            None => bail!(
                "{shown} is a file, and an adapter is given as a directory with {CONFIG_FILE} and its tensors; \
                 adapters in GGUF files are written and not read"
            ),
        }
    }
    if let Some(inside) = last_checkpoint(path, CONFIG_FILE) {
        bail!(
            "{shown} is what a trainer has written, with its adapters inside: give the last of them, --adapter {}",
            inside.display()
        );
    }
    if let Some(tensors) = first(path, &TENSORS) {
        bail!(
            "{shown} has {tensors}, but no {CONFIG_FILE} beside it, which says what it means: copy it too"
        );
    }
    if path.join(MODEL).exists() || WEIGHTS.iter().any(|names| first(path, names).is_some()) {
        bail!(
            "{shown} is a model, not an adapter: give it with --model, and leave --adapter out. `olora convert \
             {shown} --output PATH` writes it in another form"
        );
    }
    bail!(
        "{shown} is no adapter: there is no {CONFIG_FILE} in it, nor in an `adapter` directory inside, as a run has it"
    );
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::fs;

    use super::*;

    /// A directory with these files, all empty.
    fn directory(files: &[&str]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for file in files {
            let path = directory.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        directory
    }

    fn as_model(files: &[&str]) -> Option<String> {
        let directory = directory(files);
        let refused = refuse_as_model(directory.path()).err();
        refused.map(|error| error.to_string())
    }

    fn as_adapter(files: &[&str]) -> String {
        let directory = directory(files);
        adapter_in(directory.path()).unwrap_err().to_string()
    }

    #[test]
    fn what_may_be_a_model_is_left_to_loading() {
        for files in [
            &["config.json", "model.safetensors"][..],
            &["config.json", "model.safetensors", "adapter_config.json"],
            &[
                "config.json",
                "pytorch_model.bin",
                "checkpoint-5/config.json",
            ],
            &["config.json"],
            &[],
        ] {
            assert_eq!(as_model(files), None, "{files:?}");
        }
    }

    #[test]
    fn an_adapter_given_as_a_model_is_told_with_the_commands() {
        for files in [
            &["adapter_config.json", "adapter_model.safetensors"][..],
            // Some tools save the base's configuration beside the adapter.
            &["adapter_config.json", "adapter_model.bin", "config.json"],
            &["adapters.safetensors"],
        ] {
            let message = as_model(files).unwrap();
            assert!(
                message.contains("is an adapter") && message.contains("olora merge"),
                "{message}"
            );
        }
    }

    #[test]
    fn a_trainers_output_is_told_with_its_last_checkpoint() {
        let files = [
            "checkpoint-900/config.json",
            "checkpoint-1000/config.json",
            "checkpoint-x/config.json",
        ];
        let message = as_model(&files).unwrap();
        assert!(
            message.contains("--model") && message.ends_with("checkpoint-1000"),
            "{message}"
        );
        let files = [
            "checkpoint-20/adapter_config.json",
            "checkpoint-3/adapter_config.json",
        ];
        let message = as_model(&files).unwrap();
        assert!(
            message.contains("--adapter") && message.ends_with("checkpoint-20"),
            "{message}"
        );
        let message = as_adapter(&files);
        assert!(message.ends_with("checkpoint-20"), "{message}");
    }

    #[test]
    fn a_runs_directory_is_told_with_what_is_in_it() {
        let message = as_model(&["adapter/adapter_config.json"]).unwrap();
        assert!(message.contains("--adapter"), "{message}");
        let message = as_model(&["model/config.json"]).unwrap();
        assert!(message.contains("its model is --model"), "{message}");
        let run = directory(&["adapter/adapter_config.json"]);
        assert_eq!(adapter_in(run.path()).unwrap(), run.path().join("adapter"));
    }

    #[test]
    fn what_is_no_adapter_is_told() {
        let message = as_adapter(&["config.json", "model.safetensors"]);
        assert!(
            message.contains("is a model") && message.contains("--model"),
            "{message}"
        );
        let message = as_adapter(&["adapter_model.bin"]);
        assert!(
            message.contains("no adapter_config.json beside it"),
            "{message}"
        );
        let whole = directory(&["adapter_config.json", "adapter_model.safetensors"]);
        let file = whole.path().join("adapter_model.safetensors");
        let message = adapter_in(&file).unwrap_err().to_string();
        assert!(message.contains("given as its directory"), "{message}");
        let message = adapter_in(&whole.path().join("gone"))
            .unwrap_err()
            .to_string();
        assert!(message.contains("hf download"), "{message}");
    }

    #[test]
    fn of_several_forms_the_one_that_is_read_is_said() {
        let twice = directory(&[
            "pytorch_model.bin",
            "model.safetensors",
            "original/consolidated.00.pth",
        ]);
        let note = doubled(twice.path()).unwrap();
        assert!(
            note.contains("original/") && note.ends_with("model.safetensors is read"),
            "{note}"
        );
        assert_eq!(doubled(directory(&["model.safetensors"]).path()), None);
        assert_eq!(
            doubled(directory(&["consolidated.safetensors"]).path()),
            None
        );
    }
}
