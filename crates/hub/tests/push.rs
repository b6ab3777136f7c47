//! What is sent to a hub, what is not, and what survives faults.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod upload_hub;

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use olora_hub::{HubOptions, PushError, PushEvent, PushTarget, Pushed, Token, local_files, push};
use tempfile::{TempDir, tempdir};
use upload_hub::{CHUNK, Cut, Hub, NAME, TOKEN};

fn target() -> PushTarget {
    PushTarget {
        repository: NAME.to_owned(),
        branch: "main".to_owned(),
        message: "A model".to_owned(),
        public: false,
    }
}

/// Bytes that are no repetition of anything.
fn weights(size: usize, seed: u32) -> Vec<u8> {
    (0..size as u32)
        .map(|i| (i.wrapping_mul(i + seed) / 251) as u8)
        .collect()
}

/// A model: a small file, a large one, and one that goes in parts.
fn model() -> TempDir {
    let directory = tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("config.json"), "{}").unwrap();
    fs::write(at("empty.bin"), "").unwrap();
    fs::create_dir(at("sub")).unwrap();
    fs::write(at("sub/small.bin"), weights(1000, 3)).unwrap();
    fs::write(at("model.bin"), weights(CHUNK * 3 + 17, 5)).unwrap();
    fs::write(at(".env"), "SECRET=1").unwrap();
    directory
}

fn options(hub: &Hub, state: &TempDir) -> HubOptions {
    let mut options = HubOptions::new(&hub.endpoint, Path::new("unused"));
    options.token = Token::new(TOKEN);
    options.retry_wait = Duration::from_millis(1);
    options.timeout = Duration::from_secs(5);
    options.attempts = 2;
    options.uploads = Some(state.path().join("uploads"));
    options
}

fn pushed(from: &TempDir, hub: &Hub, state: &TempDir) -> Result<(Pushed, Vec<String>), PushError> {
    let files = local_files(from.path()).unwrap().files;
    let mut events = Vec::new();
    let result = push(
        &files,
        &target(),
        &options(hub, state),
        &mut |event| match event {
            PushEvent::Sending(_) => {}
            other => events.push(format!("{other:?}")),
        },
    );
    result.map(|pushed| (pushed, events))
}

#[test]
fn a_new_repository_gets_all_that_is_listed_and_nothing_else() {
    let (hub, from, state) = (Hub::start(), model(), tempdir().unwrap());
    let (result, events) = pushed(&from, &hub, &state).unwrap();
    assert_eq!(events, ["Created { public: false }"]);
    let names = ["config.json", "empty.bin", "model.bin", "sub/small.bin"];
    assert_eq!(result.files, names);
    assert!(result.url.unwrap().contains("/commit/"));
    let repository = hub.files();
    assert_eq!(repository.keys().collect::<Vec<_>>(), names);
    for (name, bytes) in repository {
        assert!(
            bytes == fs::read(from.path().join(&name)).unwrap(),
            "{name}"
        );
    }
    assert_eq!(hub.visibility().as_deref(), Some("private"));
    // The token goes to the hub alone.
    let requests = hub.requests();
    assert!(requests.iter().any(|request| request.storage));
    for request in requests {
        assert_eq!(request.authorized, !request.storage, "{}", request.line);
    }
    assert_eq!(
        fs::read_dir(state.path().join("uploads")).unwrap().count(),
        0
    );
}

#[test]
fn what_the_repository_has_is_not_sent_again() {
    let (hub, from, state) = (Hub::start(), model(), tempdir().unwrap());
    pushed(&from, &hub, &state).unwrap();
    hub.requests();
    let (result, events) = pushed(&from, &hub, &state).unwrap();
    assert_eq!(result, Pushed::default());
    assert_eq!(events.len(), 4, "{events:?}");
    let requests = hub.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert!(requests[0].line.contains("/preupload/main"));

    fs::write(from.path().join("config.json"), "{\"a\": 1}").unwrap();
    let (result, _) = pushed(&from, &hub, &state).unwrap();
    assert_eq!(result.files, ["config.json"]);
    assert!(hub.requests().iter().all(|request| !request.storage));
    assert_eq!(hub.files()["config.json"], b"{\"a\": 1}");

    // Under another name, a large file is there already, too.
    fs::rename(from.path().join("model.bin"), from.path().join("other.bin")).unwrap();
    let (result, events) = pushed(&from, &hub, &state).unwrap();
    assert_eq!(result.files, ["other.bin"]);
    assert!(
        events.contains(&"There(\"other.bin\")".to_owned()),
        "{events:?}"
    );
    assert!(hub.requests().iter().all(|request| !request.storage));
}

