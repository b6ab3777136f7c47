//! A large file on its way, whole or in parts.

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom, Take},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use ureq::http::{HeaderName, HeaderValue};

use super::{LocalFile, PushError, PushEvent, hash::Hashes, server::Server};
use crate::{HubOptions, Progress, client::text};

/// The addresses of parts are good for about a day.
const KEPT: Duration = Duration::from_hours(24);

/// Takes away what is remembered of uploads that can no longer go on.
pub(super) fn forget_old(options: &HubOptions) {
    let directory = options.uploads.as_ref();
    let entries = directory.and_then(|directory| directory.read_dir().ok());
    for entry in entries.into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|end| end == "json") && is_old(&path) {
            // Another process may have been before us.
            let _ = fs::remove_file(path);
        }
    }
}

/// Whether it is longer ago that a file was written than addresses are good for.
fn is_old(path: &Path) -> bool {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > KEPT))
}

/// Sends a large file, unless the hub has it.
pub(super) fn send(
    server: &Server<'_>,
    file: &LocalFile,
    hashes: &Hashes,
    on: &mut dyn FnMut(PushEvent<'_>),
) -> Result<(), PushError> {
    let place = Kept::place(server.options, server.repository(), &hashes.sha256);
    if let Some(kept) = place.as_deref().and_then(|place| Kept::read(place, file)) {
        match in_parts(server, file, hashes, kept, place.as_deref(), on) {
            Err(error) if error.is_final() => {}
            sent => return sent,
        }
    }
    if let Some(place) = &place {
        let _ = fs::remove_file(place);
    }
    let answer = server.batch(&hashes.sha256, file.size)?;
    let object = &answer["objects"][0];
    if let Some(error) = object["error"].as_object() {
        let message = error.get("message").and_then(Value::as_str);
        let status = error.get("code").and_then(Value::as_u64);
        let status = status.and_then(|status| u16::try_from(status).ok());
        return Err(server.refused(
            format!("to take `{}`", file.name),
            status.unwrap_or(422),
            message.unwrap_or_default(),
        ));
    }
    if object["oid"] != *hashes.sha256 {
        return Err(server.bad_answer("it answers about another large file"));
    }
    let upload = &object["actions"]["upload"];
    if upload.is_null() {
        on(PushEvent::There(&file.name));
        return Ok(());
    }
    let href = upload["href"].as_str();
    let href = href.ok_or_else(|| server.bad_answer("it does not say where a large file goes"))?;
    if upload["header"]["chunk_size"].is_null() {
        whole(server, file, href, &upload["header"], on)?;
    } else {
        let kept = Kept::of(file, href, &upload["header"])
            .ok_or_else(|| server.bad_answer("its parts are not those of the file"))?;
        in_parts(server, file, hashes, kept, place.as_deref(), on)?;
    }
    match object["actions"]["verify"]["href"].as_str() {
        Some(verify) => server.tell(verify, &json!({ "oid": hashes.sha256, "size": file.size })),
        None => Ok(()),
    }
}

/// In one request.
fn whole(
    server: &Server<'_>,
    file: &LocalFile,
    href: &str,
    headers: &Value,
    on: &mut dyn FnMut(PushEvent<'_>),
) -> Result<(), PushError> {
    let headers = headers.as_object().into_iter().flatten();
    let headers: Vec<(HeaderName, HeaderValue)> = headers
        .filter_map(|(name, value)| Some((name.parse().ok()?, value.as_str()?.parse().ok()?)))
        .collect();
    server.persist(|| {
        let mut body = Counted::new(file, 0, file.size, on)?;
        server.put(href, &headers, file.size, &mut body)
    })?;
    Ok(())
}

/// Part after part, of which those that were taken are kept in mind.
fn in_parts(
    server: &Server<'_>,
    file: &LocalFile,
    hashes: &Hashes,
    mut kept: Kept,
    place: Option<&Path>,
    on: &mut dyn FnMut(PushEvent<'_>),
) -> Result<(), PushError> {
    for part in 0..kept.urls.len() {
        if kept.etags[part].is_some() {
            continue;
        }
        let start = part as u64 * kept.chunk_size;
        let length = kept.chunk_size.min(file.size - start);
        let headers = server.persist(|| {
            let mut body = Counted::new(file, start, length, on)?;
            server.put(&kept.urls[part], &[], length, &mut body)
        })?;
        let etag = text(&headers, "etag").filter(|etag| !etag.is_empty());
        let etag = etag.ok_or_else(|| server.bad_answer("it names no ETag for a part"))?;
        kept.etags[part] = Some(etag);
        if let Some(place) = place {
            kept.write(place);
        }
    }
    let parts: Vec<Value> = (1..)
        .zip(&kept.etags)
        .map(|(number, etag)| json!({ "partNumber": number, "etag": etag }))
        .collect();
    server.tell(&kept.href, &json!({ "oid": hashes.sha256, "parts": parts }))?;
    if let Some(place) = place {
        let _ = fs::remove_file(place);
    }
    Ok(())
}

/// An upload in parts that has begun: where each goes, and what was said to
/// those that were taken. Whoever has the addresses may write to them, so the
/// file is for its owner alone.
#[derive(Serialize, Deserialize)]
struct Kept {
    size: u64,
    chunk_size: u64,
    /// Where it is said that all parts are there.
    href: String,
    urls: Vec<String>,
    etags: Vec<Option<String>>,
}

impl Kept {
    /// As the hub says it; `None` if its parts are not those of the file.
    fn of(file: &LocalFile, href: &str, header: &Value) -> Option<Self> {
        let chunk_size = match &header["chunk_size"] {
            Value::String(text) => text.parse().ok()?,
            number => number.as_u64()?,
        };
        let mut urls: Vec<(u64, String)> = header
            .as_object()?
            .iter()
            .filter_map(|(key, url)| Some((key.parse().ok()?, url.as_str()?.to_owned())))
            .collect();
        urls.sort();
        let kept = Self {
            size: file.size,
            chunk_size,
            href: href.to_owned(),
            etags: vec![None; urls.len()],
            urls: urls.into_iter().map(|(_, url)| url).collect(),
        };
        kept.fits(file).then_some(kept)
    }

    fn fits(&self, file: &LocalFile) -> bool {
        self.size == file.size
            && self.chunk_size > 0
            && self.urls.len() as u64 == file.size.div_ceil(self.chunk_size)
            && self.etags.len() == self.urls.len()
    }

    /// The file that remembers an upload.
    fn place(options: &HubOptions, repository: &str, oid: &str) -> Option<PathBuf> {
        let directory = options.uploads.as_ref()?;
        let key = format!("{}\n{repository}\n{oid}", options.endpoint);
        let digest = format!("{:x}", Sha256::digest(key));
        Some(directory.join(format!("{}.json", &digest[..32])))
    }

    /// What is remembered, if it is of use still.
    fn read(place: &Path, file: &LocalFile) -> Option<Self> {
        let kept: Self = serde_json::from_slice(&fs::read(place).ok()?).ok()?;
        kept.fits(file).then_some(kept)
    }

    /// Remembers it, whole or not at all. That it could not be costs the parts
    /// that would not have to be sent again, and is no reason to stop.
    fn write(&self, place: &Path) {
        let write = || -> io::Result<()> {
            let directory = place.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(directory)?;
            // Made for its owner alone.
            let mut file = tempfile::NamedTempFile::new_in(directory)?;
            serde_json::to_writer(&mut file, self)?;
            file.persist(place)?;
            Ok(())
        };
        let _ = write();
    }
}

/// A stretch of a file, which tells how far it has been read.
struct Counted<'a, 'b> {
    file: &'a LocalFile,
    inner: Take<fs::File>,
    done: u64,
    on: &'a mut (dyn FnMut(PushEvent<'_>) + 'b),
}

impl<'a, 'b> Counted<'a, 'b> {
    fn new(
        file: &'a LocalFile,
        start: u64,
        length: u64,
        on: &'a mut (dyn FnMut(PushEvent<'_>) + 'b),
    ) -> Result<Self, PushError> {
        let mut open = file.open()?;
        open.seek(SeekFrom::Start(start))
            .map_err(|source| PushError::io("reading", &file.path, source))?;
        Ok(Self {
            file,
            inner: open.take(length),
            done: start,
            on,
        })
    }
}

impl Read for Counted<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.done += n as u64;
        (self.on)(PushEvent::Sending(Progress {
            file: &self.file.name,
            done: self.done,
            total: Some(self.file.size),
        }));
        Ok(n)
    }
}
