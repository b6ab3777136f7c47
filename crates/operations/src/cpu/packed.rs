//! Products with a packed weight, which is unpacked a panel at a time: a panel
//! is multiplied by `gemm` and forgotten.
//!
//! In `gemm` each output is summed over the inner axis in chunks whose length
//! follows from that axis, and neither rows, columns nor threads change their
//! order. A panel here has the whole inner axis and some of the outputs, in both
//! directions, so that its outputs are those of the whole product, bit for bit.
//! `gemm` has other ways for small products; see [`shares`].

use std::{borrow::Cow, cell::Cell, ops::Range};

use gemm::Parallelism;
use olora_packed::{Packed, ROWS_TOGETHER, Vectors};
use rayon::prelude::*;

use super::{
    bf16::{self, Kernel, Side, rounded},
    matrix::{Before, Matrix, ROW_WORTH_THREADS, WORTH_THREADS, product, size},
    rows::rows_per_chunk,
    team::hand_out,
};
use crate::{
    Products,
    apart::rows_are_apart,
    stored::{Host, unpack},
};

/// Outputs of a panel at most.
const WIDEST: usize = 512;

/// The same for few rows.
const WIDEST_OF_FEW_ROWS: usize = 256;

/// Outputs of a panel at least, unless there are no more: `gemm` arranges the rows
/// anew for each panel.
const NARROWEST: usize = 64;

/// Values of a panel, where that leaves it wide enough: 16 MiB. With a quarter of
/// them, which a core's share of the outermost cache would hold, 14,336 inputs took
/// a third more time forwards.
const PANEL_VALUES: usize = 1 << 22;

/// Values of a panel that all threads share.
const SHARED_VALUES: usize = 1 << 22;

/// Values that a thread multiplies a single row with at a time, at least.
const ROW_PIECE: usize = 1 << 15;

/// Outputs of several rows that a thread makes at a time, at most: their products stay in a core's
/// cache until they are put where they belong.
const MOST_ROWS_OF_A_PIECE: usize = 20 * ROWS_TOGETHER;

/// Rows that are multiplied with an interleaved weight at a time: as many again as whole numbers take four bytes a
/// value, and more would be new memory each time.
const MOST_ROWS_OF_NUMBERS: usize = 256;

/// Up to so many rows `gemm` has ways of its own for narrow panels.
const FEW_ROWS: usize = 64;

/// `output = [output +] left·W`, rows of the output one after the other.
///
/// A single row is multiplied without unpacking, and summed in another order
/// than `gemm`'s; see [`Packed::dot_rows`]. So are rows that are to be computed
/// as if they were single ones, and all rows where the weight's are interleaved
/// and products are exact.
///
/// # Safety
///
/// `output` must be valid for `left.rows() · d_out` values: for writing, and if
/// they are kept, for reading. Nothing else may read or write there meanwhile.
pub(super) unsafe fn multiply(output: *mut f32, before: Before, left: Matrix, host: &Host) {
    let [_, d_in] = host.packed.shape();
    assert_eq!(left.columns(), d_in, "inner dimensions");
    let n_rows = left.rows();
    // Rounded products of several rows are the kernel's for that, with factors and without.
    let is_exact = host.products == Products::Exact;
    let of_numbers = host.packed.is_interleaved() && is_exact;
    if n_rows == 1 || n_rows > 1 && (rows_are_apart() || of_numbers) {
        let mut rows = left.to_rows();
        if host.products == Products::Rounded {
            round(rows.to_mut());
        }
        let at_once = if host.packed.is_interleaved() {
            MOST_ROWS_OF_NUMBERS
        } else {
            n_rows
        };
        let [d_out, _] = host.packed.shape();
        for (i, rows) in rows.chunks(at_once * d_in.max(1)).enumerate() {
            let places = Places {
                output: Columns(output.wrapping_add(i * at_once * d_out)),
                before,
            };
            // SAFETY: the caller's.
            unsafe { write_rows(rows, rows.len() / d_in.max(1), &[(&*host.packed, places)]) };
        }
        return;
    }
    // SAFETY: the caller's.
    unsafe { multiply_rows(Kernel::best(), output, before, left, host, &Side::Forward) }
}

