//! What is downloaded, how it gets into the cache, and what survives faults.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{fs, path::Path, thread, time::Duration};

use common::{COMMIT, Hub, NAME, TOKEN, dead_endpoint, etag, quick, weights};
use olora_hub::{HubError, HubOptions, Resolved, resolve};
use tempfile::tempdir;

const CONFIG: (&str, &[u8]) = ("config.json", b"{\"model_type\": \"llama\"}");
const TOKENIZER: (&str, &[u8]) = ("tokenizer.json", b"{\"version\": \"1.0\"}");
const SAFETENSORS: &str = "model.safetensors";

fn quiet(spec: &str, options: &HubOptions) -> Result<Resolved, HubError> {
    resolve(spec, options, &mut |_| {})
}

/// The names of all files under a directory, sorted.
fn tree(directory: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(directory).unwrap();
                names.push(name.to_str().unwrap().to_owned());
            }
        }
    }
    names.sort();
    names
}

fn blobs(cache: &Path) -> Vec<String> {
    tree(&cache.join("models--owner--name/blobs"))
}

#[test]
fn a_checkpoint_arrives_in_pythons_layout_without_the_files_that_it_does_not_need() {
    let weights = weights();
    let hub = Hub::start(&[
        CONFIG,
        TOKENIZER,
        (SAFETENSORS, &weights),
        ("pytorch_model.bin", b"not needed"),
        ("model.Q4.gguf", b"not needed"),
        ("README.md", b"not needed"),
    ]);
    let cache = tempdir().unwrap();
    let found = quiet(NAME, &hub.options(cache.path())).unwrap();
    let repository = cache.path().join("models--owner--name");
    assert_eq!(found.path, repository.join("snapshots").join(COMMIT));
    assert_eq!(found.commit.as_deref(), Some(COMMIT));
    assert!(!found.from_cache);
    assert_eq!(found.note, None);
    assert_eq!(
        tree(&found.path),
        ["config.json", "model.safetensors", "tokenizer.json"]
    );
    assert_eq!(fs::read(found.path.join(SAFETENSORS)).unwrap(), weights);
    assert_eq!(
        fs::read_link(found.path.join(SAFETENSORS)).unwrap(),
        Path::new("../../blobs").join(etag(SAFETENSORS, &weights))
    );
    assert_eq!(
        fs::read_to_string(repository.join("refs/main")).unwrap(),
        COMMIT
    );
    assert_eq!(blobs(cache.path()).len(), 3);
}

#[test]
fn the_second_time_nothing_is_downloaded() {
    let hub = Hub::start(&[CONFIG, TOKENIZER, (SAFETENSORS, b"w")]);
    let cache = tempdir().unwrap();
    let options = hub.options(cache.path());
    let first = quiet(NAME, &options).unwrap();
    hub.requests();
    let second = quiet(NAME, &options).unwrap();
    assert!(second.from_cache);
    assert_eq!(second.path, first.path);
    let requests = hub.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert!(requests[0].target.starts_with("/api/"), "{requests:?}");
}

#[test]
fn a_commit_in_the_cache_needs_no_request_at_all() {
    let hub = Hub::start(&[CONFIG, TOKENIZER, (SAFETENSORS, b"w")]);
    let cache = tempdir().unwrap();
    let options = hub.options(cache.path());
    quiet(NAME, &options).unwrap();
    hub.requests();
    let found = quiet(&format!("{NAME}@{COMMIT}"), &options).unwrap();
    assert!(found.from_cache);
    assert!(hub.requests().is_empty());
}

#[test]
fn a_revision_with_slashes_is_asked_for_and_remembered() {
    let hub = Hub::start(&[CONFIG, TOKENIZER, (SAFETENSORS, b"w")]);
    let cache = tempdir().unwrap();
    quiet("owner/name@refs/pr/1", &hub.options(cache.path())).unwrap();
    let reference = cache.path().join("models--owner--name/refs/refs/pr/1");
    assert_eq!(fs::read_to_string(reference).unwrap(), COMMIT);
}

#[test]
fn shards_come_with_their_index() {
    let index = br#"{"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}"#;
    let hub = Hub::start(&[
        CONFIG,
        ("pytorch_model.bin.index.json", index),
        ("pytorch_model-1.bin", b"one"),
        ("pytorch_model-2.bin", b"two"),
        ("training_args.bin", b"not needed"),
    ]);
    let cache = tempdir().unwrap();
    let found = quiet(NAME, &hub.options(cache.path())).unwrap();
    assert_eq!(
        tree(&found.path),
        [
            "config.json",
            "pytorch_model-1.bin",
            "pytorch_model-2.bin",
            "pytorch_model.bin.index.json"
        ]
    );
}

