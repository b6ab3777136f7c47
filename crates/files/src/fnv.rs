//! 64-bit FNV-1a.

/// 64-bit FNV-1a, fed piece by piece
/// (<https://datatracker.ietf.org/doc/html/draft-eastlake-fnv>).
///
/// Its values are stored: in fingerprints of data and weights, and as the
/// identities by which an optimiser's saved state finds its parameters. So they
/// may never change; the standard library's hasher promises no such thing.
/// Pieces run together: where that matters, separate them.
///
/// ```
/// use olora_files::{Fnv1a, fnv1a};
///
/// let mut hash = Fnv1a::default();
/// hash.add(b"foo");
/// hash.add(b"bar");
/// assert_eq!(hash.value(), fnv1a(b"foobar"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fnv1a(u64);

impl Default for Fnv1a {
    /// The hash of no bytes at all.
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv1a {
    /// Takes further bytes in.
    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// The hash of all bytes so far.
    pub fn value(&self) -> u64 {
        self.0
    }
}

/// 64-bit FNV-1a of some bytes; see [`Fnv1a`].
pub fn fnv1a(bytes: &[u8]) -> u64 {
    let mut hash = Fnv1a::default();
    hash.add(bytes);
    hash.value()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the table of the draft that defines it.
    #[test]
    fn the_published_values_come_out() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
