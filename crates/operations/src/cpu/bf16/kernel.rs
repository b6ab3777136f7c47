//! What multiplies blocks, chosen by what the processor has.

use super::block::{Block, EDGE, Sums};

/// How products are computed.
///
/// Elsewhere, weights are unpacked and multiplied by `gemm`, which is as fast as f32 is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "other processors have none of them")
)]
pub(crate) enum Kernel {
    /// `tdpbf16ps`, on tiles of 16 × 32 values.
    Amx,
    /// `vdpbf16ps`, on 16 pairs of values.
    Avx512,
    /// The tile instructions, each as plain Rust.
    #[cfg(test)]
    EmulatedAmx,
    /// `vdpbf16ps`, as plain Rust.
    #[cfg(test)]
    EmulatedAvx512,
}

impl Kernel {
    /// The fastest that this processor has.
    pub(crate) fn best() -> Option<Self> {
        let known = [Self::Amx, Self::Avx512];
        known.into_iter().find(|kernel| kernel.is_available())
    }

    /// Whether this processor, and the system on it, can compute so.
    pub(super) fn is_available(self) -> bool {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx => super::amx::is_available() && super::avx512::is_available(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => super::avx512::is_available(),
            #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
            Self::Amx => false,
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512 => false,
            #[cfg(test)]
            Self::EmulatedAmx | Self::EmulatedAvx512 => true,
        }
    }

    /// Refuses what would be an illegal instruction.
    pub(super) fn check(self) {
        assert!(
            self.is_available(),
            "this processor does not have the instructions of {self:?}"
        );
    }

