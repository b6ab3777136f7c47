//! A directory for files of a test.

#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use olora_records::{Record, RecordsError, for_each, kind};
use serde_json::Value;

pub(crate) struct World(tempfile::TempDir);

impl World {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// The records of a file with this content, or the error without the directory.
    pub(crate) fn read(&self, name: &str, bytes: impl AsRef<[u8]>) -> Result<Vec<Record>, String> {
        let path = self.write(name, bytes);
        records(&path).map_err(|error| self.words(&error))
    }

    /// Its records' values, one JSON text each.
    pub(crate) fn values(&self, name: &str, bytes: impl AsRef<[u8]>) -> Vec<String> {
        values(&self.read(name, bytes).unwrap())
    }

    pub(crate) fn error(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        match self.read(name, bytes) {
            Ok(records) => panic!("{} records, and no error", records.len()),
            Err(error) => error,
        }
    }

    pub(crate) fn kind(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        kind(&self.write(name, bytes)).unwrap().to_string()
    }

    pub(crate) fn words(&self, error: &RecordsError) -> String {
        let directory = format!("{}/", self.0.path().display());
        error.to_string().replace(&directory, "")
    }
}

pub(crate) fn records(path: &Path) -> Result<Vec<Record>, RecordsError> {
    let mut records = Vec::new();
    for_each::<RecordsError>(path, &mut |record| {
        records.push(record);
        Ok(())
    })?;
    Ok(records)
}

pub(crate) fn values(records: &[Record]) -> Vec<String> {
    records
        .iter()
        .map(|record| Value::Object(record.fields.clone()).to_string())
        .collect()
}

pub(crate) fn lines(records: &[Record]) -> Vec<Option<usize>> {
    records.iter().map(|record| record.at.line).collect()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    // As the command line does it.
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/records")
        .join(name)
}
