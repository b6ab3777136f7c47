//! Samples that were tokenised before, found again by what they were made of.

mod file;
mod key;

use std::{
    env,
    ffi::OsString,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use olora_files::make_readable;
use tempfile::NamedTempFile;

use crate::{
    corpus::store::{Layout, Store},
    encode::ReadReport,
};

pub(crate) use key::{Fields, Key, key};

/// The least size of a source's files, in bytes, that [`TokenCache::from_env`]
/// keeps the samples of. Smaller ones are tokenised in about the time that it
/// takes to read the tokenizer itself, or less (`BENCHMARKS.md`): nobody would
/// notice.
pub const MIN_CACHED_BYTES: u64 = 256 << 10;

/// What all files of a cache may take together, in bytes, unless something else
/// is asked for.
const LIMIT: u64 = 2 << 30;

/// What the names of files that are being written begin with.
const UNFINISHED: &str = ".unfinished-";

/// A directory of tokenised data files.
///
/// A file in it is found by a hash of everything that its samples depend on:
/// the data files' bytes, the tokenizer and the chat template, not names or
/// dates. Nothing depends on the cache: one that cannot be read or written, or a
/// file in it that is damaged, costs the time that it would have saved.
///
/// A file is mapped while its samples are in use, and locked as in use, so that
/// no run takes it away from another's next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenCache {
    /// Where its files are. Made when there is something to put there.
    pub directory: PathBuf,
    /// Sources smaller than this, in bytes, are tokenised every time, and stay
    /// in memory.
    pub min_bytes: u64,
    /// What its files may take together, in bytes. Beyond it, those that were
    /// used least recently go, but none that is in use. A file that alone takes
    /// more is kept while it is in use, without a name.
    pub max_bytes: u64,
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
            max_bytes: LIMIT,
        })
    }

    pub(crate) fn get(&self, key: &Key) -> Option<(Store, ReadReport)> {
        let path = self.path(key);
        let file = File::open(&path).ok()?;
        // Not every file system has locks; without them the oldest may go.
        file.try_lock_shared().ok();
        let found = file::open(file, key)?;
        // The date of its last use decides when it has to go. That it could not
        // be set is no reason to tokenise again.
        let touched = File::options().write(true).open(&path);
        touched
            .and_then(|file| file.set_modified(SystemTime::now()))
            .ok();
        Some(found)
    }

    /// Begins a file, under another name, so that a run beside this one sees all
    /// or nothing. It is locked for as long as it is written.
    pub(crate) fn begin(&self) -> io::Result<NamedTempFile> {
        fs::create_dir_all(&self.directory)?;
        let mut builder = tempfile::Builder::new();
        let file = builder.prefix(UNFINISHED).tempfile_in(&self.directory)?;
        file.as_file().try_lock().ok();
        Ok(file)
    }

    /// Maps a file that was begun here and written, and keeps it under `key` if
    /// that is possible: without one, or where it takes more than the cache may,
    /// it has no name any more, and goes with the samples.
    pub(crate) fn keep(
        &self,
        file: NamedTempFile,
        layout: Layout,
        key: Option<&Key>,
    ) -> io::Result<Store> {
        let n_bytes = file.as_file().metadata()?.len();
        let Some(key) = key.filter(|_| n_bytes <= self.max_bytes) else {
            return Store::mapped(file.into_file(), layout);
        };
        // No wait for the disk: what a crash leaves half-written is not what its
        // checksum says.
        make_readable(file.as_file())?;
        let path = self.path(key);
        let file = match file.persist(&path) {
            Ok(file) => file,
            Err(error) => return Store::mapped(error.file.into_file(), layout),
        };
        file.unlock().ok();
        file.try_lock_shared().ok();
        let store = Store::mapped(file, layout)?;
        make_room(&self.directory, &path, self.max_bytes).ok();
        Ok(store)
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
/// than `limit` bytes, but never `newest`, nor any that is in use. What a killed
/// run left half-written goes too: it is locked no more.
fn make_room(directory: &Path, newest: &Path, limit: u64) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let about = entry.metadata()?;
        let name = entry.file_name();
        let unfinished = name.to_string_lossy().starts_with(UNFINISHED);
        if unfinished && use_of(&entry.path()) == Use::Free {
            fs::remove_file(entry.path()).ok();
        } else if about.is_file() {
            files.push((about.modified()?, entry.path(), about.len()));
        }
    }
    files.sort();
    let mut total: u64 = files.iter().map(|(_, _, size)| size).sum();
    for (_, path, size) in files {
        if total <= limit {
            break;
        }
        if path != newest && use_of(&path) != Use::Taken && fs::remove_file(&path).is_ok() {
            total -= size;
        }
    }
    Ok(())
}

#[derive(PartialEq, Eq)]
enum Use {
    Free,
    /// Another run, or this one, has it open.
    Taken,
    /// There are no locks here.
    Unknown,
}

