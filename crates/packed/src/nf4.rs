//! bitsandbytes' NF4 (arXiv 2305.14314): 4 bits that point into a code book, and the
//! largest absolute value of each 64.
//!
//! Blocks run over the whole matrix, row after row. A byte holds two values, the first in
//! its high bits.

#[cfg(target_arch = "x86_64")]
use crate::x86;
use crate::{
    Bytes, PackedError,
    vector::{LANES, Work, add_products, dispatch, total},
};

/// Values with one largest value.
pub(crate) const BLOCK: usize = 64;
/// Bytes of their quants.
const QUANTS: usize = BLOCK / 2;
/// Largest values in 8 bits with one scale.
const NESTED: usize = 256;

/// `get_4bit_type("nf4")` of `bitsandbytes/functional.py`.
pub(crate) const CODE: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// NF4's code book, as files have it beside each matrix (`quant_map`).
pub const fn nf4_code() -> [f32; 16] {
    CODE
}

/// Bytes beside those of the blocks: code book, offset and a scale for each [`NESTED`].
pub(crate) const fn shared_bytes(blocks: usize) -> usize {
    (NESTED + 1 + blocks.div_ceil(NESTED)) * 4
}

/// The largest values of blocks in 8 bits: `code[place]·scale + offset`.
#[derive(Clone, Debug)]
pub struct NestedScales {
    /// A byte for each block: its place in `code` (`absmax`).
    pub places: Bytes,
    /// The code book, sorted (`nested_quant_map`, [`dynamic_code`]).
    pub code: Box<[f32; 256]>,
    /// A scale for each 256 blocks (`nested_absmax`).
    pub scales: Vec<f32>,
    /// Added to all (`nested_offset`).
    pub offset: f32,
}

/// bitsandbytes' signed 8-bit code book with a dynamic exponent (`create_dynamic_map`,
/// arXiv 1511.04561), sorted.
///
/// PyTorch computes it with fused multiply and add where the processor has it; so is
/// this, with the same bits.
pub fn dynamic_code() -> Box<[f32; 256]> {
    let mut code = [0.0; 256];
    let mut at = 0;
    for exponent in 0..7_i32 {
        let items = 1_usize << exponent;
        let scale = 10_f64.powi(exponent - 6) as f32;
        // `linspace(0.1, 1, items + 1)`: from both ends.
        let step = (1.0 - 0.1_f32) / items as f32;
        let boundary = |i: usize| {
            if i < items.div_ceil(2) {
                step.mul_add(i as f32, 0.1)
            } else {
                (-step).mul_add((items - i) as f32, 1.0)
            }
        };
        for i in 0..items {
            let mean = scale * f32::midpoint(boundary(i), boundary(i + 1));
            code[at] = mean;
            code[at + 1] = -mean;
            at += 2;
        }
    }
    // What is left is zero but for one.
    code[at] = 1.0;
    code.sort_by(f32::total_cmp);
    Box::new(code)
}

#[derive(Clone, Debug)]
enum Scales {
    /// An `f32` for each block.
    Single(Bytes),
    Nested(NestedScales),
}

/// A matrix in NF4.
#[derive(Clone, Debug)]
pub(crate) struct Nf4 {
    quants: Bytes,
    scales: Scales,
}

impl Nf4 {
    pub(crate) fn single(
        shape: [usize; 2],
        quants: Bytes,
        scales: Bytes,
    ) -> Result<Self, PackedError> {
        let blocks = shape[0] * shape[1] / BLOCK;
        PackedError::check_length("the packed values", quants.len(), blocks * QUANTS)?;
        PackedError::check_length("the largest values of blocks", scales.len(), blocks * 4)?;
        Self {
            quants,
            scales: Scales::Single(scales),
        }
        .checked(shape)
    }

    pub(crate) fn nested(
        shape: [usize; 2],
        quants: Bytes,
        scales: NestedScales,
    ) -> Result<Self, PackedError> {
        let blocks = shape[0] * shape[1] / BLOCK;
        PackedError::check_length("the packed values", quants.len(), blocks * QUANTS)?;
        let length = scales.places.len();
        PackedError::check_length("the largest values of blocks", length, blocks)?;
        let length = scales.scales.len();
        PackedError::check_length("their scales", length, blocks.div_ceil(NESTED))?;
        Self {
            quants,
            scales: Scales::Nested(scales),
        }
        .checked(shape)
    }

