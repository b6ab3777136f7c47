//! Which directories are runs and comparisons.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use crate::place::Place;

/// How deep is looked.
const MOST_DEEP: usize = 8;

/// How many directories are looked into: a root such as `/` is a mistake, and a page
/// is to say so within a second.
const MOST_DIRECTORIES: usize = 20_000;

/// What is below a root. A name is the path from there, with slashes; `.` is the root
/// itself. Whatever is asked for by a name is looked up here, so that no name reaches
/// the file system.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) runs: BTreeMap<String, Place>,
    pub(crate) comparisons: BTreeMap<String, Place>,
    /// Whether there were more directories than are looked into.
    pub(crate) is_cut: bool,
    n_directories: usize,
}

/// Of which kind a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Run,
    Comparison,
    Neither,
}

impl Kind {
    pub(crate) fn of(directory: &Path) -> Self {
        let has = |name: &str| directory.join(name).symlink_metadata().is_ok();
        if has("comparison.json") {
            Self::Comparison
        } else if has("recipe.toml") || has("metrics.jsonl") {
            Self::Run
        } else {
            Self::Neither
        }
    }
}

impl Found {
    /// Walks a directory that has no links in its path.
    pub(crate) fn below(root: &Arc<Path>) -> Self {
        let mut found = Self::default();
        found.walk(root, root, "", 0);
        found
    }

    fn walk(&mut self, root: &Arc<Path>, directory: &Path, name: &str, depth: usize) {
        if self.n_directories == MOST_DIRECTORIES {
            self.is_cut = true;
            return;
        }
        self.n_directories += 1;
        let place = || Place::new(root, directory.to_owned());
        let shown = || match name {
            "" => ".".to_owned(),
            name => name.to_owned(),
        };
        let kind = Kind::of(directory);
        match kind {
            Kind::Run => {
                // What is in a run, adapters and checkpoints, are no other runs.
                self.runs.insert(shown(), place());
                return;
            }
            Kind::Comparison => {
                self.comparisons.insert(shown(), place());
            }
            Kind::Neither => {}
        }
        if depth == MOST_DEEP {
            return;
        }
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        for entry in entries {
            // A link is not a directory here, so that nothing is found outside the root, or twice.
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let own = entry.file_name().to_string_lossy().into_owned();
            let is_of_comparison = matches!(own.as_str(), "cells" | "scores");
            if own.starts_with('.') || kind == Kind::Comparison && is_of_comparison {
                continue;
            }
            let name = match name {
                "" => own,
                name => format!("{name}/{own}"),
            };
            self.walk(root, &entry.path(), &name, depth + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(root: &Path) -> Found {
        Found::below(&fs::canonicalize(root).unwrap().into())
    }

    fn file(root: &Path, path: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    #[test]
    fn runs_and_comparisons_are_found_at_any_depth() {
        let root = tempfile::tempdir().unwrap();
        for path in [
            "alder/metrics.jsonl",
            "alder/checkpoints/step-1/recipe.toml",
            "of/june/brook/recipe.toml",
            "compared/comparison.json",
            "compared/cells/a/recipe.toml",
            "compared/runs/lora/recipe.toml",
            ".hidden/recipe.toml",
            "nothing/loss.svg",
        ] {
            file(root.path(), path);
        }
        let found = found(root.path());
        let names: Vec<&str> = found.runs.keys().map(String::as_str).collect();
        assert_eq!(names, ["alder", "compared/runs/lora", "of/june/brook"]);
        let names: Vec<&str> = found.comparisons.keys().map(String::as_str).collect();
        assert_eq!(names, ["compared"]);
    }

    #[test]
    fn the_root_may_be_a_run() {
        let root = tempfile::tempdir().unwrap();
        file(root.path(), "recipe.toml");
        assert!(found(root.path()).runs.contains_key("."));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_a_directory_is_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        file(outside.path(), "run/recipe.toml");
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).unwrap();
        assert!(found(root.path()).runs.is_empty());
    }
}
