//! Sizes in words.

/// Bytes for people, in decimal megabytes or gigabytes.
///
/// ```
/// assert_eq!(olora_files::size(1_500_000_000), "1.50 GB");
/// ```
pub fn size(bytes: u64) -> String {
    match bytes {
        0..10_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        10_000_000..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}
