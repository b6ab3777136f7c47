//! Reading small files that others made, without trusting their size.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use crate::pointer::stands_for;

/// All bytes of a file that has at most `most` of them: a configuration of a
/// model that somebody published. A device or a pipe has no end, and a file of
/// gigabytes is none that was meant, so both are refused before anything is read.
///
/// # Errors
///
/// [`io::ErrorKind::InvalidData`] for what is larger, no file or a pointer of
/// git-lfs; those of reading.
///
/// ```
/// # let directory = tempfile::tempdir()?;
/// let path = directory.path().join("config.json");
/// std::fs::write(&path, "{}")?;
/// assert_eq!(olora_files::read_bounded(&path, 1000)?, b"{}");
/// assert!(olora_files::read_bounded(&path, 1).is_err());
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn read_bounded(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let refused = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let about = fs::metadata(path)?;
    if !about.is_file() {
        return Err(refused("it is no file".to_owned()));
    }
    let mut bytes = Vec::new();
    // It may have grown since it was asked for its size.
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(refused(format!(
            "it has {} bytes, but a file of this kind has at most {most}. Is it what its name says?",
            about.len().max(most + 1)
        )));
    }
    match stands_for(&bytes) {
        None => Ok(bytes),
        Some(reason) => Err(refused(reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_larger_is_refused_with_both_sizes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::write(&path, [b' '; 11]).unwrap();
        assert_eq!(read_bounded(&path, 11).unwrap().len(), 11);
        let message = read_bounded(&path, 10).unwrap_err().to_string();
        assert!(message.contains("11 bytes") && message.contains("at most 10"));
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert!(read_bounded(directory.path(), 10).is_err());
        #[cfg(unix)]
        assert!(read_bounded(Path::new("/dev/zero"), 10).is_err());
    }
}
