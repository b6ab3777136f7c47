//! What the hub says, and what lies in its cache: a data set's card, the list of
//! its files, and the answers of a server.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Component, Path},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use olora_hub::{Dataset, DatasetName, HubError, HubOptions, ModelName, resolve, resolve_dataset};

use crate::parts::{below, put, scratch, split, twice};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const NAMES: [&str; 4] = [
    "oxmere/village",
    "oxmere/village:test",
    "oxmere/village/tales@refs/convert/parquet",
    "oxmere/village#3",
];

/// Parts: `README.md`; the list of files that is kept of a commit; optionally
/// `.huggingface.yaml`. Files that the list names are there.
pub fn cache(data: &[u8]) {
    let directory = scratch();
    let cache = directory.path().join("cache");
    let parts = split(data);
    let repository = cache.join("datasets--oxmere--village");
    let snapshot = repository.join("snapshots").join(COMMIT);
    for revision in ["main", "refs/convert/parquet"] {
        put(&repository.join("refs"), revision, COMMIT.as_bytes());
    }
    let list = parts.get(1).copied().unwrap_or_default();
    put(&repository.join("olora"), &format!("{COMMIT}.json"), list);
    let list: serde_json::Value = serde_json::from_slice(list).unwrap_or_default();
    let files = list["files"].as_array().into_iter().flatten();
    for file in files.filter_map(|file| file.as_str()).take(50) {
        if is_plain(file) {
            let path = snapshot.join(file);
            let parent = path.parent().expect("it is below the snapshot");
            // One file may lie where another has its directory.
            let _ = fs::create_dir_all(parent).and_then(|()| fs::write(&path, "{}"));
        }
    }
    put(&snapshot, "README.md", parts[0]);
    if let Some(yaml) = parts.get(2) {
        put(&snapshot, ".huggingface.yaml", yaml);
    }
    let mut options = HubOptions::new("http://127.0.0.1:9", &cache);
    options.offline = true;
    let before = below(directory.path());
    for name in NAMES {
        if let Ok(dataset) = found(name, &options) {
            inside(&dataset, &snapshot);
        }
    }
    assert_eq!(
        before,
        below(directory.path()),
        "reading a cache changes it"
    );
}

fn found(name: &str, options: &HubOptions) -> Result<Dataset, String> {
    let DatasetName::Hub(name) = DatasetName::parse(name).map_err(|error| error.to_string())?
    else {
        return Err("a path".to_owned());
    };
    twice(
        "a data set",
        || resolve_dataset(&name, options, &mut |_| {}),
        PartialEq::eq,
    )
}

fn inside(dataset: &Dataset, snapshot: &Path) {
    for file in &dataset.files {
        let rest = file.strip_prefix(snapshot);
        assert!(
            rest.is_ok_and(|rest| rest
                .components()
                .all(|part| matches!(part, Component::Normal(_)))),
            "{} leads out of the snapshot",
            file.display()
        );
    }
}

/// Whether a name may be a file's here: other names are not made.
fn is_plain(name: &str) -> bool {
    let path = Path::new(name);
    name.len() <= 100
        && !name.contains('\0')
        && path.components().count() > 0
        && path
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
}

/// Parts: the answer to requests for a list of files; lines of headers for a
/// file, without a `location`, since a test calls on nobody; the file.
pub fn answers(data: &[u8]) {
    let parts = split(data);
    let part = |i: usize| parts.get(i).copied().unwrap_or_default().to_vec();
    let (list, headers, body) = (part(0), part(1), part(2));
    if String::from_utf8_lossy(&headers)
        .to_lowercase()
        .contains("location")
    {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("a port");
    let done = AtomicBool::new(false);
    let directory = scratch();
    let cache = directory.path().join("cache");
    thread::scope(|scope| {
        scope.spawn(|| {
            for stream in listener.incoming().flatten() {
                if done.load(Relaxed) {
                    return;
                }
                let _ = answer(&stream, &list, &headers, &body);
            }
        });
        let mut options = HubOptions::new(&format!("http://{address}"), &cache);
        options.attempts = 1;
        options.retry_wait = Duration::ZERO;
        options.timeout = Duration::from_millis(500);
        let outcome = ask(&options);
        done.store(true, Relaxed);
        let _ = TcpStream::connect(address);
        for path in outcome {
            assert!(
                path.starts_with(&cache),
                "{} is not in the cache",
                path.display()
            );
        }
    });
    for path in below(directory.path()) {
        assert!(
            path.starts_with(&cache),
            "{} was written outside",
            path.display()
        );
    }
}

fn ask(options: &HubOptions) -> Vec<std::path::PathBuf> {
    let mut paths = Vec::new();
    let mut keep = |outcome: Result<Vec<_>, HubError>| match outcome {
        Ok(found) => paths.extend(found),
        Err(error) => assert!(!error.to_string().is_empty()),
    };
    let model = ModelName::parse("oxmere/village")
        .and_then(|_| resolve("oxmere/village", options, &mut |_| {}));
    keep(model.map(|model| vec![model.path]));
    if let Ok(DatasetName::Hub(name)) = DatasetName::parse("oxmere/village") {
        keep(resolve_dataset(&name, options, &mut |_| {}).map(|dataset| dataset.files));
    }
    paths
}

fn answer(stream: &TcpStream, list: &[u8], headers: &[u8], body: &[u8]) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    stream.set_write_timeout(Some(Duration::from_millis(500)))?;
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let mut out = stream;
    if request.contains(" /api/") {
        write!(
            out,
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            list.len()
        )?;
        return out.write_all(list);
    }
    out.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n")?;
    out.write_all(headers)?;
    out.write_all(b"\r\n\r\n")?;
    if !request.starts_with("HEAD") {
        out.write_all(body)?;
    }
    Ok(())
}
