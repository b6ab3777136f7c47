//! Which devices the operations were built for, and casts.

use std::sync::atomic::{AtomicBool, Ordering};

use burn::backend::{Backend, DType, TensorMetadata, tensor::FloatTensor};
use burn::tensor::{Device, Tensor};

static COMPOSITIONS: AtomicBool = AtomicBool::new(false);

/// From now on and in the whole process, every operation is the composition of
/// Burn's own: for measuring what the difference is.
pub fn use_compositions() {
    COMPOSITIONS.store(true, Ordering::Relaxed);
}

/// Whether tensors on `device` have the operations of this crate. Where they
/// have not, the composition of Burn's operations runs instead.
pub fn supports(device: &Device) -> bool {
    if COMPOSITIONS.load(Ordering::Relaxed) {
        return false;
    }
    #[allow(unused_imports, reason = "unused without a backend")]
    use burn::backend::DispatchDevice;
    match device.clone().inner().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => true,
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(_) => true,
        #[allow(unreachable_patterns, reason = "reachable with other backends")]
        _ => false,
    }
}

/// Casts only where there is something to cast.
pub(crate) fn cast<B: Backend>(tensor: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    if tensor.dtype() == dtype {
        tensor
    } else {
        B::float_cast(tensor, dtype.into())
    }
}

/// The same for Burn's tensors.
pub(crate) fn to_dtype<const D: usize>(tensor: Tensor<D>, dtype: DType) -> Tensor<D> {
    if tensor.dtype() == dtype {
        tensor
    } else {
        tensor.cast(dtype)
    }
}

/// Implements an extension trait for every backend that this crate is built
/// for, with the same body.
macro_rules! for_backends {
    ($extension:ident { $($body:tt)* }) => {
        #[cfg(feature = "flex")]
        impl $extension for burn::backend::Flex { $($body)* }
        #[cfg(feature = "cube")]
        impl $extension for burn::backend::Cube { $($body)* }
    };
}
pub(crate) use for_backends;
