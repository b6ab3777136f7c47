//! Every way in which a model cannot be had, and what is said about it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{fs, path::Path};

use common::{Hub, NAME, Refusal, TOKEN, dead_endpoint, etag, quick, weights};
use olora_hub::{HubError, HubOptions, Token, resolve};
use tempfile::{TempDir, tempdir};

const CONFIG: (&str, &[u8]) = ("config.json", b"{}");
const SAFETENSORS: &str = "model.safetensors";

/// The error, after a look at what every error must keep to: no token in the
/// message, and no weights in a snapshot.
fn refused(spec: &str, options: &HubOptions) -> HubError {
    let error = resolve(spec, options, &mut |_| {}).unwrap_err();
    for text in [error.to_string(), format!("{error:?}")] {
        assert!(!text.contains(TOKEN), "{text}");
    }
    let snapshots = options.cache.join("models--owner--name/snapshots");
    for snapshot in fs::read_dir(snapshots).into_iter().flatten() {
        assert!(!snapshot.unwrap().path().join(SAFETENSORS).exists());
    }
    error
}

#[track_caller]
fn says(error: &HubError, parts: &[&str]) {
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
}

fn usual() -> (Hub, TempDir) {
    (
        Hub::start(&[CONFIG, (SAFETENSORS, &weights())]),
        tempdir().unwrap(),
    )
}

fn refusal(status: u16, code: &'static str, message: &str) -> Refusal {
    Refusal {
        status,
        code,
        message: message.to_owned(),
    }
}

fn part(cache: &Path) -> std::path::PathBuf {
    let name = format!("{}.olora.incomplete", etag(SAFETENSORS, &weights()));
    cache.join("models--owner--name/blobs").join(name)
}

#[test]
fn no_network_and_no_cached_copy() {
    let cache = tempdir().unwrap();
    let error = refused(
        NAME,
        &quick(HubOptions::new(&dead_endpoint(), cache.path())),
    );
    assert!(matches!(error, HubError::NoNetwork { .. }), "{error}");
    says(
        &error,
        &[
            "cannot reach 127.0.0.1",
            NAME,
            "local directory",
            "HF_HUB_OFFLINE=1",
        ],
    );
}

#[test]
fn a_path_that_does_not_exist_goes_nowhere() {
    let (hub, cache) = usual();
    let error = refused("./owner/name", &hub.options(cache.path()));
    assert!(matches!(error, HubError::NoSuchPath { .. }), "{error}");
    assert!(hub.requests().is_empty());
}

#[test]
fn offline_and_not_in_the_cache() {
    let (hub, cache) = usual();
    let mut options = hub.options(cache.path());
    options.offline = true;
    let error = refused(NAME, &options);
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
    says(
        &error,
        &[NAME, cache.path().to_str().unwrap(), "HF_HUB_OFFLINE"],
    );
    assert!(hub.requests().is_empty());
}

#[test]
fn a_gated_repository_whose_files_are_refused() {
    let (hub, cache) = usual();
    hub.faults().refusals = 1;
    hub.faults().refuse_files = Some(refusal(403, "GatedRepo", "Access to model is restricted"));
    let error = refused(NAME, &hub.options_with_token(cache.path()));
    assert!(matches!(error, HubError::Gated { .. }), "{error}");
    let page = format!("{}/{NAME}", hub.endpoint);
    says(
        &error,
        &[
            "HTTP 403",
            "accept its licence",
            &page,
            "HF_TOKEN",
            "the token that was sent",
        ],
    );
}

#[test]
fn a_gated_repository_without_a_token() {
    let (hub, cache) = usual();
    hub.faults().refusals = 1;
    hub.faults().refuse_files = Some(refusal(401, "GatedRepo", "Access to model is restricted"));
    let error = refused(NAME, &hub.options(cache.path()));
    assert!(matches!(error, HubError::Gated { .. }), "{error}");
    says(&error, &["HTTP 401", "no token was sent"]);
}

#[test]
fn a_server_that_repeats_the_token() {
    let (hub, cache) = usual();
    hub.faults().refusals = 1;
    hub.faults().refuse_api = Some(refusal(403, "", &format!("{TOKEN} may not read this")));
    let error = refused(NAME, &hub.options_with_token(cache.path()));
    says(&error, &["may not read this"]);
}

#[test]
fn a_token_that_the_hub_does_not_accept() {
    let (hub, cache) = usual();
    hub.faults().refusals = 1;
    hub.faults().refuse_api = Some(refusal(
        401,
        "",
        "Invalid credentials in Authorization header",
    ));
    let error = refused(NAME, &hub.options_with_token(cache.path()));
    assert!(matches!(error, HubError::TokenRefused { .. }), "{error}");
}

