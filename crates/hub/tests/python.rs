//! Python's `huggingface_hub` and this crate read each other's caches.
//!
//! Needs a Python with `huggingface_hub`, so it runs on request only:
//! `OLORA_PYTHON=path/to/python cargo test -p olora-hub --test python -- --ignored`
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{env, fs, path::Path, process::Command};

use common::{Hub, NAME, weights};
use olora_hub::{Dataset, DatasetName, HubOptions, resolve, resolve_dataset};
use tempfile::tempdir;

fn python(program: &str, endpoint: &str, cache: &Path) -> String {
    let python = env::var_os("OLORA_PYTHON").expect("OLORA_PYTHON names a Python");
    let output = Command::new(python)
        .args(["-c", program])
        .env("HF_ENDPOINT", endpoint)
        .env("HF_HUB_CACHE", cache)
        .env("HF_HUB_DISABLE_XET", "1")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn hub() -> Hub {
    Hub::start(&[
        ("config.json", b"{}"),
        ("tokenizer.json", b"{\"version\": \"1.0\"}"),
        ("model.safetensors", &weights()),
    ])
}

#[test]
#[ignore = "needs Python with huggingface_hub in OLORA_PYTHON"]
fn python_reads_what_this_crate_has_downloaded() {
    let (hub, cache) = (hub(), tempdir().unwrap());
    let found = resolve(NAME, &hub.options(cache.path()), &mut |_| {}).unwrap();
    hub.requests();
    let path = python(
        "from huggingface_hub import snapshot_download, try_to_load_from_cache
assert try_to_load_from_cache('owner/name', 'model.safetensors').endswith('model.safetensors')
print(snapshot_download('owner/name', local_files_only=True))",
        &hub.endpoint,
        cache.path(),
    );
    assert_eq!(Path::new(&path), found.path);
    // Online, it asks, and finds that nothing is missing.
    let path = python(
        "from huggingface_hub import snapshot_download
print(snapshot_download('owner/name'))",
        &hub.endpoint,
        cache.path(),
    );
    assert_eq!(Path::new(&path), found.path);
    let requests = hub.requests();
    assert!(!requests.is_empty());
    assert!(!requests.iter().any(|request| request.cdn), "{requests:?}");
}

#[test]
#[ignore = "needs Python with huggingface_hub in OLORA_PYTHON"]
fn this_crate_reads_what_python_has_downloaded() {
    let (hub, cache) = (hub(), tempdir().unwrap());
    let path = python(
        "from huggingface_hub import snapshot_download
print(snapshot_download('owner/name'))",
        &hub.endpoint,
        cache.path(),
    );
    hub.requests();
    let mut options = hub.options(cache.path());
    for offline in [false, true] {
        options.offline = offline;
        let found = resolve(NAME, &options, &mut |_| {}).unwrap();
        assert_eq!(found.path, Path::new(&path));
        assert!(found.from_cache);
        let file = found.path.join("model.safetensors");
        assert_eq!(fs::read(file).unwrap(), weights());
    }
    let requests = hub.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
}

fn dataset_hub() -> Hub {
    Hub::start_dataset(&[
        ("README.md", b"# Tales of Oxmere"),
        ("train.jsonl", b"{}"),
        ("test.parquet", &weights()),
    ])
}

fn dataset(options: &HubOptions) -> Dataset {
    let DatasetName::Hub(mut name) = DatasetName::parse(NAME).unwrap() else {
        panic!("{NAME} is a path here");
    };
    name.split = Some("test".to_owned());
    resolve_dataset(&name, options, &mut |_| {}).unwrap()
}

#[test]
#[ignore = "needs Python with huggingface_hub in OLORA_PYTHON"]
fn python_reads_the_data_that_this_crate_has_downloaded() {
    let (hub, cache) = (dataset_hub(), tempdir().unwrap());
    let found = dataset(&hub.options(cache.path()));
    hub.requests();
    let path = python(
        "from huggingface_hub import hf_hub_download, scan_cache_dir
report = scan_cache_dir()
assert not report.warnings, report.warnings
assert [(repo.repo_type, repo.repo_id) for repo in report.repos] == [('dataset', 'owner/name')]
print(hf_hub_download('owner/name', 'test.parquet', repo_type='dataset'))",
        &hub.endpoint,
        cache.path(),
    );
    assert_eq!([Path::new(&path)], found.files[..]);
    assert!(!hub.requests().iter().any(|request| request.cdn));
}

#[test]
#[ignore = "needs Python with huggingface_hub in OLORA_PYTHON"]
fn this_crate_reads_the_data_that_python_has_downloaded() {
    let (hub, cache) = (dataset_hub(), tempdir().unwrap());
    let path = python(
        "from huggingface_hub import snapshot_download
print(snapshot_download('owner/name', repo_type='dataset'))",
        &hub.endpoint,
        cache.path(),
    );
    hub.requests();
    let mut options = hub.options(cache.path());
    options.offline = true;
    let found = dataset(&options);
    assert_eq!(found.files, [Path::new(&path).join("test.parquet")]);
    assert_eq!(found.notes.len(), 1, "{found:?}");
    options.offline = false;
    let found = dataset(&options);
    assert!(found.from_cache && found.notes.is_empty(), "{found:?}");
    assert_eq!(hub.requests().len(), 1);
}
