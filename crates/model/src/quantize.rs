//! In what matrices are packed as they are read.

use std::{error::Error, fmt, str::FromStr};

use burn::tensor::Device;
use olora_operations::{Dtype, Products, is_host};
use olora_packed::{BlockFormat, Format};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A format that the matrices of a base model are packed in as they are read:
/// `model.quantize` of a recipe.
///
/// ```
/// use olora_model::Quantize;
///
/// let quantize: Quantize = "nf4".parse()?;
/// assert_eq!(quantize.format().block_values(), 64);
/// # Ok::<(), olora_model::UnknownQuantize>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Quantize {
    /// bitsandbytes' NF4 with double quantisation, as `QLoRA` has it
    /// ([arXiv 2305.14314](https://arxiv.org/abs/2305.14314)): 4.13 bits a value.
    #[serde(rename = "nf4")]
    Nf4,
    /// llama.cpp's 8 bits, the nearest to the original: 8.5 bits a value.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// llama.cpp's simplest 4 bits: 4.5 bits a value.
    #[serde(rename = "q4_0")]
    Q4_0,
    /// llama.cpp's 4 bits with scales in two steps: 4.5 bits a value. Rows must be multiples of 256 long,
    /// and making it takes several times as long as the others.
    #[serde(rename = "q4_k")]
    Q4K,
}

impl Quantize {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::Nf4, Self::Q8_0, Self::Q4_0, Self::Q4K];

    /// As recipes and the command line spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4K => "q4_k",
        }
    }

    /// How values are packed. NF4 is with double quantisation.
    pub const fn format(self) -> Format {
        match self {
            Self::Nf4 => Format::Nf4Double,
            Self::Q8_0 => Format::Blocks(BlockFormat::Q8_0),
            Self::Q4_0 => Format::Blocks(BlockFormat::Q4_0),
            Self::Q4K => Format::Blocks(BlockFormat::Q4K),
        }
    }
}

impl fmt::Display for Quantize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Quantize {
    type Err = UnknownQuantize;

    fn from_str(name: &str) -> Result<Self, UnknownQuantize> {
        let mut all = Self::ALL.into_iter();
        all.find(|quantize| quantize.name() == name)
            .ok_or_else(|| UnknownQuantize(name.to_owned()))
    }
}

/// What becomes of a base's matrices: those of linear layers, and the embedding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Packing {
    /// Those that the file has packed stay as they lie, the embedding and the
    /// vocabulary projection too.
    #[default]
    Stored,
    /// All are unpacked into the number format of the rest.
    None,
    /// Those of the blocks' linear layers are packed as they are read, as `QLoRA`
    /// does; the embedding and the vocabulary projection stay what they are. Rows
    /// that do not divide into the format's blocks stay dense.
    As(Quantize),
}

impl Packing {
    /// As recipes spell it: `stored`, `none`, or the format's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::None => "none",
            Self::As(quantize) => quantize.name(),
        }
    }

    /// Whether it is the default.
    pub fn is_stored(&self) -> bool {
        *self == Self::Stored
    }
}

/// In what form a model's matrices are held: those of linear layers, and the
/// embedding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Matrices {
    /// What becomes of packed ones, and which are packed as they are read.
    pub packing: Packing,
    /// What becomes of the others.
    pub dense: Dense,
    /// Whether packed ones are put into the order in which products are fastest, where there is one for
    /// the processor ([`Packed::interleaved`](olora_packed::Packed::interleaved)): owned, in as many
    /// bytes. For models that generate.
    pub interleaved: bool,
}

/// What a model's matrices are that are not packed in few bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dense {
    /// Tensors, which can be trained and written over.
    #[default]
    Tensors,
    /// For the CPU, and for whoever trains nothing of them: where a file has bfloat16 or
    /// float32, the bytes of the file, which stay in it. The values are those that a
    /// tensor of float32 would have; products of single rows read them in order.
    AsStored,
    /// For the CPU: all in bfloat16, half of what float32 takes, and they and packed
    /// ones are multiplied with so. A device with bfloat16 tensors needs none of this.
    Bf16(Products),
}

impl Matrices {
    /// The form of a model that is to run on a device, untrained, held and computed
    /// with in `dtype`; and the dtype of its tensors.
    pub fn to_run(packing: Packing, dtype: Dtype, device: &Device) -> (Dtype, Self) {
        let dense = match dtype {
            Dtype::Bf16 if is_host(device) => Dense::Bf16(Products::Rounded),
            Dtype::F32 if is_host(device) => Dense::AsStored,
            _ => return (dtype, packing.into()),
        };
        let matrices = Self {
            packing,
            dense,
            interleaved: true,
        };
        (Dtype::F32, matrices)
    }

    /// How the CPU multiplies with them.
    pub(crate) fn products(self) -> Products {
        match self.dense {
            Dense::Bf16(products) => products,
            Dense::Tensors | Dense::AsStored => Products::Exact,
        }
    }
}

impl From<Packing> for Matrices {
    fn from(packing: Packing) -> Self {
        Self {
            packing,
            dense: Dense::Tensors,
            interleaved: false,
        }
    }
}

impl FromStr for Packing {
    type Err = UnknownQuantize;

    fn from_str(name: &str) -> Result<Self, UnknownQuantize> {
        match name {
            "stored" => Ok(Self::Stored),
            "none" => Ok(Self::None),
            other => other.parse().map(Self::As),
        }
    }
}

impl Serialize for Packing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Packing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(D::Error::custom)
    }
}

/// What was given is the name of no [`Quantize`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownQuantize(pub String);

impl fmt::Display for UnknownQuantize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is no format to pack weights in: write nf4, q8_0, q4_0 or q4_k; or stored or none",
            self.0
        )
    }
}

impl Error for UnknownQuantize {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_everywhere() {
        for quantize in Quantize::ALL {
            assert_eq!(quantize.name().parse(), Ok(quantize));
            let json = serde_json::to_value(quantize).unwrap();
            assert_eq!(json, quantize.name());
            assert_eq!(serde_json::from_value::<Quantize>(json).unwrap(), quantize);
        }
        let error = "int4".parse::<Quantize>().unwrap_err().to_string();
        assert!(
            error.contains("`int4`") && error.contains("q4_k"),
            "{error}"
        );
    }
}
