//! Products by AMX: tiles of 16 lines of 64 bytes, and an instruction that multiplies two.
//!
//! The intrinsics are not stable in Rust 1.95, so they are assembly.

use std::{
    arch::{
        asm,
        x86_64::{__cpuid_count, _xgetbv},
    },
    sync::OnceLock,
};

use super::block::{Block, EDGE, Sums};

/// Whether the processor has tiles and `tdpbf16ps`, and the system lets this process use them.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| processor_has_tiles() && system_saves_tiles() && permitted())
}

fn processor_has_tiles() -> bool {
    const TILE_AND_BF16: u32 = 1 << 24 | 1 << 22;
    let last = std::arch::x86_64::__cpuid(0).eax;
    last >= 7 && __cpuid_count(7, 0).edx & TILE_AND_BF16 == TILE_AND_BF16
}

/// Whether registers of tiles survive a change of threads.
fn system_saves_tiles() -> bool {
    #[target_feature(enable = "xsave")]
    fn saved() -> u64 {
        // SAFETY: register 0 exists wherever `xsave` has been switched on.
        unsafe { _xgetbv(0) }
    }
    const TILES: u64 = 1 << 17 | 1 << 18;
    // SAFETY: the feature has just been found. It is found only if the system has switched it on.
    is_x86_feature_detected!("xsave") && unsafe { saved() } & TILES == TILES
}

/// Linux gives a process the 8 KB of tiles for each of its threads only if it asks for them.
fn permitted() -> bool {
    const ARCH_PRCTL: isize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const TILE_DATA: usize = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the system call reads and writes no memory, and clobbers what is named.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") TILE_DATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack, nomem),
        );
    }
    result == 0
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_of_a_line: [u16; 16],
    lines: [u8; 16],
}

/// All eight tiles of their full size.
static CONFIGURATION: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_of_a_line: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    lines: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Runs work on this thread that may use tiles. They are let go afterwards, so that the system
/// need not save them when it changes threads.
///
/// # Safety
///
/// Tiles must be available.
pub(super) unsafe fn configured(work: impl FnOnce()) {
    struct Release;
    impl Drop for Release {
        fn drop(&mut self) {
            // SAFETY: one is made only where there are tiles. Nobody reads them afterwards.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }
    // SAFETY: the caller's; the configuration is 64 bytes as the instruction wants them.
    unsafe {
        asm!(
            "ldtilecfg [{at}]",
            at = in(reg) &raw const CONFIGURATION,
            options(nostack, readonly),
        );
    }
    let _release = Release;
    work();
}

/// `sums = left·right`: four tiles of sums, for which each tile that is loaded is used
/// twice.
///
/// # Safety
///
/// Within [`configured`], with as many blocks on both sides.
pub(super) unsafe fn multiply_whole(left: &[Block], right: &[Block], sums: &mut Sums) {
    // SAFETY: the caller's; the sums are 32 rows of 32 values, one after the other.
    unsafe { multiply_to(left, right, (&raw mut *sums).cast(), EDGE) }
}

/// [`multiply_whole`] that writes 32 rows of 32 values, `stride` apart.
///
/// # Safety
///
/// As there; and those values must be valid for writing, and nobody else's.
pub(super) unsafe fn multiply_to(left: &[Block], right: &[Block], output: *mut f32, stride: usize) {
    // SAFETY: the caller's. Each block is two tiles of 1024 bytes, and there are as many as steps;
    // the sums are four tiles of 16 lines of 64 bytes, two beside each other and two below.
    unsafe {
        asm!(
            // What the sums are written over, which may be far away, comes while they are computed.
            "mov {line_of_output}, {c}",
            ".rept 32",
            "prefetchw [{line_of_output}]",
            "prefetchw [{line_of_output} + 64]",
            "add {line_of_output}, {stride}",
            ".endr",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "test {steps}, {steps}",
            "jz 5f",
            "4:",
            "tileloadd tmm6, [{b} + {line}]",
            "tileloadd tmm4, [{a} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {line} + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a} + {line} + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 2048",
            "add {b}, 2048",
            "dec {steps}",
            "jnz 4b",
            "5:",
            "tilestored [{c} + {stride}], tmm0",
            "tilestored [{c} + {stride} + 64], tmm1",
            "tilestored [{below} + {stride}], tmm2",
            "tilestored [{below} + {stride} + 64], tmm3",
            a = inout(reg) left.as_ptr() => _,
            b = inout(reg) right.as_ptr() => _,
            c = in(reg) output,
            below = in(reg) output.wrapping_add(16 * stride),
            stride = in(reg) 4 * stride,
            line_of_output = out(reg) _,
            line = in(reg) 64_usize,
            steps = inout(reg) left.len() => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// [`multiply_whole`] for the first 16 rows.
///
/// # Safety
///
/// As there.
pub(super) unsafe fn multiply_half(left: &[Block], right: &[Block], sums: &mut Sums) {
    // SAFETY: as in `multiply_whole`.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "test {steps}, {steps}",
            "jz 5f",
            "4:",
            "tileloadd tmm6, [{b} + {line}]",
            "tileloadd tmm4, [{a} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {line} + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {a}, 2048",
            "add {b}, 2048",
            "dec {steps}",
            "jnz 4b",
            "5:",
            "tilestored [{c} + {stride}], tmm0",
            "tilestored [{c} + {stride} + 64], tmm1",
            a = inout(reg) left.as_ptr() => _,
            b = inout(reg) right.as_ptr() => _,
            c = in(reg) &raw mut *sums,
            stride = in(reg) 128_usize,
            line = in(reg) 64_usize,
            steps = inout(reg) left.len() => _,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
