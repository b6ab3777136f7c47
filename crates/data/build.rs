//! Tells the crate which versions of others turn its text into tokens: the key of its cache holds
//! them (`src/cache/key.rs`).
//!
//! Cargo tells a build script nothing of the versions that it has chosen for the dependencies, so
//! they are read in the `Cargo.lock` of whoever builds this crate. That is the one above the target
//! directory, as a rule. Where the target directory is elsewhere, it is that of this crate's own
//! workspace; and in a package, the one that was packed along, which names what the package was
//! tested with. Without any, a version is `unknown`: then samples that were tokenised with another
//! version may be found in the cache, and nothing else is amiss.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// The crates that turn text into tokens and conversations into text.
const MADE_BY: [&str; 3] = ["minijinja", "minijinja-contrib", "tokenizers"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let lock = candidates().into_iter().find_map(|path| {
        let text = fs::read_to_string(&path).ok()?;
        // Whatever lies above the target directory need not be about this crate.
        let is_ours = !versions(&text, env!("CARGO_PKG_NAME")).is_empty();
        is_ours.then_some((path, text))
    });
    if let Some((path, _)) = &lock {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    let lock = lock.map(|(_, text)| text).unwrap_or_default();
    let made_by = MADE_BY.map(|name| {
        let versions = match versions(&lock, name) {
            found if found.is_empty() => "unknown".to_owned(),
            // Several, where a workspace has them: one of them is ours.
            found => found.join("+"),
        };
        format!("{name} {versions}")
    });
    println!("cargo::rustc-env=OLORA_MADE_BY={}", made_by.join(", "));
}

/// Where the `Cargo.lock` may be, the likeliest first.
fn candidates() -> Vec<PathBuf> {
    let variable = |name| env::var_os(name).map(PathBuf::from);
    let (out, manifest) = (variable("OUT_DIR"), variable("CARGO_MANIFEST_DIR"));
    let above_target = out.iter().flat_map(|out| out.ancestors().skip(1));
    let workspace = manifest
        .iter()
        .filter_map(|manifest| manifest.ancestors().nth(2));
    above_target
        .chain(workspace)
        .chain(manifest.as_deref())
        .map(|directory: &Path| directory.join("Cargo.lock"))
        .collect()
}

/// The versions of a crate in a `Cargo.lock`.
fn versions<'a>(lock: &'a str, name: &str) -> Vec<&'a str> {
    let version = |entry: &'a str| {
        let value = |key: &str| {
            entry
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_suffix('"'))
        };
        value("version = \"").filter(|_| value("name = \"") == Some(name))
    };
    lock.split("[[package]]").filter_map(version).collect()
}