#[test]
fn an_upload_that_was_cut_off_goes_on_with_the_parts_that_are_missing() {
    let (hub, from, state) = (Hub::start(), model(), tempdir().unwrap());
    hub.faults().cut_after_parts = Some(2);
    let error = pushed(&from, &hub, &state).unwrap_err();
    assert!(matches!(error, PushError::Network { .. }), "{error}");
    assert!(error.to_string().contains("push again"), "{error}");
    assert!(hub.files().is_empty());
    let taken = hub.parts_taken();
    assert_eq!(taken, 2);

    hub.faults().cut_after_parts = None;
    hub.requests();
    pushed(&from, &hub, &state).unwrap();
    let parts = hub.requests();
    let parts = parts
        .iter()
        .filter(|request| request.line.contains("/part/"));
    assert_eq!(parts.count(), 2, "of four, two were there");
    assert!(hub.files()["model.bin"] == fs::read(from.path().join("model.bin")).unwrap());
}

#[test]
fn addresses_that_have_expired_are_asked_for_anew() {
    let (hub, from, state) = (Hub::start(), model(), tempdir().unwrap());
    hub.faults().cut_after_parts = Some(1);
    pushed(&from, &hub, &state).unwrap_err();
    hub.faults().cut_after_parts = None;
    hub.expire();
    pushed(&from, &hub, &state).unwrap();
    assert!(hub.files()["model.bin"] == fs::read(from.path().join("model.bin")).unwrap());
}

#[test]
fn what_is_remembered_is_forgotten_after_a_day() {
    let (hub, from, state) = (Hub::start(), model(), tempdir().unwrap());
    hub.faults().cut_after_parts = Some(1);
    pushed(&from, &hub, &state).unwrap_err();
    hub.faults().cut_after_parts = None;
    let uploads = state.path().join("uploads");
    let kept = fs::read_dir(&uploads)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let other = uploads.join("other.json");
    fs::copy(&kept, &other).unwrap();
    for path in [&kept, &other] {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_hours(25))
            .unwrap();
    }
    hub.requests();
    pushed(&from, &hub, &state).unwrap();
    assert!(!kept.exists() && !other.exists());
    let parts = hub.requests();
    let parts = parts
        .iter()
        .filter(|request| request.line.contains("/part/"));
    assert_eq!(parts.count(), 4, "all of them anew");
}

#[test]
fn what_is_remembered_of_a_changed_file_is_of_no_use_and_does_no_harm() {
    let (hub, from, state) = (Hub::start(), model(), tempdir().unwrap());
    hub.faults().cut_after_parts = Some(1);
    pushed(&from, &hub, &state).unwrap_err();
    hub.faults().cut_after_parts = None;
    let other = weights(CHUNK * 2 + 1, 9);
    fs::write(from.path().join("model.bin"), &other).unwrap();
    pushed(&from, &hub, &state).unwrap();
    assert!(hub.files()["model.bin"] == other);
    // A damaged memory is none.
    let uploads = state.path().join("uploads");
    for entry in fs::read_dir(&uploads).unwrap() {
        fs::write(entry.unwrap().path(), "{").unwrap();
    }
    fs::write(from.path().join("model.bin"), weights(CHUNK * 3 + 17, 5)).unwrap();
    pushed(&from, &hub, &state).unwrap();
}

#[test]
fn faults_that_pass_are_outlived() {
    let (hub, from, state) = (Hub::start(), model(), tempdir().unwrap());
    hub.faults().busy = 1;
    hub.faults().storage_busy = 1;
    pushed(&from, &hub, &state).unwrap();
    assert_eq!(hub.files().len(), 4);
}