/// `output = [output +] left·Wᵀ` with `rows` of the packed matrix, which are
/// some of the outputs of the layer.
///
/// # Safety
///
/// As for [`multiply`], for `left.rows() · d_in` values.
pub(super) unsafe fn multiply_back(
    output: *mut f32,
    before: Before,
    left: Matrix,
    host: &Host,
    rows: Range<usize>,
) {
    assert_eq!(left.columns(), rows.len(), "inner dimensions");
    // SAFETY: the caller's.
    unsafe {
        multiply_rows(
            Kernel::best(),
            output,
            before,
            left,
            host,
            &Side::Back(rows),
        );
    }
}

/// More rows than one, or the way back; with a kernel for rounded products, if there is one.
///
/// # Safety
///
/// As for [`multiply`] or [`multiply_back`].
pub(super) unsafe fn multiply_rows(
    kernel: Option<Kernel>,
    output: *mut f32,
    before: Before,
    left: Matrix,
    host: &Host,
    side: &Side,
) {
    let packed = &host.packed;
    match (host.products, kernel) {
        // SAFETY: the caller's, for both.
        (Products::Exact, _) => unsafe { by_panels(output, before, left, packed, side, false) },
        (Products::Rounded, None) => {
            let mut values = left.to_vec();
            round(&mut values);
            let left = Matrix::new(&values, left.rows(), left.columns(), left.columns());
            // SAFETY: the caller's.
            unsafe { by_panels(output, before, left, packed, side, true) }
        }
        (Products::Rounded, Some(kernel)) => {
            let copied;
            let left = if left.has_dense_rows() {
                left
            } else {
                copied = left.to_vec();
                Matrix::new(&copied, left.rows(), left.columns(), left.columns())
            };
            // SAFETY: the caller's.
            unsafe { bf16::multiply(kernel, output, before, left, packed, side) }
        }
    }
}

/// Every value to the nearest bf16.
fn round(values: &mut [f32]) {
    for value in values {
        *value = rounded(*value);
    }
}

/// How many of a matrix's rows, each giving an output, are a piece of work, of `all` that there are.
fn rows_of_a_piece(packed: &Packed, all: usize) -> usize {
    let [d_out, d_in] = packed.shape();
    // Two for each thread, so that one that comes late does not hold up all; but none so small
    // that handing it over takes longer. Of each matrix all threads have as many, so that none has
    // more to do than another. Blocks are multiplied with by four rows, or by sixteen.
    let threads = rayon::current_num_threads();
    let least = ROW_PIECE.div_ceil(d_in.max(1));
    let even = d_out.div_ceil(threads * (2 * d_out).div_ceil(all.max(1)).max(1));
    let together = if packed.is_interleaved() { 16 } else { 4 };
    even.max(least).next_multiple_of(together)
}

/// Where the products of a row with one of several matrices go.
struct Places {
    output: Columns,
    before: Before,
}

