//! A packed weight on a device that has no kernels for it: words of codes and
//! f32 scales, which tensor operations of any backend unpack.

use std::ops::Range;

use burn::backend::{
    Autodiff, Backend, DType, ExtensionType, FloatDType, IntDType, Shape, Slice, TensorData,
    TensorMetadata,
    autodiff::checkpoint::strategy::CheckpointStrategy,
    tensor::{Device, FloatTensor, IntTensor},
};
use olora_packed::{CodeLayout, Packed};

use crate::{portable::Portable, stored::Maybe};

/// Bits of a word.
const WORD: usize = 32;

/// Values whose codes are turned into words at once.
const VALUES_AT_ONCE: usize = 1 << 22;

/// A packed matrix, `[d_out, d_in]`, on a device.
#[derive(Clone, Debug, ExtensionType)]
pub(crate) struct Placed<B: Backend> {
    /// `[d_out, words of a row]`, 32 bits each: the row's [`planes`] one after
    /// the other, and in a word the first value in the lowest bits.
    words: IntTensor<B>,
    /// `[d_out, groups of a row]`, f32.
    scales: FloatTensor<B>,
    /// As the scales, if there are any.
    #[extension_type]
    offsets: Maybe<B>,
    /// `[16]`, if codes are places in a table.
    #[extension_type]
    table: Maybe<B>,
    layout: CodeLayout,
    /// `[d_out, d_in]`.
    shape: [usize; 2],
}

/// Bits that lie together in words, and how many lower bits a code has: what is
/// no power of two would not fill words.
fn planes(bits: usize) -> &'static [(usize, usize)] {
    match bits {
        2 => &[(2, 0)],
        3 => &[(2, 0), (1, 2)],
        4 => &[(4, 0)],
        5 => &[(4, 0), (1, 4)],
        6 => &[(4, 0), (2, 4)],
        _ => &[(8, 0)],
    }
}

/// Appends a row's codes as words.
fn pack_row(codes: &[u8], bits: usize, words: &mut Vec<i32>) {
    for &(bits, lower) in planes(bits) {
        let mask = (1 << bits) - 1;
        words.extend(codes.chunks(WORD / bits).map(|codes| {
            let parts = codes.iter().enumerate();
            let word = parts.fold(0_u32, |word, (i, code)| {
                word | (u32::from(*code) >> lower & mask) << (i * bits)
            });
            word.cast_signed()
        }));
    }
}

impl<B: Backend> Placed<B> {
    pub(crate) fn new(packed: &Packed, device: &Device<B>) -> Self {
        let [rows, columns] = packed.shape();
        let Some(layout) = packed.format().code_layout() else {
            unreachable!("{} has no codes to be placed", packed.format());
        };
        let groups = columns / layout.group;
        let mut words = Vec::with_capacity(rows * columns * layout.bits / WORD);
        let mut scales = Vec::with_capacity(rows * groups);
        let mut offsets = Vec::new();
        let at_once = (VALUES_AT_ONCE / columns.max(1)).max(1);
        for start in (0..rows).step_by(at_once) {
            let found = match packed.codes(start..(start + at_once).min(rows)) {
                Ok(found) => found,
                Err(error) => unreachable!("{error}"),
            };
            for codes in found.codes.chunks_exact(columns) {
                pack_row(codes, layout.bits, &mut words);
            }
            scales.extend(found.scales);
            offsets.extend(found.offsets);
        }
        let floats = |values: Vec<f32>, shape: &[usize]| {
            B::float_from_data(TensorData::new(values, shape.to_vec()), device)
        };
        let words_of_row = words.len() / rows.max(1);
        let words = TensorData::new(words, [rows, words_of_row]);
        Self {
            words: B::int_from_data(words, device),
            scales: floats(scales, &[rows, groups]),
            offsets: Maybe::new((!offsets.is_empty()).then(|| floats(offsets, &[rows, groups]))),
            table: Maybe::new(layout.table.map(|table| floats(table.to_vec(), &[16]))),
            layout,
            shape: [rows, columns],
        }
    }

    /// `[d_out, d_in]`.
    pub(crate) fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Some rows as values, `[rows, d_in]`.
    pub(crate) fn rows(&self, rows: Range<usize>, dtype: DType) -> Portable<B> {
        let some = |tensor: FloatTensor<B>| Portable::<B>(tensor).narrow(0, rows.clone());
        let words = cut::<B>(self.words.clone(), 0, rows.clone());
        let offsets = self.offsets.clone().into_option().map(some);
        self.values(&words, some(self.scales.clone()), offsets, dtype)
    }

