//! One file's bytes, from the hub into the cache: resumed, checked, and never
//! seen before they are whole.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process,
    thread::sleep,
    time::Duration,
};

use sha2::{Digest, Sha256};
use ureq::http::StatusCode;

use crate::{
    HubError, Progress,
    cache::Repository,
    client::{Client, FileHead, text},
};

const CHUNK: usize = 256 << 10;
/// How often to look whether another process has finished.
const LOOK: Duration = Duration::from_millis(200);

/// Makes a file of a commit present in its snapshot.
pub(crate) fn fetch(
    client: &Client<'_>,
    repository: &Repository,
    commit: &str,
    file: &str,
    on: &mut dyn FnMut(Progress<'_>),
) -> Result<(), HubError> {
    let head = client.persist(|| client.head(commit, file))?;
    let blobs = repository.blobs();
    fs::create_dir_all(&blobs).map_err(|source| HubError::io("cannot write", &blobs, source))?;
    let blob = repository.blob(&head.etag);
    let shared = blobs.join(format!("{}.olora.incomplete", head.etag));
    let lock = repository.lock_file(&head.etag)?;
    let locked = wait_for(&lock, || {
        on(Progress {
            file,
            done: fs::metadata(&shared).map_or(0, |metadata| metadata.len()),
            total: head.size,
        });
    });
    if !blob.exists() {
        // Where files cannot be locked, a name that no other process uses.
        let path = if locked {
            shared
        } else {
            blobs.join(format!("{}.{}.olora.incomplete", head.etag, process::id()))
        };
        let mut download = Download {
            client,
            commit,
            file,
            head: &head,
            part: Part::open(&path, file, &head)?,
        };
        download.run(on)?;
        download.part.finish(&blob)?;
    }
    repository.link(&head.etag, commit, file)
}

/// Waits until no other process downloads the same contents. False where the
/// file system has no locks.
fn wait_for(lock: &File, mut waiting: impl FnMut()) -> bool {
    loop {
        match lock.try_lock() {
            Ok(()) => return true,
            Err(TryLockError::WouldBlock) => {
                waiting();
                sleep(LOOK);
            }
            Err(TryLockError::Error(_)) => return false,
        }
    }
}

struct Download<'a> {
    client: &'a Client<'a>,
    commit: &'a str,
    file: &'a str,
    head: &'a FileHead,
    part: Part<'a>,
}

impl Download<'_> {
    /// Until the part is whole and right, or there is no hope.
    fn run(&mut self, on: &mut dyn FnMut(Progress<'_>)) -> Result<(), HubError> {
        let mut resumed = self.part.length > 0;
        let mut best = self.part.length;
        let mut failures = 0;
        let mut host = String::new();
        loop {
            let result = if self.head.size == Some(self.part.length) {
                Ok(())
            } else {
                self.pass(&mut host, on)
            };
            match result {
                Ok(()) => {}
                Err(error) if error.is_transient() => {
                    // A connection that brings the file further is worth repeating.
                    if self.part.length > best {
                        best = self.part.length;
                        failures = 0;
                    }
                    failures += 1;
                    if failures >= self.client.attempts() {
                        return Err(error);
                    }
                    self.client.pause(failures - 1);
                    continue;
                }
                Err(error) => {
                    if matches!(error, HubError::TooLong { .. }) {
                        self.part.remove();
                    }
                    return Err(error);
                }
            }
            match self.part.check(self.head, &host) {
                // The fault may be in what an earlier run left.
                Err(HubError::Corrupt { .. }) if resumed => {
                    resumed = false;
                    best = 0;
                    self.part.restart()?;
                }
                Err(error) => {
                    self.part.remove();
                    return Err(error);
                }
                Ok(()) => return Ok(()),
            }
        }
    }

    /// One request, from where the part ends.
    fn pass(
        &mut self,
        host: &mut String,
        on: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), HubError> {
        let from = self.part.length;
        let (mut response, sender) = self.client.get(self.commit, self.file, from)?;
        *host = sender;
        let headers = response.headers();
        let goes_on = response.status() == StatusCode::PARTIAL_CONTENT
            && text(headers, "content-range")
                .is_some_and(|range| range.starts_with(&format!("bytes {from}-")));
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            self.part.restart()?;
            return Err(self.cut_off(host, from));
        }
        if response.status() == StatusCode::PARTIAL_CONTENT && !goes_on {
            return Err(self.client.bad_answer(&format!(
                "it sent another range of `{}` than it was asked for",
                self.file
            )));
        }
        let announced = text(headers, "content-length").and_then(|length| length.parse().ok());
        if !goes_on && from > 0 {
            self.part.restart()?;
        }
        let start = self.part.length;
        let total = self
            .head
            .size
            .or_else(|| announced.map(|length: u64| start + length));
        if total.is_none() && !headers.contains_key("transfer-encoding") {
            // The end of the connection may be the end of the file, or not.
            return Err(self
                .client
                .bad_answer(&format!("it does not say how long `{}` is", self.file)));
        }
        let mut body = response.body_mut().as_reader();
        let mut chunk = vec![0; CHUNK];
        loop {
            on(Progress {
                file: self.file,
                done: self.part.length,
                total,
            });
            let read = match body.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(match total {
                        Some(total) => self.cut_off(host, total),
                        None => self.client.no_network_at(host, &error),
                    });
                }
            };
            self.part.write(&chunk[..read])?;
            if let Some(total) = total
                && self.part.length > total
            {
                return Err(HubError::TooLong {
                    file: self.file.to_owned(),
                    host: host.clone(),
                    total,
                });
            }
        }
        match total {
            Some(total) if self.part.length < total => Err(self.cut_off(host, total)),
            _ => Ok(()),
        }
    }

    fn cut_off(&self, host: &str, total: u64) -> HubError {
        HubError::Truncated {
            file: self.file.to_owned(),
            host: host.to_owned(),
            done: self.part.length,
            total,
        }
    }
}

