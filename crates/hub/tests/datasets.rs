//! Data sets: what is downloaded, what the cache is good for, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{fs, path::Path};

use common::{COMMIT, CONVERTED, Hub, NAME, Refusal, TOKEN, dead_endpoint, etag, quick, weights};
use olora_hub::{Dataset, DatasetName, HubError, HubOptions, resolve_dataset};
use tempfile::tempdir;

/// Two configurations, of which `zora` is the default.
const README: (&str, &[u8]) = (
    "README.md",
    b"---
configs:
- config_name: jorun
  data_files: jorun/*.jsonl
- config_name: zora
  default: true
  data_files:
  - split: train
    path: zora/train-*
  - split: test
    path: zora/test.parquet
---
# Tales of Oxmere
",
);
const FIRST: &str = "zora/train-00000-of-00002.parquet";
const SECOND: &str = "zora/train-00001-of-00002.parquet";

/// A data set with all sorts of files; its first shard is 100 kB.
fn oxmere() -> Hub {
    Hub::start_dataset(&[
        README,
        (FIRST, &weights()),
        (SECOND, b"second"),
        ("zora/test.parquet", b"test"),
        ("jorun/a b.jsonl", b"{}"),
        ("jorun/c.jsonl", b"{}"),
        ("LICENSE", b"not needed"),
    ])
}

fn quiet(spec: &str, options: &HubOptions) -> Result<Dataset, HubError> {
    match DatasetName::parse(spec)? {
        DatasetName::Hub(name) => resolve_dataset(&name, options, &mut |_| {}),
        local @ DatasetName::Local { .. } => panic!("{local:?}"),
    }
}

/// The error, after a look at what every error must keep to: no token in the
/// message, and no part of a file in a snapshot.
fn refused(spec: &str, options: &HubOptions) -> HubError {
    let error = quiet(spec, options).unwrap_err();
    for text in [error.to_string(), format!("{error:?}")] {
        assert!(!text.contains(TOKEN), "{text}");
    }
    let first = snapshot(&options.cache).join(FIRST);
    assert!(!first.exists() || fs::read(first).unwrap() == weights());
    error
}

#[track_caller]
fn says(error: &HubError, parts: &[&str]) {
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
}

fn repository(cache: &Path) -> std::path::PathBuf {
    cache.join("datasets--owner--name")
}

fn snapshot(cache: &Path) -> std::path::PathBuf {
    repository(cache).join("snapshots").join(COMMIT)
}

fn names(dataset: &Dataset, cache: &Path) -> Vec<String> {
    let root = repository(cache).join("snapshots").join(&dataset.commit);
    let relative = |path: &std::path::PathBuf| path.strip_prefix(&root).unwrap().to_owned();
    dataset
        .files
        .iter()
        .map(|path| relative(path).to_str().unwrap().to_owned())
        .collect()
}

fn blobs(cache: &Path) -> usize {
    fs::read_dir(repository(cache).join("blobs"))
        .unwrap()
        .count()
}

fn no_network(cache: &Path) -> HubOptions {
    quick(HubOptions::new(&dead_endpoint(), cache))
}

fn offline(cache: &Path) -> HubOptions {
    let mut options = no_network(cache);
    options.offline = true;
    options
}

#[test]
fn the_default_split_arrives_in_pythons_layout_and_nothing_else() {
    let (hub, cache) = (oxmere(), tempdir().unwrap());
    let found = quiet(NAME, &hub.options(cache.path())).unwrap();
    assert_eq!(names(&found, cache.path()), [FIRST, SECOND]);
    assert_eq!(fs::read(&found.files[0]).unwrap(), weights());
    assert_eq!(
        fs::read_link(&found.files[0]).unwrap(),
        Path::new("../../../blobs").join(etag(FIRST, &weights()))
    );
    assert_eq!((&*found.config, &*found.split), ("zora", "train"));
    assert_eq!((&*found.repository, &*found.commit), (NAME, COMMIT));
    assert_eq!((found.first, found.from_cache), (None, false));
    assert!(found.notes.is_empty(), "{found:?}");
    let reference = repository(cache.path()).join("refs/main");
    assert_eq!(fs::read_to_string(reference).unwrap(), COMMIT);
    // The two and README.md.
    assert_eq!(blobs(cache.path()), 3);
    assert!(cache.path().join(".locks/datasets--owner--name").is_dir());
}

#[test]
fn a_configuration_a_split_a_revision_and_a_number_are_heeded() {
    let (hub, cache) = (oxmere(), tempdir().unwrap());
    let options = hub.options(cache.path());
    let found = quiet("owner/name/jorun@v1#3", &options).unwrap();
    assert_eq!(
        names(&found, cache.path()),
        ["jorun/a b.jsonl", "jorun/c.jsonl"]
    );
    assert_eq!((&*found.config, found.first), ("jorun", Some(3)));
    assert!(repository(cache.path()).join("refs/v1").is_file());
    let found = quiet("owner/name:test[:5]", &options).unwrap();
    assert_eq!(names(&found, cache.path()), ["zora/test.parquet"]);
    assert_eq!((&*found.split, found.first), ("test", Some(5)));
}

#[test]
fn without_a_description_the_names_of_files_decide() {
    let hub = Hub::start_dataset(&[("train.csv", b"a"), ("test.csv", b"b")]);
    let cache = tempdir().unwrap();
    let found = quiet("owner/name:test", &hub.options(cache.path())).unwrap();
    assert_eq!(names(&found, cache.path()), ["test.csv"]);
    assert_eq!(found.config, "default");
}

#[test]
fn the_second_time_only_the_list_is_asked_for() {
    let (hub, cache) = (oxmere(), tempdir().unwrap());
    let options = hub.options(cache.path());
    let first = quiet(NAME, &options).unwrap();
    hub.requests();
    let second = quiet(NAME, &options).unwrap();
    assert!(second.from_cache);
    assert_eq!(second.files, first.files);
    let requests = hub.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert!(
        requests[0].target.starts_with("/api/datasets/"),
        "{requests:?}"
    );
    let found = quiet(&format!("{NAME}@{COMMIT}"), &options).unwrap();
    assert_eq!(found.files, first.files);
    assert!(hub.requests().is_empty());
}

#[test]
fn an_interrupted_download_goes_on_in_the_next_run() {
    let (hub, cache) = (oxmere(), tempdir().unwrap());
    hub.faults().wall = Some(30_000);
    let options = hub.options(cache.path());
    let error = refused(NAME, &options);
    assert!(matches!(error, HubError::Truncated { .. }), "{error}");
    says(&error, &[FIRST, "30000 of 100000 bytes", "is kept"]);
    // Half a split is none, with or without a network.
    let error = refused(NAME, &offline(cache.path()));
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
    hub.faults().wall = None;
    hub.requests();
    let found = quiet(NAME, &options).unwrap();
    assert_eq!(fs::read(&found.files[0]).unwrap(), weights());
    let sent = hub.requests().into_iter().find(|request| request.cdn);
    assert_eq!(sent.unwrap().headers["range"], "bytes=30000-");
}

#[test]
fn a_wrong_byte_is_found_and_nothing_is_kept_of_it() {
    let (hub, cache) = (oxmere(), tempdir().unwrap());
    hub.faults().flips = 1;
    let error = refused(NAME, &hub.options(cache.path()));
    assert!(matches!(error, HubError::Corrupt { .. }), "{error}");
    says(&error, &[FIRST, &etag(FIRST, &weights()), "removed"]);
    assert_eq!(blobs(cache.path()), 1);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk() {
    let (hub, cache) = (oxmere(), tempdir().unwrap());
    let blobs = repository(cache.path()).join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let part = blobs.join(format!("{}.olora.incomplete", etag(FIRST, &weights())));
    // Writing to this device fails as writing to a full disk does.
    std::os::unix::fs::symlink("/dev/full", part).unwrap();
    let error = refused(NAME, &hub.options(cache.path()));
    assert!(matches!(error, HubError::DiskFull { .. }), "{error}");
    says(&error, &[FIRST, "100000 bytes", "HF_HUB_CACHE"]);
}

#[test]
fn no_network_and_nothing_in_the_cache() {
    let cache = tempdir().unwrap();
    let error = refused("owner/name:test", &no_network(cache.path()));
    assert!(matches!(error, HubError::NoNetwork { .. }), "{error}");
    says(
        &error,
        &[
            "127.0.0.1",
            "`owner/name:test`",
            "a local file or directory",
        ],
    );
    let error = refused(NAME, &offline(cache.path()));
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
    says(
        &error,
        &[NAME, "HF_HUB_OFFLINE", "a local file or directory"],
    );
}

#[test]
fn what_is_in_the_cache_needs_no_network() {
    let (hub, cache) = (oxmere(), tempdir().unwrap());
    let online = quiet(NAME, &hub.options(cache.path())).unwrap();
    let found = quiet(NAME, &offline(cache.path())).unwrap();
    assert_eq!(found.files, online.files);
    assert!(found.from_cache && found.notes.is_empty(), "{found:?}");
    let found = quiet(NAME, &no_network(cache.path())).unwrap();
    assert_eq!(found.files, online.files);
    let [note] = &found.notes[..] else {
        panic!("{found:?}");
    };
    assert!(note.contains("may not be the newest"), "{note}");
}

#[test]
fn offline_a_split_is_there_whole_or_not_at_all() {
    let (hub, cache) = (oxmere(), tempdir().unwrap());
    quiet(NAME, &hub.options(cache.path())).unwrap();
    let error = refused("owner/name:test", &offline(cache.path()));
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
    let error = refused("owner/name:alder", &offline(cache.path()));
    says(&error, &["no split `alder`", "owner/name/zora:test"]);
    fs::remove_file(snapshot(cache.path()).join(SECOND)).unwrap();
    let error = refused(NAME, &offline(cache.path()));
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
}

#[test]
fn what_python_has_downloaded_is_used_and_said_unless_a_shard_is_missing() {
    let (hub, cache) = (oxmere(), tempdir().unwrap());
    let online = quiet(NAME, &hub.options(cache.path())).unwrap();
    fs::remove_dir_all(repository(cache.path()).join("olora")).unwrap();
    let found = quiet(NAME, &offline(cache.path())).unwrap();
    assert_eq!(found.files, online.files);
    let [note] = &found.notes[..] else {
        panic!("{found:?}");
    };
    assert!(note.contains("2 file(s) of split `train`"), "{note}");
    fs::remove_file(snapshot(cache.path()).join(SECOND)).unwrap();
    let error = refused(NAME, &offline(cache.path()));
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
}

#[test]
fn without_its_description_what_python_has_downloaded_is_not_guessed_at() {
    let (hub, cache) = (oxmere(), tempdir().unwrap());
    quiet(NAME, &hub.options(cache.path())).unwrap();
    fs::remove_dir_all(repository(cache.path()).join("olora")).unwrap();
    fs::remove_file(snapshot(cache.path()).join("README.md")).unwrap();
    let error = refused(NAME, &offline(cache.path()));
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
    let absent = repository(cache.path()).join(".no_exist").join(COMMIT);
    fs::create_dir_all(&absent).unwrap();
    fs::write(absent.join("README.md"), "").unwrap();
    quiet(NAME, &offline(cache.path())).unwrap();
}

#[test]
fn a_private_or_missing_set_without_a_token() {
    let (hub, cache) = (oxmere(), tempdir().unwrap());
    let error = refused("owner/other", &hub.options(cache.path()));
    assert!(matches!(error, HubError::NoRepository { .. }), "{error}");
    let page = format!("{}/datasets/owner/other", hub.endpoint);
    says(
        &error,
        &[
            "no data set `owner/other`",
            "private",
            &page,
            "no token was sent",
        ],
    );
}

#[test]
fn a_gated_set_names_its_page() {
    let (hub, cache) = (oxmere(), tempdir().unwrap());
    hub.faults().refusals = 1;
    hub.faults().refuse_files = Some(Refusal {
        status: 403,
        code: "GatedRepo",
        message: format!("{TOKEN} has no access"),
    });
    let error = refused(NAME, &hub.options_with_token(cache.path()));
    assert!(matches!(error, HubError::Gated { .. }), "{error}");
    let page = format!("{}/datasets/{NAME}", hub.endpoint);
    says(&error, &["accept its licence", &page, "HF_TOKEN"]);
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let (hub, cache) = (oxmere(), tempdir().unwrap());
    quiet(NAME, &hub.options_with_token(cache.path())).unwrap();
    let requests = hub.requests();
    assert!(requests.iter().any(|request| request.cdn));
    for request in requests {
        assert_eq!(
            request.headers.contains_key("authorization"),
            !request.cdn,
            "{request:?}"
        );
    }
}

#[test]
fn a_revision_that_does_not_exist() {
    let (hub, cache) = (oxmere(), tempdir().unwrap());
    let error = refused("owner/name@nope", &hub.options(cache.path()));
    assert!(matches!(error, HubError::NoRevision { .. }), "{error}");
    says(&error, &["`nope`"]);
}

#[test]
fn names_that_lead_out_of_the_cache_are_refused() {
    let (hub, cache) = (oxmere(), tempdir().unwrap());
    for bad in [
        "../../../x.csv",
        "/x.csv",
        "a/../x.csv",
        "a\\x.csv",
        "a\u{0}x.csv",
    ] {
        let answer = serde_json::json!({ "sha": COMMIT, "siblings": [{ "rfilename": bad }] });
        hub.faults().api_text = Some(answer.to_string());
        let error = refused(NAME, &hub.options(cache.path()));
        assert!(
            matches!(error, HubError::BadAnswer { .. } | HubError::NoData { .. }),
            "{bad}: {error}"
        );
        hub.requests();
    }
    assert!(!cache.path().join("x.csv").exists());
    assert!(!repository(cache.path()).exists());
}

#[test]
fn a_file_whose_name_cannot_be_written_harms_only_its_split() {
    let (hub, cache) = (oxmere(), tempdir().unwrap());
    let answer = serde_json::json!({ "sha": COMMIT, "siblings": [
        { "rfilename": "README.md" }, { "rfilename": "jorun/c.jsonl" },
        { "rfilename": "zora/train-12:00.jsonl" },
    ] });
    hub.faults().api_text = Some(answer.to_string());
    let options = hub.options(cache.path());
    quiet("owner/name/jorun", &options).unwrap();
    let error = refused(NAME, &options);
    says(&error, &["zora/train-12:00.jsonl"]);
}

#[test]
fn a_description_that_cannot_be_read() {
    let cache = tempdir().unwrap();
    let long = vec![b'\n'; (16 << 20) + 1];
    for (text, part) in [
        (&long[..], "more than 16777216 bytes"),
        (&b"---\nconfigs: [\n---\n"[..], "malformed"),
        (b"---\nconfigs: zora\n---\n", "not a list"),
        (b"---\n\xff\n---\n", "UTF-8"),
    ] {
        let hub = Hub::start_dataset(&[("README.md", text), ("a.csv", b"a")]);
        let error = refused(NAME, &hub.options(&cache.path().join(part)));
        assert!(matches!(error, HubError::BadCard { .. }), "{error}");
        says(&error, &[NAME, "README.md", part]);
    }
}

#[test]
fn a_set_of_a_program_comes_from_the_hubs_conversion() {
    let hub = Hub::start_converted(
        &[("name.py", b"print('Zora')"), ("raw.jsonl", b"{}")],
        &[
            ("default/train/0000.parquet", b"one"),
            ("default/partial-test/0000.parquet", b"two"),
        ],
    );
    let cache = tempdir().unwrap();
    let found = quiet(NAME, &hub.options(cache.path())).unwrap();
    assert_eq!(names(&found, cache.path()), ["default/train/0000.parquet"]);
    assert_eq!(found.commit, CONVERTED);
    let [note] = &found.notes[..] else {
        panic!("{found:?}");
    };
    assert!(
        note.contains("`name.py`") && note.contains("refs/convert/parquet"),
        "{note}"
    );
    // Or Python takes the reference to it for damage.
    assert!(snapshot(cache.path()).is_dir());
    let again = quiet(NAME, &offline(cache.path())).unwrap();
    assert_eq!((again.files, again.notes), (found.files, found.notes));
    let part = quiet("owner/name:test", &hub.options(cache.path())).unwrap();
    assert!(part.notes[1].contains("only the first part"), "{part:?}");
}

#[test]
fn the_conversion_can_be_asked_for() {
    let hub = Hub::start_converted(
        &[("a.csv", b"a")],
        &[("default/train/0000.parquet", b"one")],
    );
    let cache = tempdir().unwrap();
    let spec = "owner/name@refs/convert/parquet";
    let found = quiet(spec, &hub.options(cache.path())).unwrap();
    assert_eq!(names(&found, cache.path()), ["default/train/0000.parquet"]);
    assert!(found.notes.is_empty());
    assert_eq!(
        quiet(spec, &offline(cache.path())).unwrap().files,
        found.files
    );
}

#[test]
fn a_program_without_a_conversion_is_refused_or_its_files_are_used_and_said() {
    let cache = tempdir().unwrap();
    let hub = Hub::start_dataset(&[("name.py", b"")]);
    let error = refused(NAME, &hub.options(&cache.path().join("1")));
    assert!(matches!(error, HubError::Script { .. }), "{error}");
    says(&error, &["`name.py`", "refs/convert/parquet", "not run"]);
    let error = refused("owner/name@v1", &hub.options(&cache.path().join("2")));
    says(&error, &["`owner/name@refs/convert/parquet`"]);
    let hub = Hub::start_dataset(&[("name.py", b""), ("a.jsonl", b"{}")]);
    let found = quiet(NAME, &hub.options(&cache.path().join("3"))).unwrap();
    assert!(found.notes[0].contains("used as they are"), "{found:?}");
    let again = quiet(NAME, &offline(&cache.path().join("3"))).unwrap();
    assert_eq!(again.notes, found.notes);
}

#[test]
fn a_list_that_is_not_whole_is_not_used() {
    let (hub, cache) = (oxmere(), tempdir().unwrap());
    let siblings: Vec<_> = (0..50_000)
        .map(|i| serde_json::json!({ "rfilename": format!("{i}.csv") }))
        .collect();
    let answer = serde_json::json!({ "sha": COMMIT, "siblings": siblings });
    hub.faults().api_text = Some(answer.to_string());
    let error = refused(NAME, &hub.options(cache.path()));
    says(&error, &["50000 and more"]);
}

#[test]
fn a_cache_that_cannot_be_written() {
    let (hub, directory) = (oxmere(), tempdir().unwrap());
    let cache = directory.path().join("a file");
    fs::write(&cache, b"").unwrap();
    let error = refused(NAME, &hub.options(&cache));
    assert!(matches!(error, HubError::Io { .. }), "{error}");
    says(&error, &["cannot write", cache.to_str().unwrap()]);
}
