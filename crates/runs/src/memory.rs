//! How much memory a run takes.

use burn::tensor::Device;

/// The most memory this process has had resident, in bytes; `None` where the
/// system does not say.
#[cfg(target_os = "linux")]
pub fn peak_resident_bytes() -> Option<u64> {
    // `getrusage` would count the program that this one was started in the place of, such as a
    // `cargo run` that has just compiled it.
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The most memory this process has had resident, in bytes; `None` where the
/// system does not say.
#[cfg(all(unix, not(target_os = "linux")))]
pub fn peak_resident_bytes() -> Option<u64> {
    use nix::sys::resource::{UsageWho, getrusage};
    let peak = u64::try_from(getrusage(UsageWho::RUSAGE_SELF).ok()?.max_rss()).ok()?;
    // macOS counts bytes, the others KiB.
    Some(if cfg!(target_os = "macos") {
        peak
    } else {
        peak * 1024
    })
}

/// The most memory this process has had resident, in bytes; `None` where the
/// system does not say.
#[cfg(not(unix))]
pub fn peak_resident_bytes() -> Option<u64> {
    None
}

/// Starts counting [`peak_resident_bytes`] afresh, from what is resident now.
/// Returns whether it does: elsewhere than on Linux the peak is the process's.
pub(crate) fn forget_peak() -> bool {
    // `proc(5)`: 5 resets the peak.
    cfg!(target_os = "linux") && std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// What the device's allocator holds at present, in bytes; `None` for devices
/// that have no memory of their own.
pub fn device_reserved_bytes(device: &Device) -> Option<u64> {
    device.memory_pool_usage().map(|usage| usage.bytes_reserved)
}
