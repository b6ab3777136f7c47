//! `olora push`: a model or an adapter to a repository of the hub.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use olora_adapter::CONFIG_FILE;
use olora_files::{refuse_pointer, size};
use olora_hub::{HubOptions, LocalFile, LocalFiles, PushEvent, PushTarget, local_files};
use olora_runs::TrainedRun;
use serde_json::json;

use crate::{
    Usage,
    args::PushArgs,
    models::Bars,
    terminal::{are_events, emit, out, say, say_note, say_warning},
};

pub(crate) fn push(args: &PushArgs) -> Result<ExitCode> {
    if args.message.trim().is_empty() {
        return Err(Usage::new("--message is empty: say what is sent"));
    }
    let path = meant(&args.path)?;
    let LocalFiles { files, left_out } = local_files(&path)?;
    for file in &files {
        refuse_pointer(&file.path).with_context(|| file.path.display().to_string())?;
    }
    list(&files)?;
    for name in &left_out {
        say_note(&format!("left out: {name}"));
    }
    if let Some(base) = base_by_path(&path) {
        say_warning(&format!(
            "{CONFIG_FILE} names the base by a path, {base:?}, which others will see and cannot use, and \
             which the hub refuses in README.md: `olora convert {} --model OWNER/NAME --output NEW` writes a name \
             in its place",
            path.display()
        ));
    }
    let total: u64 = files.iter().map(|file| file.size).sum();
    let count = match files.len() {
        1 => "1 file".to_owned(),
        n => format!("{n} files"),
    };
    say(&format!(
        "{count}, {}, of {} to {}, branch {}",
        size(total),
        path.display(),
        args.repository,
        args.branch
    ));
    if args.dry_run {
        say("nothing was sent (--dry-run)");
        emit(&json!({ "event": "pushed", "url": null, "files": [], "dry_run": true }));
        return Ok(ExitCode::SUCCESS);
    }
    let target = PushTarget {
        repository: args.repository.clone(),
        branch: args.branch.clone(),
        message: args.message.clone(),
        public: args.public,
    };
    let mut bars = Bars::new("sending");
    let options = HubOptions::from_env();
    let pushed = olora_hub::push(&files, &target, &options, &mut |event| match event {
        PushEvent::Created { public } => {
            let how = if public {
                "for everybody to see"
            } else {
                "private: its page can make it public, and so could --public"
            };
            say(&format!("made {}, {how}", args.repository));
            let repository = &args.repository;
            emit(&json!({ "event": "created", "repository": repository, "public": public }));
        }
        PushEvent::Ignored(name) => {
            say_note(&format!(
                "the repository's .gitignore excludes {name}, which is not sent"
            ));
        }
        PushEvent::There(name) => {
            say(&format!("{name} is there already"));
            emit(&json!({ "event": "there", "file": name }));
        }
        PushEvent::Sending(progress) => bars.on(progress),
    })?;
    bars.finish();
    emit(&json!({
        "event": "pushed", "url": pushed.url, "files": pushed.files, "ignored": pushed.ignored,
    }));
    say(&match pushed.url {
        Some(url) => format!("pushed {} of {count}: {url}", pushed.files.len()),
        None if pushed.ignored.is_empty() => {
            "the repository has all of it already: there is nothing to do".to_owned()
        }
        None => "the repository has all that it does not exclude: nothing was sent".to_owned(),
    });
    Ok(ExitCode::SUCCESS)
}

/// Says which files are meant.
fn list(files: &[LocalFile]) -> Result<()> {
    let mut out = out();
    for file in files {
        if are_events() {
            emit(&json!({ "event": "file", "file": file.name, "bytes": file.size }));
        } else {
            writeln!(out, "{}  {}", file.name, size(file.size))?;
        }
    }
    Ok(out.flush()?)
}

/// The base of an adapter, if it is named by a path and not as on the hub.
fn base_by_path(adapter: &Path) -> Option<String> {
    let text = std::fs::read(adapter.join(CONFIG_FILE)).ok()?;
    let config: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let base = config["base_model_name_or_path"].as_str()?;
    let is_path = base.contains('\\')
        || base.starts_with(['/', '.', '~'])
        || base.matches('/').count() > 1
        || Path::new(base).exists();
    is_path.then(|| base.to_owned())
}

/// What is meant by the directory of a run: its adapter, or its model.
///
/// # Errors
///
/// For a run that has not finished and for a checkpoint, which hold what is for
/// training alone.
fn meant(path: &Path) -> Result<PathBuf> {
    let inside = [("adapter", CONFIG_FILE), ("model", "config.json")];
    if inside.iter().any(|(_, file)| path.join(file).exists()) {
        return Ok(path.to_owned());
    }
    let found = inside
        .iter()
        .map(|(name, file)| (path.join(name), file))
        .find(|(place, file)| place.join(file).exists());
    let run = TrainedRun::at(path)?;
    match (found, run) {
        (None, None) => Ok(path.to_owned()),
        (Some((place, _)), run) if run.is_none() || is_finished(path) => {
            say_note(&format!(
                "{} is the directory of a run: what is sent is {}",
                path.display(),
                place.display()
            ));
            Ok(place)
        }
        (_, run) => {
            let shown = path.display();
            let what = if !path.join("recipe.toml").is_file() {
                "a checkpoint of a run"
            } else if is_finished(path) {
                "the directory of a run whose result is not there"
            } else {
                "the directory of a run that has not finished"
            };
            let section = run.and_then(|run| run.section().ok());
            if section.is_some_and(|section| section.everything) {
                bail!(
                    "{shown} is {what}, which trains every weight: go on with the run, with `olora train RECIPE \
                     --resume`, and push the model that it makes"
                );
            }
            bail!(
                "{shown} is {what}, with what only training needs: write the adapter that it holds with `olora \
                 convert {shown} --output DIR`, and push DIR"
            )
        }
    }
}

/// Whether the summary of a run says that it came to its end, whichever version
/// has written it.
fn is_finished(run: &Path) -> bool {
    let summary = std::fs::read(run.join("summary.json")).unwrap_or_default();
    let summary: serde_json::Value = serde_json::from_slice(&summary).unwrap_or_default();
    summary["finished"] == true
}