#[test]
fn a_token_that_cannot_be_sent() {
    let (hub, cache) = usual();
    let mut options = hub.options(cache.path());
    options.token = Token::new(&format!("{TOKEN}\n{TOKEN}"));
    let error = refused(NAME, &options);
    assert!(matches!(error, HubError::BadToken), "{error}");
}

#[test]
fn a_repository_that_does_not_exist_or_is_private() {
    let (hub, cache) = usual();
    let error = refused("owner/other", &hub.options(cache.path()));
    assert!(matches!(error, HubError::NoRepository { .. }), "{error}");
    says(
        &error,
        &[
            "owner/other",
            "private",
            "no local path",
            "spelling",
            "HF_TOKEN",
        ],
    );
}

#[test]
fn a_revision_that_does_not_exist() {
    let (hub, cache) = usual();
    let error = refused("owner/name@nope", &hub.options(cache.path()));
    assert!(matches!(error, HubError::NoRevision { .. }), "{error}");
    says(&error, &["`nope`", "/owner/name/refs"]);
}

#[test]
fn a_gguf_file_that_does_not_exist() {
    let hub = Hub::start(&[("a.gguf", b"GGUF"), ("sub/b.GGUF", b"GGUF")]);
    let cache = tempdir().unwrap();
    let error = refused("owner/name@v1:c.gguf", &hub.options(cache.path()));
    assert!(matches!(error, HubError::NoFile { .. }), "{error}");
    says(
        &error,
        &[
            "`c.gguf`",
            "\n  owner/name@v1:a.gguf",
            "\n  owner/name@v1:sub/b.GGUF",
        ],
    );
}

#[test]
fn a_repository_with_gguf_files_only() {
    let hub = Hub::start(&[("a.gguf", b"GGUF"), ("README.md", b"")]);
    let cache = tempdir().unwrap();
    let error = refused(NAME, &hub.options(cache.path()));
    assert!(matches!(error, HubError::NoWeights { .. }), "{error}");
    says(&error, &["model.safetensors", "\n  owner/name:a.gguf"]);
}

#[test]
fn a_repository_with_no_weights_at_all() {
    let hub = Hub::start(&[CONFIG]);
    let cache = tempdir().unwrap();
    let error = refused(NAME, &hub.options(cache.path()));
    assert!(matches!(error, HubError::NoWeights { .. }), "{error}");
    says(&error, &["no .gguf files either"]);
}

#[test]
fn a_repository_without_a_configuration() {
    let hub = Hub::start(&[(SAFETENSORS, b"w")]);
    let cache = tempdir().unwrap();
    let error = refused(NAME, &hub.options(cache.path()));
    assert!(matches!(error, HubError::NoFile { .. }), "{error}");
    says(&error, &["`config.json`"]);
}

#[test]
fn an_index_that_names_a_file_that_is_not_there() {
    let index = br#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#;
    let hub = Hub::start(&[
        CONFIG,
        ("model.safetensors.index.json", index),
        ("1.safetensors", b"one"),
    ]);
    let cache = tempdir().unwrap();
    let error = refused(NAME, &hub.options(cache.path()));
    assert!(matches!(error, HubError::NoFile { .. }), "{error}");
    says(&error, &["`2.safetensors`"]);
    assert!(!hub.requests().iter().any(|request| request.cdn));
}

#[test]
fn a_download_that_is_cut_off_every_time_keeps_what_came() {
    let (hub, cache) = usual();
    hub.faults().wall = Some(60_000);
    let error = refused(NAME, &hub.options(cache.path()));
    assert!(matches!(error, HubError::Truncated { .. }), "{error}");
    says(&error, &[SAFETENSORS, "60000 of 100000 bytes", "is kept"]);
    assert_eq!(fs::metadata(part(cache.path())).unwrap().len(), 60_000);
}

#[test]
fn fewer_bytes_than_announced_are_not_taken_for_the_file() {
    let (hub, cache) = usual();
    hub.faults().surplus = -1;
    let error = refused(NAME, &hub.options(cache.path()));
    assert!(matches!(error, HubError::Truncated { .. }), "{error}");
    says(&error, &["99999 of 100000 bytes"]);
}

#[test]
fn a_wrong_byte_is_found_and_the_part_removed() {
    let (hub, cache) = usual();
    hub.faults().flips = 1;
    let options = hub.options(cache.path());
    let error = refused(NAME, &options);
    assert!(matches!(error, HubError::Corrupt { .. }), "{error}");
    says(
        &error,
        &[SAFETENSORS, &etag(SAFETENSORS, &weights()), "removed"],
    );
    assert!(!part(cache.path()).exists());
    let found = resolve(NAME, &options, &mut |_| {}).unwrap();
    assert_eq!(fs::read(found.path.join(SAFETENSORS)).unwrap(), weights());
}

