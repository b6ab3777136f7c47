//! New values, row by row, on all threads.

use std::mem::MaybeUninit;

use rayon::prelude::*;

/// Elements that one thread takes at a time: large enough to outweigh handing
/// them out, small enough to stay in a core's cache.
const CHUNK: usize = 1 << 15;

/// How many rows of `width` are one piece of work.
pub(super) fn rows_per_chunk(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

/// `n_rows · width` new values. `fill` is given the first row of a piece and
/// room for the piece, and must write all of it.
pub(super) fn build(
    n_rows: usize,
    width: usize,
    fill: impl Fn(usize, &mut [MaybeUninit<f32>]) + Sync,
) -> Vec<f32> {
    let mut values = Vec::with_capacity(n_rows * width);
    let chunk = rows_per_chunk(width);
    values.spare_capacity_mut()[..n_rows * width]
        .par_chunks_mut((chunk * width).max(1))
        .enumerate()
        .for_each(|(i, room)| fill(i * chunk, room));
    // SAFETY: the capacity is there, and `fill` has written every element.
    unsafe { values.set_len(n_rows * width) };
    values
}

/// Two arrays of `n_rows · width` new values at once; see [`build`].
pub(super) fn build_two(
    n_rows: usize,
    width: usize,
    fill: impl Fn(usize, &mut [MaybeUninit<f32>], &mut [MaybeUninit<f32>]) + Sync,
) -> (Vec<f32>, Vec<f32>) {
    let n = n_rows * width;
    let (mut first, mut second) = (Vec::with_capacity(n), Vec::with_capacity(n));
    let chunk = rows_per_chunk(width);
    let size = (chunk * width).max(1);
    let rooms = first.spare_capacity_mut()[..n]
        .par_chunks_mut(size)
        .zip(second.spare_capacity_mut()[..n].par_chunks_mut(size));
    rooms
        .enumerate()
        .for_each(|(i, (first, second))| fill(i * chunk, first, second));
    // SAFETY: the capacity is there, and `fill` has written every element of both.
    unsafe {
        first.set_len(n);
        second.set_len(n);
    }
    (first, second)
}

/// A pointer that threads may share, each writing to its own part.
#[derive(Clone, Copy)]
pub(super) struct Shared(*mut f32);

// SAFETY: whoever makes one sees to it that no two threads write to the same element.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(super) fn new(pointer: *mut f32) -> Self {
        Self(pointer)
    }

    /// # Safety
    ///
    /// The element must be within what the pointer was made from.
    pub(super) unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's.
        unsafe { self.0.add(offset) }
    }
}
