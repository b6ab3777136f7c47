//! Paths in a recipe.
//!
//! A path that is written in a recipe is relative to the recipe's directory, so
//! that the recipe means the same wherever it is run from. One that is typed,
//! with `--set` or as an option, is relative to the working directory, as on any
//! command line, and so is the default `runs` of `output.directory`, which no
//! recipe says. Once read, all are as if typed: what comes after needs no
//! directory of the recipe.
//!
//! The recipe that a run keeps is written by the same rule, relative to the run's
//! directory, and says so in its first line. Runs of versions before had theirs
//! relative to the working directory, without that line.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use super::{Recipe, TensorBoard};

/// How the recipe that a run keeps begins.
pub(super) const KEPT: &str = "# Paths are relative to this file's directory.\n";

/// What may be written in a path's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A path.
    Path,
    /// A path to be made where it is missing.
    Output,
    /// A path, or a model of the hub.
    Model,
    /// A path, a pattern, or a data set of the hub; `#500` may follow.
    Data,
}

/// What is put in a path's place, by the recipe's key, what it may be, and what it is.
type Other<'a, E> = dyn FnMut(&str, Kind, &str) -> Result<Option<String>, E> + 'a;

impl Recipe {
    /// Gives each path of the recipe, with its key, for another to be put in its
    /// place.
    fn each_path<E>(&mut self, other: &mut Other<'_, E>) -> Result<(), E> {
        let mut of_path = |key: &str, kind: Kind, path: &mut PathBuf| {
            // A path that is no text was not read from a recipe.
            if let Some(text) = path.to_str()
                && let Some(text) = other(key, kind, text)?
            {
                *path = PathBuf::from(text);
            }
            Ok(())
        };
        of_path("model.path", Kind::Model, &mut self.model.path)?;
        if let Some(from) = &mut self.adapter.from {
            of_path("adapter.from", Kind::Path, from)?;
        }
        if let Some(data) = &mut self.tasks.data {
            of_path("tasks.data", Kind::Path, data)?;
        }
        of_path("output.directory", Kind::Output, &mut self.output.directory)?;
        if let TensorBoard::In(directory) = &mut self.logging.tensorboard {
            of_path("logging.tensorboard", Kind::Output, directory)?;
        }
        let train = ("data.train", &mut self.data.train);
        let validation = self.data.validation.as_mut();
        let validation = validation.map(|paths| ("data.validation", paths));
        let sources = self.data.sources.iter_mut();
        let sources = sources.map(|source| ("data.sources", &mut source.path));
        for (key, paths) in [train].into_iter().chain(validation).chain(sources) {
            for path in &mut paths.0 {
                if let Some(text) = other(key, Kind::Data, path)? {
                    *path = text;
                }
            }
        }
        Ok(())
    }

    /// Makes the paths that are written in a recipe what they are as typed in the
    /// working directory; those of which `is_typed` says that they are so already
    /// are left alone.
    ///
    /// # Errors
    ///
    /// A path that leads nowhere from the recipe, and somewhere from the working
    /// directory.
    pub(super) fn read_beside(
        &mut self,
        directory: &Path,
        is_typed: &dyn Fn(&str) -> bool,
    ) -> Result<(), String> {
        if directory.as_os_str().is_empty() {
            return Ok(());
        }
        self.each_path(&mut |key, kind, written| {
            if is_typed(key) || !is_relative(written) {
                return Ok(None);
            }
            let beside = join(directory, written);
            if kind == Kind::Output || is_there(&beside, kind) {
                return Ok(Some(beside));
            }
            if is_there(written, kind) {
                return Err(format!(
                    "`{key}` is {written:?}. A path in a recipe is relative to the recipe's directory, so it is \
                     looked for at {beside}, where nothing is. It is in the working directory: write {:?}, or its \
                     whole path",
                    relative(written, directory)
                ));
            }
            Ok(Some(beside).filter(|_| !may_be_of_hub(written, kind)))
        })
    }

    /// The recipe as a run keeps it: as TOML, with every default written out, and
    /// paths relative to the directory that it is kept in.
    ///
    /// # Errors
    ///
    /// As [`to_toml`](Self::to_toml).
    pub(crate) fn to_be_kept_in(&self, directory: &Path) -> Result<String, crate::RunError> {
        let mut kept = self.clone();
        let done = kept.each_path::<std::convert::Infallible>(&mut |_, kind, path| {
            Ok(Some(written_in(directory, kind, path)))
        });
        let Ok(()) = done;
        Ok(format!("{KEPT}{}", kept.to_toml()?))
    }

