//! GPTQ's and AWQ's 4 bits, which are stored `[columns, rows]` and are repacked by rows.
//!
//! A value is `scale·(quant − zero)`, with a scale of `f16` and a zero of 4 bits for each
//! group of inputs and each output. As an affine format with scale and bias in `f32` that is
//! `scale·quant + bias`, `bias = −scale·zero`, where nothing is rounded: 4.5 bits a value at
//! groups of 128 instead of 4.16.

use half::f16;

use crate::{Affine, Bytes, Packed, PackedError, ScaleType};

/// Values in a word.
const WORD: usize = 8;

/// What GPTQ's stored zeros mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GptqZeros {
    /// One less than the zero: `checkpoint_format` `gptq`, and where there is none.
    LessOne,
    /// The zero: `checkpoint_format` `gptq_v2`.
    Plain,
}

/// The tensors of a layer in GPTQ's or AWQ's files, low byte first.
#[derive(Clone, Copy, Debug)]
pub struct TransposedParts<'a> {
    /// Words of 8 quants (`qweight`): of 8 inputs, `[d_in / 8, d_out]`, by GPTQ; of 8
    /// outputs, `[d_in, d_out / 8]`, by AWQ.
    pub quants: &'a [u8],
    /// Words of 8 zeros (`qzeros`), `[d_in / group, d_out / 8]`.
    pub zeros: &'a [u8],
    /// `f16` (`scales`), `[d_in / group, d_out]`.
    pub scales: &'a [u8],
}

impl Packed {
    /// A matrix of a file by GPTQ with 4 bits, repacked by rows.
    ///
    /// `groups` is `g_idx`, the group of each input as `i32`, if there is one.
    ///
    /// # Errors
    ///
    /// As [`Packed::from_affine`]; [`PackedError::Unsupported`] for groups that do not follow
    /// each other (`desc_act`, "act-order"), or outputs that do not divide into words.
    pub fn from_gptq(
        group: usize,
        shape: [usize; 2],
        parts: TransposedParts<'_>,
        groups: Option<&[u8]>,
        zeros: GptqZeros,
    ) -> Result<Self, PackedError> {
        if let Some(groups) = groups {
            PackedError::check_length("`g_idx`", groups.len(), shape[1] * 4)?;
            let words = groups.as_chunks().0.iter().enumerate();
            for (input, word) in words {
                let found = i32::from_le_bytes(*word);
                if usize::try_from(found).ok() != input.checked_div(group) {
                    return Err(PackedError::Unsupported {
                        what: "the order of GPTQ's groups",
                        found: format!(
                            "not that of the inputs (input {input} is in group {found})"
                        ),
                        supported: "files that were made without `desc_act` (act-order)",
                    });
                }
            }
        }
        let more = match zeros {
            GptqZeros::LessOne => 1.0,
            GptqZeros::Plain => 0.0,
        };
        let words = [shape[1] / WORD, shape[0]];
        repacked(
            group,
            shape,
            parts,
            words,
            more,
            |input, output| (input / WORD * shape[0] + output, input % WORD),
            |output| output % WORD,
        )
    }

    /// A matrix of a file by AWQ ("GEMM" version) with 4 bits, repacked by rows.
    ///
    /// # Errors
    ///
    /// As [`Packed::from_gptq`].
    pub fn from_awq(
        group: usize,
        shape: [usize; 2],
        parts: TransposedParts<'_>,
    ) -> Result<Self, PackedError> {
        /// Where in a word each of 8 neighbours is.
        const PLACES: [usize; WORD] = [0, 4, 1, 5, 2, 6, 3, 7];
        let words = [shape[1], shape[0] / WORD];
        let place = |output: usize| PLACES[output % WORD];
        repacked(
            group,
            shape,
            parts,
            words,
            0.0,
            |input, output| (input * (shape[0] / WORD) + output / WORD, place(output)),
            place,
        )
    }
}

/// Repacks by rows, given the word and the place in it of each quant.
fn repacked(
    group: usize,
    shape: [usize; 2],
    parts: TransposedParts<'_>,
    [high, wide]: [usize; 2],
    more: f32,
    quant: impl Fn(usize, usize) -> (usize, usize),
    zero_place: impl Fn(usize) -> usize,
) -> Result<Packed, PackedError> {
    let [rows, columns] = shape;
    let affine = Affine::new(4, group, ScaleType::F32)?;
    crate::Format::Affine(affine).bytes(shape)?;
    if !rows.is_multiple_of(WORD) {
        return Err(PackedError::Unsupported {
            what: "the number of outputs",
            found: rows.to_string(),
            supported: "multiples of 8, as words of zeros hold them",
        });
    }
    let groups = columns / group;
    for (what, part, expected) in [
        ("`qweight`", parts.quants, high * wide * 4),
        ("`qzeros`", parts.zeros, groups * rows / 2),
        ("`scales`", parts.scales, groups * rows * 2),
    ] {
        PackedError::check_length(what, part.len(), expected)?;
    }
    // In a word of low byte first, a place is half a byte.
    let nibble = |bytes: &[u8], word: usize, place: usize| {
        bytes[word * 4 + place / 2] >> (place % 2 * 4) & 15
    };
    let mut quants = Vec::with_capacity(rows * columns / 2);
    let mut scales = Vec::with_capacity(rows * groups * 4);
    let mut biases = Vec::with_capacity(rows * groups * 4);
    for row in 0..rows {
        for pair in 0..columns / 2 {
            let of = |column| {
                let (word, place) = quant(column, row);
                nibble(parts.quants, word, place)
            };
            quants.push(of(2 * pair) | of(2 * pair + 1) << 4);
        }
        for group in 0..groups {
            let at = (group * rows + row) * 2;
            let scale = f16::from_le_bytes([parts.scales[at], parts.scales[at + 1]]).to_f32();
            let word = group * (rows / WORD) + row / WORD;
            let zero = f32::from(nibble(parts.zeros, word, zero_place(row))) + more;
            scales.extend(scale.to_le_bytes());
            biases.extend((-scale * zero).to_le_bytes());
        }
    }
    let [quants, scales, biases] = [quants, scales, biases].map(Bytes::from);
    Packed::from_affine(affine, shape, quants, scales, biases)
}
