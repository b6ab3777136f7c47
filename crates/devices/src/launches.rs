//! Which kernels work gives a device, by their names.

use std::collections::BTreeMap;

/// Runs `work` and counts the kernels that it launches, on every thread and device of this
/// process. A kernel counts when it is given to the device, so that `work` must wait for what it
/// queues ([`Device::sync`](burn::tensor::Device::sync)).
///
/// Nothing is counted on the CPU, which has no kernels to launch: the map is empty there.
///
/// ```
/// let (sum, kernels) = olora_devices::launches::counted(|| 1 + 1);
/// assert_eq!((sum, kernels.len()), (2, 0));
/// ```
pub fn counted<T>(work: impl FnOnce() -> T) -> (T, BTreeMap<String, usize>) {
    #[cfg(feature = "_gpu")]
    return on_cube::counted(work);
    #[cfg(not(feature = "_gpu"))]
    {
        (work(), BTreeMap::new())
    }
}

#[cfg(feature = "_gpu")]
mod on_cube {
    use std::{
        collections::BTreeMap,
        sync::{Arc, Mutex, PoisonError},
    };

    use burn::cubecl::{
        config::{TypeNameFormatLevel, type_name_format},
        logging::{LaunchObservation, LaunchObserver},
    };

    #[derive(Default)]
    struct Counts(Mutex<BTreeMap<&'static str, usize>>);

    impl LaunchObserver for Counts {
        fn launched(&self, kernel: &'static str) {
            // A count is whole whatever a thread did that failed while it held the lock.
            let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *counts.entry(kernel).or_default() += 1;
        }
    }

    pub(super) fn counted<T>(work: impl FnOnce() -> T) -> (T, BTreeMap<String, usize>) {
        let counts = Arc::new(Counts::default());
        let watching = LaunchObservation::new(counts.clone());
        let result = work();
        drop(watching);
        let counts = counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut named = BTreeMap::new();
        for (kernel, count) in counts.iter() {
            // Kernels that differ in what they are generic over have a short name in common.
            let name = type_name_format(kernel, TypeNameFormatLevel::Short);
            *named.entry(name).or_default() += count;
        }
        (result, named)
    }
}
