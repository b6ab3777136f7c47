//! Samples that were tokenised before, found again by what they were made of.

mod file;
mod key;

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use olora_files::write_atomically;

use crate::{Format, Sample};

pub(crate) use key::{Fields, Key, key};

/// The least size of a data file, in bytes, that [`TokenCache::from_env`]
/// keeps the samples of. A smaller one is tokenised in about the time that it
/// takes to read the tokenizer itself, or less (`BENCHMARKS.md`): nobody would
/// notice.
pub const MIN_CACHED_BYTES: u64 = 256 << 10;

/// What all files of a cache may take together, in bytes. Beyond it, those that
/// were used least recently go.
const LIMIT: u64 = 2 << 30;

/// A directory of tokenised data files.
///
/// A file in it is found by a hash of everything that its samples depend on:
/// the data file's bytes, the tokenizer and the chat template, not its name or
/// date. Nothing depends on the cache: one that cannot be read or written, or a
/// file in it that is damaged, costs the time that it would have saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenCache {
    /// Where its files are. Made when there is something to put there.
    pub directory: PathBuf,
    /// Data files smaller than this, in bytes, are tokenised every time.
    pub min_bytes: u64,
}

/// What the records of a data file became, in its order, before any limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Encoded {
    pub format: Format,
    /// One for each record, empty ones included.
    pub samples: Vec<Sample>,
}

impl TokenCache {
    /// The user's cache: `$OLORA_CACHE/tokens`, else
    /// `$XDG_CACHE_HOME/olora/tokens`, else `~/.cache/olora/tokens`. `None` if
    /// `OLORA_CACHE` is `off`, or if there is no home directory either.
    pub fn from_env() -> Option<Self> {
        let [own, xdg, home] = ["OLORA_CACHE", "XDG_CACHE_HOME", "HOME"].map(env::var_os);
        Some(Self {
            directory: root(own, xdg, home)?.join("tokens"),
            min_bytes: MIN_CACHED_BYTES,
        })
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Encoded> {
        let path = self.path(key);
        let encoded = file::decode(&fs::read(&path).ok()?, key)?;
        // The date of its last use decides when it has to go. That it could not
        // be set is no reason to tokenise again.
        let touched = File::options().write(true).open(&path);
        touched
            .and_then(|file| file.set_modified(SystemTime::now()))
            .ok();
        Some(encoded)
    }

    /// Keeps samples if that is possible.
    pub(crate) fn put(&self, key: &Key, encoded: &Encoded) {
        let Some(bytes) = file::encode(encoded, key) else {
            return;
        };
        let path = self.path(key);
        // Under another name first, so that a run beside this one sees all or nothing.
        if write_atomically(&path, |file| file.write_all(&bytes)).is_ok() {
            make_room(&self.directory, &path, LIMIT).ok();
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        let mut name = String::with_capacity(2 * key.len());
        for byte in key {
            for digit in [byte >> 4, byte & 15] {
                name.extend(char::from_digit(u32::from(digit), 16));
            }
        }
        self.directory.join(name)
    }
}

/// The directory for everything that olora keeps between runs.
fn root(own: Option<OsString>, xdg: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let given =
        |value: Option<OsString>| value.filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(own) = given(own) {
        return (own != Path::new("off")).then_some(own);
    }
    // A relative path there is to be ignored, says the XDG specification.
    let xdg = given(xdg).filter(|path| path.is_absolute());
    let cache = xdg.or_else(|| given(home).map(|home| home.join(".cache")))?;
    Some(cache.join("olora"))
}

/// Removes the files that were used least recently until the rest take no more
/// than `limit` bytes, but never `newest`. What a killed run left half-written
/// ages and goes like the others.
fn make_room(directory: &Path, newest: &Path, limit: u64) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let about = entry.metadata()?;
        if about.is_file() {
            files.push((about.modified()?, entry.path(), about.len()));
        }
    }
    files.sort();
    let mut total: u64 = files.iter().map(|(_, _, size)| size).sum();
    for (_, path, size) in files {
        if total <= limit {
            break;
        }
        if path != newest {
            fs::remove_file(&path)?;
            total -= size;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;

    fn encoded() -> Encoded {
        Encoded {
            format: Format::Alpaca,
            samples: vec![Sample::all_trained(vec![1, 2, 3])],
        }
    }

    fn cache(directory: &Path) -> TokenCache {
        TokenCache {
            directory: directory.to_owned(),
            min_bytes: 0,
        }
    }

    #[test]
    fn what_was_put_is_found_by_its_key_alone() {
        let dir = TempDir::new().unwrap();
        let cache = cache(&dir.path().join("made/when/needed"));
        assert_eq!(cache.get(&[1; 32]), None);
        cache.put(&[1; 32], &encoded());
        assert_eq!(cache.get(&[1; 32]), Some(encoded()));
        assert_eq!(cache.get(&[2; 32]), None);
        // Nothing is left of the way there.
        assert_eq!(fs::read_dir(&cache.directory).unwrap().count(), 1);
    }

    #[test]
    fn a_cache_that_cannot_be_is_done_without() {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "in the way").unwrap();
        let cache = cache(&file);
        cache.put(&[1; 32], &encoded());
        assert_eq!(cache.get(&[1; 32]), None);
        assert_eq!(fs::read(&file).unwrap(), b"in the way");
    }

    #[test]
    fn what_was_used_least_recently_goes_first_and_the_newest_never() {
        let dir = TempDir::new().unwrap();
        let file = |name: &str, age: u64| {
            let path = dir.path().join(name);
            fs::write(&path, [0; 10]).unwrap();
            let then = SystemTime::now() - Duration::from_secs(age);
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(then).unwrap();
            path
        };
        let [newest, old, oldest] = [("a", 300), ("b", 100), ("c", 200)].map(|(n, a)| file(n, a));
        let there = || [&newest, &old, &oldest].map(|path| path.exists());
        make_room(dir.path(), &newest, 30).unwrap();
        assert_eq!(there(), [true, true, true]);
        make_room(dir.path(), &newest, 29).unwrap();
        assert_eq!(there(), [true, true, false]);
        make_room(dir.path(), &newest, 0).unwrap();
        assert_eq!(there(), [true, false, false]);
    }

    #[test]
    fn the_directory_is_the_first_that_is_given() {
        let root = |own: &str, xdg: &str, home: &str| {
            root(Some(own.into()), Some(xdg.into()), Some(home.into()))
        };
        assert_eq!(root("/own", "/xdg", "/home"), Some("/own".into()));
        assert_eq!(root("", "/xdg", "/home"), Some("/xdg/olora".into()));
        assert_eq!(root("", "xdg", "/home"), Some("/home/.cache/olora".into()));
        assert_eq!(root("", "", ""), None);
        assert_eq!(root("off", "/xdg", "/home"), None);
        assert_eq!(super::root(None, None, None), None);
    }
}
