//! Every kernel against sums in f64 of the rounded values, and against each other.

use olora_packed::{BlockFormat, Format, Packed};

use super::{
    Before, Kernel, Matrix, Side,
    block::{Block, HALF, round, widen},
    multiply, pieces,
};
use crate::{
    Products,
    cpu::packed,
    formats::{all_formats, packed as packed_in},
    stored::{Host, unpacked},
};

const ALL: [Kernel; 4] = [
    Kernel::Amx,
    Kernel::Avx512,
    Kernel::EmulatedAmx,
    Kernel::EmulatedAvx512,
];

pub(in crate::cpu) fn available() -> impl Iterator<Item = Kernel> {
    ALL.into_iter().filter(|kernel| kernel.is_available())
}

/// Values between -1 and 1 with all bits of their fractions in use.
pub(in crate::cpu) fn some(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn weight(values: &[f32], shape: [usize; 2]) -> Packed {
    Packed::pack(Format::Bf16, shape, values).unwrap()
}

/// A product in f64 with the sum of magnitudes, by row and column.
struct Oracle {
    x: Vec<f64>,
    w: Vec<f64>,
    d_in: usize,
    side: Side,
}

impl Oracle {
    /// Of rows that are rounded, and of a weight's values, which are too.
    fn new(x: impl Iterator<Item = f32>, w: &[f32], d_in: usize, side: &Side) -> Self {
        let rounded = |x: f32| f64::from(widen(round(x)));
        Self {
            x: x.map(rounded).collect(),
            w: w.iter().map(|w| rounded(*w)).collect(),
            d_in,
            side: side.clone(),
        }
    }

    fn at(&self, row: usize, column: usize) -> (f64, f64) {
        let inner = match &self.side {
            Side::Forward => 0..self.d_in,
            Side::Back(rows) => rows.clone(),
        };
        let n = inner.len();
        inner.enumerate().fold((0.0, 0.0), |(sum, size), (i, at)| {
            let w = match self.side {
                Side::Forward => self.w[column * self.d_in + at],
                Side::Back(_) => self.w[at * self.d_in + column],
            };
            let product = self.x[row * n + i] * w;
            (sum + product, size + product.abs())
        })
    }
}

/// Inner and outer size of a product.
fn sizes([d_out, d_in]: [usize; 2], side: &Side) -> [usize; 2] {
    match side {
        Side::Forward => [d_in, d_out],
        Side::Back(rows) => [rows.len(), d_in],
    }
}

/// How a product is computed: by blocks, or by panels of f32.
type Multiply<'a> = &'a dyn Fn(*mut f32, Before, Matrix, &Packed, &Side);

/// One product, with gaps between the rows of what is multiplied, over what was there and added to
/// it.
fn compare(by: Multiply, m: usize, weight: &Packed, side: &Side, gap: usize) {
    let shape = weight.shape();
    let [inner, width] = sizes(shape, side);
    let w = unpacked(weight, 0..shape[0]);
    let x_stride = inner + gap;
    // As short as a view into the end of a buffer may be.
    let mut x = some((m.max(1) - 1) * x_stride + inner, 2);
    for row in x.chunks_mut(x_stride.max(1)) {
        for beyond in row.iter_mut().skip(inner) {
            *beyond = f32::NAN;
        }
    }
    let values = (0..m).flat_map(|i| x[i * x_stride..][..inner].iter().copied());
    let oracle = Oracle::new(values, &w, shape[1], side);
    for before in [Before::Overwritten, Before::Kept] {
        // Behind the output lies what is not its own.
        let there = match before {
            Before::Overwritten => vec![f32::NAN; m * width + 40],
            Before::Kept => some(m * width + 40, 3),
        };
        let mut output = there.clone();
        let left = Matrix::new(&x, m, inner, x_stride);
        by(output.as_mut_ptr(), before, left, weight, side);
        for (i, (found, there)) in output.iter().zip(&there).enumerate() {
            if i >= m * width {
                assert_eq!(found.to_bits(), there.to_bits(), "beyond the output");
                continue;
            }
            let (row, column) = (i / width, i % width);
            let (mut sum, mut size) = oracle.at(row, column);
            if before == Before::Kept {
                sum += f64::from(*there);
                size += f64::from(there.abs());
            }
            let wrong = (f64::from(*found) - sum).abs();
            // Each sum of magnitudes is rounded at most as often as there are summands.
            let bound = (inner as f64 + 2.0) * 6e-8 * size + 1e-37;
            assert!(
                wrong <= bound,
                "{side:?}: {m} rows by {shape:?} in {}, ({row}, {column}): {found} for {sum}",
                weight.format()
            );
        }
    }
}

fn by_kernel(kernel: Kernel) -> impl Fn(*mut f32, Before, Matrix, &Packed, &Side) {
    // SAFETY: the outputs of these tests are as large as the products, and theirs.
    move |output, before, left, packed, side| unsafe {
        multiply(kernel, output, before, left, packed, side);
    }
}

/// Both ways of one size.
fn compare_both(kernel: Kernel, m: usize, shape: [usize; 2], gap: usize) {
    let weight = weight(&some(shape[0] * shape[1], 1), shape);
    for side in [Side::Forward, Side::Back(0..shape[0])] {
        compare(&by_kernel(kernel), m, &weight, &side, gap);
    }
}

#[test]
fn every_tail_of_rows() {
    for kernel in available() {
        for m in 0..=130 {
            compare_both(kernel, m, [33, 35], m % 3);
        }
    }
}

#[test]
fn every_tail_of_outputs() {
    for kernel in available() {
        for d_out in 1..=130 {
            compare_both(kernel, 3, [d_out, 37], d_out % 3);
        }
    }
}

#[test]
fn every_tail_of_inputs() {
    for kernel in available() {
        for d_in in 1..=130 {
            compare_both(kernel, 17, [34, d_in], d_in % 3);
        }
    }
}

#[test]
fn sizes_about_those_of_tiles_and_blocks() {
    const SIZES: [usize; 7] = [1, 15, 16, 17, 32, 63, 65];
    for kernel in available() {
        for m in SIZES {
            for d_out in SIZES {
                for d_in in SIZES {
                    compare_both(kernel, m, [d_out, d_in], 1);
                }
            }
        }
    }
}

/// Enough for several pieces, for more than are read at a time, and for threads.
#[test]
fn products_of_many_pieces() {
    for kernel in available() {
        for (m, shape) in [(2, [577, 1501]), (70, [1100, 1025]), (600, [65, 1030])] {
            compare_both(kernel, m, shape, 5);
        }
    }
}

#[test]
fn some_outputs_of_a_weight_on_the_way_back() {
    let weight = weight(&some(200 * 70, 1), [200, 70]);
    for kernel in available() {
        for rows in [0..200, 0..1, 37..38, 5..77, 64..128, 199..200, 100..100] {
            compare(&by_kernel(kernel), 35, &weight, &Side::Back(rows), 2);
        }
    }
}

#[test]
fn weights_in_every_format() {
    for format in all_formats() {
        for shape in [[3, 256], [70, 768]] {
            let weight = packed_in(format, shape);
            for kernel in available() {
                for m in [2, 45] {
                    for side in [Side::Forward, Side::Back(0..shape[0])] {
                        compare(&by_kernel(kernel), m, &weight, &side, 1);
                    }
                }
            }
        }
    }
}

/// What processors without these instructions compute.
#[test]
fn panels_of_rounded_values() {
    let by_panels = |output: *mut f32, before, left: Matrix, weight: &Packed, side: &Side| {
        let weight = Host {
            products: Products::Rounded,
            ..Host::from(weight.clone())
        };
        // SAFETY: the outputs of these tests are as large as the products, and theirs.
        unsafe { packed::multiply_rows(None, output, before, left, &weight, side) }
    };
    for (m, shape) in [(1, [34, 256]), (2, [70, 256]), (45, [300, 512])] {
        for format in [Format::Bf16, Format::Blocks(BlockFormat::Q8_0), Format::Nf4] {
            let weight = packed_in(format, shape);
            for side in [Side::Forward, Side::Back(1..shape[0])] {
                compare(&by_panels, m, &weight, &side, 3);
            }
        }
    }
}

#[test]
fn values_are_rounded_to_the_nearest_of_two_the_even() {
    for (x, expected) in [
        (1.0_f32, 0x3f80),
        (1.003_906_2, 0x3f80),
        (1.003_906_4, 0x3f81),
        (1.011_718_6, 0x3f81),
        (1.011_718_8, 0x3f82),
        (-0.0, 0x8000),
        (f32::MAX, 0x7f80),
        (f32::INFINITY, 0x7f80),
        (f32::NEG_INFINITY, 0xff80),
        (f32::from_bits(0x7f80_0001), 0x7fc0),
        (f32::from_bits(0xffff_ffff), 0xffff),
        (f32::from_bits(0x0001_0000), 0x0001),
    ] {
        assert_eq!(round(x), expected, "{x}");
    }
}

#[test]
fn rows_are_rounded_alike_by_every_kernel() {
    let mut values = some(4096, 9);
    for (i, x) in values.iter_mut().enumerate() {
        // Exponents of the whole range, but not so small that the value is subnormal.
        *x *= 2.0_f32.powi(i as i32 % 250 - 124);
        if x.abs() < f32::MIN_POSITIVE {
            *x = 0.0;
        }
    }
    values.extend([
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MAX,
        f32::MIN,
        0.0,
        -0.0,
    ]);
    for kernel in available() {
        for n in (0..70).chain([values.len()]) {
            let from = values.len() - n;
            let mut blocks = vec![Block([[[7; 32]; HALF]; 2]); n.div_ceil(32)];
            kernel.round_row(&values[from..], &mut blocks, 1, 5);
            for (i, block) in blocks.iter().enumerate() {
                for j in 0..32 {
                    let expected = values[from..].get(32 * i + j).map_or(0, |x| round(*x));
                    assert_eq!(
                        block.0[1][5][j], expected,
                        "{kernel:?}, {n} values, {i}, {j}"
                    );
                }
                assert_eq!(block.0[1][4], [7; 32]);
            }
        }
        let nan = f32::from_bits(0x7f80_0001);
        let mut blocks = [Block::ZERO];
        kernel.round_row(&[nan, -nan], &mut blocks, 0, 0);
        assert!(widen(blocks[0].0[0][0][0]).is_nan() && widen(blocks[0].0[0][0][1]).is_nan());
    }
}

#[test]
fn blocks_are_laid_out_alike_by_every_kernel() {
    let mut block = Block::ZERO;
    let values = block.0.as_flattened_mut().as_flattened_mut();
    for (i, value) in values.iter_mut().enumerate() {
        *value = i as u16;
    }
    for kernel in available() {
        let mut found = Block::ZERO;
        kernel.turn(&block, &mut found);
        assert_eq!(found.0, block.turned().0, "{kernel:?}");
        kernel.interleave(&block, &mut found);
        assert_eq!(found.0, block.interleaved().0, "{kernel:?}");
    }
}

/// Values of all exponents, and the special ones.
fn wild(n: usize, seed: u64) -> Vec<f32> {
    let special = [
        0.0,
        -0.0,
        f32::MIN_POSITIVE,
        f32::from_bits(0x0040_0000),
        -f32::from_bits(0x0001_0000),
        3.3e38,
        3e38,
        -1e19,
        1e-20,
    ];
    let values = some(n, seed).into_iter().enumerate();
    values
        .map(|(i, x)| match i % 7 {
            0 => special[(i / 7 + seed as usize) % special.len()],
            1 => x * 2.0_f32.powi(i as i32 % 120 - 60),
            _ => x,
        })
        .collect()
}

fn product(kernel: Kernel, x: &[f32], weight: &Packed, side: &Side, there: &[f32]) -> Vec<f32> {
    let [inner, width] = sizes(weight.shape(), side);
    let mut output = there.to_vec();
    output.resize(x.len() / inner * width, f32::NAN);
    let before = if there.is_empty() {
        Before::Overwritten
    } else {
        Before::Kept
    };
    let left = Matrix::of_rows(x, inner);
    // SAFETY: it is as large as the product.
    unsafe { multiply(kernel, output.as_mut_ptr(), before, left, weight, side) };
    output
}

/// What the manual says, on a processor that has the instruction: every bit but those of NaN.
#[test]
fn instructions_do_what_their_emulations_do() {
    for (kernel, emulated) in [
        (Kernel::Amx, Kernel::EmulatedAmx),
        (Kernel::Avx512, Kernel::EmulatedAvx512),
    ] {
        if !kernel.is_available() {
            continue;
        }
        for (values, name) in [(some as fn(usize, u64) -> Vec<f32>, "some"), (wild, "wild")] {
            let (m, d_out, d_in) = (45, 70, 600);
            let weight = weight(&values(d_out * d_in, 5), [d_out, d_in]);
            for side in [Side::Forward, Side::Back(0..d_out)] {
                let [inner, width] = sizes([d_out, d_in], &side);
                let (x, there) = (values(m * inner, 6), values(m * width, 7));
                let found = product(kernel, &x, &weight, &side, &there);
                let expected = product(emulated, &x, &weight, &side, &there);
                let different = found
                    .iter()
                    .zip(&expected)
                    .filter(|(a, b)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan()));
                let all: Vec<_> = different.collect();
                assert!(
                    all.is_empty(),
                    "{kernel:?}, {side:?}, {name}: {} of {} values, as {:?}",
                    all.len(),
                    found.len(),
                    &all[..all.len().min(4)]
                );
            }
        }
    }
}

