//! The errors of this crate. Each says what to do; none ever holds the token.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::RepositoryKind;

/// Why the files of a model or a data set are not at hand.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// What looks like a path does not exist.
    #[error("{path:?} does not exist, and nothing was looked up on the hub. {hint}")]
    NoSuchPath {
        /// The path as written.
        path: PathBuf,
        /// What was probably meant.
        hint: &'static str,
    },
    /// A file that exists is not a model.
    #[error(
        "{0} is a file, but not a .gguf file: give a .gguf file, or the checkpoint's directory"
    )]
    NotAModel(PathBuf),
    /// Neither a path that exists nor a possible name of the hub.
    #[error(
        "`{spec}` is neither a path that exists nor a name of the hub: {reason}. \
         Write `owner/name`, `owner/name@revision` or `owner/name:file.gguf`"
    )]
    BadName {
        /// What was written.
        spec: String,
        /// Why it is no name.
        reason: String,
    },
    /// The address of the hub is not one.
    #[error("`{0}` is not the address of a hub: set HF_ENDPOINT to `https://…`, or unset it")]
    BadEndpoint(String),
    /// The token has characters that no token has. The token itself is not shown.
    #[error(
        "the token has characters that cannot be sent, such as a line break in the middle: \
         copy it again into HF_TOKEN or the token file"
    )]
    BadToken,
    /// The file of trusted certificates holds none.
    #[error(
        "{0} holds no certificates in PEM form: set SSL_CERT_FILE to a file that does, or unset it"
    )]
    NoCertificates(PathBuf),
    /// As [`BadName`](Self::BadName), for a data set.
    #[error(
        "`{spec}` is neither a path that exists nor a data set of the hub: {reason}. Write \
         `owner/name`, and after it what is needed of `/configuration`, `@revision`, `:split` and \
         `#500` for the first 500 records"
    )]
    BadDatasetName {
        /// What was written.
        spec: String,
        /// Why it is no name.
        reason: String,
    },
    /// Offline mode, and the repository is not in the cache.
    #[error(
        "offline mode is set (HF_HUB_OFFLINE), and `{name}` is not, or not wholly, in the cache \
         {cache}; there is no local path of that name either. Unset HF_HUB_OFFLINE to download \
         it, or give the path of {}",
        .kind.local()
    )]
    Offline {
        /// What was looked for.
        kind: RepositoryKind,
        /// What the user wrote.
        name: String,
        /// The cache that was searched.
        cache: PathBuf,
    },
    /// The hub, or where it keeps its files, cannot be reached.
    #[error(
        "cannot reach {host} to download `{name}`: {reason}. It is not wholly in the cache {cache} \
         (a copy there is used without a network, and with HF_HUB_OFFLINE=1 without trying), and \
         there is no local path of that name. Check the connection and HTTPS_PROXY (behind \
         a proxy with its own certificates, also SSL_CERT_FILE), or give the path of {}. What has \
         been downloaded is kept",
        .kind.local()
    )]
    NoNetwork {
        /// What was looked for.
        kind: RepositoryKind,
        /// The host that was tried.
        host: String,
        /// What the user wrote.
        name: String,
        /// The cache that was searched.
        cache: PathBuf,
        /// What the connection failed with.
        reason: String,
    },
    /// The repository wants its licence accepted.
    #[error(
        "access to `{name}` is restricted (HTTP {status}{}): accept its licence on {page} and set \
         HF_TOKEN to a token of the same account{}",
        said(.reason), sent(*.token_sent)
    )]
    Gated {
        /// The repository.
        name: String,
        /// The status of the answer.
        status: u16,
        /// What the hub said, or empty.
        reason: String,
        /// The page of the repository.
        page: String,
        /// Whether a token was sent.
        token_sent: bool,
    },
    /// A private repository, or none at all: without access the hub does not tell them apart.
    #[error(
        "there is no {} `{name}` on {host}, or it is private or gated (HTTP {status}); there is \
         no local path of that name either. Check the spelling; if {page} exists, accept the \
         licence there, and set HF_TOKEN to a token with access{}",
        .kind.noun(), sent(*.token_sent)
    )]
    NoRepository {
        /// What was looked for.
        kind: RepositoryKind,
        /// The repository.
        name: String,
        /// The hub.
        host: String,
        /// The status of the answer.
        status: u16,
        /// The page of the repository.
        page: String,
        /// Whether a token was sent.
        token_sent: bool,
    },
    /// The hub does not know the token.
    #[error(
        "{host} does not accept the token: it is wrong, expired or revoked. Set HF_TOKEN to a \
         valid one, or remove HF_TOKEN and the token file to go without"
    )]
    TokenRefused {
        /// The hub.
        host: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error("`{name}` has no branch, tag or commit `{revision}`: {page} lists them")]
    NoRevision {
        /// The repository.
        name: String,
        /// The revision.
        revision: String,
        /// Where its revisions are listed.
        page: String,
    },
    /// The repository has no such file.
    #[error("`{name}` has no file `{file}`{}", alternatives(.name, .gguf))]
    NoFile {
        /// The repository.
        name: String,
        /// The file.
        file: String,
        /// The .gguf files that it has.
        gguf: Vec<String>,
    },
    /// The repository has no weights that can be read.
    #[error(
        "`{name}` has neither model.safetensors nor pytorch_model.bin, in one file or in several \
         with an index{}",
        alternatives(.name, .gguf)
    )]
    NoWeights {
        /// The repository.
        name: String,
        /// The .gguf files that it has.
        gguf: Vec<String>,
    },
    /// An index of weight files is not one.
    #[error("{path} is not an index of weight files: {reason}")]
    BadIndex {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The description of a data set, which names its configurations, cannot be used.
    #[error(
        "the description of `{name}` ({file}) cannot be used: {reason}. It is for its authors to \
         mend. Until then, download its files (`hf download --repo-type dataset`) and give their \
         paths"
    )]
    BadCard {
        /// The data set.
        name: String,
        /// The file of the repository.
        file: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A data set has no such configuration, or several of which none was named.
    #[error("{}", configuration(.name, .asked.as_deref(), .there))]
    NoConfiguration {
        /// The data set.
        name: String,
        /// The configuration that was asked for, if any.
        asked: Option<String>,
        /// Those that there are.
        there: Vec<String>,
    },
    /// A data set has no such split, or several of which none was named and none is `train`.
    #[error("{}", split(.name, .asked.as_deref(), .there))]
    NoSplit {
        /// The data set and its configuration.
        name: String,
        /// The split that was asked for, if any.
        asked: Option<String>,
        /// Those that there are.
        there: Vec<String>,
    },
    /// A data set has no files that can be read.
    #[error(
        "`{name}` has no data that can be read: {reason}. Read are Parquet, JSON, JSON Lines, CSV, \
         TSV and text, the last five also as .gz and .zst"
    )]
    NoData {
        /// The data set.
        name: String,
        /// What it has instead.
        reason: String,
    },
    /// A data set is made by a program of its own.
    #[error(
        "`{name}` is made by a program, `{script}`, which is not run, and {reason}. Find another \
         copy of it on the hub, or make files of it with a release of `datasets` before 4.0 and \
         give their paths"
    )]
    Script {
        /// The data set.
        name: String,
        /// The program.
        script: String,
        /// Why its files cannot be had in another way.
        reason: String,
    },
    /// A file system has no room.
    #[error(
        "no space left for `{file}` in {directory}{}: free some space, or set HF_HUB_CACHE to a \
         larger disk. What has been downloaded is kept, and the next attempt goes on from there",
        needed(*.missing)
    )]
    DiskFull {
        /// The file of the repository.
        file: String,
        /// The directory that is full.
        directory: PathBuf,
        /// How many bytes of the file are still to come, where known.
        missing: Option<u64>,
    },
    /// A download ended early, again and again.
    #[error(
        "the download of `{file}` from {host} was cut off after {done} of {total} bytes, \
         several times in a row. What has been downloaded is kept: try again, and it goes on \
         from there"
    )]
    Truncated {
        /// The file of the repository.
        file: String,
        /// The host that sent it.
        host: String,
        /// The bytes received in all.
        done: u64,
        /// The bytes announced.
        total: u64,
    },
    /// More bytes came than the hub announced.
    #[error(
        "`{file}` from {host} is longer than the {total} bytes that the hub announced; it was \
         removed. Try again; if that does not help, something between here and the hub alters it"
    )]
    TooLong {
        /// The file of the repository.
        file: String,
        /// The host that sent it.
        host: String,
        /// The bytes announced.
        total: u64,
    },
    /// What was downloaded is not what the hub has.
    #[error(
        "`{file}` was damaged on its way from {host}: its SHA-256 is {found}, but the hub \
         announced {expected}; it was removed. Try again; if that does not help, something \
         between here and the hub alters it"
    )]
    Corrupt {
        /// The file of the repository.
        file: String,
        /// The host that sent it.
        host: String,
        /// The sum announced, in hexadecimal digits.
        expected: String,
        /// The sum of what came.
        found: String,
    },
    /// The hub is overloaded, broken or unwilling.
    #[error(
        "{host} answered HTTP {status}{}: it {}. Try again later{}",
        said(.reason), meaning(*.status), remedy(*.status)
    )]
    Server {
        /// The host.
        host: String,
        /// The status of the answer.
        status: u16,
        /// What it said, or empty.
        reason: String,
    },
    /// The answer is not one that a hub gives.
    #[error(
        "{host} does not answer like a Hugging Face hub: {reason}. Check HF_ENDPOINT and the proxy"
    )]
    BadAnswer {
        /// The host.
        host: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The cache could not be read or written.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was being done, in words.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl HubError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether the same request may succeed a moment later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::NoNetwork { .. } | Self::Truncated { .. } => true,
            Self::Server { status, .. } => is_busy(*status),
            _ => false,
        }
    }
}

