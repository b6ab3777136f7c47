//! Which matrices of safetensors files are packed, with what stands beside them.
//!
//! A packed matrix is several tensors: values, scales, code books, which its maker's
//! module here puts together. All of them are held against each other by their
//! headers when files are opened, so that what is missing, cut or of another shape is
//! found before anything is loaded. To the rest of the crate there is one matrix,
//! under the name of its dense weight.

mod bitsandbytes;
mod mlx;
mod transposed;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use olora_packed::{Format, Packed, PackedError};
use safetensors::Dtype;

use super::safetensors::{Raw, Shards};
use crate::{ModelError, config::Quantization};

/// The packed matrices of a checkpoint.
#[derive(Default)]
pub(super) struct Matrices {
    matrices: BTreeMap<String, Matrix>,
    /// Tensors that are parts of them, and no weights by themselves.
    parts: BTreeSet<String>,
}

/// One of them.
struct Matrix {
    /// `[d_out, d_in]`.
    shape: [usize; 2],
    kind: Kind,
}

/// How it is packed.
enum Kind {
    Nf4(bitsandbytes::Nf4),
    Affine(olora_packed::Affine),
    Transposed(transposed::Layout),
}

impl Kind {
    fn format(&self) -> Result<Format, PackedError> {
        Ok(match self {
            Self::Nf4(nf4) => nf4.format(),
            Self::Affine(affine) => Format::Affine(*affine),
            Self::Transposed(layout) => Format::Affine(layout.affine()?),
        })
    }
}

impl Matrices {
    /// Finds them, by what the configuration at `config` says.
    pub(super) fn find(
        shards: &Shards,
        quantization: Option<&Quantization>,
        config: &Path,
    ) -> Result<Self, ModelError> {
        let mut found = Self::default();
        match quantization {
            None => {
                refuse_unsaid(shards, config)?;
                return Ok(found);
            }
            Some(Quantization::Nf4 { storage }) => {
                bitsandbytes::find(shards, *storage, &mut found)?;
            }
            Some(Quantization::Mlx(settings)) => {
                refuse_unnamed(shards, config)?;
                mlx::find(shards, settings, &mut found)?;
            }
            Some(Quantization::Gptq { .. } | Quantization::Awq { .. }) => {
                if let Some(quantization) = quantization {
                    transposed::find(shards, quantization, &mut found)?;
                }
            }
        }
        if found.matrices.is_empty() {
            let reason = "it says that weights are packed (`quantization_config`), but none is, or they are packed in \
                          another way: copy the configuration that belongs to them, or remove the section if they \
                          are as they were trained";
            return Err(ModelError::malformed(
                config,
                "model configuration",
                &reason,
            ));
        }
        Ok(found)
    }

    fn insert(&mut self, name: String, shape: [usize; 2], kind: Kind) {
        self.matrices.insert(name, Matrix { shape, kind });
    }

    /// Names of weights: of tensors that are no parts, and of matrices whose values have another.
    pub(super) fn names<'a>(&'a self, shards: &'a Shards) -> impl Iterator<Item = &'a str> {
        let stored = shards.names().filter(|&name| !self.parts.contains(name));
        let renamed = self.matrices.keys().map(String::as_str);
        stored.chain(renamed.filter(|name| shards.raw(name).is_none()))
    }

    /// The shape of a weight: the whole matrix's if it is packed. `None` for its parts.
    pub(super) fn shape<'a>(&'a self, shards: &'a Shards, name: &str) -> Option<&'a [usize]> {
        match self.matrices.get(name) {
            Some(matrix) => Some(&matrix.shape),
            None if self.parts.contains(name) => None,
            None => shards.shape(name),
        }
    }

    /// The tensor that a matrix's values are in, whose file is the matrix's.
    pub(super) fn stored<'a>(&self, name: &'a str) -> std::borrow::Cow<'a, str> {
        match self.matrices.get(name).map(|matrix| &matrix.kind) {
            Some(Kind::Transposed(_)) => transposed::stored(name).into(),
            _ => name.into(),
        }
    }

    /// How a matrix is packed. `None` if it is dense, or its rows do not divide into blocks, so
    /// that it has to become so.
    /// Whether it is one of them, in whatever form.
    pub(super) fn holds(&self, name: &str) -> bool {
        self.matrices.contains_key(name)
    }

    pub(super) fn format(&self, name: &str) -> Option<Format> {
        let matrix = self.matrices.get(name)?;
        let format = matrix.kind.format().ok()?;
        format.row_bytes(matrix.shape[1]).is_ok().then_some(format)
    }

    /// A matrix as it is packed, in its own shape, or as `[1, d_out * d_in]` if its rows do not divide
    /// into blocks. `None` if it is dense.
    pub(super) fn packed(&self, shards: &Shards, name: &str) -> Result<Option<Packed>, ModelError> {
        let Some(Matrix { shape, kind }) = self.matrices.get(name) else {
            return Ok(None);
        };
        let made = match kind {
            Kind::Nf4(nf4) => nf4.packed(shards, name, *shape)?,
            Kind::Affine(affine) => mlx::packed(*affine, shards, name, *shape)?,
            Kind::Transposed(layout) => layout.packed(shards, name, *shape)?,
        };
        let made = made.map_err(|source| ModelError::Packed {
            tensor: name.to_owned(),
            path: shards.file(&self.stored(name)).to_owned(),
            source,
        });
        made.map(Some)
    }

    /// Whether a tensor is the bias of a packed layer and nothing but zeros, as `AutoGPTQ` writes it for
    /// layers without one.
    pub(super) fn is_idle_bias(&self, shards: &Shards, name: &str) -> bool {
        let of_packed = name
            .strip_suffix(".bias")
            .is_some_and(|layer| self.matrices.contains_key(&format!("{layer}.weight")));
        of_packed
            && shards
                .raw(name)
                .is_some_and(|raw| raw.bytes.iter().all(|&byte| byte == 0))
    }
}

