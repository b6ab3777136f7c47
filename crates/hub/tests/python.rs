//! Python's `huggingface_hub` and this crate read each other's caches.
//!
//! Needs a Python with `huggingface_hub`, so it runs on request only:
//! `OLORA_PYTHON=path/to/python cargo test -p olora-hub --test python -- --ignored`
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{env, fs, path::Path, process::Command};

use common::{Hub, NAME, weights};
use olora_hub::resolve;
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