    fn checked(self, [_, columns]: [usize; 2]) -> Result<Self, PackedError> {
        for block in 0..self.quants.len() / QUANTS {
            let value = self.scale(block);
            if !value.is_finite() {
                return Err(PackedError::NotFinite {
                    what: "largest value",
                    block,
                    row: block * BLOCK / columns,
                    column: block * BLOCK % columns,
                    value,
                });
            }
        }
        Ok(self)
    }

    pub(crate) fn bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::Single(scales) => scales.len(),
            Scales::Nested(nested) => nested.places.len() + (NESTED + 1 + nested.scales.len()) * 4,
        };
        self.quants.len() + scales
    }

    /// The largest value of a block, zero of one that is not there.
    #[inline(always)]
    fn scale(&self, block: usize) -> f32 {
        match &self.scales {
            Scales::Single(scales) => {
                let scales = scales.as_slice().as_chunks().0;
                scales
                    .get(block)
                    .map_or(0.0, |scale| f32::from_le_bytes(*scale))
            }
            Scales::Nested(nested) => {
                let place = nested.places.as_slice().get(block).copied();
                let scale = nested.scales.get(block / NESTED).copied();
                let code = nested.code[usize::from(place.unwrap_or_default())];
                // Two roundings, as bitsandbytes has them.
                code * scale.unwrap_or_default() + nested.offset
            }
        }
    }

    /// A block's quants and its largest value.
    pub(crate) fn block(&self, block: usize) -> (&[u8], f32) {
        let quants = &self.quants.as_slice()[block * QUANTS..][..QUANTS];
        (quants, self.scale(block))
    }

    /// Values of the blocks from `first` on, as many as `output` holds.
    pub(crate) fn unpack(&self, first: usize, output: &mut [f32]) {
        let width = output.len();
        self.unpack_rows(first, [0, width], output, width);
    }

    /// Values of some rows, `width` of each, from whose first blocks to the next there are
    /// `per_row` blocks and, in the output, `stride` values.
    pub(crate) fn unpack_rows(
        &self,
        first: usize,
        [per_row, width]: [usize; 2],
        output: &mut [f32],
        stride: usize,
    ) {
        // Scales before values: what reads them stays out of the vector code.
        let mut scales = [0.0; SCALES];
        let (blocks, stride) = (width / BLOCK, stride.max(1));
        if blocks > SCALES {
            for (row, output) in output.chunks_mut(stride).enumerate() {
                let parts = output[..width].chunks_mut(SCALES * BLOCK);
                for (part, output) in parts.enumerate() {
                    let (len, first) = (output.len(), first + row * per_row + part * SCALES);
                    self.unpack_rows(first, [0, len], output, len);
                }
            }
            return;
        }
        // As many rows as there are places for scales: choosing the instructions takes as long as
        // some blocks.
        let rows = (SCALES / blocks.max(1)).max(1);
        for (i, output) in output.chunks_mut(rows.saturating_mul(stride)).enumerate() {
            let first = first + i * rows * per_row;
            let here = output.len().div_ceil(stride);
            for (row, scales) in scales.chunks_mut(blocks.max(1)).take(here).enumerate() {
                for (at, scale) in scales.iter_mut().enumerate() {
                    *scale = self.scale(first + row * per_row + at);
                }
            }
            let quants = self.quants.as_slice()[first * QUANTS..].as_chunks().0;
            dispatch(Each {
                quants,
                per_row,
                scales: &scales,
                blocks,
                output,
                stride,
            });
        }
    }

    pub(crate) fn dot(&self, first: usize, vector: &[f32]) -> f32 {
        let quants = &self.quants.as_slice()[first * QUANTS..];
        let mut sums = [0.0; LANES];
        let mut scales = [0.0; 64];
        let mut at = 0;
        for vector in vector.chunks(scales.len() * BLOCK) {
            let blocks = vector.len() / BLOCK;
            for (i, scale) in scales[..blocks].iter_mut().enumerate() {
                *scale = self.scale(first + at + i);
            }
            let quants = quants[at * QUANTS..].as_chunks().0;
            dispatch(Dot {
                quants: &quants[..blocks],
                scales: &scales[..blocks],
                vector,
                sums: &mut sums,
            });
            at += blocks;
        }
        total(sums)
    }
}

/// Blocks whose scales are there at once.
const SCALES: usize = 256;