    /// The rows of these numbers as values, `[ids, d_in]`.
    pub(crate) fn selected(&self, ids: &IntTensor<B>, dtype: DType) -> Portable<B> {
        let some = |tensor| Portable::<B>(B::float_select(tensor, 0, ids.clone()));
        let words = B::int_select(self.words.clone(), 0, ids.clone());
        let offsets = self.offsets.clone().into_option().map(some);
        self.values(&words, some(self.scales.clone()), offsets, dtype)
    }

    fn values(
        &self,
        words: &IntTensor<B>,
        scales: Portable<B>,
        offsets: Option<Portable<B>>,
        dtype: DType,
    ) -> Portable<B> {
        let CodeLayout {
            bits, group, zero, ..
        } = self.layout;
        let (rows, columns) = (words.shape()[0], self.shape[1]);
        let by_groups = [rows, columns / group, group];
        let values = match self.table.clone() {
            Maybe::Tensor(table) => {
                let places = codes::<B>(words, 0..columns * bits / WORD, bits);
                let places = B::int_reshape(places, Shape::from(vec![rows * columns]));
                Portable::<B>(B::float_select(table, 0, places))
            }
            Maybe::Nothing => {
                let mut sum: Option<Portable<B>> = None;
                let mut at = 0;
                for &(bits, lower) in planes(bits) {
                    let end = at + columns * bits / WORD;
                    let part = codes::<B>(words, at..end, bits);
                    at = end;
                    let part = Portable::<B>(B::int_into_float(part, FloatDType::F32));
                    sum = Some(match sum {
                        None => part,
                        Some(sum) => sum + part.scale((1_u32 << lower).into()),
                    });
                }
                // There is one plane at least.
                let sum = sum.unwrap_or_else(|| scales.clone());
                if zero == 0 {
                    sum
                } else {
                    sum.add_scalar(-f64::from(zero))
                }
            }
        };
        let of_groups = [rows, columns / group, 1];
        let mut values = values.reshape(by_groups) * scales.reshape(of_groups);
        if let Some(offsets) = offsets {
            values = values + offsets.reshape(of_groups);
        }
        values.reshape([rows, columns]).cast(dtype)
    }
}

/// Part of one axis.
fn cut<B: Backend>(tensor: IntTensor<B>, axis: usize, range: Range<usize>) -> IntTensor<B> {
    let shape = tensor.shape();
    if range == (0..shape[axis]) {
        return tensor;
    }
    let slices: Vec<Slice> = (0..shape.num_dims())
        .map(|i| {
            Slice::from(if i == axis {
                range.clone()
            } else {
                0..shape[i]
            })
        })
        .collect();
    B::int_slice(tensor, &slices)
}

/// What lies in some words of each row, `bits` at a time, `[rows, 32/bits·words]`.
fn codes<B: Backend>(words: &IntTensor<B>, range: Range<usize>, bits: usize) -> IntTensor<B> {
    let (rows, n_words, per_word) = (words.shape()[0], range.len(), WORD / bits);
    let device = words.device();
    let words = cut::<B>(words.clone(), 1, range);
    let words = B::int_reshape(words, Shape::from(vec![rows, n_words, 1]));
    let shifts = B::int_arange_step(0..WORD as i64, bits, &device, IntDType::I32);
    let shifts = B::int_reshape(shifts, Shape::from(vec![1, 1, per_word]));
    let all = || Shape::from(vec![rows, n_words, per_word]);
    let (words, shifts) = (B::int_expand(words, all()), B::int_expand(shifts, all()));
    // Arithmetic, as words are signed: the mask takes away what came from the sign.
    let shifted = B::bitwise_right_shift(words, shifts);
    let codes = B::bitwise_and_scalar(shifted, ((1_i64 << bits) - 1).into());
    B::int_reshape(codes, Shape::from(vec![rows, n_words * per_word]))
}

impl<B: Backend, C: CheckpointStrategy> Placed<Autodiff<B, C>> {
    /// Without what follows it.
    pub(crate) fn into_primitive(self) -> Placed<B> {
        let inner = |maybe: Maybe<Autodiff<B, C>>| match maybe {
            Maybe::Tensor(tensor) => Maybe::Tensor(tensor.into_primitive()),
            Maybe::Nothing => Maybe::Nothing,
        };
        Placed {
            words: self.words,
            scales: self.scales.into_primitive(),
            offsets: inner(self.offsets),
            table: inner(self.table),
            layout: self.layout,
            shape: self.shape,
        }
    }
}
