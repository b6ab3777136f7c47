//! The frames of `TFRecord` files: a length, a checksum of it, the bytes, a
//! checksum of those; all numbers with the lowest byte first.

/// What is added to a checksum: the format takes care of files that hold
/// checksums themselves.
const MASK: u32 = 0xa282_ead8;

/// Some bytes with what stands around them in a file.
pub(crate) fn framed(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut frame = Vec::with_capacity(payload.len() + 16);
    frame.extend(length);
    frame.extend(masked(&length).to_le_bytes());
    frame.extend(payload);
    frame.extend(masked(payload).to_le_bytes());
    frame
}

/// CRC-32C (Castagnoli), rotated and shifted.
fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(MASK)
}
