//! Runs and comparisons as one file.

use std::{fmt::Write, fs, path::Path, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    BoardError,
    comparison::{Comparison, MOST_PICTURE},
    details::Details,
    find::Kind,
    list::{self, Entries},
    page,
    place::Place,
    tracked::Tracked,
};

/// A page with runs and comparisons in it, that needs nothing else: to be sent, or kept
/// beside what it is of. It has the board's script and the data that the board would be
/// given, and may run no other script and ask nobody for anything.
///
/// # Errors
///
/// [`BoardError`] for a directory that is not there, or holds neither a run nor a
/// comparison.
pub fn report(directories: &[impl AsRef<Path>]) -> Result<String, BoardError> {
    let mut runs = Vec::new();
    let mut comparisons = Vec::new();
    let mut names = Vec::new();
    for directory in directories {
        let directory = directory.as_ref();
        let root = fs::canonicalize(directory).map_err(|source| BoardError::Directory {
            path: directory.to_owned(),
            source,
        })?;
        let path = name(&root, &names);
        let root: Arc<Path> = root.into();
        let place = Place::new(&root, root.to_path_buf());
        match Kind::of(&root) {
            Kind::Run => runs.push(run(&path, &place)),
            Kind::Comparison => comparisons.push(comparison(&path, &place)),
            Kind::Neither => return Err(BoardError::Neither(directory.to_owned())),
        }
        names.push(path);
    }
    let data = json!({
        "runs": runs,
        "comparisons": comparisons,
        "version": env!("CARGO_PKG_VERSION"),
    });
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:",
        fingerprint(page::SCRIPT),
        fingerprint(page::STYLE),
    );
    Ok(page::REPORT
        .replace("{{title}}", &escape_html(&names.join(", ")))
        .replace("{{policy}}", &policy)
        // Last, so that what is in the data is not looked at for these.
        .replace("{{data}}", &escape_script(&data)))
}

/// A directory's own name, with a number where another has it.
fn name(root: &Path, taken: &[String]) -> String {
    let name = root.file_name().unwrap_or(root.as_os_str());
    let name = name.to_string_lossy().into_owned();
    let again = (2..).map(|number| format!("{name} ({number})"));
    let mut names = std::iter::once(name.clone()).chain(again);
    names.find(|name| !taken.contains(name)).unwrap_or(name)
}

fn run(path: &str, place: &Place) -> Value {
    let entry = Entries::default().run(path, place);
    let mut tracked = Tracked::default();
    // What cannot be read is said in the entry.
    let _ = tracked.advance(place);
    json!(Details::of(entry, place, tracked.metrics()))
}

/// With the pictures in it.
fn comparison(path: &str, place: &Place) -> Value {
    let comparison = Comparison::of(list::comparison(path, place), place);
    let pictures = comparison.pictures.iter().filter_map(|name| {
        let bytes = place.read(name, MOST_PICTURE).ok()?;
        let data = format!("data:image/svg+xml;base64,{}", STANDARD.encode(bytes));
        Some((name.clone(), Value::from(data)))
    });
    let inlined: serde_json::Map<String, Value> = pictures.collect();
    let mut value = json!(comparison);
    value["inlined"] = inlined.into();
    value
}

/// What a policy calls a script or a style by.
fn fingerprint(text: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text)))
}

/// JSON that may stand in a script element: nothing in it ends the element.
fn escape_script(data: &Value) -> String {
    data.to_string().replace('<', "\\u003c")
}

fn escape_html(text: &str) -> String {
    text.chars().fold(String::new(), |mut escaped, letter| {
        if matches!(letter, '<' | '>' | '&' | '"' | '\'' | '{') {
            // Writing to text does not fail.
            let _ = write!(escaped, "&#{};", u32::from(letter));
        } else {
            escaped.push(letter);
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_named(parent: &Path, name: &str) -> std::path::PathBuf {
        let run = parent.join(name);
        fs::create_dir_all(&run).unwrap();
        fs::write(run.join("metrics.jsonl"), "{\"step\":1,\"loss\":0.625}\n").unwrap();
        run
    }

    #[test]
    fn a_report_has_its_data_in_it_and_may_run_its_own_script_alone() {
        let parent = tempfile::tempdir().unwrap();
        let html = report(&[run_named(parent.path(), "alder")]).unwrap();
        assert!(html.contains("0.625") && html.contains("<title>alder"));
        assert!(html.contains(&fingerprint(page::SCRIPT)));
        let policy = html.find("default-src 'none'").unwrap();
        assert!(policy < html.find("<style").unwrap());
    }

    #[test]
    fn what_files_say_ends_no_element() {
        let parent = tempfile::tempdir().unwrap();
        let run = run_named(parent.path(), "<img src=x>");
        let evil = "name = \"</script><script>alert(1)</script>{{data}}\"\n";
        fs::write(run.join("recipe.toml"), evil).unwrap();
        let html = report(&[run]).unwrap();
        assert!(!html.contains("<script>alert") && !html.contains("<img src"));
        let data = html.split_once("id=\"inlined\"").unwrap().1;
        let data = data.split_once('>').unwrap().1;
        let data: Value = serde_json::from_str(data.split_once("</script>").unwrap().0).unwrap();
        assert_eq!(
            data["runs"][0]["name"],
            "</script><script>alert(1)</script>{{data}}"
        );
    }

    #[test]
    fn two_of_one_name_are_told_apart() {
        let parent = tempfile::tempdir().unwrap();
        let runs = ["june/alder", "july/alder"].map(|name| run_named(parent.path(), name));
        assert!(report(&runs).unwrap().contains("alder (2)"));
    }

    #[test]
    fn the_pictures_of_a_comparison_are_in_it() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join("comparison.json"), "{}").unwrap();
        fs::write(parent.path().join("loss.svg"), "<svg/>").unwrap();
        let html = report(&[parent.path()]).unwrap();
        assert!(html.contains("data:image/svg+xml;base64,PHN2Zy8+"));
    }

    #[test]
    fn a_directory_of_neither_kind_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let error = report(&[parent.path()]).unwrap_err();
        assert!(matches!(error, BoardError::Neither(_)), "{error}");
    }
}