#[test]
fn nan_and_infinities_come_out_where_they_belong() {
    const N: usize = 40;
    for kernel in available() {
        for side in [Side::Forward, Side::Back(0..N)] {
            let mut w = vec![1.0; N * N];
            w[7 * N + 7] = 0.0;
            let weight = weight(&w, [N, N]);
            let mut x = vec![1.0; 5 * N];
            x[N + 7] = f32::INFINITY;
            x[2 * N] = f32::NAN;
            x[3 * N] = f32::NEG_INFINITY;
            let output = product(kernel, &x, &weight, &side, &[]);
            for column in 0..N {
                let ones = if column == 7 { 39.0 } else { 40.0 };
                assert_eq!(output[column], ones, "{kernel:?}");
                assert_eq!(output[4 * N + column], ones, "{kernel:?}");
                // Infinity times the zero is no number, and infinity with any other.
                let infinite = output[N + column];
                assert!(if column == 7 {
                    infinite.is_nan()
                } else {
                    infinite == f32::INFINITY
                });
                assert!(output[2 * N + column].is_nan());
                assert_eq!(output[3 * N + column], f32::NEG_INFINITY);
            }
        }
    }
}

#[test]
fn the_ends_of_the_range() {
    for kernel in available() {
        let product = |x: f32, w: f32| {
            let weight = weight(&[w], [1, 1]);
            product(kernel, &[x], &weight, &Side::Forward, &[])[0]
        };
        let large = 2.0_f32.powi(127);
        assert_eq!(product(large, 1.0), large);
        assert_eq!(product(large, -2.0), f32::NEG_INFINITY);
        assert_eq!(
            product(2.0_f32.powi(-100), 2.0_f32.powi(-26)),
            f32::MIN_POSITIVE
        );
        // Subnormal values, coming out and going in.
        let small = 2.0_f32.powi(-130);
        assert_eq!(product(2.0_f32.powi(-100), 2.0_f32.powi(-30)), 0.0);
        assert_eq!(product(small, 1024.0), 0.0, "{kernel:?}");
        assert_eq!(product(1024.0, small), 0.0);
    }
}