/// Some blocks of each row.
struct Each<'a> {
    /// From the first row's first block on.
    quants: &'a [[u8; QUANTS]],
    /// Blocks from a row to the next.
    per_row: usize,
    /// Row after row.
    scales: &'a [f32],
    /// Blocks of a row.
    blocks: usize,
    output: &'a mut [f32],
    /// Values from a row to the next.
    stride: usize,
}

impl Each<'_> {
    #[inline(always)]
    fn with(self, one: impl Fn(&[u8; QUANTS], f32, &mut [f32; BLOCK])) {
        let rows = self.output.chunks_mut(self.stride);
        let scales = self.scales.chunks(self.blocks.max(1));
        for ((row, output), scales) in rows.enumerate().zip(scales) {
            let blocks = self.quants[row * self.per_row..].iter().zip(scales);
            let output = output.as_chunks_mut().0.iter_mut().take(self.blocks);
            for ((quants, scale), output) in blocks.zip(output) {
                one(quants, *scale, output);
            }
        }
    }
}

impl Work for Each<'_> {
    type Output = ();

    fn plain(self) {
        self.with(plain);
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn run<S: x86::Sixteen>(self, simd: S) {
        self.with(
            #[inline(always)]
            |quants, scale, output| x86::nf4(simd, quants, scale, output),
        );
    }
}

struct Dot<'a> {
    quants: &'a [[u8; QUANTS]],
    scales: &'a [f32],
    vector: &'a [f32],
    sums: &'a mut [f32; LANES],
}

impl Dot<'_> {
    /// The quants and scale of one block after the other, and what they are multiplied with.
    #[inline(always)]
    fn blocks(&self) -> impl Iterator<Item = (&[u8; QUANTS], f32, &[f32; BLOCK])> {
        let blocks = self.quants.iter().zip(self.scales);
        let blocks = blocks.zip(self.vector.as_chunks::<BLOCK>().0);
        blocks.map(|((quants, scale), vector)| (quants, *scale, vector))
    }
}

impl Work for Dot<'_> {
    type Output = ();

    fn plain(self) {
        let mut sums = *self.sums;
        for (quants, scale, vector) in self.blocks() {
            let mut values = [0.0; BLOCK];
            plain(quants, scale, &mut values);
            add_products(&mut sums, vector, &values);
        }
        *self.sums = sums;
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn run<S: x86::Sixteen>(self, simd: S) {
        let mut sums = x86::Sums::of(simd, self.sums);
        for (quants, scale, vector) in self.blocks() {
            let mut values = [0.0; BLOCK];
            x86::nf4(simd, quants, scale, &mut values);
            sums.add(simd, vector, &values);
        }
        *self.sums = sums.lanes(simd);
    }
}

/// One block, a value at a time.
#[inline(always)]
fn plain(quants: &[u8; QUANTS], scale: f32, output: &mut [f32; BLOCK]) {
    for (quant, output) in quants.iter().zip(output.as_chunks_mut::<2>().0) {
        output[0] = CODE[usize::from(quant >> 4)] * scale;
        output[1] = CODE[usize::from(quant & 15)] * scale;
    }
}

/// Packs blocks as `quantize_4bit` does: quants, and the largest value of each block.
pub(crate) fn pack(values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    // Halfway values; one that lies on it goes to the lower.
    let mut bounds = [0.0; 15];
    for (i, bound) in bounds.iter_mut().enumerate() {
        *bound = f32::midpoint(CODE[i], CODE[i + 1]);
    }
    let mut quants = Vec::with_capacity(values.len() / 2);
    let mut largest = Vec::with_capacity(values.len() / BLOCK);
    for block in values.as_chunks::<BLOCK>().0 {
        let most = block
            .iter()
            .fold(0.0_f32, |most, value| most.max(value.abs()));
        // The smallest divisor that bitsandbytes has.
        let inverse = 1.0 / most.max(1e-38);
        let place = |value: f32| {
            let scaled = (value * inverse).clamp(-1.0, 1.0);
            bounds
                .iter()
                .map(|&bound| u8::from(bound < scaled))
                .sum::<u8>()
        };
        let pairs = block.as_chunks::<2>().0;
        quants.extend(pairs.iter().map(|&[a, b]| place(a) << 4 | place(b)));
        largest.push(most);
    }
    (quants, largest)
}