/// `rows`, of which there are `n`, times each of some matrices, whose rows are as long. Each product has
/// the bits that it has alone, of a single row. All are handed out at once: a product of a token is so
/// short that waiting for the last piece of each matters.
///
/// # Safety
///
/// Each place must be valid for `n · d_out` values of its matrix: for writing, and if they are kept,
/// for reading. Nothing else may read or write there meanwhile.
unsafe fn write_rows(rows: &[f32], n: usize, matrices: &[(&Packed, Places)]) {
    let all = matrices.iter().map(|(packed, _)| packed.shape()[0]).sum();
    let worth_threads = rows.len() / n * all >= ROW_WORTH_THREADS;
    let mut pieces = Vec::new();
    for (packed, places) in matrices {
        let [d_out, d_in] = packed.shape();
        assert_eq!(rows.len(), n * d_in, "as many rows as vectors");
        let piece = match rows_of_a_piece(packed, all) {
            _ if !worth_threads => d_out.max(1),
            one if n == 1 || packed.is_interleaved() => one,
            // A row is more work than for a single vector, and hands out as well in smaller pieces.
            some => (some / 4)
                .next_multiple_of(ROWS_TOGETHER)
                .min(MOST_ROWS_OF_A_PIECE),
        };
        let starts = (0..d_out).step_by(piece);
        pieces.extend(starts.map(|start| (*packed, places, start..(start + piece).min(d_out))));
    }
    let vectors = Vectors::new(rows, rows.len() / n);
    for (packed, _) in matrices {
        if n > 1 || packed.is_interleaved() {
            vectors.prepare_for(packed);
        }
    }
    let one = |i: usize| {
        let (packed, places, some) = &pieces[i];
        let d_out = packed.shape()[0];
        if packed.is_interleaved() {
            let products = packed.products_with(some.clone(), &vectors, |row, first, products| {
                let part = places.output.from(row * d_out + some.start + first);
                // Two loops: of one that looks at each value, compilers make one that reads them all,
                // and memory that was never written is then mapped twice.
                //
                // SAFETY, for both: what is written lies within the output, which the caller has lent
                // until all pieces are done, and no other piece has these columns.
                match places.before {
                    Before::Overwritten => unsafe {
                        part.copy_from_nonoverlapping(products.as_ptr(), products.len());
                    },
                    Before::Kept => {
                        let sums = unsafe { std::slice::from_raw_parts_mut(part, products.len()) };
                        for (sum, product) in sums.iter_mut().zip(products) {
                            *sum += product;
                        }
                    }
                }
            });
            if let Err(error) = products {
                unreachable!("{error}");
            }
            return;
        }
        if n == 1 {
            let part = places.output.from(some.start);
            if places.before == Before::Overwritten {
                // SAFETY: the caller's, and no other piece has these; zero bytes are a float.
                unsafe { part.write_bytes(0, some.len()) };
            }
            // SAFETY: as above; where nothing was kept, zeros have just been written.
            let part = unsafe { std::slice::from_raw_parts_mut(part, some.len()) };
            if let Err(error) = packed.dot_rows(some.clone(), rows, part) {
                unreachable!("{error}");
            }
            return;
        }
        with_buffer(n * some.len(), |products| {
            if let Err(error) = packed.dot_rows_of_several(some.clone(), &vectors, products) {
                unreachable!("{error}");
            }
            for row in 0..n {
                let part = places.output.from(row * d_out + some.start);
                let products = products[row..].iter().step_by(n).enumerate();
                // SAFETY, for both: what is written lies within the output, which the caller has lent
                // until all pieces are done, and no other piece has these columns.
                match places.before {
                    Before::Overwritten => {
                        products.for_each(|(i, product)| unsafe { part.add(i).write(*product) });
                    }
                    Before::Kept => {
                        products.for_each(|(i, product)| unsafe { *part.add(i) += product });
                    }
                }
            }
        });
    };
    if worth_threads {
        hand_out(pieces.len(), one);
    } else {
        (0..pieces.len()).for_each(one);
    }
}

/// Rows, of which there are `n`, times each of some matrices, as if each row were the only one.
pub(crate) fn multiplied_together(rows: &[f32], n: usize, hosts: &[Host]) -> Vec<Vec<f32>> {
    let rounded = hosts.iter().any(|host| host.products == Products::Rounded);
    assert!(
        !rounded || hosts.iter().all(|host| host.products == Products::Rounded),
        "products that are rounded and others"
    );
    let mut rows = Cow::Borrowed(rows);
    if rounded {
        round(rows.to_mut());
    }
    let size_of = |host: &Host| size(n, host.packed.shape()[0]);
    let mut outputs: Vec<_> = hosts
        .iter()
        .map(|host| Vec::with_capacity(size_of(host)))
        .collect();
    let places = |output: &mut Vec<f32>| Places {
        output: Columns(output.as_mut_ptr()),
        before: Before::Overwritten,
    };
    let matrices: Vec<_> = hosts
        .iter()
        .zip(&mut outputs)
        .map(|(host, output)| (&*host.packed, places(output)))
        .collect();
    // SAFETY: there is room for the products' values, which nobody else has a pointer to, and they are
    // not read. All are written when the lengths are set.
    unsafe { write_rows(&rows, n, &matrices) };
    for (host, output) in hosts.iter().zip(&mut outputs) {
        // SAFETY: as above.
        unsafe { output.set_len(size_of(host)) };
    }
    outputs
}

