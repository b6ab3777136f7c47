//! New values, row by row, on all threads, without writing zeros first: where
//! an operation does little more than read and write, that would be felt.

use std::{marker::PhantomData, mem::MaybeUninit, ops::Range};

use rayon::prelude::*;

/// Elements that one thread takes at a time: large enough to outweigh handing
/// them out, small enough to stay in a core's cache.
const CHUNK: usize = 1 << 15;

/// In a debug build, what stands where nothing has been written yet: a NaN that
/// no arithmetic gives, since it is a signalling one.
const UNWRITTEN: u32 = 0x7fa5_5a5a;

/// How many rows of `width` are one piece of work.
pub(super) fn rows_per_chunk(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

/// Room for `n` new values behind those of `values`, of which there are none.
fn room(values: &mut Vec<f32>, n: usize) -> &mut [MaybeUninit<f32>] {
    values.reserve_exact(n);
    let room = &mut values.spare_capacity_mut()[..n];
    if cfg!(debug_assertions) {
        room.fill(MaybeUninit::new(f32::from_bits(UNWRITTEN)));
    }
    room
}

/// Makes what has been written into the [`room`] for `n` values the values.
///
/// # Safety
///
/// All `n` must have been written; a debug build looks.
unsafe fn keep(values: &mut Vec<f32>, n: usize) {
    // SAFETY: the caller's, and `room` has seen to the capacity.
    unsafe { values.set_len(n) };
    debug_assert!(
        values.iter().all(|value| value.to_bits() != UNWRITTEN),
        "not every value was written"
    );
}

/// `n_rows · width` new values. `fill` is given the first row of a piece and
/// room for the piece.
///
/// # Safety
///
/// `fill` must write every element of the room; a debug build looks.
pub(super) unsafe fn build(
    n_rows: usize,
    width: usize,
    fill: impl Fn(usize, &mut [MaybeUninit<f32>]) + Sync,
) -> Vec<f32> {
    let n = n_rows * width;
    let mut values = Vec::new();
    let chunk = rows_per_chunk(width);
    let room = room(&mut values, n);
    if n_rows <= chunk {
        // One piece need not go to the other threads.
        fill(0, room);
    } else {
        room.par_chunks_mut((chunk * width).max(1))
            .enumerate()
            .for_each(|(i, room)| fill(i * chunk, room));
    }
    // SAFETY: the pieces are the whole room, and the caller's `fill` has written each.
    unsafe { keep(&mut values, n) };
    values
}

/// Two arrays of `n_rows · width` new values at once; see [`build`].
///
/// # Safety
///
/// `fill` must write every element of both rooms; a debug build looks.
pub(super) unsafe fn build_two(
    n_rows: usize,
    width: usize,
    fill: impl Fn(usize, &mut [MaybeUninit<f32>], &mut [MaybeUninit<f32>]) + Sync,
) -> (Vec<f32>, Vec<f32>) {
    let n = n_rows * width;
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let chunk = rows_per_chunk(width);
    let size = (chunk * width).max(1);
    let (to_first, to_second) = (room(&mut first, n), room(&mut second, n));
    if n_rows <= chunk {
        fill(0, to_first, to_second);
    } else {
        to_first
            .par_chunks_mut(size)
            .zip(to_second.par_chunks_mut(size))
            .enumerate()
            .for_each(|(i, (first, second))| fill(i * chunk, first, second));
    }
    // SAFETY: the pieces are both whole rooms, and the caller's `fill` has written each.
    unsafe {
        keep(&mut first, n);
        keep(&mut second, n);
    }
    (first, second)
}

/// Room for new values that several threads write to at once, each to parts of
/// its own that need not be pieces of one run, as those of one head are not.
pub(super) struct SharedRoom<'a> {
    at: *mut MaybeUninit<f32>,
    len: usize,
    lent: PhantomData<&'a mut [MaybeUninit<f32>]>,
}

// SAFETY: it stands for an exclusive borrow of plain numbers, which may go to another thread.
unsafe impl Send for SharedRoom<'_> {}
// SAFETY: through a shared reference the numbers are reached by `part` alone, whose callers see to
// it that no two threads have the same one.
unsafe impl Sync for SharedRoom<'_> {}

impl SharedRoom<'_> {
    /// Some of the room, to be written.
    ///
    /// # Safety
    ///
    /// No other part with an element in common may be in use.
    #[allow(
        clippy::mut_from_ref,
        reason = "the parts are disjoint, as the caller promises"
    )]
    pub(super) unsafe fn part(&self, range: Range<usize>) -> &mut [MaybeUninit<f32>] {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} is not within the room for {} values",
            self.len
        );
        // SAFETY: within what was lent for as long as `self` is, and used by nobody else, as the
        // caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(range.start), range.len()) }
    }
}

/// As many new values as `sizes` says, in two arrays that `fill` writes to from
/// as many threads as it likes.
///
/// # Safety
///
/// `fill` must write every element of both rooms; a debug build looks.
pub(super) unsafe fn build_shared<const N: usize>(
    sizes: [usize; N],
    fill: impl FnOnce([SharedRoom; N]),
) -> [Vec<f32>; N] {
    let mut values = sizes.map(|_| Vec::new());
    let mut sizes_left = sizes.into_iter();
    fill(values.each_mut().map(|values| {
        let room = room(values, sizes_left.next().unwrap_or_default());
        SharedRoom {
            at: room.as_mut_ptr(),
            len: room.len(),
            lent: PhantomData,
        }
    }));
    for (values, n) in values.iter_mut().zip(sizes) {
        // SAFETY: the caller's `fill` has written all of them.
        unsafe { keep(values, n) };
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_put_together_in_order() {
        let (n_rows, width) = (3 * CHUNK / 7 + 1, 7);
        let number = |i: usize| (i % 1000) as f32;
        let fill = |first: usize, room: &mut [MaybeUninit<f32>]| {
            for (i, value) in room.iter_mut().enumerate() {
                value.write(number(first * width + i));
            }
        };
        let right: Vec<f32> = (0..n_rows * width).map(number).collect();
        // SAFETY: `fill` goes through all of the room.
        let one = unsafe { build(n_rows, width, fill) };
        assert_eq!(one, right);
        // SAFETY: as above, for both.
        let two = unsafe {
            build_two(n_rows, width, |first, a, b| {
                fill(first, a);
                fill(first, b);
            })
        };
        assert_eq!(two, (right.clone(), right));
    }

    #[test]
    fn parts_between_each_other_are_put_together() {
        // SAFETY: the even and the odd elements are all.
        let [values] = unsafe {
            build_shared([10], |[room]| {
                let fill = |parity: usize| {
                    for i in (parity..10).step_by(2) {
                        // SAFETY: no other element has this index.
                        room.part(i..i + 1)[0].write(i as f32);
                    }
                };
                rayon::join(|| fill(0), || fill(1));
            })
        };
        assert_eq!(values, (0..10).map(|i| i as f32).collect::<Vec<f32>>());
    }

    #[test]
    #[should_panic(expected = "is not within the room for 4 values")]
    fn a_part_beyond_the_room_is_refused() {
        // SAFETY: it panics before anything is kept.
        drop(unsafe { build_shared([4], |[room]| room.part(3..5).fill(MaybeUninit::new(0.0))) });
    }

    #[cfg(debug_assertions)]
    #[test]
    #[should_panic(expected = "not every value was written")]
    fn a_debug_build_sees_what_was_left_out() {
        // SAFETY: in a debug build the room is filled before.
        let values = unsafe {
            build(1, 3, |_, room| {
                room[0].write(1.0);
            })
        };
        drop(values);
    }
}