/// Too many requests, or a fault of the server's.
fn is_busy(status: u16) -> bool {
    status == 429 || status >= 500
}

fn said(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(", “{reason}”")
    }
}

fn sent(token_sent: bool) -> &'static str {
    if token_sent {
        " (the token that was sent has no access)"
    } else {
        " (no token was sent)"
    }
}

fn needed(missing: Option<u64>) -> String {
    missing.map_or_else(String::new, |missing| {
        format!(", of which {missing} bytes are still to come")
    })
}

fn meaning(status: u16) -> &'static str {
    match status {
        429 => "limits how often it may be asked",
        500.. => "has a fault of its own",
        _ => "refused the request",
    }
}

fn remedy(status: u16) -> &'static str {
    match status {
        429 => "; with HF_TOKEN set, the limit is higher",
        _ => "",
    }
}

/// How many names a message lists.
const LISTED: usize = 20;

fn configuration(name: &str, asked: Option<&str>, there: &[String]) -> String {
    let what = match asked {
        Some(asked) => format!("`{name}` has no configuration `{asked}`"),
        None => format!("`{name}` has several configurations, and none is its default"),
    };
    let shown: Vec<_> = there.iter().map(|one| format!("{name}/{one}")).collect();
    format!("{what}. Name one of those that it has:{}", listed(&shown))
}

fn split(name: &str, asked: Option<&str>, there: &[String]) -> String {
    let what = match asked {
        Some(asked) => format!("`{name}` has no split `{asked}`"),
        None => format!("`{name}` has several splits, and none is called `train`"),
    };
    let shown: Vec<_> = there.iter().map(|one| format!("{name}:{one}")).collect();
    format!("{what}. Name one of those that it has:{}", listed(&shown))
}

/// Some lines, each beginning anew.
fn listed(names: &[String]) -> String {
    let more = (names.len() > LISTED).then(|| format!("and {} more", names.len() - LISTED));
    let lines: Vec<_> = std::iter::once(String::new())
        .chain(names.iter().take(LISTED).cloned())
        .chain(more)
        .collect();
    lines.join("\n  ")
}

fn alternatives(name: &str, gguf: &[String]) -> String {
    if gguf.is_empty() {
        return "; it has no .gguf files either. Name another repository".to_owned();
    }
    let repository = name.split(':').next().unwrap_or(name);
    let shown: Vec<_> = gguf
        .iter()
        .map(|file| format!("{repository}:{file}"))
        .collect();
    format!(". Name one of its GGUF files:{}", listed(&shown))
}