/// Packs the largest values of blocks as `quantize_4bit(compress_statistics=True)` does on
/// the CPU: a table of 65,536 places over −1 to 1, not the nearest of the code book.
///
/// The offset is their mean, summed in `f64`: PyTorch's, in `f32`, depends on how many
/// threads and lanes it sums with, and may differ in its last bit.
pub(crate) fn nest(largest: &[f32]) -> NestedScales {
    let sum: f64 = largest.iter().map(|&value| f64::from(value)).sum();
    nest_around((sum / largest.len().max(1) as f64) as f32, largest)
}

fn nest_around(offset: f32, largest: &[f32]) -> NestedScales {
    let code = dynamic_code();
    const STEPS: f32 = 65_535.0;
    let mut bounds = [0.0; 255];
    for (i, bound) in bounds.iter_mut().enumerate() {
        *bound = 0.5 * (code[i] + code[i + 1]);
    }
    let mut places = Vec::with_capacity(largest.len());
    let mut scales = Vec::with_capacity(largest.len().div_ceil(NESTED));
    for block in largest.chunks(NESTED) {
        let shifted = block.iter().map(|value| value - offset);
        let most = shifted
            .clone()
            .fold(0.0_f32, |most, value| most.max(value.abs()));
        scales.push(most);
        let inverse = 1.0 / most;
        places.extend(shifted.map(|value| {
            if most == 0.0 {
                return 0;
            }
            let scaled = (value * inverse).clamp(-1.0, 1.0);
            // Compiled for FMA, as bitsandbytes is.
            let step = ((scaled + 1.0) * 0.5).mul_add(STEPS, 0.5).trunc();
            let middle = -1.0 + 2.0 * step / STEPS;
            bounds.partition_point(|&bound| bound < middle) as u8
        }));
    }
    NestedScales {
        places: Bytes::from(places),
        code,
        scales,
        offset,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::vector::every_way;

    fn example() -> (Vec<[u8; QUANTS]>, Vec<f32>) {
        let quants =
            (0..256_usize).map(|i| std::array::from_fn(|j| ((i * 7 + j * 89) & 255) as u8));
        let scales = (0..256).map(|i| f32::from_bits((i * 0x00fd_1234) & 0x7eff_ffff | i << 31));
        (quants.collect(), scales.collect())
    }

    /// [`Each`] with an output of its own.
    struct Bits<'a>(&'a [[u8; QUANTS]], &'a [f32]);

    impl Bits<'_> {
        fn by(self, run: impl FnOnce(Each<'_>)) -> Vec<u32> {
            let mut output = vec![0.0; self.0.len() * BLOCK];
            run(Each {
                quants: self.0,
                per_row: 64,
                scales: self.1,
                blocks: 64,
                output: &mut output,
                stride: 64 * BLOCK,
            });
            output.iter().map(|value| value.to_bits()).collect()
        }
    }

    impl Work for Bits<'_> {
        type Output = Vec<u32>;

        fn plain(self) -> Vec<u32> {
            self.by(|each| each.plain())
        }

        #[cfg(target_arch = "x86_64")]
        fn run<S: x86::Sixteen>(self, simd: S) -> Vec<u32> {
            self.by(|each| each.run(simd))
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let (quants, scales) = example();
        let outputs = every_way(|| Bits(&quants, &scales));
        for output in &outputs {
            assert!(output == &outputs[0]);
        }
    }

    #[test]
    fn nested_scales_are_those_of_bitsandbytes() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../fixtures/packed/golden.safetensors"
        );
        let bytes = std::fs::read(path).unwrap();
        let golden = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let bytes = |name: &str| golden.tensor(name).unwrap().data().to_vec();
        let floats = |name: &str| -> Vec<f32> {
            let bytes = bytes(name);
            let chunks = bytes.as_chunks().0.iter();
            chunks.map(|bytes| f32::from_le_bytes(*bytes)).collect()
        };
        let largest = floats("nf4.absmax");
        let offset = floats("nf4_double.offset")[0];
        let nested = nest_around(offset, &largest);
        assert_eq!(nested.places.as_slice(), bytes("nf4_double.absmax"));
        assert_eq!(nested.scales, floats("nf4_double.nested_absmax"));
        // PyTorch's own mean, to a bit or two.
        assert!((nest(&largest).offset / offset - 1.0).abs() < 3e-7);
    }

    #[test]
    fn one_on_the_bound_goes_to_the_lower_place() {
        let mut block = [0.0; BLOCK];
        block[0] = 1.0;
        block[1] = f32::midpoint(CODE[14], CODE[15]);
        assert_eq!(pack(&block).0[0], 0xfe);
    }
}
