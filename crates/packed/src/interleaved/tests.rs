//! What is interleaved against files, and every way of multiplying against the slow one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::{Bytes, Packed, Vectors, unpack_blocks};

fn some(n: usize, seed: usize) -> Vec<f32> {
    (0..n)
        .map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0)
        .collect()
}

/// Rows as in a file, with scales from 2⁻¹⁰ to 2⁻².
fn file(rows: usize, n_blocks: usize) -> Vec<u8> {
    let size = BlockFormat::Q4_0.block_bytes();
    let mut bytes: Vec<u8> = (0..rows * n_blocks * size)
        .map(|i| (i * 131 + i / 7 * 17 + i / 1009) as u8)
        .collect();
    for block in bytes.chunks_exact_mut(size) {
        block[1] = 0x14 + block[1] % 0x20;
    }
    bytes
}

/// The products of all rows with all vectors, `[row][vector]`.
fn bits(
    n: usize,
    rows: usize,
    of: impl FnOnce(&mut dyn FnMut(usize, usize, &[f32; ROWS])),
) -> Vec<u32> {
    let mut all = vec![0; n * rows];
    of(&mut |first, vector, products| {
        for (row, product) in products.iter().enumerate() {
            all[(first + row) * n + vector] = product.to_bits();
        }
    });
    all
}

#[test]
fn rows_are_found_again() {
    for n_blocks in [1, 3, 18] {
        let file = file(48, n_blocks);
        let matrix = Interleaved::new(&file, n_blocks).unwrap();
        let width = file.len() / 48;
        for rows in [0..48, 0..1, 15..33, 47..48, 20..20] {
            let right = &file[rows.start * width..rows.end * width];
            assert!(matrix.rows(rows, &(0..n_blocks)) == right);
        }
        let last = matrix.rows(17..18, &(n_blocks - 1..n_blocks));
        assert!(last == file[18 * width - 18..18 * width]);
        assert_eq!(matrix.len(), file.len());
    }
    assert!(Interleaved::new(&file(24, 1), 1).is_none());
}

/// A matrix of 48 rows of 96, as in a file and interleaved.
fn both() -> [Packed; 2] {
    let file = Bytes::from(file(48, 3));
    let packed = Packed::from_blocks(BlockFormat::Q4_0, [48, 96], file).unwrap();
    let interleaved = packed.with_rows_interleaved().unwrap();
    assert!(interleaved.is_interleaved() && !packed.is_interleaved());
    [packed, interleaved]
}

#[test]
fn values_and_codes_are_those_of_the_file() {
    let [packed, interleaved] = both();
    for (rows, columns) in [
        (0..48, 0..96),
        (15..33, 0..32),
        (7..8, 31..65),
        (2..2, 0..96),
        (16..32, 64..96),
    ] {
        let [left, right] = [&packed, &interleaved].map(|matrix| {
            let mut panel = vec![9.0; rows.len() * 100];
            matrix
                .unpack(rows.clone(), columns.clone(), &mut panel, 100)
                .unwrap();
            panel
        });
        assert_eq!(left, right, "{rows:?}, {columns:?}");
    }
    let [left, right] = [&packed, &interleaved].map(|matrix| matrix.codes(5..40).unwrap());
    assert!(left.codes == right.codes && left.scales == right.scales);
    assert_eq!(packed.bytes(), interleaved.bytes());
    assert_eq!(packed.as_blocks(), interleaved.as_blocks());
}

#[test]
fn products_are_added_and_have_the_bits_of_several() {
    let [_, interleaved] = both();
    for rows in [0..48, 3..4, 15..33, 20..20, 16..16] {
        let vectors = some(5 * 96, 4);
        let mut together = vec![9.0; 5 * rows.len()];
        let several = Vectors::new(&vectors, 96);
        interleaved
            .dot_rows_of_several(rows.clone(), &several, &mut together)
            .unwrap();
        for (i, vector) in vectors.chunks(96).enumerate() {
            let mut alone = vec![0.0; rows.len()];
            interleaved
                .dot_rows(rows.clone(), vector, &mut alone)
                .unwrap();
            let of_several: Vec<_> = together.iter().skip(i).step_by(5).copied().collect();
            assert_eq!(alone, of_several, "{rows:?}");
            let mut added = vec![0.5; rows.len()];
            interleaved
                .dot_rows(rows.clone(), vector, &mut added)
                .unwrap();
            let right: Vec<_> = alone.iter().map(|product| 0.5 + product).collect();
            assert_eq!(added, right);
        }
    }
}

/// What has no digits is multiplied as without whole numbers, and the others are as without it.
#[test]
fn what_is_not_finite_changes_no_other_vector() {
    let [packed, interleaved] = both();
    for wrong in [f32::NAN, f32::INFINITY, 1e-30] {
        let mut vectors = some(3 * 96, 5);
        vectors[96..192].fill(0.0);
        vectors[100] = wrong;
        let several = Vectors::new(&vectors, 96);
        let mut together = vec![9.0; 3 * 48];
        interleaved
            .dot_rows_of_several(0..48, &several, &mut together)
            .unwrap();
        for (i, vector) in vectors.chunks(96).enumerate() {
            let matrix = if i == 1 { &packed } else { &interleaved };
            let mut alone = vec![0.0; 48];
            matrix.dot_rows(0..48, vector, &mut alone).unwrap();
            for (alone, together) in alone.iter().zip(together[i..].iter().step_by(3)) {
                assert_eq!(alone.to_bits(), together.to_bits(), "{wrong}, {i}");
            }
        }
    }
}