#[test]
fn one_gguf_file_comes_alone() {
    let hub = Hub::start(&[
        CONFIG,
        ("Q4/my model.gguf", b"GGUF"),
        ("b.gguf", b"not needed"),
    ]);
    let cache = tempdir().unwrap();
    let spec = "owner/name@v1:Q4/my model.gguf";
    let options = hub.options(cache.path());
    let found = quiet(spec, &options).unwrap();
    assert!(found.path.ends_with("Q4/my model.gguf"), "{found:?}");
    assert_eq!(fs::read(&found.path).unwrap(), b"GGUF");
    assert_eq!(blobs(cache.path()).len(), 1);
    assert!(quiet(spec, &options).unwrap().from_cache);
}

#[test]
fn one_part_of_a_split_gguf_model_brings_the_others() {
    let hub = Hub::start(&[
        CONFIG,
        ("m-00001-of-00002.gguf", b"GGUF, and metadata"),
        ("m-00002-of-00002.gguf", b"GGUF"),
        ("b.gguf", b"not needed"),
    ]);
    let cache = tempdir().unwrap();
    let spec = "owner/name@v1:m-00002-of-00002.gguf";
    let found = quiet(spec, &hub.options(cache.path())).unwrap();
    assert!(found.path.ends_with("m-00002-of-00002.gguf"), "{found:?}");
    assert!(found.path.with_file_name("m-00001-of-00002.gguf").exists());
    assert_eq!(blobs(cache.path()).len(), 2);
}

#[test]
fn a_local_path_is_used_as_it_is() {
    let directory = tempdir().unwrap();
    let options = quick(HubOptions::new(&dead_endpoint(), directory.path()));
    let found = quiet(directory.path().to_str().unwrap(), &options).unwrap();
    assert_eq!(found.path, directory.path());
    assert_eq!((found.commit, found.from_cache), (None, false));
}

#[test]
fn progress_starts_at_nothing_and_ends_with_the_whole_file() {
    let weights = weights();
    let hub = Hub::start(&[CONFIG, (SAFETENSORS, &weights)]);
    let cache = tempdir().unwrap();
    let mut seen = Vec::new();
    resolve(NAME, &hub.options(cache.path()), &mut |progress| {
        if progress.file == SAFETENSORS {
            seen.push((progress.done, progress.total));
        }
    })
    .unwrap();
    let all = weights.len() as u64;
    assert_eq!(seen.first(), Some(&(0, Some(all))));
    assert_eq!(seen.last(), Some(&(all, Some(all))));
    assert!(seen.is_sorted());
}

#[test]
fn a_connection_that_is_cut_once_goes_on_where_it_stopped() {
    let weights = weights();
    let hub = Hub::start(&[CONFIG, (SAFETENSORS, &weights)]);
    hub.faults().cuts = 1;
    let cache = tempdir().unwrap();
    let found = quiet(NAME, &hub.options(cache.path())).unwrap();
    assert_eq!(fs::read(found.path.join(SAFETENSORS)).unwrap(), weights);
    let ranges: Vec<_> = hub
        .requests()
        .into_iter()
        .filter(|request| request.cdn)
        .map(|request| request.headers.get("range").cloned())
        .collect();
    assert_eq!(ranges, [None, Some("bytes=50000-".to_owned())]);
}

#[test]
fn an_interrupted_download_goes_on_in_the_next_run() {
    let weights = weights();
    let hub = Hub::start(&[CONFIG, (SAFETENSORS, &weights)]);
    hub.faults().wall = Some(30_000);
    let cache = tempdir().unwrap();
    let options = hub.options(cache.path());
    quiet(NAME, &options).unwrap_err();
    hub.faults().wall = None;
    hub.requests();
    let found = quiet(NAME, &options).unwrap();
    assert_eq!(fs::read(found.path.join(SAFETENSORS)).unwrap(), weights);
    let sent = hub.requests().into_iter().find(|request| request.cdn);
    assert_eq!(sent.unwrap().headers["range"], "bytes=30000-");
    assert!(
        !blobs(cache.path())
            .iter()
            .any(|name| name.contains("incomplete"))
    );
}

#[test]
fn a_server_without_ranges_sends_all_of_it_again() {
    let weights = weights();
    let hub = Hub::start(&[CONFIG, (SAFETENSORS, &weights)]);
    hub.faults().cuts = 1;
    hub.faults().no_ranges = true;
    let cache = tempdir().unwrap();
    let found = quiet(NAME, &hub.options(cache.path())).unwrap();
    assert_eq!(fs::read(found.path.join(SAFETENSORS)).unwrap(), weights);
}

