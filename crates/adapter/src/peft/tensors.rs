//! The tensor file of an adapter, written tensor by tensor.

use std::{
    collections::HashMap,
    io::{self, Write},
    path::Path,
};

use half::{bf16, f16};
use olora_files::write_atomically;
use olora_operations::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;

use super::read::{io as failed, malformed};
use crate::AdapterError;

/// A tensor to be written.
pub(super) struct Written<'a> {
    pub(super) name: String,
    pub(super) shape: &'a [usize],
    pub(super) values: &'a [f32],
    pub(super) dtype: Dtype,
}

/// What safetensors calls a number format.
fn stored(dtype: Dtype) -> safetensors::Dtype {
    match dtype {
        Dtype::F32 => safetensors::Dtype::F32,
        Dtype::F16 => safetensors::Dtype::F16,
        Dtype::Bf16 => safetensors::Dtype::BF16,
    }
}

impl Written<'_> {
    /// Refuses a value that is no number, or would be none in the file.
    fn check(&self) -> Result<(), AdapterError> {
        let fits = |value: f32| match self.dtype {
            Dtype::F32 => value.is_finite(),
            Dtype::F16 => f16::from_f32(value).is_finite(),
            Dtype::Bf16 => bf16::from_f32(value).is_finite(),
        };
        match self.values.iter().find(|value| !fits(**value)) {
            None => Ok(()),
            Some(value) if value.is_finite() => Err(AdapterError::DoesNotFit {
                path: self.name.clone(),
                value: *value,
                dtype: self.dtype.name(),
                limit: self.dtype.limit(),
            }),
            Some(_) => Err(AdapterError::NotFinite(self.name.clone())),
        }
    }

    fn write(&self, output: &mut dyn Write) -> io::Result<()> {
        /// Values that are encoded at a time.
        const AT_ONCE: usize = 1 << 14;
        let mut bytes = Vec::new();
        for values in self.values.chunks(AT_ONCE) {
            bytes.clear();
            let values = values.iter();
            match self.dtype {
                Dtype::F32 => bytes.extend(values.flat_map(|x| x.to_le_bytes())),
                Dtype::F16 => bytes.extend(values.flat_map(|x| f16::from_f32(*x).to_le_bytes())),
                Dtype::Bf16 => bytes.extend(values.flat_map(|x| bf16::from_f32(*x).to_le_bytes())),
            }
            output.write_all(&bytes)?;
        }
        Ok(())
    }
}

/// Writes the file, with `notes` among its metadata; each tensor is encoded when
/// it is its turn, so that the adapter is not in memory once more.
///
/// The library would do so too, but writes several entries of metadata in an
/// order that changes from run to run, and equal adapters shall be equal files.
pub(super) fn write(
    path: &Path,
    mut tensors: Vec<Written<'_>>,
    notes: &[(&str, &Option<String>)],
) -> Result<(), AdapterError> {
    for tensor in &tensors {
        tensor.check()?;
    }
    // The library's order.
    tensors.sort_by(|a, b| {
        let dtypes = stored(b.dtype).cmp(&stored(a.dtype));
        dtypes.then_with(|| a.name.cmp(&b.name))
    });
    let header =
        header(&tensors, notes).map_err(|error| malformed(path, "safetensors file", &error))?;
    let written = write_atomically(path, |output| {
        output.write_all(&(header.len() as u64).to_le_bytes())?;
        output.write_all(&header)?;
        tensors.iter().try_for_each(|tensor| tensor.write(output))
    });
    written.map_err(|source| failed("writing", path, source))
}

fn header(tensors: &[Written<'_>], notes: &[(&str, &Option<String>)]) -> Result<Vec<u8>, String> {
    let mut end = 0;
    let mut infos = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let begin = end;
        end += tensor.values.len() * tensor.dtype.size();
        let info = TensorInfo {
            dtype: stored(tensor.dtype),
            shape: tensor.shape.to_vec(),
            data_offsets: (begin, end),
        };
        infos.push((tensor.name.clone(), info));
    }
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), infos).map_err(|error| error.to_string())?;
    let json = |error: serde_json::Error| error.to_string();
    let mut header = serde_json::to_value(&metadata).map_err(json)?;
    for (key, value) in notes {
        if let Some(value) = value {
            header["__metadata__"][*key] = Value::from(value.as_str());
        }
    }
    let mut header = serde_json::to_vec(&header).map_err(json)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}