/// Output of which threads write different columns.
struct Columns(*mut f32);

// SAFETY: it stands for an exclusive borrow of plain numbers, of which each thread is given others.
unsafe impl Send for Columns {}
// SAFETY: as above.
unsafe impl Sync for Columns {}

impl Columns {
    fn from(&self, column: usize) -> *mut f32 {
        self.0.wrapping_add(column)
    }
}

/// # Safety
///
/// As for [`multiply`] or [`multiply_back`].
///
/// With unpacked values, which are rounded first if that is asked for.
pub(super) unsafe fn by_panels(
    output: *mut f32,
    before: Before,
    left: Matrix,
    packed: &Packed,
    side: &Side,
    rounds: bool,
) {
    // What is bf16 already is not rounded again.
    let rounds = rounds && packed.as_bf16().is_none();
    let [d_out, d_in] = packed.shape();
    let (width, unit) = match side {
        Side::Forward => (d_out, 1),
        // Blocks that a panel cuts would be unpacked twice.
        Side::Back(_) => (d_in, packed.format().block_values()),
    };
    let inner = left.columns();
    let worth = left.rows() * inner * width >= WORTH_THREADS;
    let threads = if worth {
        rayon::current_num_threads()
    } else {
        1
    };
    let output = Columns(output);
    let multiply_panel = |share: Range<usize>, panel: &[f32], threads| {
        let panel = match side {
            Side::Forward => Matrix::of_rows(panel, d_in).transposed(),
            Side::Back(_) => Matrix::of_rows(panel, share.len()),
        };
        let part = output.from(share.start);
        // SAFETY: the columns of the share lie within the output that the caller has lent, and the
        // other shares have others.
        unsafe { product(part, width, before, 1.0, left, panel, threads) }
    };
    let lines = |share: &Range<usize>| match side {
        Side::Forward => (share.clone(), 0..d_in),
        Side::Back(rows) => (rows.clone(), share.clone()),
    };
    let divided = shares(width, inner, unit, left.rows(), threads);
    if threads == 1 || divided.len() >= threads {
        let one = |share: Range<usize>| {
            with_buffer(share.len() * inner, |panel| {
                let (rows, columns) = lines(&share);
                unpack(packed, rows, columns, panel);
                if rounds {
                    round(panel);
                }
                multiply_panel(share, panel, Parallelism::None);
            });
        };
        if threads == 1 {
            divided.into_iter().for_each(one);
        } else {
            divided.into_par_iter().with_max_len(1).for_each(one);
        }
        return;
    }
    // Fewer panels than threads: all of them unpack a panel, and multiply it.
    let widest = (SHARED_VALUES / inner.max(1)).max(WIDEST_OF_FEW_ROWS);
    for share in divided_by(width, width.div_ceil(widest), unit) {
        with_buffer(share.len() * inner, |panel| {
            let (rows, columns) = lines(&share);
            let piece = rows_per_chunk(columns.len());
            panel
                .par_chunks_mut(piece * columns.len())
                .enumerate()
                .for_each(|(i, part)| {
                    let start = rows.start + i * piece;
                    let some = start..start + part.len() / columns.len();
                    unpack(packed, some, columns.clone(), part);
                    if rounds {
                        round(part);
                    }
                });
            multiply_panel(share, panel, Parallelism::Rayon(0));
        });
    }
}

