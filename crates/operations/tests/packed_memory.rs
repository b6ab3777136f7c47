//! What operations on packed weights take: nothing of the size of the unpacked
//! weight, and for the backward pass nothing of the weight at all.

#![allow(clippy::unwrap_used, unsafe_code, reason = "tests")]

mod formats;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Mutex,
        atomic::{AtomicIsize, AtomicUsize, Ordering::Relaxed},
    },
};

use burn::tensor::Tensor;
use formats::{made, numbers};
use olora_operations::{PackedTensor, cross_entropy, project};
use olora_packed::BlockFormat;

/// The system's, which is watched.
struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);
static LIVE: AtomicIsize = AtomicIsize::new(0);

// SAFETY: it does what the system's does.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Relaxed);
        LIVE.fetch_add(layout.size() as isize, Relaxed);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as isize, Relaxed);
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// One at a time, as they are counted together.
static ALONE: Mutex<()> = Mutex::new(());

const D_IN: usize = 1024;
const D_OUT: usize = 16_384;
const DENSE: usize = D_IN * D_OUT * 4;

fn weight() -> PackedTensor {
    PackedTensor::new(made(BlockFormat::Q8_0, [D_OUT, D_IN]))
}

/// The largest allocation while it runs.
fn largest(work: impl FnOnce()) -> usize {
    LARGEST.store(0, Relaxed);
    work();
    LARGEST.load(Relaxed)
}

#[test]
fn a_projection_never_has_the_unpacked_weight() {
    let _alone = ALONE.lock();
    let weight = weight();
    for n in [1, 2, 80] {
        let x = numbers(1, [n, D_IN], 1.0).require_grad();
        let largest = largest(|| {
            let output = project(x.clone(), weight.clone(), None, None);
            drop(output.sum().backward());
        });
        assert!(largest <= DENSE / 3, "{n} rows: {largest} bytes at once");
    }
}

#[test]
fn a_loss_never_has_the_unpacked_weight() {
    let _alone = ALONE.lock();
    let weight = weight();
    let hidden = numbers(1, [40, D_IN], 1.0).require_grad();
    let largest = largest(|| {
        drop(cross_entropy(hidden.clone(), weight.clone(), &[5; 40], 40).backward());
    });
    assert!(largest <= DENSE / 2, "{largest} bytes at once");
}

#[test]
fn an_embedding_never_has_the_unpacked_weight() {
    let _alone = ALONE.lock();
    let weight = weight();
    let ids = Tensor::<2, burn::tensor::Int>::zeros([2, 5], &burn::tensor::Device::flex());
    let largest = largest(|| {
        drop(weight.embedding(ids, burn::tensor::DType::F32));
    });
    assert!(largest <= 20 * D_IN * 4, "{largest} bytes at once");
}

#[test]
fn a_projection_keeps_nothing_of_the_weight() {
    let _alone = ALONE.lock();
    let weight = weight();
    let x = numbers(1, [80, D_IN], 1.0).require_grad();
    // The least of several: threads keep their room for panels.
    let kept = (0..10).map(|_| {
        let before = LIVE.load(Relaxed);
        let output = project(x.clone(), weight.clone(), None, None);
        let kept = LIVE.load(Relaxed) - before;
        drop(output);
        kept
    });
    let kept = kept.min().unwrap();
    let of_output = (80 * D_OUT * 4) as isize;
    assert!(
        kept < of_output + (1 << 16),
        "{kept} bytes, {of_output} of them the output"
    );
}