#[test]
fn neither_threads_nor_other_rows_change_a_bit() {
    let (m, d_out, d_in) = (70, 330, 1100);
    let weight = weight(&some(d_out * d_in, 1), [d_out, d_in]);
    let x = some(m * d_in, 2);
    for kernel in available() {
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.unwrap()
                .install(|| product(kernel, &x, &weight, &Side::Forward, &[]))
        };
        let one = with(1);
        for threads in [2, 5, 48] {
            assert_eq!(one, with(threads), "{kernel:?}, {threads}");
        }
        for row in [0, 31, 69] {
            let alone = &x[row * d_in..][..d_in];
            assert_eq!(
                product(kernel, alone, &weight, &Side::Forward, &[]),
                one[row * d_out..][..d_out]
            );
        }
    }
}

#[test]
fn pieces_are_no_more_than_there_are_blocks() {
    for slabs in [1, 2, 32] {
        for panels in [1, 2, 18, 64, 1536] {
            for steps in [0, 1, 18, 128, 448] {
                for unit in [1, 2, 8] {
                    for threads in [1, 2, 96] {
                        let [down, along] = pieces([slabs, panels], steps, unit, threads);
                        let units = panels.div_ceil(unit);
                        assert!((1..=slabs).contains(&down) && (1..=units).contains(&along));
                        let widest = units.div_ceil(along) * unit;
                        assert!(
                            widest == unit || widest * steps <= super::AT_ONCE + steps * unit,
                            "{widest} columns of {steps} blocks"
                        );
                    }
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "inner dimensions")]
fn another_size_is_refused() {
    let weight = weight(&[0.0; 6], [2, 3]);
    let left = Matrix::of_rows(&[0.0; 2], 2);
    let (mut output, side) = ([0.0; 2], Side::Forward);
    let kernel = Kernel::EmulatedAmx;
    // SAFETY: it is as large as the product would be.
    unsafe {
        multiply(
            kernel,
            output.as_mut_ptr(),
            Before::Overwritten,
            left,
            &weight,
            &side,
        );
    }
}
