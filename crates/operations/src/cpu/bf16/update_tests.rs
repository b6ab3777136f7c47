//! What a layer computes with its input and gradients, and what attention does with its tiles,
//! against sums in f64 of the rounded values.

use olora_packed::{BlockFormat, Format, Packed};

use super::{
    Before, Inputs, Kernel, Matrix, Side,
    block::{round, widen},
    tests::{available, some},
    tile::multiply_strided,
};
use crate::{
    Products,
    formats::made,
    stored::{Host, unpacked},
};

/// Every kernel, and none.
fn ways() -> impl Iterator<Item = Option<Kernel>> {
    available().map(Some).chain([None])
}

fn rounded(values: &[f32]) -> Vec<f64> {
    values.iter().map(|x| f64::from(widen(round(*x)))).collect()
}

/// `left·right` of rounded values with the sums of magnitudes, rows one after the other.
fn oracle(left: &[f32], right: &[f32], inner: usize) -> Vec<(f64, f64)> {
    let (left, right) = (rounded(left), rounded(right));
    let width = right.len() / inner;
    let rows = left.chunks_exact(inner);
    rows.flat_map(|row| {
        let right = &right;
        (0..width).map(move |j| {
            row.iter()
                .enumerate()
                .fold((0.0, 0.0), |(sum, size), (i, x)| {
                    let product = x * right[i * width + j];
                    (sum + product, size + product.abs())
                })
        })
    })
    .collect()
}

fn assert_close(found: &[f32], right: &[(f64, f64)], what: &str) {
    assert_eq!(found.len(), right.len(), "{what}");
    for (i, (found, (sum, size))) in found.iter().zip(right).enumerate() {
        let wrong = (f64::from(*found) - sum).abs();
        assert!(
            wrong <= 2e-5 * size + 1e-37,
            "{what}, {i}: {found} for {sum}"
        );
    }
}

fn turned(values: &[f32], width: usize) -> Vec<f32> {
    let rows = values.len() / width;
    let columns = (0..width).flat_map(|j| (0..rows).map(move |i| (i, j)));
    columns.map(|(i, j)| values[i * width + j]).collect()
}

fn bf16(values: &[f32], shape: [usize; 2]) -> Host {
    Host {
        packed: Packed::pack(Format::Bf16, shape, values).unwrap().into(),
        products: Products::Rounded,
    }
}

#[test]
fn an_input_times_thin_matrices_from_both_sides() {
    for (n, d_in, rank) in [(2, 5, 1), (31, 32, 16), (33, 70, 3), (97, 64, 40)] {
        let (x, thin) = (some(n * d_in, 1), some(d_in * rank, 2));
        let summed = some(n * rank, 3);
        for kernel in ways() {
            let what = format!("{kernel:?}, {n} x {d_in}, {rank}");
            let inputs = Inputs::new(kernel, Matrix::of_rows(&x, d_in), 0);
            let found = inputs.times(Matrix::of_rows(&thin, rank));
            assert_close(&found, &oracle(&x, &thin, d_in), &what);
            let found = inputs.summed_with(Matrix::of_rows(&summed, rank));
            assert_close(&found, &oracle(&turned(&summed, rank), &x, n), &what);
        }
    }
}

/// What has been used before, and lies beyond the last row, must not come in.
#[test]
fn what_another_product_left_behind_is_not_summed() {
    for kernel in ways() {
        let wild = vec![f32::NAN; 64 * 64];
        drop(Inputs::new(kernel, Matrix::of_rows(&wild, 64), 0));
        let (x, left) = (some(33 * 64, 1), some(33, 2));
        let inputs = Inputs::new(kernel, Matrix::of_rows(&x, 64), 0);
        let found = inputs.summed_with(Matrix::of_rows(&left, 1));
        assert_close(&found, &oracle(&left, &x, 33), "summed");
    }
}

