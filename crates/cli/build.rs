//! Records the source commit, so that a run's summary can name it. `benchmarks` uses it too.

use std::{path::Path, process::Command};

fn main() {
    for root in ["../..", ".."] {
        if Path::new(root).join("Cargo.lock").exists() {
            println!("cargo::rerun-if-changed={root}/.git/HEAD");
            println!("cargo::rerun-if-changed={root}/.git/index");
        }
    }
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    // Built from a package, or without git, there is none. A package may lie in a repository that is
    // somebody else's.
    let is_ours = git(&["ls-files", "--error-unmatch", "Cargo.toml"]).is_some();
    let commit = git(&["rev-parse", "--short=12", "HEAD"]);
    if let Some(commit) = commit.filter(|_| is_ours) {
        let dirty = git(&["status", "--porcelain", "--untracked-files=no"])
            .is_some_and(|changes| !changes.is_empty());
        println!(
            "cargo::rustc-env=OLORA_COMMIT={commit}{}",
            if dirty { "-modified" } else { "" }
        );
    }
}
