//! An allocator that counts.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    io::Write,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// The system's allocator, with an account of the bytes that are in use. What C
/// code takes by itself (zstd) is not in it.
pub struct Counting;

impl Counting {
    /// Forgets the peak. From now on a process that has more than `limit` bytes
    /// in use beyond what it has now says so and ends.
    pub fn begin(limit: usize) -> usize {
        let live = LIVE.load(Relaxed);
        PEAK.store(live, Relaxed);
        LIMIT.store(live.saturating_add(limit), Relaxed);
        live
    }

    /// The most bytes that have been in use since [`begin`](Self::begin), beyond
    /// the `live` ones of then. The limit holds no more.
    pub fn end(live: usize) -> usize {
        LIMIT.store(usize::MAX, Relaxed);
        PEAK.load(Relaxed).saturating_sub(live)
    }

    fn add(size: usize) {
        let live = LIVE.fetch_add(size, Relaxed).saturating_add(size);
        PEAK.fetch_max(live, Relaxed);
        if live > LIMIT.load(Relaxed) {
            // An allocator may neither panic nor allocate: whoever started this
            // process takes its end for the finding.
            LIMIT.store(usize::MAX, Relaxed);
            let _ = std::io::stderr().write_all(OVER.as_bytes());
            std::process::abort();
        }
    }
}

/// What a process says that ends for its memory.
pub const OVER: &str = "memory: more was allocated than the limit allows\n";

// SAFETY: every call goes to the system's allocator with the layout that it came with; what is
// added here touches atomics alone.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::add(layout.size());
        // SAFETY: the caller's promise about `layout`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::add(layout.size());
        // SAFETY: the caller's promise about `layout`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise about `pointer` and `layout`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::add(size);
        // SAFETY: the caller's promise about `pointer`, `layout` and `size`.
        let moved = unsafe { System.realloc(pointer, layout, size) };
        LIVE.fetch_sub(if moved.is_null() { size } else { layout.size() }, Relaxed);
        moved
    }
}