#[test]
fn a_silent_server_is_asked_again() {
    let hub = Hub::start(&[CONFIG, (SAFETENSORS, b"w")]);
    hub.faults().silences = 1;
    let cache = tempdir().unwrap();
    let mut options = hub.options(cache.path());
    options.timeout = Duration::from_millis(200);
    quiet(NAME, &options).unwrap();
    let asked = hub.requests().iter().filter(|request| request.cdn).count();
    assert_eq!(asked, 2);
}

#[test]
fn a_damaged_rest_of_an_earlier_run_is_replaced() {
    let weights = weights();
    let hub = Hub::start(&[CONFIG, (SAFETENSORS, &weights)]);
    let cache = tempdir().unwrap();
    let directory = cache.path().join("models--owner--name/blobs");
    fs::create_dir_all(&directory).unwrap();
    let name = format!("{}.olora.incomplete", etag(SAFETENSORS, &weights));
    fs::write(directory.join(name), b"not the beginning").unwrap();
    let found = quiet(NAME, &hub.options(cache.path())).unwrap();
    assert_eq!(fs::read(found.path.join(SAFETENSORS)).unwrap(), weights);
}

#[test]
fn a_link_to_nothing_is_replaced() {
    let hub = Hub::start(&[CONFIG, (SAFETENSORS, b"w")]);
    let cache = tempdir().unwrap();
    let options = hub.options(cache.path());
    let found = quiet(NAME, &options).unwrap();
    let blob = etag(SAFETENSORS, b"w");
    fs::remove_file(cache.path().join("models--owner--name/blobs").join(blob)).unwrap();
    let again = quiet(NAME, &options).unwrap();
    assert!(!again.from_cache);
    assert_eq!(fs::read(found.path.join(SAFETENSORS)).unwrap(), b"w");
}

#[test]
fn two_at_once_download_once_and_both_have_it() {
    let weights = weights();
    let hub = Hub::start(&[CONFIG, (SAFETENSORS, &weights)]);
    hub.faults().delay = Duration::from_millis(300);
    let cache = tempdir().unwrap();
    let options = hub.options(cache.path());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let found = quiet(NAME, &options).unwrap();
                assert_eq!(fs::read(found.path.join(SAFETENSORS)).unwrap(), weights);
            });
        }
    });
    let sent = hub.requests().iter().filter(|request| request.cdn).count();
    assert_eq!(sent, 1);
    assert_eq!(blobs(cache.path()).len(), 2);
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let hub = Hub::start(&[CONFIG, (SAFETENSORS, b"w")]);
    let cache = tempdir().unwrap();
    quiet(NAME, &hub.options_with_token(cache.path())).unwrap();
    let requests = hub.requests();
    let (cdn, home): (Vec<_>, Vec<_>) = requests.iter().partition(|request| request.cdn);
    assert_eq!(cdn.len(), 1);
    assert!(home.len() > 4);
    for request in home {
        assert_eq!(request.headers["authorization"], format!("Bearer {TOKEN}"));
    }
    assert!(!format!("{cdn:?}").contains(TOKEN), "{cdn:?}");
}

#[test]
fn offline_the_cache_is_used_without_a_request() {
    let hub = Hub::start(&[CONFIG, TOKENIZER, (SAFETENSORS, b"w")]);
    let cache = tempdir().unwrap();
    let mut options = hub.options(cache.path());
    let online = quiet(NAME, &options).unwrap();
    hub.requests();
    options.offline = true;
    let found = quiet(NAME, &options).unwrap();
    assert_eq!(found.path, online.path);
    assert_eq!((found.from_cache, found.note), (true, None));
    assert!(hub.requests().is_empty());
}

#[test]
fn without_a_network_the_cache_is_used_and_said_so() {
    let hub = Hub::start(&[CONFIG, TOKENIZER, (SAFETENSORS, b"w")]);
    let cache = tempdir().unwrap();
    let online = quiet(NAME, &hub.options(cache.path())).unwrap();
    let found = quiet(
        NAME,
        &quick(HubOptions::new(&dead_endpoint(), cache.path())),
    )
    .unwrap();
    assert_eq!(found.path, online.path);
    let note = found.note.unwrap();
    assert!(note.contains("127.0.0.1 cannot be reached"), "{note}");
    assert!(note.contains(COMMIT), "{note}");
}

#[test]
fn a_cached_copy_without_a_tokenizer_is_used_offline_with_a_note() {
    let hub = Hub::start(&[CONFIG, (SAFETENSORS, b"w")]);
    let cache = tempdir().unwrap();
    let mut options = hub.options(cache.path());
    quiet(NAME, &options).unwrap();
    options.offline = true;
    let note = quiet(NAME, &options).unwrap().note.unwrap();
    assert!(note.contains("no tokenizer"), "{note}");
}
