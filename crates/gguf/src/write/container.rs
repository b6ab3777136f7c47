//! The file itself: header, metadata, list of tensors, data.

use std::{io::Write, path::Path};

use olora_files::AtomicFile;

use crate::{
    GgufError,
    header::{ALIGNMENT, MAGIC, VERSION},
    types::TensorType,
};

/// Metadata in the form that it has in the file.
#[derive(Default)]
pub(super) struct Metadata {
    count: u64,
    bytes: Vec<u8>,
}

impl Metadata {
    fn key(&mut self, key: &str, kind: u32) {
        self.count += 1;
        push_text(&mut self.bytes, key);
        self.bytes.extend(kind.to_le_bytes());
    }

    pub(super) fn u32(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.bytes.extend(value.to_le_bytes());
    }

    pub(super) fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.bytes.extend(value.to_le_bytes());
    }

    pub(super) fn flag(&mut self, key: &str, value: bool) {
        self.key(key, 7);
        self.bytes.push(u8::from(value));
    }

    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        push_text(&mut self.bytes, value);
    }

    pub(super) fn texts(&mut self, key: &str, values: &[impl AsRef<str>]) {
        self.array(key, 8, values.len());
        for value in values {
            push_text(&mut self.bytes, value.as_ref());
        }
    }

    pub(super) fn i32s(&mut self, key: &str, values: &[i32]) {
        self.array(key, 5, values.len());
        self.bytes
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    pub(super) fn f32s(&mut self, key: &str, values: &[f32]) {
        self.array(key, 6, values.len());
        self.bytes
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    pub(super) fn flags(&mut self, key: &str, values: &[bool]) {
        self.array(key, 7, values.len());
        self.bytes
            .extend(values.iter().map(|value| u8::from(*value)));
    }

    fn array(&mut self, key: &str, element: u32, count: usize) {
        self.key(key, 9);
        self.bytes.extend(element.to_le_bytes());
        self.bytes.extend((count as u64).to_le_bytes());
    }
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// A tensor that the file is to have, under its name in the file.
pub(super) struct Planned {
    pub(super) name: String,
    /// Row-major, outermost first.
    pub(super) shape: Vec<usize>,
    pub(super) kind: TensorType,
}

impl Planned {
    fn size(&self) -> usize {
        let (elements, size) = self.kind.block();
        self.shape.iter().product::<usize>() / elements * size
    }
}

/// Writes a file whole or not at all; `fill` writes the data of one tensor.
pub(super) fn write(
    path: &Path,
    metadata: &Metadata,
    tensors: &[Planned],
    mut fill: impl FnMut(usize, &mut dyn Write) -> Result<(), GgufError>,
) -> Result<(), GgufError> {
    let failed = |source| GgufError::io("writing", path, source);
    let mut output = AtomicFile::create(path).map_err(failed)?;
    output
        .write_all(&header(metadata, tensors))
        .map_err(failed)?;
    for (index, tensor) in tensors.iter().enumerate() {
        fill(index, &mut output).map_err(|error| match error {
            // Whoever encodes a tensor does not know the file's name.
            GgufError::Io { source, .. } => failed(source),
            other => other,
        })?;
        let padding = tensor.size().next_multiple_of(ALIGNMENT) - tensor.size();
        output
            .write_all(&[0; ALIGNMENT][..padding])
            .map_err(failed)?;
    }
    output.commit().map_err(failed)
}

/// Everything before the tensors' data.
fn header(metadata: &Metadata, tensors: &[Planned]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend(metadata.count.to_le_bytes());
    bytes.extend(&metadata.bytes);
    let mut offset = 0_usize;
    for tensor in tensors {
        push_text(&mut bytes, &tensor.name);
        bytes.extend((tensor.shape.len() as u32).to_le_bytes());
        for &size in tensor.shape.iter().rev() {
            bytes.extend((size as u64).to_le_bytes());
        }
        bytes.extend(tensor.kind.id().to_le_bytes());
        bytes.extend((offset as u64).to_le_bytes());
        offset += tensor.size().next_multiple_of(ALIGNMENT);
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    bytes
}
