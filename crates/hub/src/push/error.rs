//! Why files could not be sent. Each error says what to do; none ever holds the
//! token.

use std::{
    io,
    path::{Path, PathBuf},
};

use ureq::http::Uri;

use crate::HubError;

/// Why a push failed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// No token was given.
    #[error(
        "a push needs a token with the right to write: make one on the hub's page of access tokens, and set \
         HF_TOKEN to it"
    )]
    NoToken,
    /// The network is not to be touched.
    #[error("offline mode is set (HF_HUB_OFFLINE), in which nothing is pushed: unset it")]
    Offline,
    /// There is no file to send.
    #[error("there is no file to send: hidden ones are left out")]
    Nothing,
    /// What was given is no name of a repository.
    #[error(
        "`{0}` is not a repository's name: write `owner/name`, where owner is you or an organisation of yours"
    )]
    BadRepository(String),
    /// A file's name cannot be one in a repository.
    #[error(
        "{0:?} has a name that no file of a repository can have (no UTF-8, or with a control character, a colon \
         or a backslash): rename it, or move it elsewhere"
    )]
    BadFileName(PathBuf),
    /// What has a file's name is none.
    #[error(
        "{0} is a pipe, a socket or a device, and no file: a repository cannot have it. Move it elsewhere"
    )]
    NoFile(PathBuf),
    /// The repository's rules exclude all that is given, or weights.
    #[error(
        "the repository's .gitignore excludes {}, and so nothing was sent: change it on {page}, or rename what \
         it excludes",
        .names.join(", ")
    )]
    Excluded {
        /// The page of the repository.
        page: String,
        /// The files that would have to be sent.
        names: Vec<String>,
    },
    /// A file was written to while it was sent.
    #[error(
        "{0} has changed since it was read first, and nothing was committed: push again when nobody writes to it"
    )]
    Changed(PathBuf),
    /// The files that the hub wants in the commit itself are too large together.
    #[error(
        "the hub wants {total} bytes within the commit itself, but no more than {most} are sent so: push in \
         several parts"
    )]
    TooMuch {
        /// Bytes of those files.
        total: u64,
        /// The most that is sent.
        most: u64,
    },
    /// A repository was to be made for its owner alone, and was not.
    #[error(
        "{page} was made, but not as a private repository, and so nothing was sent to it: change that on the page \
         and push again, or give --public"
    )]
    NotPrivate {
        /// The page of the repository.
        page: String,
    },
    /// A host cannot be reached, or hangs up.
    #[error(
        "cannot reach {host}{}: {reason}. Nothing was committed. Check the connection and HTTPS_PROXY, and push \
         again: what the hub has got is not sent again",
        asked(.doing)
    )]
    Network {
        /// The host.
        host: String,
        /// What was asked for.
        doing: String,
        /// What the connection failed with.
        reason: String,
    },
    /// The commit was sent, and no answer came that says whether it was made.
    #[error(
        "{host} was sent the commit and does not say whether it was made ({reason}). It is not sent again: look at \
         {page}, and push again if it is not there. What the hub has got is not sent again"
    )]
    Unsure {
        /// The host.
        host: String,
        /// Where the commit is, if it was made.
        page: String,
        /// What came in the place of an answer.
        reason: String,
    },
    /// The hub, or where it keeps large files, refuses.
    #[error(
        "{host} refused {doing} (HTTP {status}{}): {}",
        said(.reason),
        meaning(*.status, .doing, .host, .reason)
    )]
    Refused {
        /// The host.
        host: String,
        /// What was asked for.
        doing: String,
        /// The status of the answer.
        status: u16,
        /// The hub's name for it (`X-Error-Code`), or empty.
        code: String,
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
    /// The options of the connection are wrong.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A file could not be read.
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

impl PushError {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// Whether the same request may succeed a moment later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Network { .. } => true,
            Self::Refused { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }

    /// Whether the repository is not there, which a push mends.
    pub(super) fn is_no_repository(&self) -> bool {
        matches!(self, Self::Refused { status: 401 | 404, code, .. } if code == "RepoNotFound")
    }

    /// Whether an upload that was begun earlier is of no use any more.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Refused { .. }) && !self.is_transient()
    }
}

fn said(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(", “{reason}”")
    }
}

/// What is asked of those who keep large files, without a token.
pub(super) const STORAGE: &str = "to take a large file's bytes";
/// The last request for a large file, at an address that the hub gave.
pub(super) const FINISH: &str = "to finish a large file";

/// What was asked for, after the name of a host.
fn asked(doing: &str) -> String {
    if doing.starts_with("to ") {
        format!(", asked {doing}")
    } else {
        format!(" for {doing}")
    }
}

/// Whether an address to which a host sends us on is of another host.
fn is_elsewhere(host: &str, address: &str) -> bool {
    let address = address.parse::<Uri>().ok();
    let other = address.as_ref().and_then(Uri::host);
    other.is_some_and(|other| !other.eq_ignore_ascii_case(host))
}

fn meaning(status: u16, doing: &str, host: &str, reason: &str) -> &'static str {
    match status {
        300..=399 if doing == STORAGE || doing == FINISH || is_elsewhere(host, reason) => {
            "it sends us on to another address, and a push does not follow. Check HF_ENDPOINT and the proxy, and \
             try again later"
        }
        401 | 403 if doing == STORAGE => "its address has expired. Push again",
        401 => "the token is wrong, expired or revoked. Set HF_TOKEN to a valid one",
        403 => {
            "the token may not write there. Set HF_TOKEN to one with the right to write, of the owner or a member \
             of the organisation"
        }
        404 => "there is no such repository or branch, or the token may not see it",
        409 | 412 => "someone else has changed the repository meanwhile. Push again",
        413 => "it is too large",
        429 => "it limits how often it may be asked. Try again later",
        300..=399 => {
            "the repository has another name now, or the hub another address (HF_ENDPOINT). Push to that"
        }
        500.. => "it has a fault of its own. Try again later; what it has got is not sent again",
        _ => "nothing was committed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_redirect_within_the_hub_is_a_new_name() {
        let meaning = |doing, reason| meaning(307, doing, "hub.example", reason);
        for (doing, address) in [
            ("the commit", "/api/models/owner/other/commit/main"),
            ("the commit", "https://HUB.example/api/models/owner/other"),
        ] {
            assert!(
                meaning(doing, address).contains("another name"),
                "{address}"
            );
        }
        for (doing, address) in [
            ("the commit", "https://login.example/"),
            (STORAGE, "/elsewhere"),
            (FINISH, "https://hub.example/elsewhere"),
        ] {
            assert!(
                meaning(doing, address).contains("does not follow"),
                "{address}"
            );
        }
    }

    #[test]
    fn what_cannot_be_reached_is_told_with_what_was_asked() {
        let message = |doing: &str| {
            let error = PushError::Network {
                host: "hub.example".to_owned(),
                doing: doing.to_owned(),
                reason: "no route".to_owned(),
            };
            error.to_string()
        };
        let text = message("to say where files go");
        assert!(
            text.starts_with("cannot reach hub.example, asked to say where files go: no route."),
            "{text}"
        );
        let text = message("the commit");
        assert!(
            text.starts_with("cannot reach hub.example for the commit: "),
            "{text}"
        );
    }
}
