//! Recipes, and what a run that is resumed reads.

use std::fs;

use olora_runs::{Recipe, Start, differences};

use crate::{
    parts::{put, scratch, split, twice},
    village::{self, HERE, killed},
};

/// Parts: a recipe, and values for `--set`, one to a line.
pub fn recipe(data: &[u8]) {
    let parts = split(data);
    let text = String::from_utf8_lossy(parts[0]);
    let sets = String::from_utf8_lossy(parts.get(1).copied().unwrap_or_default()).into_owned();
    let sets: Vec<String> = sets.lines().map(str::to_owned).collect();
    for sets in [&[][..], &sets] {
        let read = twice(
            "a recipe",
            || Recipe::parse(&text, "zora.toml", sets),
            PartialEq::eq,
        );
        let Ok(recipe) = read else { continue };
        let training = &recipe.training;
        for steps in [1, 1000] {
            let _ = (training.learning_rate(steps), training.warmup(steps));
        }
        let _ = (
            recipe.objective(),
            recipe.run_directory(),
            recipe.data.all_sources(),
            recipe.data.described(),
        );
        // A seed beyond what TOML holds is refused there.
        let Ok(written) = recipe.to_toml() else {
            continue;
        };
        let again =
            Recipe::parse(&written, "written.toml", &[]).expect("what was written can be read");
        let rewritten = again.to_toml().expect("what was written before");
        assert!(
            again == recipe,
            "a recipe is another when it is written and read: {:?}",
            differences(&written, &rewritten)
        );
    }
}

/// The first line names a file of a run that was killed after its first step; the
/// rest takes its place, and the run is resumed.
pub fn checkpoint(data: &[u8]) {
    let end = data
        .iter()
        .position(|&byte| byte == b'\n')
        .unwrap_or(data.len());
    let name = String::from_utf8_lossy(&data[..end]).into_owned();
    let body = data.get(end + 1..).unwrap_or_default();
    let directory = scratch();
    let at = directory.path().display().to_string();
    for (path, bytes) in killed() {
        let path = path.to_string_lossy();
        let bytes = if path.ends_with(&name) && !name.is_empty() {
            body
        } else {
            bytes
        };
        let bytes = match std::str::from_utf8(bytes) {
            Ok(text) => text.replace(HERE, &at).into_bytes(),
            Err(_) => bytes.to_vec(),
        };
        put(directory.path(), &path, &bytes);
    }
    let recipe = village::recipe(directory.path());
    match village::run(&recipe, Start::Resume) {
        Ok(summary) => {
            assert!(summary.finished);
            assert!(
                fs::metadata(
                    directory
                        .path()
                        .join("runs/zora/adapter/adapter_model.safetensors")
                )
                .is_ok(),
                "a run is finished without an adapter"
            );
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