fn use_of(path: &Path) -> Use {
    let Ok(file) = File::open(path) else {
        return Use::Unknown;
    };
    match file.try_lock() {
        Ok(()) => Use::Free,
        Err(TryLockError::WouldBlock) => Use::Taken,
        Err(TryLockError::Error(_)) => Use::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::{
        Corpus, Format, Sample,
        corpus::{
            Cut,
            writer::{Place, Writer, Written},
        },
    };

    const KEY: Key = [1; 32];

    fn samples() -> Vec<Sample> {
        vec![Sample::all_trained(vec![1, 2, 3])]
    }

    fn report() -> ReadReport {
        ReadReport {
            n_records: 1,
            longest: 3,
            ..ReadReport::new(Format::Alpaca)
        }
    }

    fn cache(directory: &Path) -> TokenCache {
        TokenCache {
            directory: directory.to_owned(),
            min_bytes: 0,
            max_bytes: LIMIT,
        }
    }

    fn put(cache: &TokenCache, key: Option<&Key>) -> io::Result<Corpus> {
        let place = Place::Cache(cache.begin()?, cache.directory.clone());
        let mut writer = Writer::new(place, key.unwrap_or(&[0; 32]))?;
        for sample in samples() {
            writer.push(&sample, false)?;
        }
        let report = serde_json::to_vec(&report())?;
        let Written::Cache(file, layout) = writer.finish(&report)? else {
            panic!("it was to be a file");
        };
        Ok(corpus(cache.keep(file, layout, key)?))
    }

    fn corpus(store: Store) -> Corpus {
        let max_length = usize::MAX;
        Corpus::of(store.into(), Cut::Each { max_length }, false).0
    }

    fn get(cache: &TokenCache, key: &Key) -> Option<(Corpus, ReadReport)> {
        let (store, report) = cache.get(key)?;
        Some((corpus(store), report))
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).collect()
    }

    #[test]
    fn what_was_put_is_found_by_its_key_alone() {
        let dir = TempDir::new().unwrap();
        let cache = cache(&dir.path().join("made/when/needed"));
        assert_eq!(get(&cache, &KEY), None);
        let put = put(&cache, Some(&KEY)).unwrap();
        assert_eq!(put, samples().into());
        assert!(put.is_mapped());
        assert_eq!(get(&cache, &KEY), Some((put, report())));
        assert_eq!(get(&cache, &[2; 32]), None);
        // Nothing is left of the way there.
        assert_eq!(names(&cache.directory), ["01".repeat(32)]);
    }

    #[test]
    fn what_is_kept_under_no_key_or_is_too_large_has_no_name() {
        let dir = TempDir::new().unwrap();
        let small = TokenCache {
            max_bytes: 100,
            ..cache(dir.path())
        };
        for corpus in [put(&cache(dir.path()), None), put(&small, Some(&KEY))] {
            let corpus = corpus.unwrap();
            assert!(corpus.is_mapped());
            assert_eq!(corpus, samples().into());
            assert!(names(dir.path()).is_empty());
        }
    }

    #[test]
    fn what_is_given_up_half_written_leaves_nothing() {
        let dir = TempDir::new().unwrap();
        let cache = cache(dir.path());
        let place = Place::Cache(cache.begin().unwrap(), dir.path().to_owned());
        let mut writer = Writer::new(place, &KEY).unwrap();
        writer.push(&samples()[0], false).unwrap();
        assert_eq!(names(dir.path()).len(), 1);
        drop(writer);
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_cache_that_cannot_be_says_so() {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "in the way").unwrap();
        let cache = cache(&file);
        assert!(put(&cache, Some(&KEY)).is_err());
        assert_eq!(get(&cache, &KEY), None);
        assert_eq!(fs::read(&file).unwrap(), b"in the way");
    }

    #[test]
    fn what_a_killed_run_left_goes_and_what_is_being_written_stays() {
        let dir = TempDir::new().unwrap();
        let cache = cache(dir.path());
        let writing = cache.begin().unwrap();
        let (left, path) = cache.begin().unwrap().keep().unwrap();
        drop(left);
        assert!(path.exists());
        put(&cache, Some(&KEY)).unwrap();
        assert!(!path.exists() && writing.path().exists());
    }

    #[test]
    fn what_is_in_use_stays_whatever_the_limit() {
        let dir = TempDir::new().unwrap();
        let first = cache(dir.path());
        let in_use = put(&first, Some(&KEY)).unwrap();
        let n_bytes = fs::metadata(first.path(&KEY)).unwrap().len();
        let tight = TokenCache {
            max_bytes: n_bytes,
            ..first
        };
        put(&tight, Some(&[2; 32])).unwrap();
        assert!(get(&tight, &KEY).is_some() && get(&tight, &[2; 32]).is_some());
        drop(in_use);
        put(&tight, Some(&[3; 32])).unwrap();
        assert!(get(&tight, &KEY).is_none() && get(&tight, &[3; 32]).is_some());
    }

    #[test]
    fn samples_outlive_their_files_name() {
        let dir = TempDir::new().unwrap();
        let cache = cache(dir.path());
        let corpus = put(&cache, Some(&KEY)).unwrap();
        fs::remove_file(cache.path(&KEY)).unwrap();
        assert_eq!(corpus, samples().into());
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
