//! Panics of the tokenizers library as errors that name its files.

use std::path::Path;

use crate::{DataError, panics::caught};

/// Runs something of the library's on the tokenizer that was read from `path`.
pub(super) fn guarded<T>(
    path: &Path,
    doing: &str,
    run: impl FnOnce() -> Result<T, DataError>,
) -> Result<T, DataError> {
    // What it leaves behind is only ever read, and no file is half written by it.
    caught(run).unwrap_or_else(|said| {
        Err(DataError::TokenizerBroke {
            path: path.to_owned(),
            doing: doing.to_owned(),
            said,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_the_file_and_what_was_said() {
        let path = Path::new("oxmere/tokenizer.json");
        assert_eq!(guarded(path, "reading it", || Ok(3)).unwrap(), 3);
        let broke = |n: usize| guarded::<()>(path, "reading it", || panic!("index {n}"));
        let message = broke(7).unwrap_err().to_string();
        for part in ["oxmere/tokenizer.json", "reading it", "index 7"] {
            assert!(message.contains(part), "{message}");
        }
    }
}
