//! Files into a repository of the hub, as one commit.
//!
//! The hub is told of each file by name, size and first bytes, and answers which
//! it keeps in Git and which as large files (`preupload`). A large file goes to
//! where the hub says, whole or in parts, as git-lfs and the hub's own
//! `multipart` transfer have it; then one commit names all of them. Until that,
//! nobody sees anything. What the hub has already, by its hash, is not sent.

mod error;
mod hash;
mod list;
mod parts;
mod server;

use std::{fs, io::Read};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

pub use error::PushError;
pub use list::{LocalFile, LocalFiles, local_files};

use crate::{HubOptions, Progress, name::check_repository};
use hash::Hashes;
use server::Server;

/// Files of which the hub is told at once.
const AT_ONCE: usize = 256;
/// First bytes of a file, by which the hub tells what it is.
const SAMPLE: u64 = 512;
/// What goes into the commit itself, of all files together. The hub keeps files
/// of more than 10 MB elsewhere.
const MOST_IN_COMMIT: u64 = 256 << 20;

/// Where files are to go, and what is said of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushTarget {
    /// `owner/name`, of a model.
    pub repository: String,
    /// The branch, which is there already unless it is `main`.
    pub branch: String,
    /// The commit's message.
    pub message: String,
    /// Whether everybody may see the repository, if it is made here.
    pub public: bool,
}

/// What happens on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushEvent<'a> {
    /// There was no such repository, and it was made.
    Created {
        /// Whether everybody may see it.
        public: bool,
    },
    /// The repository's `.gitignore` excludes the file, so that it is not sent.
    Ignored(&'a str),
    /// The repository has the file.
    There(&'a str),
    /// A large file is on its way.
    Sending(Progress<'a>),
}

/// What was pushed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pushed {
    /// The page of the commit; `None` if the repository had everything.
    pub url: Option<String>,
    /// The files that are new in the commit.
    pub files: Vec<String>,
    /// Those that the repository's `.gitignore` excludes, so that they were not sent.
    pub ignored: Vec<String>,
}

/// A file and what the hub said about it.
struct Planned<'a> {
    file: &'a LocalFile,
    hashes: Hashes,
    is_large: bool,
}