    /// Runs what calls [`Self::add_block`], with the processor in the state that this takes.
    pub(super) fn prepared(self, work: impl FnOnce()) {
        self.check();
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: it has just been checked that tiles are available.
            Self::Amx => unsafe { super::amx::configured(work) },
            _ => work(),
        }
    }

    /// `sums = left·right`, for a row and a column of blocks. Rows of the sums beyond `rows` may be
    /// written, and mean nothing.
    ///
    /// # Safety
    ///
    /// Within [`Self::prepared`] of the same kernel.
    #[inline(always)]
    pub(super) unsafe fn multiply(
        self,
        left: &[Block],
        right: &[Block],
        sums: &mut Sums,
        rows: usize,
    ) {
        assert_eq!(left.len(), right.len(), "blocks to be summed over");
        assert!((1..=EDGE).contains(&rows), "{rows} rows of a block");
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: the caller's: tiles are configured.
            Self::Amx => unsafe {
                if rows > super::block::HALF {
                    super::amx::multiply_whole(left, right, sums);
                } else {
                    super::amx::multiply_half(left, right, sums);
                }
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: that the instructions are there was checked when the kernel was prepared.
            Self::Avx512 => unsafe { super::avx512::multiply(left, right, sums, rows) },
            #[cfg(test)]
            Self::EmulatedAmx => super::emulated::by_tiles(left, right, sums, rows),
            #[cfg(test)]
            Self::EmulatedAvx512 => super::emulated::by_lines(left, right, sums, rows),
            #[allow(unreachable_patterns, reason = "reachable on other processors")]
            _ => unreachable!("{self:?} is not available here"),
        }
    }

    /// [`Self::multiply`] and [`Self::write_block`]: by AMX, whole blocks go where they belong.
    ///
    /// # Safety
    ///
    /// As for both.
    #[inline(always)]
    pub(super) unsafe fn multiply_to(
        self,
        [left, right]: [&[Block]; 2],
        sums: &mut Sums,
        output: *mut f32,
        stride: usize,
        size: [usize; 2],
        kept: bool,
    ) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if self == Self::Amx && size == [EDGE, EDGE] && !kept {
            assert_eq!(left.len(), right.len(), "blocks to be summed over");
            // SAFETY: the caller's, for all 32 rows and columns.
            unsafe { super::amx::multiply_to(left, right, output, stride) };
            return;
        }
        // SAFETY: the caller's.
        unsafe {
            self.multiply(left, right, sums, size[0]);
            self.write_block(sums, output, stride, size, kept);
        }
    }

    /// Writes some rows and columns of sums over an output whose rows are `stride` apart, or adds
    /// them to it.
    ///
    /// # Safety
    ///
    /// Within [`Self::prepared`] of the same kernel. Those rows and columns of the output must be
    /// valid for writing, and for reading if they are kept, and nobody else's.
    #[inline(always)]
    pub(super) unsafe fn write_block(
        self,
        sums: &Sums,
        output: *mut f32,
        stride: usize,
        size: [usize; 2],
        kept: bool,
    ) {
        // SAFETY: the caller's.
        unsafe { self.write_scaled(sums, 1.0, output, stride, size, kept) }
    }

    /// [`Self::write_block`] of scaled sums.
    ///
    /// # Safety
    ///
    /// As there.
    #[inline(always)]
    pub(super) unsafe fn write_scaled(
        self,
        sums: &Sums,
        scale: f32,
        output: *mut f32,
        stride: usize,
        [rows, columns]: [usize; 2],
        kept: bool,
    ) {
        assert!(
            rows <= EDGE && columns <= EDGE,
            "{rows} × {columns} of a block"
        );
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the caller's; the kernel was checked when it was prepared.
            Self::Amx | Self::Avx512 => unsafe {
                super::avx512::write(sums, scale, output, stride, [rows, columns], kept);
            },
            #[cfg(test)]
            // SAFETY: the caller's.
            Self::EmulatedAmx | Self::EmulatedAvx512 => unsafe {
                super::block::write(sums, scale, output, stride, [rows, columns], kept);
            },
            #[allow(unreachable_patterns, reason = "reachable on other processors")]
            _ => unreachable!("{self:?} is not available here"),
        }
    }

    /// Rounds a row into line `line` of half `half` of each block; what blocks have beyond it is
    /// zero. Whoever calls this has [checked](Self::check) the kernel.
    #[inline]
    pub(super) fn round_row(self, row: &[f32], blocks: &mut [Block], half: usize, line: usize) {
        assert_eq!(row.len().div_ceil(EDGE), blocks.len(), "blocks of a row");
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: whoever rounds for a kernel has checked that its instructions are there.
            Self::Amx | Self::Avx512 => unsafe {
                super::avx512::round_row(row, blocks, half, line);
            },
            #[cfg(test)]
            Self::EmulatedAmx | Self::EmulatedAvx512 => {
                super::block::round_row(row, blocks, half, line);
            }
            #[allow(unreachable_patterns, reason = "reachable on other processors")]
            _ => unreachable!("{self:?} is not available here"),
        }
    }

    /// From a block on the left to one on the right whose columns are its rows. Whoever calls this
    /// has [checked](Self::check) the kernel.
    #[inline]
    pub(super) fn turn(self, block: &Block, to: &mut Block) {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as for `round_row`.
            Self::Amx | Self::Avx512 => unsafe { super::avx512::turn(block, to) },
            #[cfg(test)]
            Self::EmulatedAmx | Self::EmulatedAvx512 => *to = block.turned(),
            #[allow(unreachable_patterns, reason = "reachable on other processors")]
            _ => unreachable!("{self:?} is not available here"),
        }
    }

    /// From a block on the left to one on the right whose summands are its rows. Whoever calls this
    /// has [checked](Self::check) the kernel.
    #[inline]
    pub(super) fn interleave(self, block: &Block, to: &mut Block) {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as for `round_row`.
            Self::Amx | Self::Avx512 => unsafe { super::avx512::interleave(block, to) },
            #[cfg(test)]
            Self::EmulatedAmx | Self::EmulatedAvx512 => *to = block.interleaved(),
            #[allow(unreachable_patterns, reason = "reachable on other processors")]
            _ => unreachable!("{self:?} is not available here"),
        }
    }
}
