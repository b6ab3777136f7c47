//! The number formats of tensors in GGUF files
//! (`enum ggml_type` of `ggml.h`), and turning them into `f32`.

use half::{bf16, f16};
use olora_packed::{BlockFormat, unpack_blocks};

/// A format that this crate reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TensorType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Q8K,
}

/// What [`TensorType::from_id`] knows, for messages.
pub(crate) const SUPPORTED: &str =
    "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K and Q8_K";

impl TensorType {
    /// The format behind a number in a file, or what to call it if it is not
    /// one of those.
    pub(crate) fn from_id(id: u32) -> Result<Self, String> {
        let name = match id {
            0 => return Ok(Self::F32),
            1 => return Ok(Self::F16),
            2 => return Ok(Self::Q4_0),
            3 => return Ok(Self::Q4_1),
            6 => return Ok(Self::Q5_0),
            7 => return Ok(Self::Q5_1),
            8 => return Ok(Self::Q8_0),
            10 => return Ok(Self::Q2K),
            11 => return Ok(Self::Q3K),
            12 => return Ok(Self::Q4K),
            13 => return Ok(Self::Q5K),
            14 => return Ok(Self::Q6K),
            15 => return Ok(Self::Q8K),
            30 => return Ok(Self::Bf16),
            9 => "Q8_1",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            20 => "IQ4_NL",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            24 => "I8",
            25 => "I16",
            26 => "I32",
            27 => "I64",
            28 => "F64",
            29 => "IQ1_M",
            34 => "TQ1_0",
            35 => "TQ2_0",
            39 => "MXFP4",
            40 => "NVFP4",
            other => return Err(format!("number {other}")),
        };
        Err(name.to_owned())
    }

    pub(crate) const fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Q8K => 15,
            Self::Bf16 => 30,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match (self.blocks(), self) {
            (Some(format), _) => format.name(),
            (None, Self::F16) => "F16",
            (None, Self::Bf16) => "BF16",
            (None, _) => "F32",
        }
    }

    /// Elements of a block, and its bytes.
    pub(crate) const fn block(self) -> (usize, usize) {
        match (self.blocks(), self) {
            (Some(format), _) => (format.block_values(), format.block_bytes()),
            (None, Self::F16 | Self::Bf16) => (1, 2),
            (None, _) => (1, 4),
        }
    }

    /// The format of blocks, if it is one: not of `f32`, `f16` and `bf16`.
    pub(crate) const fn blocks(self) -> Option<BlockFormat> {
        Some(match self {
            Self::F32 | Self::F16 | Self::Bf16 => return None,
            Self::Q4_0 => BlockFormat::Q4_0,
            Self::Q4_1 => BlockFormat::Q4_1,
            Self::Q5_0 => BlockFormat::Q5_0,
            Self::Q5_1 => BlockFormat::Q5_1,
            Self::Q8_0 => BlockFormat::Q8_0,
            Self::Q2K => BlockFormat::Q2K,
            Self::Q3K => BlockFormat::Q3K,
            Self::Q4K => BlockFormat::Q4K,
            Self::Q5K => BlockFormat::Q5K,
            Self::Q6K => BlockFormat::Q6K,
            Self::Q8K => BlockFormat::Q8K,
        })
    }

    /// The type of tensors in such blocks.
    pub(crate) const fn of_blocks(format: BlockFormat) -> Self {
        match format {
            BlockFormat::Q4_0 => Self::Q4_0,
            BlockFormat::Q4_1 => Self::Q4_1,
            BlockFormat::Q5_0 => Self::Q5_0,
            BlockFormat::Q5_1 => Self::Q5_1,
            BlockFormat::Q8_0 => Self::Q8_0,
            BlockFormat::Q2K => Self::Q2K,
            BlockFormat::Q3K => Self::Q3K,
            BlockFormat::Q4K => Self::Q4K,
            BlockFormat::Q5K => Self::Q5K,
            BlockFormat::Q6K => Self::Q6K,
            BlockFormat::Q8K => Self::Q8K,
        }
    }

    /// Turns whole blocks into numbers; `output` has a place for each element.
    pub(crate) fn dequantise(self, bytes: &[u8], output: &mut [f32]) {
        if let Some(format) = self.blocks() {
            unpack_blocks(format, bytes, output);
            return;
        }
        match self {
            Self::F16 => {
                for (bytes, out) in bytes.as_chunks().0.iter().zip(output) {
                    *out = f16::from_le_bytes(*bytes).to_f32();
                }
            }
            Self::Bf16 => {
                for (bytes, out) in bytes.as_chunks().0.iter().zip(output) {
                    *out = bf16::from_le_bytes(*bytes).to_f32();
                }
            }
            _ => {
                for (bytes, out) in bytes.as_chunks().0.iter().zip(output) {
                    *out = f32::from_le_bytes(*bytes);
                }
            }
        }
    }
}
