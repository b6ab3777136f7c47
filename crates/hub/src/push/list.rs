//! The files that are to be sent.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use super::PushError;
use crate::name::is_inside;

/// A file on this machine, and its name in the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalFile {
    /// With slashes between directories.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its bytes.
    pub size: u64,
}

impl LocalFile {
    pub(super) fn open(&self) -> Result<File, PushError> {
        let failed = |source| PushError::io("reading", &self.path, source);
        // Opening a pipe waits for whoever writes into it.
        if !fs::metadata(&self.path).map_err(failed)?.is_file() {
            return Err(PushError::NoFile(self.path.clone()));
        }
        File::open(&self.path).map_err(|source| PushError::io("opening", &self.path, source))
    }
}

/// What there is to send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalFiles {
    /// By name.
    pub files: Vec<LocalFile>,
    /// What is not sent, and why: hidden files and links to directories.
    pub left_out: Vec<String>,
}

/// The files of a directory with all below it, or one file. Hidden ones, whose
/// names begin with a dot, are left out: `.git`, `.env`, what a killed process
/// left. A link to a file stands for the file, as in the hub's cache; links to
/// directories are not followed.
///
/// # Errors
///
/// [`PushError::Io`]; [`PushError::BadFileName`] for names that a repository
/// cannot have; [`PushError::NoFile`] for pipes, sockets and devices.
pub fn local_files(path: &Path) -> Result<LocalFiles, PushError> {
    let metadata = fs::metadata(path).map_err(|source| PushError::io("reading", path, source))?;
    let mut found = LocalFiles::default();
    if metadata.is_dir() {
        add(path, "", &mut found)?;
        found.files.sort_by(|a, b| a.name.cmp(&b.name));
        found.left_out.sort();
    } else if metadata.is_file() {
        let name = path.file_name().unwrap_or(path.as_os_str());
        found.files.push(LocalFile {
            name: checked(path, name.to_str())?.to_owned(),
            path: path.to_owned(),
            size: metadata.len(),
        });
    } else {
        return Err(PushError::NoFile(path.to_owned()));
    }
    Ok(found)
}

fn add(directory: &Path, prefix: &str, found: &mut LocalFiles) -> Result<(), PushError> {
    let failed = |source| PushError::io("reading", directory, source);
    for entry in directory.read_dir().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        let last = entry.file_name();
        let name = format!("{prefix}{}", checked(&path, last.to_str())?);
        if last.to_string_lossy().starts_with('.') {
            found.left_out.push(format!("{name} (hidden)"));
            continue;
        }
        let failed = |source| PushError::io("reading", &path, source);
        let is_link = entry.file_type().map_err(failed)?.is_symlink();
        let metadata = fs::metadata(&path).map_err(failed)?;
        if metadata.is_file() {
            found.files.push(LocalFile {
                name,
                size: metadata.len(),
                path,
            });
        } else if !metadata.is_dir() {
            return Err(PushError::NoFile(path));
        } else if is_link {
            found
                .left_out
                .push(format!("{name} (a link to a directory)"));
        } else {
            add(&path, &format!("{name}/"), found)?;
        }
    }
    Ok(())
}

/// A file's name, if a repository can have it.
fn checked<'a>(path: &Path, name: Option<&'a str>) -> Result<&'a str, PushError> {
    name.filter(|name| is_inside(name))
        .ok_or_else(|| PushError::BadFileName(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_below_is_listed_but_what_is_hidden_or_elsewhere() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in [
            "b.bin",
            "sub/deep/c.txt",
            ".env",
            ".git/config",
            "sub/.staged-x",
        ] {
            fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            fs::write(at(name), name).unwrap();
        }
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("secret"), "x").unwrap();
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(elsewhere.path(), at("link")).unwrap();
            std::os::unix::fs::symlink(at("b.bin"), at("a.bin")).unwrap();
        }
        let found = local_files(directory.path()).unwrap();
        let names: Vec<&str> = found.files.iter().map(|file| file.name.as_str()).collect();
        let left_out = [".env (hidden)", ".git (hidden)", "sub/.staged-x (hidden)"];
        if cfg!(unix) {
            assert_eq!(names, ["a.bin", "b.bin", "sub/deep/c.txt"]);
            assert_eq!(found.files[0].size, 5);
            assert_eq!(found.left_out[2], "link (a link to a directory)");
        }
        for name in left_out {
            assert!(found.left_out.iter().any(|left| left == name), "{name}");
        }
        let one = local_files(&at("b.bin")).unwrap();
        assert_eq!(one.files[0].name, "b.bin");
        assert!(local_files(&at("gone")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_refused_and_not_opened() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("model.safetensors");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for path in [directory.path(), socket.as_path()] {
            let error = local_files(path).unwrap_err();
            assert!(matches!(&error, PushError::NoFile(path) if *path == socket));
            assert!(error.to_string().contains("model.safetensors"), "{error}");
        }
    }
}