    /// The recipe with each path from the root of the file system, so that two can
    /// be compared that were read from different places.
    #[must_use]
    pub fn with_whole_paths(&self) -> Self {
        let mut whole = self.clone();
        let done = whole.each_path::<std::convert::Infallible>(&mut |_, kind, path| {
            Ok(is_of_here(path, kind).then(|| absolute(path)))
        });
        let Ok(()) = done;
        whole
    }
}

/// The keys that are paths, but for those of `data.sources`.
const PATHS: [(&str, Kind); 7] = [
    ("model.path", Kind::Model),
    ("data.train", Kind::Data),
    ("data.validation", Kind::Data),
    ("adapter.from", Kind::Path),
    ("tasks.data", Kind::Path),
    ("output.directory", Kind::Output),
    ("logging.tensorboard", Kind::Output),
];

/// The value of a recipe's key, typed in the working directory, as a recipe in
/// another directory has it: paths are relative to that, and all else stays, names
/// of the hub among it. The directory may be still to be made.
pub fn written_beside(key: &str, value: &str, directory: &Path) -> String {
    match PATHS.iter().find(|(path, _)| *path == key) {
        Some((_, kind)) if !directory.as_os_str().is_empty() => written_in(directory, *kind, value),
        _ => value.to_owned(),
    }
}

/// A path of the working directory as a file in another directory names it: from
/// there, unless a link in the directory makes steps up lead elsewhere.
fn written_in(directory: &Path, kind: Kind, path: &str) -> String {
    if !is_of_here(path, kind) {
        return path.to_owned();
    }
    let there = directory.ancestors().find(|ancestor| ancestor.exists());
    if there.is_none_or(|there| there.as_os_str().is_empty() || is_plain(there)) {
        relative(path, directory)
    } else {
        absolute(path)
    }
}

/// Whether this is a path from the working directory: neither a whole one, nor a
/// name of the hub that no file has.
fn is_of_here(path: &str, kind: Kind) -> bool {
    is_relative(path) && (is_there(path, kind) || !may_be_of_hub(path, kind))
}

/// Whether a path is relative to something: neither whole, nor of a home, nor an
/// address, nor nothing.
fn is_relative(path: &str) -> bool {
    let relative = Path::new(path).is_relative() && !path.starts_with(['/', '~']);
    relative && !path.is_empty() && !path.contains("://")
}

/// Whether there is something of that name; of patterns, that its directory is.
fn is_there(path: &str, kind: Kind) -> bool {
    if Path::new(path).exists() {
        return true;
    }
    if kind != Kind::Data {
        return false;
    }
    if let Some((path, first)) = path.rsplit_once('#')
        && first.bytes().all(|byte| byte.is_ascii_digit())
    {
        return is_there(path, kind);
    }
    match path.find(is_wild) {
        None => false,
        Some(at) => {
            let before = Path::new(path.get(..at).unwrap_or_default());
            let directory = match path.get(..at) {
                Some(text) if text.ends_with(['/', '\\']) => Some(before),
                _ => before.parent(),
            };
            directory
                .is_some_and(|directory| !directory.as_os_str().is_empty() && directory.is_dir())
        }
    }
}

fn is_wild(letter: char) -> bool {
    ['*', '?', '[', '{'].contains(&letter)
}

/// Whether a name that no file has could be one of the hub: two or three words
/// with slashes between them, that do not end as data files do. What `olora-hub`
/// tells apart more finely it refuses by name later.
fn may_be_of_hub(name: &str, kind: Kind) -> bool {
    let most = match kind {
        Kind::Path | Kind::Output => return false,
        // A branch and a file may have slashes of their own.
        Kind::Model => 1,
        Kind::Data => 2,
    };
    let head = name.split(['@', ':', '#']).next().unwrap_or(name);
    let slashes = head.matches('/').count();
    let ending = |ending: &&str| {
        let name = head.to_ascii_lowercase();
        name.strip_suffix(*ending)
            .is_some_and(|rest| rest.ends_with('.'))
    };
    let mut endings = olora_data::ENDINGS.iter().chain(&["gguf", "gz", "zst"]);
    (1..=most).contains(&slashes)
        && !head.starts_with('.')
        && !head.contains('\\')
        && !head.contains(is_wild)
        && !endings.any(ending)
}

/// A path from a directory. Steps up are taken out, unless a link in the
/// directory makes them lead elsewhere.
fn join(directory: &Path, path: &str) -> String {
    let joined = directory.join(path);
    let joined = if is_plain(directory) {
        without_steps_up(&joined)
    } else {
        joined
    };
    joined.to_string_lossy().into_owned()
}

/// Whether no part of a directory is a link, below the working directory or the
/// root.
fn is_plain(directory: &Path) -> bool {
    let (Ok(real), Ok(here)) = (fs::canonicalize(directory), fs::canonicalize(".")) else {
        return false;
    };
    real == without_steps_up(&here.join(directory))
}

