//! The tensor file of an adapter, whatever its format.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use olora_files::refuse_pointer;
use olora_pickles::{Format, PickleError, Pickles};
use safetensors::{Dtype, SafeTensors};

use super::{
    TENSOR_FILE,
    read::{io, malformed},
};
use crate::{AdapterError, check_header, saved::Stored};

/// What PEFT wrote before it wrote safetensors.
const PICKLE_FILE: &str = "adapter_model.bin";

/// Every tensor of a file, in f32, and what the file says of itself.
pub(super) struct TensorFile {
    pub(super) path: PathBuf,
    pub(super) tensors: Vec<(String, Stored)>,
    pub(super) metadata: HashMap<String, String>,
    /// What to say of the choice.
    pub(super) note: Option<String>,
}

impl TensorFile {
    /// The adapter's file in a directory: `adapter_model.safetensors`, else
    /// `adapter_model.bin`, as PEFT chooses.
    pub(super) fn of(directory: &Path) -> Result<Self, AdapterError> {
        let [tensors, pickle] = [TENSOR_FILE, PICKLE_FILE].map(|name| directory.join(name));
        match (tensors.exists(), pickle.exists()) {
            (false, true) => Self::pickled(&pickle),
            (true, both) => {
                let file = Self::safetensors(&tensors)?;
                let note = both.then(|| {
                    format!("{TENSOR_FILE} and {PICKLE_FILE} are both there: the first is read, as PEFT does")
                });
                Ok(Self { note, ..file })
            }
            (false, false) => Err(AdapterError::Malformed {
                path: directory.to_owned(),
                kind: "adapter directory",
                reason: format!(
                    "it has neither {TENSOR_FILE} nor {PICKLE_FILE}, only the configuration. Copy or \
                     download the tensors too"
                ),
            }),
        }
    }

    pub(super) fn safetensors(path: &Path) -> Result<Self, AdapterError> {
        let wrong = |reason: &dyn std::fmt::Display| malformed(path, "safetensors file", reason);
        refuse_pointer(path).map_err(|source| io("reading", path, source))?;
        let bytes = fs::read(path).map_err(|source| io("reading", path, source))?;
        check_header(&bytes).map_err(|reason| wrong(&reason))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| wrong(&error))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| wrong(&error))?;
        let mut tensors = Vec::new();
        for (name, view) in file.tensors() {
            let format = match view.dtype() {
                Dtype::F32 => Format::F32,
                Dtype::F16 => Format::F16,
                Dtype::BF16 => Format::Bf16,
                other => {
                    let reason = format!("`{name}` has dtype {other:?}; expected F32, F16 or BF16");
                    return Err(malformed(path, "adapter", &reason));
                }
            };
            let stored = stored(view.shape(), view.data(), format)
                .map_err(|reason| malformed(path, "adapter", &format!("`{name}` {reason}")))?;
            tensors.push((name, stored));
        }
        Ok(Self {
            path: path.to_owned(),
            tensors,
            metadata: header.metadata().clone().unwrap_or_default(),
            note: None,
        })
    }

    /// Nothing in a pickle is run: see [`olora_pickles`].
    fn pickled(path: &Path) -> Result<Self, AdapterError> {
        refuse_pointer(path).map_err(|source| io("reading", path, source))?;
        let failed = |error| match error {
            PickleError::Io {
                action,
                path,
                source,
            } => AdapterError::Io {
                action,
                path,
                source,
            },
            PickleError::Malformed { path, reason } => AdapterError::Malformed {
                path,
                kind: "PyTorch file of an adapter",
                reason,
            },
            error @ PickleError::Missing(_) => malformed(path, "adapter", &error),
        };
        let pickles = Pickles::open(vec![path.to_owned()]).map_err(failed)?;
        let mut tensors = Vec::new();
        for name in pickles.names() {
            let (bytes, format) = pickles.read(name).map_err(failed)?;
            let shape = pickles.shape(name).unwrap_or_default();
            let stored = stored(shape, &bytes, format)
                .map_err(|reason| malformed(path, "adapter", &format!("`{name}` {reason}")))?;
            tensors.push((name.to_owned(), stored));
        }
        Ok(Self {
            path: path.to_owned(),
            tensors,
            metadata: HashMap::new(),
            note: None,
        })
    }
}

fn stored(shape: &[usize], bytes: &[u8], format: Format) -> Result<Stored, String> {
    let values: Vec<f32> = match format {
        Format::F32 => {
            let all = bytes.as_chunks::<4>().0.iter();
            all.map(|&b| f32::from_le_bytes(b)).collect()
        }
        Format::F16 => {
            let all = bytes.as_chunks::<2>().0.iter();
            all.map(|&b| half::f16::from_le_bytes(b).to_f32()).collect()
        }
        Format::Bf16 => {
            let all = bytes.as_chunks::<2>().0.iter();
            all.map(|&b| half::bf16::from_le_bytes(b).to_f32())
                .collect()
        }
    };
    let mut odd = values.iter().enumerate();
    if let Some((first, value)) = odd.find(|(_, value)| !value.is_finite()) {
        return Err(format!(
            "holds values that are not finite, the first of them {value} at element {first} of {shape:?}. \
             Either the file is damaged, or its training diverged"
        ));
    }
    Ok(Stored {
        shape: shape.to_vec(),
        values,
    })
}