/// Refuses GPTQ's and AWQ's tensors where the configuration does not say which of
/// the two they are, which is then taken for MLX's.
fn refuse_unnamed(shards: &Shards, config: &Path) -> Result<(), ModelError> {
    match shards.names().find(|name| name.ends_with(".qweight")) {
        None => Ok(()),
        Some(name) => {
            let reason = format!(
                "its `quantization_config` has no `quant_method`, and `{name}` is GPTQ's or AWQ's, which differ: copy \
                 the configuration that belongs to the weights"
            );
            Err(ModelError::malformed(
                config,
                "model configuration",
                &reason,
            ))
        }
    }
}

/// Refuses packed tensors of which the configuration says nothing.
fn refuse_unsaid(shards: &Shards, config: &Path) -> Result<(), ModelError> {
    let packed = |name: &&str| {
        name.contains(".quant_state.bitsandbytes__")
            || [".qweight", ".SCB", ".weight_packed"]
                .iter()
                .any(|end| name.ends_with(end))
            || name.strip_suffix(".scales").is_some_and(|layer| {
                let values = shards.raw(&format!("{layer}.weight"));
                values.is_some_and(|raw| raw.dtype == Dtype::U32)
            })
    };
    if let Some(name) = shards.names().find(packed) {
        let reason = format!(
            "it says nothing of how weights are packed (`quantization_config`), but the weights have `{name}`: \
             copy the configuration that belongs to them"
        );
        return Err(ModelError::malformed(
            config,
            "model configuration",
            &reason,
        ));
    }
    let small = |name: &str| {
        let dtype = shards.raw(name)?.dtype;
        let eight_bits = matches!(
            dtype,
            Dtype::I8 | Dtype::U8 | Dtype::F8_E4M3 | Dtype::F8_E5M2
        );
        (eight_bits && name.ends_with(".weight")).then(|| (name.to_owned(), dtype))
    };
    if let Some((name, dtype)) = shards.names().find_map(small) {
        let reason = format!(
            "`{name}` is stored in 8 bits ({dtype:?}), which is read neither with scales beside it nor without: get the \
             model in f32, f16 or bf16, most often its original, which `model.quantize` packs as it is read, or as a GGUF \
             file (Q8_0)"
        );
        return Err(ModelError::malformed(
            shards.file(&name),
            "checkpoint",
            &reason,
        ));
    }
    Ok(())
}

/// The parts of one matrix, to be looked at.
#[derive(Clone, Copy)]
struct Parts<'a> {
    shards: &'a Shards,
    /// The tensor with its values, whose file errors name.
    values: &'a str,
}

impl<'a> Parts<'a> {
    fn malformed(&self, reason: &str) -> ModelError {
        ModelError::malformed(
            self.shards.file_or_first(self.values),
            "checkpoint",
            &reason,
        )
    }

    /// A part, of one of these types.
    fn part(&self, name: &str, types: &[Dtype]) -> Result<Raw<'a>, ModelError> {
        let Some(raw) = self.shards.raw(name) else {
            let reason = format!(
                "it has no `{name}`, without which `{}` cannot be unpacked. Copy or make it again",
                self.values
            );
            return Err(self.malformed(&reason));
        };
        if !types.contains(&raw.dtype) {
            let expected: Vec<_> = types.iter().map(|dtype| format!("{dtype:?}")).collect();
            let reason = format!(
                "`{name}` has dtype {:?}; expected {}",
                raw.dtype,
                expected.join(" or ")
            );
            return Err(self.malformed(&reason));
        }
        Ok(raw)
    }

    /// A part of this type and shape, which `matrix` of the whole matrix asks for.
    fn exactly(
        &self,
        name: &str,
        types: &[Dtype],
        shape: &[usize],
        matrix: [usize; 2],
    ) -> Result<Raw<'a>, ModelError> {
        let raw = self.part(name, types)?;
        if raw.shape != shape {
            let reason = format!(
                "`{name}` is {:?}, but a matrix {matrix:?}, which `{}` is said to hold, needs {shape:?}",
                raw.shape, self.values
            );
            return Err(self.malformed(&reason));
        }
        Ok(raw)
    }

    /// A part with rows and columns.
    fn matrix(&self, name: &str, types: &[Dtype]) -> Result<(Raw<'a>, [usize; 2]), ModelError> {
        let raw = self.part(name, types)?;
        let Ok(shape) = <[usize; 2]>::try_from(raw.shape) else {
            let reason = format!("`{name}` is {:?}; expected a matrix", raw.shape);
            return Err(self.malformed(&reason));
        };
        Ok((raw, shape))
    }
}

/// Numbers of a part of type F32.
fn floats(bytes: &[u8]) -> Vec<f32> {
    let words = bytes.as_chunks().0.iter();
    words.map(|word| f32::from_le_bytes(*word)).collect()
}