#[test]
fn what_is_appended_is_in_the_same_sums() {
    for (n, d_in, d_out, rank) in [(2, 8, 3, 1), (33, 64, 70, 16), (40, 100, 33, 40)] {
        let w = some(d_in * d_out, 1); // [d_out, d_in]
        let host = bf16(&w, [d_out, d_in]);
        for kernel in ways() {
            for (side, inner, width, right) in [
                (Side::Forward, d_in, d_out, turned(&w, d_in)),
                (Side::Back(0..d_out), d_out, d_in, w.clone()),
            ] {
                let what = format!("{kernel:?}, {n}: {d_in} to {d_out}, {rank}, {side:?}");
                let (x, down, up) = (some(n * inner, 2), some(n * rank, 3), some(rank * width, 4));
                let mut inputs = Inputs::new(kernel, Matrix::of_rows(&x, inner), rank);
                inputs.append(Matrix::of_rows(&down, rank));
                let up_rows = Matrix::of_rows(&up, width);
                let found = inputs.multiplied(&host, &side, Some(up_rows));
                let both: Vec<(f64, f64)> = oracle(&x, &right, inner)
                    .into_iter()
                    .zip(oracle(&down, &up, rank))
                    .map(|(base, more)| (base.0 + more.0, base.1 + more.1))
                    .collect();
                assert_close(&found, &both, &what);
            }
        }
    }
}

#[test]
fn a_packed_weight_takes_what_is_appended_too() {
    let (n, d_out, d_in, rank) = (35, 64, 96, 16);
    let packed = made(BlockFormat::Q8_0, [d_out, d_in]);
    let w = unpacked(&packed, 0..d_out);
    let host = Host {
        packed: packed.into(),
        products: Products::Rounded,
    };
    let (x, down, up) = (some(n * d_in, 2), some(n * rank, 3), some(rank * d_out, 4));
    for kernel in ways() {
        let mut inputs = Inputs::new(kernel, Matrix::of_rows(&x, d_in), rank);
        inputs.append(Matrix::of_rows(&down, rank));
        let up_rows = Matrix::of_rows(&up, d_out);
        let found = inputs.multiplied(&host, &Side::Forward, Some(up_rows));
        let base = oracle(&x, &turned(&w, d_in), d_in);
        let both: Vec<(f64, f64)> = base
            .into_iter()
            .zip(oracle(&down, &up, rank))
            .map(|(base, more)| (base.0 + more.0, base.1 + more.1))
            .collect();
        assert_close(&found, &both, &format!("{kernel:?}"));
    }
}

/// Both ways that each matrix may lie, over what was there and added to it, with room between rows.
#[test]
fn tiles_however_they_lie() {
    for (rows, inner, width) in [(1, 1, 1), (64, 64, 100), (33, 40, 31), (5, 70, 64)] {
        let (left, right) = (some(rows * inner, 1), some(inner * width, 2));
        let expected = oracle(&left, &right, inner);
        let (left_turned, right_turned) = (turned(&left, inner), turned(&right, width));
        let lefts = [
            Matrix::of_rows(&left, inner),
            Matrix::of_rows(&left_turned, rows).transposed(),
        ];
        let rights = [
            Matrix::of_rows(&right, width),
            Matrix::of_rows(&right_turned, inner).transposed(),
        ];
        let stride = width + 3;
        for kernel in ways() {
            for (way, (left, right)) in lefts
                .into_iter()
                .flat_map(|left| rights.map(|right| (left, right)))
                .enumerate()
            {
                for before in [Before::Overwritten, Before::Kept] {
                    let what = format!("{kernel:?}, {rows} x {inner} x {width}, {way}");
                    let there = some(rows * stride, 3);
                    let mut output = there.clone();
                    multiply_strided(kernel, &mut output, stride, before, 0.3, left, right);
                    for i in 0..rows {
                        let at = i * stride..i * stride + width;
                        let right = &expected[i * width..(i + 1) * width];
                        let right: Vec<(f64, f64)> = right
                            .iter()
                            .zip(&there[at.clone()])
                            .map(|(&(sum, size), &was)| {
                                let was = if before == Before::Kept { was } else { 0.0 };
                                let scale = f64::from(0.3_f32);
                                let was = f64::from(was);
                                (scale * sum + was, scale * size + was.abs())
                            })
                            .collect();
                        assert_close(&output[at.clone()], &right, &what);
                        let between = at.end..(at.end + 3).min(output.len());
                        assert_eq!(output[between.clone()], there[between], "{what}");
                    }
                }
            }
        }
    }
}