/// The outputs of each panel. They depend on the number of threads, but what is
/// computed does not.
///
/// `gemm` 0.19 sums otherwise where both rows and outputs are at most 64, and
/// where there are at most 256 results: with few rows a panel has more than half
/// of [`WIDEST`], or all outputs.
fn shares(
    width: usize,
    inner: usize,
    unit: usize,
    n_rows: usize,
    threads: usize,
) -> Vec<Range<usize>> {
    let (widest, narrowest) = if n_rows <= FEW_ROWS {
        (WIDEST_OF_FEW_ROWS, WIDEST_OF_FEW_ROWS / 2 + 1)
    } else {
        let fitting = PANEL_VALUES / inner.max(1);
        (fitting.clamp(NARROWEST, WIDEST), NARROWEST)
    };
    let mut parts = width.div_ceil(widest);
    // As many for each thread, if they stay wide enough.
    let even = parts.next_multiple_of(threads);
    if width / even.max(1) >= narrowest {
        parts = even;
    }
    let units = width.div_ceil(unit);
    while parts > 1 && units / parts * unit < narrowest {
        parts -= 1;
    }
    divided_by(width, parts, unit)
}

/// Whole units in as even parts as there can be.
fn divided_by(width: usize, parts: usize, unit: usize) -> Vec<Range<usize>> {
    let units = width.div_ceil(unit);
    let parts = parts.clamp(1, units.max(1));
    let bound = |i: usize| (i * units / parts * unit).min(width);
    (0..parts).map(|i| bound(i)..bound(i + 1)).collect()
}