#[test]
fn refusals_say_what_to_do_and_never_hold_the_token() {
    let (hub, from, state) = (Hub::start(), model(), tempdir().unwrap());
    for (status, expected) in [
        (401, "expired or revoked"),
        (403, "may not write"),
        (404, "no such repository or branch"),
        (307, "another name"),
    ] {
        hub.faults().refuse = Some((status, format!("no, not with {TOKEN}")));
        let error = pushed(&from, &hub, &state).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains(TOKEN), "{error}");
    }
    assert!(hub.files().is_empty());
    let files = local_files(from.path()).unwrap().files;
    let refused = |options: HubOptions, target: &PushTarget| {
        let error = push(&files, target, &options, &mut |_| {}).unwrap_err();
        error.to_string()
    };
    hub.requests();
    let mut without = options(&hub, &state);
    without.token = None;
    assert!(refused(without, &target()).contains("HF_TOKEN"));
    let mut offline = options(&hub, &state);
    offline.offline = true;
    assert!(refused(offline, &target()).contains("HF_HUB_OFFLINE"));
    for name in ["name", "a/b/c", "a/", "../b"] {
        let target = PushTarget {
            repository: name.to_owned(),
            ..target()
        };
        assert!(refused(options(&hub, &state), &target).contains("owner/name"));
    }
    let nothing = push(&[], &target(), &options(&hub, &state), &mut |_| {});
    assert!(matches!(nothing, Err(PushError::Nothing)));
    assert!(hub.requests().is_empty());
}

#[test]
fn a_repository_that_is_public_by_mistake_gets_nothing() {
    let (hub, from, state) = (Hub::start(), model(), tempdir().unwrap());
    hub.faults().always_public = true;
    let error = pushed(&from, &hub, &state).unwrap_err();
    assert!(matches!(error, PushError::NotPrivate { .. }), "{error}");
    assert!(hub.requests().iter().all(|request| !request.storage));
}

#[test]
fn what_a_repository_ignores_is_told() {
    let (hub, from, state) = (Hub::start(), model(), tempdir().unwrap());
    hub.faults().ignore = Some("sub/small.bin".to_owned());
    let (result, events) = pushed(&from, &hub, &state).unwrap();
    assert!(
        events.contains(&"Ignored(\"sub/small.bin\")".to_owned()),
        "{events:?}"
    );
    assert_eq!(result.files.len(), 3);
    assert_eq!(result.ignored, ["sub/small.bin"]);
    // The second time, the rest is there.
    let (result, _) = pushed(&from, &hub, &state).unwrap();
    assert_eq!(result.url, None);
    assert_eq!(result.ignored, ["sub/small.bin"]);
}

