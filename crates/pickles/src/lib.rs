//! Tensors as `torch.save` writes them, in a zip archive or, before
//! `PyTorch` 1.6, as a row of pickles.
//!
//! A pickle is a program: Python runs what it calls. [`pytorch_reader`] does
//! not. From its source (0.22.1):
//!
//! - Its machine knows values, containers, a memo and tensors. A call makes a
//!   dictionary, a set or a tensor for the eight names that `torch.save` needs;
//!   for every other name it makes a marker that carries the name, and a call
//!   on tensors is an error. Nothing is looked up, imported or run.
//! - Unknown opcodes, extension opcodes and out-of-band buffers are errors.
//! - Lengths are held against the file before memory is taken for them, copies
//!   out of the memo and the depth of nesting are limited, a zip archive's
//!   pickle may take 100 MiB, and a tensor 10 GiB. There is no unsafe code.
//!
//! Three things are left to this module. The reader passes over markers, so that
//! a file which would have run something loads as if it had not: here, anything
//! but numbers, text, containers and tensors that is left in the result is an
//! error which names it. (A call whose result the pickle throws away leaves no
//! trace. It does not run either.) And a compressed storage may swell beyond the
//! file, which `torch.save` never writes: such an archive is refused before any
//! tensor is read, and so no tensor takes more than the file, or than the model's
//! own shape. Tensors may share a storage, as tied weights do, but not many of
//! them: together they may be twice as large as the file. And parsing takes
//! about a hundred bytes for each byte of a pickle, so that its instructions are
//! counted before it is parsed: `instructions.rs`.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod instructions;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use instructions::Refusal;
use pytorch_reader::{DType, FileFormat, PickleValue, PytorchError, PytorchReader, Tensor};

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum PickleError {
    /// The system could not.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was being done, in words.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is not what `torch.save` writes, or more than tensors.
    #[error("{path} is not a valid PyTorch file: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no tensor of this name.
    #[error("there is no tensor `{0}`")]
    Missing(String),
}

impl PickleError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    fn malformed(path: &Path, reason: impl Into<String>) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}

/// The format of a tensor's numbers, all of them little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// IEEE's 16-bit floats.
    F16,
    /// The upper half of 32-bit floats.
    Bf16,
}

/// The parsed pickles of some files; the numbers stay in the files.
pub struct Pickles {
    files: Vec<PathBuf>,
    /// Tensor name → index into `files`, tensor.
    tensors: BTreeMap<String, (usize, Tensor)>,
}

impl Pickles {
    /// Reads the pickles, which say what tensors there are.
    ///
    /// # Errors
    ///
    /// [`PickleError::Malformed`] for anything in them but data and tensors, for
    /// what is compressed, overlaps or is larger than tensors need, and for a
    /// name that is there twice.
    pub fn open(files: Vec<PathBuf>) -> Result<Self, PickleError> {
        let mut tensors = BTreeMap::new();
        for (i, path) in files.iter().enumerate() {
            let size = fs::metadata(path)
                .map_err(|source| PickleError::io("opening", path, source))?
                .len();
            instructions::check(path).map_err(|refusal| match refusal {
                Refusal::Io(source) => PickleError::io("reading", path, source),
                Refusal::Malformed(reason) => PickleError::malformed(path, reason),
            })?;
            refuse_foreign(path)?;
            let reader = PytorchReader::new(path).map_err(|error| unreadable(path, error))?;
            let about = reader.metadata();
            let swollen = about.total_data_size.is_some_and(|data| data as u64 > size);
            if about.format_type == FileFormat::Zip && swollen {
                let reason = "its tensors are compressed or overlap, which torch.save never does";
                return Err(PickleError::malformed(path, reason));
            }
            let mut claimed = 0_u128;
            for (name, tensor) in reader.into_tensors() {
                claimed = claimed.saturating_add(tensor.byte_len() as u128);
                if let Some((other, _)) = tensors.insert(name.clone(), (i, tensor)) {
                    let other = files.get(other).map(|path| path.display());
                    let other = other.map_or_else(String::new, |path| path.to_string());
                    let reason = format!("`{name}` is in it and in {other} too");
                    return Err(PickleError::malformed(path, reason));
                }
            }
            if claimed > 2 * u128::from(size) {
                let reason = format!(
                    "its tensors would have {claimed} bytes, but it has {size}: they are views of the same \
                     numbers, which the weights of a model are not"
                );
                return Err(PickleError::malformed(path, reason));
            }
        }
        Ok(Self { files, tensors })
    }

    /// The file that a tensor is in.
    pub fn file(&self, name: &str) -> &Path {
        let found = self.tensors.get(name);
        found.map_or(Path::new(""), |(file, _)| &self.files[*file])
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor's shape; `None` if there is none of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|(_, tensor)| tensor.shape())
    }

    /// The tensor's elements in row-major order, whatever its strides, and
    /// their format.
    ///
    /// # Errors
    ///
    /// [`PickleError::Missing`]; [`PickleError::Malformed`] for numbers of another
    /// format than three of floats; those of reading.
    pub fn read(&self, name: &str) -> Result<(Vec<u8>, Format), PickleError> {
        let (file, tensor) = self
            .tensors
            .get(name)
            .ok_or_else(|| PickleError::Missing(name.to_owned()))?;
        let path = &self.files[*file];
        let format = match tensor.dtype() {
            DType::F32 => Format::F32,
            DType::BF16 => Format::Bf16,
            DType::F16 => Format::F16,
            other => {
                let reason = format!("`{name}` has dtype {other:?}; expected F32, F16 or BF16");
                return Err(PickleError::malformed(path, reason));
            }
        };
        let bytes = tensor
            .read()
            .map_err(|error| unreadable(path, PytorchError::Io(error)))?;
        Ok((bytes, format))
    }
}

/// What the file says about itself is the file's fault, the rest the system's.
fn unreadable(path: &Path, error: PytorchError) -> PickleError {
    match error {
        PytorchError::Io(source)
            if !matches!(
                source.kind(),
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof
            ) =>
        {
            PickleError::io("reading", path, source)
        }
        error => {
            let reason = format!("{error}. Is the file complete?");
            PickleError::malformed(path, reason)
        }
    }
}

/// Refuses a file with anything but data and tensors in it.
fn refuse_foreign(path: &Path) -> Result<(), PickleError> {
    let pickle =
        PytorchReader::read_pickle_data(path, None).map_err(|error| unreadable(path, error))?;
    let Some(object) = foreign(&pickle) else {
        return Ok(());
    };
    let reason = format!(
        "it holds the Python object `{object}`, but only tensors are taken from such a file, and \
         nothing in it is run. If you trust where it came from, load it with the program that wrote it \
         (transformers: from_pretrained(…).save_pretrained(…)), which writes safetensors"
    );
    Err(PickleError::malformed(path, reason))
}

/// The first thing in a pickle that is neither data nor a tensor, by its
/// Python name.
fn foreign(value: &PickleValue) -> Option<&str> {
    match value {
        PickleValue::Unsupported(name) if name != "torch.Tensor" => Some(name),
        PickleValue::List(items) => items.iter().find_map(foreign),
        PickleValue::Dict(items) => items.values().find_map(foreign),
        _ => None,
    }
}