#[test]
fn more_bytes_than_announced_are_not_taken() {
    let (hub, cache) = usual();
    hub.faults().surplus = 1;
    let error = refused(NAME, &hub.options(cache.path()));
    assert!(matches!(error, HubError::TooLong { .. }), "{error}");
    says(&error, &["100000 bytes", "removed"]);
    assert!(!part(cache.path()).exists());
}

#[test]
fn a_hub_with_a_fault_is_asked_again_but_not_for_ever() {
    let (hub, cache) = usual();
    let options = hub.options(cache.path());
    hub.faults().refuse_api = Some(refusal(503, "", ""));
    hub.faults().refusals = usize::MAX;
    let error = refused(NAME, &options);
    assert!(matches!(error, HubError::Server { .. }), "{error}");
    says(&error, &["HTTP 503", "fault of its own"]);
    hub.faults().refusals = 2;
    resolve(NAME, &options, &mut |_| {}).unwrap();
}

#[test]
fn a_hub_that_limits_requests_says_so() {
    let (hub, cache) = usual();
    hub.faults().refuse_files = Some(refusal(429, "", ""));
    hub.faults().refusals = usize::MAX;
    let error = refused(NAME, &hub.options(cache.path()));
    says(&error, &["HTTP 429", "limits how often", "HF_TOKEN"]);
}

#[test]
fn a_server_that_is_no_hub() {
    let (hub, cache) = usual();
    for (text, what) in [
        ("<html>Sign in to the hotel's network</html>", "malformed"),
        (
            r#"{"sha": "../../../etc", "siblings": []}"#,
            "names no commit",
        ),
    ] {
        hub.faults().api_text = Some(text.to_owned());
        let error = refused(NAME, &hub.options(cache.path()));
        assert!(matches!(error, HubError::BadAnswer { .. }), "{error}");
        says(&error, &[what, "HF_ENDPOINT"]);
    }
}

#[test]
fn a_file_of_unknown_length_is_not_taken_for_whole() {
    let (hub, cache) = usual();
    hub.faults().no_lengths = true;
    let error = refused(NAME, &hub.options(cache.path()));
    assert!(matches!(error, HubError::BadAnswer { .. }), "{error}");
    says(&error, &["how long `config.json` is"]);
}

#[test]
fn a_server_that_speaks_no_tls() {
    let (hub, cache) = usual();
    let endpoint = hub.endpoint.replace("http:", "https:");
    let error = refused(NAME, &quick(HubOptions::new(&endpoint, cache.path())));
    assert!(matches!(error, HubError::NoNetwork { .. }), "{error}");
}

#[test]
fn a_file_of_certificates_that_holds_none() {
    let (hub, cache) = usual();
    let mut options = hub.options(cache.path());
    options.certificates = Some(cache.path().join("ca.pem"));
    let error = refused(NAME, &options);
    assert!(matches!(error, HubError::Io { .. }), "{error}");
    fs::write(cache.path().join("ca.pem"), b"not a certificate").unwrap();
    let error = refused(NAME, &options);
    assert!(matches!(error, HubError::NoCertificates(_)), "{error}");
    says(&error, &["ca.pem", "SSL_CERT_FILE"]);
}

#[test]
fn an_endpoint_that_is_no_address() {
    let cache = tempdir().unwrap();
    for endpoint in [
        "huggingface.co",
        "ftp://huggingface.co",
        "https://",
        "two words",
    ] {
        let error = refused(NAME, &HubOptions::new(endpoint, cache.path()));
        assert!(matches!(error, HubError::BadEndpoint(_)), "{error}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk() {
    let (hub, cache) = usual();
    let part = part(cache.path());
    fs::create_dir_all(part.parent().unwrap()).unwrap();
    // Writing to this device fails as writing to a full disk does.
    std::os::unix::fs::symlink("/dev/full", &part).unwrap();
    let error = refused(NAME, &hub.options(cache.path()));
    assert!(matches!(error, HubError::DiskFull { .. }), "{error}");
    says(&error, &[SAFETENSORS, "100000 bytes", "HF_HUB_CACHE"]);
}

#[test]
fn a_cache_that_cannot_be_written() {
    let (hub, directory) = usual();
    let cache = directory.path().join("a file");
    fs::write(&cache, b"").unwrap();
    let error = refused(NAME, &hub.options(&cache));
    assert!(matches!(error, HubError::Io { .. }), "{error}");
    says(&error, &["cannot write", cache.to_str().unwrap()]);
}