#[test]
fn a_repository_that_ignores_all_or_the_weights_gets_nothing() {
    let (hub, from, state) = (Hub::start(), model(), tempdir().unwrap());
    let at = |name: &str| from.path().join(name);
    fs::write(at("sub/model.safetensors"), weights(1000, 7)).unwrap();
    for ignore in ["*", "sub/model.safetensors"] {
        hub.faults().ignore = Some(ignore.to_owned());
        let error = pushed(&from, &hub, &state).unwrap_err();
        assert!(matches!(error, PushError::Excluded { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("sub/model.safetensors"), "{text}");
        assert_eq!(text.contains("config.json"), ignore == "*", "{text}");
    }
    assert!(hub.files().is_empty());
    assert!(hub.requests().iter().all(|request| !request.storage));
    // What is there already is excluded by nothing.
    hub.faults().ignore = None;
    pushed(&from, &hub, &state).unwrap();
    hub.faults().ignore = Some("*".to_owned());
    let (result, _) = pushed(&from, &hub, &state).unwrap();
    assert_eq!(result, Pushed::default());
}

#[test]
fn an_answer_that_is_no_commit_is_not_taken_for_one() {
    let (hub, from, state) = (Hub::start(), model(), tempdir().unwrap());
    for (status, text) in [
        (200, "{\"success\": false}"),
        (200, "{}"),
        (200, ""),
        (200, "<html>"),
        (502, "bad gateway"),
    ] {
        hub.faults().commit_text = Some((status, text.to_owned()));
        hub.requests();
        let error = pushed(&from, &hub, &state).unwrap_err();
        assert!(matches!(error, PushError::Unsure { .. }), "{text}: {error}");
        assert!(
            error.to_string().contains("/owner/name/commits/main"),
            "{error}"
        );
        assert_eq!(commits(&hub), 1, "{text}");
    }
    assert!(hub.files().is_empty());
}

#[test]
fn a_commit_whose_answer_is_lost_is_looked_for_and_not_sent_again() {
    let (hub, from, state) = (Hub::start(), model(), tempdir().unwrap());
    hub.faults().cut_commit = Some(Cut::Before);
    let error = pushed(&from, &hub, &state).unwrap_err();
    assert!(matches!(error, PushError::Unsure { .. }), "{error}");
    assert_eq!(commits(&hub), 1);
    hub.faults().cut_commit = Some(Cut::After);
    let (result, _) = pushed(&from, &hub, &state).unwrap();
    assert_eq!(result.files.len(), 4);
    assert!(result.url.unwrap().ends_with(NAME));
    assert_eq!(commits(&hub), 1);
    assert_eq!(hub.files().len(), 4);
}

/// How many commits were sent since the requests were looked at last.
fn commits(hub: &Hub) -> usize {
    let requests = hub.requests();
    let commits = requests
        .iter()
        .filter(|request| request.line.contains("/commit/"));
    commits.count()
}

#[test]
fn a_file_that_changes_on_the_way_is_not_committed() {
    let (hub, from, state) = (Hub::start(), model(), tempdir().unwrap());
    let files = local_files(from.path()).unwrap().files;
    let place = from.path().join("config.json");
    let mut written = false;
    let result = push(&files, &target(), &options(&hub, &state), &mut |event| {
        if matches!(event, PushEvent::Sending(_)) && !written {
            fs::write(&place, "{\"other\": true}").unwrap();
            written = true;
        }
    });
    assert!(matches!(result, Err(PushError::Changed(_))), "{result:?}");
    assert!(hub.files().is_empty());
}

#[test]
fn a_hub_that_answers_nonsense_is_told() {
    let (hub, from, state) = (Hub::start(), model(), tempdir().unwrap());
    for text in ["", "[]", "{\"files\": []}", "<html>"] {
        hub.faults().preupload_text = Some(text.to_owned());
        let error = pushed(&from, &hub, &state).unwrap_err();
        assert!(
            matches!(error, PushError::BadAnswer { .. }),
            "{text}: {error}"
        );
    }
}

/// `OLORA_PYTHON=path/to/python cargo test -p olora-hub --test push -- --ignored`
#[test]
#[ignore = "needs Python with huggingface_hub in OLORA_PYTHON"]
fn python_pushes_the_same_to_the_same_server() {
    const PROGRAM: &str = "import sys
from huggingface_hub import HfApi
api = HfApi(endpoint=sys.argv[1], token=sys.argv[2])
api.create_repo('owner/name', private=True, exist_ok=True)
api.upload_folder(repo_id='owner/name', folder_path=sys.argv[3], ignore_patterns=['.*'])";
    let python = |hub: &Hub, from: &TempDir| {
        let program = std::env::var_os("OLORA_PYTHON").expect("OLORA_PYTHON names a Python");
        let output = std::process::Command::new(program)
            .args(["-c", PROGRAM, &hub.endpoint, TOKEN])
            .arg(from.path())
            .env("HF_HUB_DISABLE_XET", "1")
            .env("HF_HOME", from.path().join(".home"))
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
    };
    let (hub, from, state) = (Hub::start(), model(), tempdir().unwrap());
    python(&hub, &from);
    let files = hub.files();
    assert_eq!(files.len(), 4, "{:?}", files.keys());
    let (result, _) = pushed(&from, &hub, &state).unwrap();
    assert_eq!(result, Pushed::default(), "Python has pushed it all");

    let hub = Hub::start();
    pushed(&from, &hub, &state).unwrap();
    assert!(hub.files() == files);
    hub.requests();
    python(&hub, &from);
    assert_eq!(commits(&hub), 0, "we have pushed it all");
}
