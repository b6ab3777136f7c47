//! By what the hub knows files.

use std::{fs, io::Read, time::SystemTime};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{LocalFile, PushError};

/// The hashes of a file, and when it was last changed.
pub(super) struct Hashes {
    /// Of its bytes, in hexadecimal digits: the name of a large file.
    pub(super) sha256: String,
    /// What Git calls a file that it keeps itself: SHA-1 of a header and the bytes.
    pub(super) git: String,
    modified: Option<SystemTime>,
}

impl Hashes {
    pub(super) fn of(file: &LocalFile) -> Result<Self, PushError> {
        let failed = |source| PushError::io("reading", &file.path, source);
        let mut open = file.open()?;
        let metadata = open.metadata().map_err(failed)?;
        let mut sha256 = Sha256::new();
        let mut git = Sha1::new();
        git.update(format!("blob {}\0", file.size));
        let mut buffer = vec![0; 1 << 18];
        let mut total = 0;
        loop {
            let n = open.read(&mut buffer).map_err(failed)?;
            if n == 0 {
                break;
            }
            sha256.update(&buffer[..n]);
            git.update(&buffer[..n]);
            total += n as u64;
        }
        if total != file.size {
            return Err(PushError::Changed(file.path.clone()));
        }
        Ok(Self {
            sha256: format!("{:x}", sha256.finalize()),
            git: format!("{:x}", git.finalize()),
            modified: metadata.modified().ok(),
        })
    }

    /// Refuses a file that has been written to since.
    pub(super) fn check(&self, file: &LocalFile) -> Result<(), PushError> {
        let metadata = fs::metadata(&file.path)
            .map_err(|source| PushError::io("reading", &file.path, source))?;
        if metadata.len() != file.size || metadata.modified().ok() != self.modified {
            return Err(PushError::Changed(file.path.clone()));
        }
        Ok(())
    }
}