/// The beginning of a file, with its sum so far.
struct Part<'a> {
    path: PathBuf,
    file: File,
    length: u64,
    /// What the file is in the repository, for messages.
    name: &'a str,
    size: Option<u64>,
    /// Only where the hub announced a sum.
    sum: Option<Sha256>,
}

impl<'a> Part<'a> {
    /// Opens what an earlier attempt left, or a new file.
    fn open(path: &Path, name: &'a str, head: &FileHead) -> Result<Self, HubError> {
        let mut part = Self {
            path: path.to_owned(),
            file: File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
                .map_err(|source| HubError::io("cannot write", path, source))?,
            length: 0,
            name,
            size: head.size,
            sum: head.sha256().map(|_| Sha256::new()),
        };
        let length = part
            .file
            .metadata()
            .map_err(|source| HubError::io("cannot read", path, source))?
            .len();
        // Nothing to go on from without a length to reach.
        if head.size.is_none_or(|size| length > size) {
            part.restart()?;
        } else {
            part.length = match &mut part.sum {
                Some(sum) => io::copy(&mut (&part.file).take(length), sum),
                None => part.file.seek(SeekFrom::End(0)),
            }
            .map_err(|source| HubError::io("cannot read", path, source))?;
        }
        Ok(part)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file
            .write_all(bytes)
            .map_err(|source| self.full_or("cannot write", source))?;
        self.length += bytes.len() as u64;
        if let Some(sum) = &mut self.sum {
            sum.update(bytes);
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<(), HubError> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .map_err(|source| HubError::io("cannot write", &self.path, source))?;
        self.length = 0;
        if let Some(sum) = &mut self.sum {
            sum.reset();
        }
        Ok(())
    }

    /// Compares the sum with the one announced.
    fn check(&self, head: &FileHead, host: &str) -> Result<(), HubError> {
        let (Some(expected), Some(sum)) = (head.sha256(), &self.sum) else {
            return Ok(());
        };
        let found = format!("{:x}", sum.clone().finalize());
        if found.eq_ignore_ascii_case(expected) {
            return Ok(());
        }
        Err(HubError::Corrupt {
            file: self.name.to_owned(),
            host: host.to_owned(),
            expected: expected.to_owned(),
            found,
        })
    }

    /// Gives the whole file its name; from here on others see it.
    fn finish(&self, blob: &Path) -> Result<(), HubError> {
        self.file
            .sync_all()
            .and_then(|()| fs::rename(&self.path, blob))
            .map_err(|source| self.full_or("cannot write", source))
    }

    /// Best effort: the error that led here says more than one about removing would.
    fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }

    fn full_or(&self, action: &'static str, source: io::Error) -> HubError {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        if matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge) {
            HubError::DiskFull {
                file: self.name.to_owned(),
                directory: self.path.parent().unwrap_or(&self.path).to_owned(),
                missing: self.size.map(|size| size.saturating_sub(self.length)),
            }
        } else {
            HubError::io(action, &self.path, source)
        }
    }
}