/// Sends files as one commit; those that the repository has are left out. Makes
/// the repository if there is none, private unless the target says otherwise.
///
/// An upload that was cut off goes on when it is tried again: large files that
/// the hub has got are not sent again, and of one that goes in parts, neither
/// are the parts that were taken, for a day, if [`HubOptions::uploads`] is set.
///
/// # Errors
///
/// See [`PushError`]. The repository is then as it was before, or empty if it
/// was made here; but after [`PushError::Unsure`] it may have the commit.
pub fn push(
    files: &[LocalFile],
    target: &PushTarget,
    options: &HubOptions,
    on: &mut dyn FnMut(PushEvent<'_>),
) -> Result<Pushed, PushError> {
    check_repository(&target.repository)
        .ok()
        .filter(|()| target.repository.matches('/').count() == 1)
        .ok_or_else(|| PushError::BadRepository(target.repository.clone()))?;
    if files.is_empty() {
        return Err(PushError::Nothing);
    }
    if options.offline {
        return Err(PushError::Offline);
    }
    let server = Server::new(options, target)?;
    parts::forget_old(options);
    let (mut planned, mut ignored) = (Vec::new(), Vec::new());
    for some in files.chunks(AT_ONCE) {
        plan(&server, some, target, &mut planned, &mut ignored, on)?;
    }
    let is_all = ignored.len() == files.len();
    let in_the_way = ignored.iter().filter(|name| is_all || is_weights(name));
    let names: Vec<String> = in_the_way.cloned().collect();
    if !names.is_empty() {
        return Err(PushError::Excluded {
            page: server.page(),
            names,
        });
    }
    for one in planned.iter().filter(|one| one.is_large) {
        parts::send(&server, one.file, &one.hashes, on)?;
    }
    if planned.is_empty() {
        return Ok(Pushed {
            ignored,
            ..Pushed::default()
        });
    }
    let body = commit(&planned, &target.message)?;
    let url = match server.commit(&body) {
        Err(PushError::Unsure { .. }) if has_all(&server, files, target) => server.page(),
        url => url?,
    };
    Ok(Pushed {
        url: Some(url),
        files: planned.iter().map(|one| one.file.name.clone()).collect(),
        ignored,
    })
}

/// Whether the repository has all files by now, but for those that it ignores.
fn has_all(server: &Server<'_>, files: &[LocalFile], target: &PushTarget) -> bool {
    let (mut missing, mut ignored) = (Vec::new(), Vec::new());
    for some in files.chunks(AT_ONCE) {
        let asked = plan(
            server,
            some,
            target,
            &mut missing,
            &mut ignored,
            &mut |_| {},
        );
        if asked.is_err() || !missing.is_empty() {
            return false;
        }
    }
    true
}

/// Whether a file holds what a model or an adapter is.
fn is_weights(name: &str) -> bool {
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.rsplit_once('.') {
        Some((_, "safetensors" | "gguf")) => true,
        Some((first, "bin")) => {
            first.starts_with("pytorch_model") || first.starts_with("adapter_model")
        }
        _ => false,
    }
}

/// Asks the hub about files, and adds those that have to be sent, and those that
/// it ignores.
fn plan<'a>(
    server: &Server<'_>,
    files: &'a [LocalFile],
    target: &PushTarget,
    planned: &mut Vec<Planned<'a>>,
    ignored: &mut Vec<String>,
    on: &mut dyn FnMut(PushEvent<'_>),
) -> Result<(), PushError> {
    let described = files
        .iter()
        .map(|file| {
            Ok(json!({
                "path": file.name,
                "sample": STANDARD.encode(sample(file)?),
                "size": file.size,
            }))
        })
        .collect::<Result<Vec<Value>, PushError>>()?;
    let body = json!({ "files": described });
    let answer = match server.preupload(&body) {
        Err(error) if error.is_no_repository() => {
            server.create(target.public)?;
            on(PushEvent::Created {
                public: target.public,
            });
            server.preupload(&body)?
        }
        answer => answer?,
    };
    let told = answer["files"].as_array();
    let told = told.ok_or_else(|| server.bad_answer("it does not say where files are to go"))?;
    for file in files {
        let of_file = told.iter().find(|told| told["path"] == *file.name);
        let mode = of_file.and_then(|told| told["uploadMode"].as_str());
        let (Some(of_file), Some(mode @ ("lfs" | "regular"))) = (of_file, mode) else {
            return Err(
                server.bad_answer(&format!("it does not say where `{}` is to go", file.name))
            );
        };
        let there = &of_file["oid"];
        let hashes = Hashes::of(file)?;
        let is_large = mode == "lfs" && file.size > 0;
        if *there == *hashes.sha256 || *there == *hashes.git {
            on(PushEvent::There(&file.name));
            continue;
        }
        if of_file["shouldIgnore"] == true {
            on(PushEvent::Ignored(&file.name));
            ignored.push(file.name.clone());
            continue;
        }
        planned.push(Planned {
            file,
            hashes,
            is_large,
        });
    }
    Ok(())
}

fn sample(file: &LocalFile) -> Result<Vec<u8>, PushError> {
    let mut bytes = Vec::new();
    file.open()?
        .take(SAMPLE)
        .read_to_end(&mut bytes)
        .map_err(|source| PushError::io("reading", &file.path, source))?;
    Ok(bytes)
}

/// The commit, a JSON value on each line.
fn commit(planned: &[Planned<'_>], message: &str) -> Result<Vec<u8>, PushError> {
    let small = planned.iter().filter(|one| !one.is_large);
    let total: u64 = small.map(|one| one.file.size).sum();
    if total > MOST_IN_COMMIT {
        return Err(PushError::TooMuch {
            total,
            most: MOST_IN_COMMIT,
        });
    }
    let mut body = Vec::new();
    let mut line = |value: Value| {
        body.extend_from_slice(value.to_string().as_bytes());
        body.push(b'\n');
    };
    line(json!({ "key": "header", "value": { "summary": message, "description": "" } }));
    for one in planned {
        let file = one.file;
        one.hashes.check(file)?;
        line(if one.is_large {
            json!({ "key": "lfsFile", "value": {
                "path": file.name, "algo": "sha256", "oid": one.hashes.sha256, "size": file.size,
            } })
        } else {
            let bytes = fs::read(&file.path)
                .map_err(|source| PushError::io("reading", &file.path, source))?;
            json!({ "key": "file", "value": {
                "path": file.name, "encoding": "base64", "content": STANDARD.encode(bytes),
            } })
        });
    }
    Ok(body)
}