thread_local! {
    /// Kept from panel to panel: new memory would be cleared each time.
    static BUFFER: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Calls with room for a panel, which holds anything.
fn with_buffer<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = BUFFER.take();
    if buffer.len() < len {
        // What it held is not copied.
        buffer = vec![0.0; len];
    }
    let result = work(&mut buffer[..len]);
    BUFFER.set(buffer);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        formats::{bits, made, some},
        stored::unpacked,
    };

    /// In every way of sharing out the work: by few threads and many, in panels
    /// of each and in panels that all of them unpack.
    #[test]
    fn the_number_of_threads_changes_no_bit() {
        for ([d_out, d_in], n) in [([576, 576], 70), ([192, 1536], 70), ([1536, 192], 20)] {
            let packed = made(olora_packed::BlockFormat::Q8_0, [d_out, d_in]);
            let dense = unpacked(&packed, 0..d_out);
            let packed = Host::from(packed);
            let dense = Matrix::of_rows(&dense, d_in);
            let (x, grad) = (some(1, n * d_in), some(2, n * d_out));
            let x = Matrix::of_rows(&x, d_in);
            let grad = Matrix::of_rows(&grad, d_out);
            let right = crate::cpu::matrix::multiplied(1.0, x, dense.transposed());
            let right_back = crate::cpu::matrix::multiplied(1.0, grad, dense);
            for threads in [1, 2, 5, 16] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                let mut output = vec![f32::NAN; n * d_out];
                let mut back = vec![f32::NAN; n * d_in];
                let (to, to_back) = (Columns(output.as_mut_ptr()), Columns(back.as_mut_ptr()));
                // SAFETY: both are as large as the products, and ours.
                pool.unwrap().install(|| unsafe {
                    multiply(to.from(0), Before::Overwritten, x, &packed);
                    multiply_back(
                        to_back.from(0),
                        Before::Overwritten,
                        grad,
                        &packed,
                        0..d_out,
                    );
                });
                assert_eq!(bits(&output), bits(&right), "{d_out} x {d_in}, {threads}");
                assert_eq!(
                    bits(&back),
                    bits(&right_back),
                    "{d_out} x {d_in}, {threads}"
                );
            }
        }
    }

    fn product(rows: &[f32], before: Before, host: &Host) -> Vec<f32> {
        let [d_out, d_in] = host.packed.shape();
        let mut output = vec![0.5; rows.len() / d_in * d_out];
        let left = Matrix::of_rows(rows, d_in);
        // SAFETY: it is as large as the product, and ours.
        unsafe { multiply(output.as_mut_ptr(), before, left, host) };
        output
    }

    /// Of more rows than are multiplied at a time, by several threads, and with a row that has no whole
    /// numbers; on processors for which rows are interleaved. On others this has nothing to say.
    #[test]
    fn interleaved_rows_give_each_row_the_bits_that_it_has_alone() {
        let (d_out, d_in, n) = (1056, 96, MOST_ROWS_OF_NUMBERS + 5);
        let packed = made(olora_packed::BlockFormat::Q4_0, [d_out, d_in]);
        let dense = unpacked(&packed, 0..d_out);
        let Some(interleaved) = packed.interleaved() else {
            return;
        };
        let host = Host::from(interleaved);
        let mut x = some(1, n * d_in);
        x[7 * d_in] = f32::INFINITY;
        let right = Matrix::of_rows(&x, d_in);
        let dense = Matrix::of_rows(&dense, d_in).transposed();
        let right = crate::cpu::matrix::multiplied(1.0, right, dense);
        let all = product(&x, Before::Overwritten, &host);
        let kept = product(&x, Before::Kept, &host);
        for (i, row) in x.chunks(d_in).enumerate() {
            let part = i * d_out..(i + 1) * d_out;
            let alone = product(row, Before::Overwritten, &host);
            assert_eq!(bits(&alone), bits(&all[part.clone()]), "row {i}");
            let added: Vec<_> = alone.iter().map(|product| 0.5 + product).collect();
            assert_eq!(bits(&added), bits(&kept[part.clone()]), "row {i}");
            let off = alone.iter().zip(&right[part]).map(|(a, b)| (a - b).abs());
            assert!(i == 7 || off.fold(0.0, f32::max) < 1e-4, "row {i}");
        }
    }

    /// As an update by factors has them, which is nothing as long as it has not moved.
    #[test]
    fn rounded_products_of_interleaved_rows_are_those_of_the_file() {
        let packed = made(olora_packed::BlockFormat::Q4_0, [80, 64]);
        let Some(interleaved) = packed.interleaved() else {
            return;
        };
        let x = some(3, 40 * 64);
        let [left, right] = [packed, interleaved].map(|packed| {
            let host = Host {
                products: Products::Rounded,
                ..Host::from(packed)
            };
            bits(&product(&x, Before::Overwritten, &host))
        });
        assert_eq!(left, right);
    }

    #[test]
    fn slices_of_outputs_add_up_to_the_whole_gradient() {
        let (d_out, d_in, n) = (96, 128, 3);
        let packed = made(olora_packed::BlockFormat::Q8_0, [d_out, d_in]);
        let dense = unpacked(&packed, 0..d_out);
        let packed = Host::from(packed);
        let grad = some(2, n * d_out);
        let grad = Matrix::of_rows(&grad, d_out);
        let right = crate::cpu::matrix::multiplied(1.0, grad, Matrix::of_rows(&dense, d_in));
        let mut back = vec![f32::NAN; n * d_in];
        for (slice, before) in [(0..50, Before::Overwritten), (50..96, Before::Kept)] {
            let left = grad.some_columns(slice.clone());
            // SAFETY: it is as large as the product, and ours.
            unsafe { multiply_back(back.as_mut_ptr(), before, left, &packed, slice) };
        }
        for (found, right) in back.iter().zip(&right) {
            assert!((found - right).abs() < 1e-5, "{found} for {right}");
        }
    }

    #[test]
    fn shares_are_all_outputs_once_and_whole_units() {
        for width in [1, 2, 64, 65, 192, 576, 1536, 2304, 14336, 49152] {
            for (unit, inner) in [(1, 576), (1, 14336), (32, 64), (64, 4096), (256, 1024)] {
                if !usize::is_multiple_of(width, unit) {
                    continue;
                }
                for n_rows in [2, 64, 65, 512] {
                    for threads in [1, 2, 3, 16, 96] {
                        let shares = shares(width, inner, unit, n_rows, threads);
                        let mut end = 0;
                        for share in &shares {
                            assert_eq!(share.start, end);
                            assert!(share.start.is_multiple_of(unit) && !share.is_empty());
                            end = share.end;
                        }
                        assert_eq!(end, width);
                        let narrowest = if n_rows <= FEW_ROWS { 129 } else { 64 };
                        let wide = shares.iter().all(|share| share.len() >= narrowest);
                        assert!(wide || shares.len() == 1, "{shares:?}");
                    }
                }
            }
        }
    }
}
