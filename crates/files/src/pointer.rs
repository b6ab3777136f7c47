//! What git leaves in the place of a large file where git-lfs is not installed.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Refuses a pointer of git-lfs: a text of some 130 bytes that says which file
/// it stands for. `git clone` leaves those where git-lfs is not installed.
///
/// And what is no file, such as a pipe, which would be waited for, or a
/// directory. Whatever else is wrong with the file, and that there is none, is
/// left to whoever reads it.
///
/// # Errors
///
/// [`io::ErrorKind::InvalidInput`] for what is no file;
/// [`io::ErrorKind::InvalidData`] says what the file is and how to get the one
/// that is meant.
///
/// ```
/// # let directory = tempfile::tempdir()?;
/// let path = directory.path().join("model.safetensors");
/// std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4096\n")?;
/// let message = olora_files::refuse_pointer(&path).unwrap_err().to_string();
/// assert!(message.contains("git lfs pull") && message.contains("4096 bytes"));
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn refuse_pointer(path: &Path) -> io::Result<()> {
    // Opening a pipe waits for whoever writes into it.
    if let Ok(found) = path.metadata()
        && !found.is_file()
    {
        let what = if found.is_dir() {
            "it is a directory"
        } else {
            "it is a pipe, a socket or a device"
        };
        let reason = format!("{what} in the place of a file");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    let mut opening = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MOST).read_to_end(&mut opening));
    match read.ok().and_then(|_| stands_for(&opening)) {
        None => Ok(()),
        Some(reason) => Err(io::Error::new(io::ErrorKind::InvalidData, reason)),
    }
}

/// Bytes by which a pointer is told; git-lfs has none of more than a kilobyte.
const MOST: u64 = 1024;
const OPENING: &[u8] = b"version https://git-lfs.github.com/spec/";

/// What to say of bytes that are a pointer; `None` if they are none.
pub(crate) fn stands_for(bytes: &[u8]) -> Option<String> {
    if bytes.len() as u64 > MOST || !bytes.starts_with(OPENING) {
        return None;
    }
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines();
    let size = lines.find_map(|line| line.strip_prefix("size ")?.trim().parse::<u64>().ok());
    let size = size.map_or_else(String::new, |size| format!(", which has {size} bytes"));
    Some(format!(
        "it is a pointer of git-lfs in the place of the file itself{size}. Install git-lfs and run \
         `git lfs pull` in its directory, or download the file again"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_short_file_that_begins_as_one_is_a_pointer() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n";
        assert!(stands_for(pointer).unwrap().contains("7 bytes"));
        let mut long = pointer.to_vec();
        long.resize(2000, b' ');
        assert_eq!(stands_for(&long), None);
        assert_eq!(stands_for(b"version 1\n"), None);
    }

    #[test]
    fn a_directory_in_the_place_of_a_file_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let message = refuse_pointer(directory.path()).unwrap_err().to_string();
        assert!(
            message.contains("a directory in the place of a file"),
            "{message}"
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_left_to_its_reader() {
        assert!(refuse_pointer(Path::new("of/nobody")).is_ok());
    }
}