#[test]
fn the_instructions_give_the_bits_of_the_slow_version() {
    for n_blocks in [1, 2, 18, 48] {
        let matrix = Interleaved::new(&file(32, n_blocks), n_blocks).unwrap();
        // Of 48 blocks, 36 vectors are multiplied with before others.
        for n in [1, 2, 3, 5, 8, 9, 20, 50] {
            let vectors = Digits::of(&some(n * n_blocks * COLUMNS, 1)).unwrap();
            let work = Products {
                bytes: matrix.bytes.as_slice(),
                first: 0,
                n_blocks,
                vectors: &vectors,
            };
            let right = bits(n, 32, |output| work.plain(output));
            for instructions in Instructions::all() {
                let found = bits(n, 32, |output| work.by(instructions, output));
                assert!(
                    found == right,
                    "{instructions:?}: {n_blocks} blocks, {n} vectors"
                );
            }
        }
    }
}

#[test]
fn digits_by_instructions_are_those_of_the_slow_version() {
    let mut vector = some(32 * 40, 3);
    for (i, value) in vector.iter_mut().enumerate() {
        *value *= 2.0_f32.powi((i / 32) as i32 * 3 - 60);
    }
    vector[64..96].fill(0.0);
    let [mut slow, mut found] = [Vec::new(), Vec::new()];
    assert!(Digits::add_by(Instructions::Plain, &mut slow, &vector));
    for instructions in Instructions::all() {
        found.clear();
        assert!(Digits::add_by(instructions, &mut found, &vector));
        assert_eq!(found, slow, "{instructions:?}");
    }
}

/// Next to the sum of the products' magnitudes, with values of very different sizes too.
#[test]
fn products_are_as_near_as_those_of_floats() {
    let n_blocks = 48;
    let file = file(16, n_blocks);
    let matrix = Interleaved::new(&file, n_blocks).unwrap();
    let mut weights = vec![0.0; 16 * n_blocks * COLUMNS];
    unpack_blocks(BlockFormat::Q4_0, &file, &mut weights);
    let mut vector = some(n_blocks * COLUMNS, 2);
    for (i, value) in vector.iter_mut().enumerate() {
        *value *= [1.0, 3e-3, 200.0][i * 31 % 3];
    }
    let digits = Digits::of(&vector).unwrap();
    let mut found = [0.0; 16];
    matrix.products(&(0..16), &digits, |_, _, products| found = *products);
    for (row, found) in weights.chunks_exact(vector.len()).zip(found) {
        let products = || {
            row.iter()
                .zip(&vector)
                .map(|(w, x)| f64::from(*w) * f64::from(*x))
        };
        let (right, size) = (
            products().sum::<f64>(),
            products().map(f64::abs).sum::<f64>(),
        );
        let off = (f64::from(found) - right).abs() / size;
        assert!(
            off < f64::from(f32::EPSILON),
            "{found} for {right}, {off:e} of {size}"
        );
    }
}

#[test]
fn the_largest_number_has_three_digits() {
    // The last but one is the least that has a unit twice as large.
    for largest in [1.0, 1.984_375, 1.992, 1.999_999_9, 1.984_500_2, 1.5] {
        for sign in [1.0, -1.0] {
            let mut values = [0.0; COLUMNS];
            values[7] = sign * largest;
            let digits = Digits::of_block(&values).unwrap();
            let [low, middle, high] = digits
                .columns
                .map(|columns| f64::from(columns[1].to_le_bytes()[3].cast_signed()));
            let found = (high * 65536.0 + middle * 256.0 + low) * f64::from(digits.unit);
            let off = (found / f64::from(values[7]) - 1.0).abs();
            assert!(
                off <= 2.0_f64.powi(-23) * 129.0 / 128.0,
                "{largest}: {off:e}"
            );
        }
    }
}

#[test]
fn what_has_no_digits_is_left_to_floats() {
    let power = |exponent| 2.0_f32.powi(exponent);
    for instructions in Instructions::all() {
        let has_digits = |value| {
            let mut vector = vec![0.0; 64];
            vector[40] = value;
            let mut all = vec![Digits::ZERO];
            let has = Digits::add_by(instructions, &mut all, &vector);
            // What has none leaves nothing behind.
            assert_eq!(all.len(), if has { 3 } else { 1 });
            has
        };
        for wrong in [f32::NAN, -f32::NAN, f32::INFINITY, -f32::INFINITY, f32::MAX] {
            assert!(!has_digits(wrong), "{wrong}");
        }
        assert!(has_digits(power(-63)) && !has_digits(power(-63) * 0.99));
        assert!(has_digits(power(123) * 1.9) && !has_digits(-power(124)));
        assert!(!has_digits(power(-140)) && has_digits(-0.0));
    }
    let zeros = Digits::of(&[0.0; 64]).unwrap();
    assert!(
        zeros
            .iter()
            .all(|block| block.columns == [[0; 8]; 3] && block.unit == 0.0)
    );
}
