//! Why there is nothing to show.

use std::{io, path::PathBuf};

/// Why a board or a report cannot be.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// There is no such directory.
    #[error(
        "{path}: {source}; expected a directory with runs or comparisons below it, such as `runs`",
        path = .path.display()
    )]
    Directory {
        /// What was asked for.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The directory is of neither kind.
    #[error(
        "{path} holds neither a run (recipe.toml or metrics.jsonl) nor a comparison (comparison.json): give a \
         directory that `olora train` or `olora compare` has written, or see with `olora board {path}` what is below it",
        path = .0.display()
    )]
    Neither(PathBuf),
}
