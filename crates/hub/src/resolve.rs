//! From a model's name to its path: the cache where it suffices, the hub otherwise.

use std::path::PathBuf;

use crate::{
    HubError, HubName, HubOptions, ModelName,
    cache::Repository,
    client::{Client, Listing, is_commit},
    download::fetch,
    select::{CONFIG, OPTIONAL, Weights, has_tokenizer, is_complete, parts, shards, weights},
};

/// How far the download of one file has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file, as the repository names it.
    pub file: &'a str,
    /// The bytes that are here, those of an earlier attempt included.
    pub done: u64,
    /// The bytes that the file has, where the hub says so.
    pub total: Option<u64>,
}

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The checkpoint's directory or the GGUF file.
    pub path: PathBuf,
    /// The commit of the repository, unless the path was given as such.
    pub commit: Option<String>,
    /// Whether the model is of the hub and nothing had to be downloaded.
    pub from_cache: bool,
    /// What a user should know, such as that a copy may not be the newest.
    pub note: Option<String>,
}

/// Turns what a user wrote as a model (see [`ModelName`]) into a path,
/// downloading what is missing. Of a repository, that is the configuration, the
/// tokenizer and the weights: `model.safetensors`, or an index and its shards,
/// or the same as `pytorch_model.bin`. Blocks until it is done, also while
/// another process downloads the same file.
///
/// The hub is asked which commit a branch or tag is at. Without a network, or
/// while the hub has a fault, a complete copy in the cache is used, with a
/// [note](Resolved::note); for a whole commit identifier it is used without asking.
///
/// # Errors
///
/// See [`HubError`]; each variant says what to do. Nothing that is incomplete
/// is left where it could be taken for a model.
pub fn resolve(
    spec: &str,
    options: &HubOptions,
    on: &mut dyn FnMut(Progress<'_>),
) -> Result<Resolved, HubError> {
    match ModelName::parse(spec)? {
        ModelName::Directory(path) | ModelName::Gguf(path) => Ok(Resolved {
            path,
            commit: None,
            from_cache: false,
            note: None,
        }),
        ModelName::Hub(name) => resolve_hub(&name, options, on),
    }
}

fn resolve_hub(
    name: &HubName,
    options: &HubOptions,
    on: &mut dyn FnMut(Progress<'_>),
) -> Result<Resolved, HubError> {
    let target = name.target();
    let repository = Repository::new(&options.cache, &target);
    let cached = Cached::find(&repository, name);
    if options.offline {
        return match cached {
            Some(cached) => Ok(cached.resolved(None)),
            None => Err(HubError::Offline {
                kind: target.kind,
                name: name.to_string(),
                cache: options.cache.clone(),
            }),
        };
    }
    if let Some(cached) = &cached
        && is_commit(name.revision())
        && cached.whole
    {
        return Ok(cached.resolved(None));
    }
    let client = Client::new(options, &target)?;
    let listing = match (client.listing(), cached) {
        (Ok(listing), _) => listing,
        (Err(error), Some(cached)) if error.is_transient() => {
            return Ok(cached.resolved(Some(&error)));
        }
        // What is not there at all is not tried again, a fault of the hub's is.
        (Err(HubError::Server { .. }), None) => client.persist(|| client.listing())?,
        (Err(error), _) => return Err(error),
    };
    let mut session = Session {
        client: &client,
        repository: &repository,
        name,
        snapshot: repository.snapshot(&listing.sha),
        listing: &listing,
        downloaded: false,
    };
    let path = match &name.file {
        Some(file) => {
            for part in parts(file) {
                session.need(&part, on)?;
            }
            session.snapshot.join(file)
        }
        None => {
            session.checkpoint(on)?;
            session.snapshot.clone()
        }
    };
    let from_cache = !session.downloaded;
    // Only offline use depends on it, and a cache that others maintain may be read-only.
    let _ = repository.remember(name.revision(), &listing.sha);
    Ok(Resolved {
        path,
        commit: Some(listing.sha),
        from_cache,
        note: None,
    })
}

/// One commit whose files are made present.
struct Session<'a> {
    client: &'a Client<'a>,
    repository: &'a Repository,
    name: &'a HubName,
    listing: &'a Listing,
    snapshot: PathBuf,
    downloaded: bool,
}

impl Session<'_> {
    fn checkpoint(&mut self, on: &mut dyn FnMut(Progress<'_>)) -> Result<(), HubError> {
        let weights =
            weights(|file| self.listing.has(file)).ok_or_else(|| HubError::NoWeights {
                name: self.name.to_string(),
                gguf: self.listing.gguf(),
            })?;
        // The small files first: what is wrong with them shows at once.
        self.need(CONFIG, on)?;
        for file in OPTIONAL {
            if self.listing.has(file) {
                self.need(file, on)?;
            }
        }
        match weights {
            Weights::One(file) => self.need(file, on),
            Weights::Index(index) => {
                self.need(index, on)?;
                let shards = shards(&self.snapshot.join(index))?;
                for shard in &shards {
                    self.listed(shard)?;
                }
                shards.iter().try_for_each(|shard| self.need(shard, on))
            }
        }
    }

    fn need(&mut self, file: &str, on: &mut dyn FnMut(Progress<'_>)) -> Result<(), HubError> {
        self.listed(file)?;
        if self.snapshot.join(file).is_file() {
            return Ok(());
        }
        self.downloaded = true;
        fetch(self.client, self.repository, &self.listing.sha, file, on)
    }

    fn listed(&self, file: &str) -> Result<(), HubError> {
        if self.listing.has(file) {
            return Ok(());
        }
        Err(HubError::NoFile {
            name: self.name.to_string(),
            file: file.to_owned(),
            gguf: self.listing.gguf(),
        })
    }
}

/// Says that a copy is used although the hub could not be asked because of `error`.
pub(crate) fn not_asked(error: &HubError, name: &str, commit: &str) -> String {
    let reached = match error {
        HubError::NoNetwork { host, reason, .. } => {
            format!("{host} cannot be reached ({reason})")
        }
        HubError::Server { host, status, .. } => format!("{host} answered HTTP {status}"),
        other => other.to_string(),
    };
    format!(
        "{reached}: using the copy of `{name}` in the cache, at commit {commit}, which may not be \
         the newest"
    )
}

/// A copy in the cache from which a model can be loaded.
struct Cached {
    name: String,
    commit: String,
    path: PathBuf,
    /// Whether there is a tokenizer, too, or none is needed.
    whole: bool,
}

impl Cached {
    fn find(repository: &Repository, name: &HubName) -> Option<Self> {
        let commit = repository.commit(name.revision())?;
        let snapshot = repository.snapshot(&commit);
        let (path, whole) = match &name.file {
            Some(file) => {
                let parts = parts(file);
                let all = parts.iter().all(|part| snapshot.join(part).is_file());
                (Some(snapshot.join(file)).filter(|_| all)?, true)
            }
            None => {
                let whole = has_tokenizer(&snapshot);
                (Some(snapshot).filter(|path| is_complete(path))?, whole)
            }
        };
        Some(Self {
            name: name.to_string(),
            commit,
            path,
            whole,
        })
    }

    /// This copy, used although the hub could not be asked because of `error`.
    fn resolved(&self, error: Option<&HubError>) -> Resolved {
        let mut notes = Vec::new();
        if let Some(error) = error {
            notes.push(not_asked(error, &self.name, &self.commit));
        }
        if !self.whole {
            notes.push(format!(
                "the copy of `{}` in the cache has no tokenizer: connect to the hub to download it",
                self.name
            ));
        }
        Resolved {
            path: self.path.clone(),
            commit: Some(self.commit.clone()),
            from_cache: true,
            note: (!notes.is_empty()).then(|| notes.join("; ")),
        }
    }
}