/// `a/../b` as `b`.
fn without_steps_up(path: &Path) -> PathBuf {
    let mut all = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir
                if matches!(all.components().next_back(), Some(Component::Normal(_))) =>
            {
                all.pop();
            }
            part => all.push(part),
        }
    }
    if all.as_os_str().is_empty() {
        all.push(".");
    }
    all
}

/// A path of the working directory, from a directory below that; the whole path
/// where the directory is elsewhere.
fn relative(path: &str, directory: &Path) -> String {
    let (path, directory) = (
        without_steps_up(Path::new(path)),
        without_steps_up(directory),
    );
    let is_below = |path: &Path| {
        path.is_relative() && !path.components().any(|part| part == Component::ParentDir)
    };
    if !is_below(&directory) || !is_below(&path) {
        return absolute(&path.to_string_lossy());
    }
    let parts = |path: &Path| -> Vec<String> {
        let named = path.components().filter(|part| *part != Component::CurDir);
        named
            .map(|part| part.as_os_str().to_string_lossy().into_owned())
            .collect()
    };
    let (path, directory) = (parts(&path), parts(&directory));
    let common = path.iter().zip(&directory).take_while(|(a, b)| a == b);
    let common = common.count();
    let up = vec![".."; directory.len() - common].join("/");
    let down = path.get(common..).unwrap_or_default().join("/");
    match (up.as_str(), down.as_str()) {
        ("", "") => ".".to_owned(),
        (up, "") => up.to_owned(),
        // A name with a slash could be one of the hub.
        ("", down) => format!("./{down}"),
        (up, down) => format!("{up}/{down}"),
    }
}

fn absolute(path: &str) -> String {
    let whole = std::path::absolute(path).unwrap_or_else(|_| PathBuf::from(path));
    without_steps_up(&whole).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_made_relative_to_a_directory() {
        for (path, directory, expected) in [
            ("recipes/data.jsonl", "recipes", "./data.jsonl"),
            ("data.jsonl", "recipes/mine", "../../data.jsonl"),
            ("runs", "runs/mine", ".."),
            ("runs/./mine/", "runs/mine", "."),
            ("recipes/../data", "recipes", "../data"),
        ] {
            assert_eq!(relative(path, Path::new(directory)), expected, "{path}");
        }
        assert!(Path::new(&relative("../data", Path::new("recipes"))).is_absolute());
        assert!(Path::new(&relative("data", Path::new("../runs"))).is_absolute());
    }

    #[test]
    fn every_path_of_a_recipe_is_known_by_its_key() {
        let text = "name = \"x\"\n[model]\npath = \"m\"\n[adapter]\nfrom = \"a\"\n[data]\ntrain = \"d\"\n\
                    validation = \"v\"\n[tasks]\nnames = [\"piqa\"]\ndata = \"t\"\n[output]\ndirectory = \"o\"\n\
                    [logging]\ntensorboard = \"l\"\n";
        let mut recipe = Recipe::parse(text, "x", &[]).unwrap();
        let mut found = Vec::new();
        let done = recipe.each_path::<std::convert::Infallible>(&mut |key, kind, _| {
            found.push((key.to_owned(), kind));
            Ok(None)
        });
        let Ok(()) = done;
        let mut listed = PATHS.map(|(key, kind)| (key.to_owned(), kind)).to_vec();
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        listed.sort_by(|(a, _), (b, _)| a.cmp(b));
        assert_eq!(found, listed);
    }

    #[test]
    fn steps_up_are_taken_out() {
        for (path, expected) in [
            ("runs/mine/../../data", "data"),
            ("runs/mine/..", "runs"),
            ("../data", "../data"),
            ("./a/./b", "a/b"),
            ("a/..", "."),
        ] {
            assert_eq!(without_steps_up(Path::new(path)), Path::new(expected));
        }
    }

    #[test]
    fn names_of_the_hub_are_told_from_paths() {
        for name in ["owner/name", "owner/name@v1/two", "owner/name:tiny.gguf"] {
            assert!(may_be_of_hub(name, Kind::Model), "{name}");
        }
        for name in ["owner/name", "owner/name/part#500", "owner/name:train[:5]"] {
            assert!(may_be_of_hub(name, Kind::Data), "{name}");
        }
        for path in ["name", "./owner/name", "a/b/c", "models/tiny.gguf"] {
            assert!(!may_be_of_hub(path, Kind::Model), "{path}");
        }
        for path in ["train", "data/train.jsonl", "data/train.csv.gz#5", "data/*"] {
            assert!(!may_be_of_hub(path, Kind::Data), "{path}");
        }
        assert!(!may_be_of_hub("owner/name", Kind::Path));
    }
}
