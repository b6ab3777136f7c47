//! Many samples as one row of bytes, in memory or mapped from a file.
//!
//! Little-endian, one section behind the other, so that all of it but a small
//! end can be written while the samples are made:
//!
//! - [`MAGIC`] and a key of 32 bytes, zeros for what is kept under none;
//! - every token, 4 bytes;
//! - whether it is trained, one bit, in whole bytes;
//! - where each sample ends, counted in tokens, 8 bytes, of which the highest bit
//!   says that it is of the same record as the sample before it, the next that it
//!   was judged, and the third that it was judged to be a bad answer;
//! - what the loss of each token counts, 4 bytes, or nothing if all count 1;
//! - what the reader reported, as JSON;
//! - the sizes of those: tokens, samples, weights, bytes of the report, 8 bytes each;
//! - the SHA-256 of all that, in a file with a key.

use std::{
    fs::File,
    io,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use memmap2::Mmap;

use crate::Sample;

/// The last of it is the version of this layout.
pub(crate) const MAGIC: &[u8; 8] = b"olora-t3";
/// Of where a sample ends: it continues the record of the sample before it.
pub(crate) const CONTINUES: u64 = 1 << 63;
/// It was judged.
pub(crate) const JUDGED: u64 = 1 << 62;
/// It was judged to be a bad answer.
pub(crate) const BAD: u64 = 1 << 61;
/// What is left is a number of tokens.
const FLAGS: u64 = CONTINUES | JUDGED | BAD;
/// The magic and the key.
pub(crate) const HEADER: usize = 8 + 32;
/// The four sizes.
pub(crate) const FOOTER: usize = 4 * 8;
/// The hash.
pub(crate) const CHECKSUM: usize = 32;

/// Where the sections are. Of one that was made, all ends fit a `usize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub n_tokens: usize,
    pub n_samples: usize,
    pub has_weights: bool,
    pub n_report: usize,
    /// Bytes before the footer.
    end: usize,
}

impl Layout {
    /// `None` for sizes that no memory could hold.
    pub(crate) fn new(
        n_tokens: usize,
        n_samples: usize,
        has_weights: bool,
        n_report: usize,
    ) -> Option<Self> {
        // Samples are numbered with 32 bits.
        u32::try_from(n_samples).ok()?;
        let weights = if has_weights { n_tokens } else { 0 };
        let end = HEADER
            .checked_add(n_tokens.checked_mul(4)?)?
            .checked_add(n_tokens.div_ceil(8))?
            .checked_add(n_samples.checked_mul(8)?)?
            .checked_add(weights.checked_mul(4)?)?
            .checked_add(n_report)?;
        end.checked_add(FOOTER + CHECKSUM)?;
        Some(Self {
            n_tokens,
            n_samples,
            has_weights,
            n_report,
            end,
        })
    }

    /// Reads the footer. `None` for sizes that are not a file's of `n_bytes`.
    pub(crate) fn parse(footer: &[u8; FOOTER], n_bytes: u64) -> Option<Self> {
        let mut sizes = [0; 4];
        for (size, bytes) in sizes.iter_mut().zip(footer.as_chunks::<8>().0) {
            *size = usize::try_from(u64::from_le_bytes(*bytes)).ok()?;
        }
        let [n_tokens, n_samples, n_weights, n_report] = sizes;
        if n_weights != 0 && n_weights != n_tokens {
            return None;
        }
        let layout = Self::new(n_tokens, n_samples, n_weights > 0, n_report)?;
        let whole = layout.end + FOOTER + CHECKSUM;
        (whole as u64 == n_bytes).then_some(layout)
    }

    pub(crate) fn footer(&self) -> [u8; FOOTER] {
        let weights = if self.has_weights { self.n_tokens } else { 0 };
        let sizes = [self.n_tokens, self.n_samples, weights, self.n_report];
        let mut footer = [0; FOOTER];
        for (bytes, size) in footer.as_chunks_mut::<8>().0.iter_mut().zip(sizes) {
            *bytes = (size as u64).to_le_bytes();
        }
        footer
    }

    fn bits(&self) -> usize {
        HEADER + 4 * self.n_tokens
    }

    fn ends(&self) -> usize {
        self.bits() + self.n_tokens.div_ceil(8)
    }

    fn weights(&self) -> usize {
        self.ends() + 8 * self.n_samples
    }

    fn report(&self) -> Range<usize> {
        self.end - self.n_report..self.end
    }
}

/// After this many bytes of a mapped file have been read, its pages are let go,
/// so that they do not count as this process's memory. They stay in the
/// system's cache as long as nobody needs the room.
const RESIDENT: usize = 32 << 20;

/// What the system brings in around a byte that is asked for.
const AROUND: usize = 64 << 10;

enum Bytes {
    Memory(Vec<u8>),
    /// The file is held open for its lock: see `cache.rs`.
    Mapped(
        Mmap,
        #[expect(dead_code, reason = "held for its lock")] File,
    ),
}

/// Samples behind each other, as they were tokenised, before any limit.
pub(crate) struct Store {
    bytes: Bytes,
    layout: Layout,
    /// Bytes read since pages were last let go.
    read: AtomicUsize,
}

impl Store {
    /// `bytes` are as `layout` says: they are the writer's own.
    pub(crate) fn in_memory(bytes: Vec<u8>, layout: Layout) -> Self {
        Self {
            bytes: Bytes::Memory(bytes),
            layout,
            read: AtomicUsize::new(0),
        }
    }

    /// Maps a file that was written by this process, or checked.
    pub(crate) fn mapped(file: File, layout: Layout) -> io::Result<Self> {
        // SAFETY: as with every reader of mapped files, whoever cuts the file
        // short or writes into it while it is mapped would crash this process.
        // Olora writes such a file once, under another name or none, and after
        // that only removes it, which a mapping outlives; and nobody else has
        // business with it: it has no name, or lies in olora's own cache.
        #[expect(unsafe_code, reason = "mapping a file has no safe form")]
        let map = unsafe { Mmap::map(&file) }?;
        if map.len() < layout.end {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        Ok(Self {
            bytes: Bytes::Mapped(map, file),
            layout,
            read: AtomicUsize::new(0),
        })
    }

    pub(crate) fn n_samples(&self) -> usize {
        self.layout.n_samples
    }

    pub(crate) fn n_tokens(&self) -> usize {
        self.layout.n_tokens
    }

    /// Bytes that are in memory and stay there.
    pub(crate) fn resident_bytes(&self) -> usize {
        match &self.bytes {
            Bytes::Memory(bytes) => bytes.len(),
            Bytes::Mapped(map, _) => map.len().min(RESIDENT),
        }
    }

    pub(crate) fn is_mapped(&self) -> bool {
        matches!(self.bytes, Bytes::Mapped(..))
    }

    /// What the reader reported, as JSON.
    pub(crate) fn report(&self) -> &[u8] {
        self.section(self.layout.report())
    }

    /// Whether samples end one after the other and the last with the last token.
    pub(crate) fn is_sound(&self) -> bool {
        let mut before = 0;
        for k in 0..self.n_samples() {
            let end = self.raw_end(k) & !FLAGS;
            if end < before {
                return false;
            }
            before = end;
        }
        before == self.n_tokens() as u64
    }

    /// Whether a sample is of the same record as the one before it.
    pub(crate) fn continues(&self, k: usize) -> bool {
        self.raw_end(k) & CONTINUES != 0
    }

    /// Whether a sample was judged, and to be a good answer.
    pub(crate) fn preferred(&self, k: usize) -> Option<bool> {
        let end = self.raw_end(k);
        (end & JUDGED != 0).then_some(end & BAD == 0)
    }

    /// The tokens of a sample.
    pub(crate) fn span(&self, k: usize) -> Range<usize> {
        let start = k.checked_sub(1).map_or(0, |before| self.end(before));
        start..self.end(k).max(start)
    }

    /// Of a range of tokens: all of them, which are trained, and what they count
    /// if any that is trained counts other than 1.
    pub(crate) fn sample(&self, range: Range<usize>) -> Sample {
        let tokens = words(self.tokens_at(range.clone())).collect();
        let bits = self.bits_at(&range);
        let trained = range
            .clone()
            .map(|i| bits[i / 8 - range.start / 8] >> (i % 8) & 1 == 1)
            .collect();
        let mut sample = Sample {
            tokens,
            trained,
            weights: self.weights(range),
            preferred: None,
        };
        if !sample.is_weighted() {
            sample.weights = None;
        }
        sample
    }

    /// How many of a range of tokens are trained.
    pub(crate) fn n_trained(&self, range: Range<usize>) -> usize {
        let bits = self.bits_at(&range);
        let (Some((&first, _)), Some((&last, _))) = (bits.split_first(), bits.split_last()) else {
            return 0;
        };
        let all: usize = bits.iter().map(|byte| byte.count_ones() as usize).sum();
        let before = first & !(0xff << (range.start % 8));
        let after = match range.end % 8 {
            0 => 0,
            within => last & (0xff << within),
        };
        all - (before.count_ones() + after.count_ones()) as usize
    }

    fn weights(&self, range: Range<usize>) -> Option<Vec<f32>> {
        if !self.layout.has_weights {
            return None;
        }
        let at = self.layout.weights();
        let bytes = self.section(at + 4 * range.start..at + 4 * range.end);
        self.count(bytes.len() + AROUND);
        Some(words(bytes).map(f32::from_bits).collect())
    }

    fn tokens_at(&self, range: Range<usize>) -> &[u8] {
        self.count(4 * range.len() + AROUND);
        self.section(HEADER + 4 * range.start..HEADER + 4 * range.end)
    }

    /// The bytes that hold the bits of a range that may be empty.
    fn bits_at(&self, range: &Range<usize>) -> &[u8] {
        if range.is_empty() {
            return &[];
        }
        self.count(range.len() / 8 + AROUND);
        let at = self.layout.bits();
        self.section(at + range.start / 8..at + range.end.div_ceil(8))
    }

    /// Held within the tokens, so that nothing which somebody does to a mapped
    /// file can have other bytes read.
    fn end(&self, k: usize) -> usize {
        (self.raw_end(k) & !FLAGS).min(self.layout.n_tokens as u64) as usize
    }

    fn raw_end(&self, k: usize) -> u64 {
        let at = self.layout.ends() + 8 * k;
        self.count(16);
        let end = self.section(at..at + 8).first_chunk();
        end.map_or(0, |end| u64::from_le_bytes(*end))
    }

    fn section(&self, range: Range<usize>) -> &[u8] {
        match &self.bytes {
            Bytes::Memory(bytes) => &bytes[range],
            Bytes::Mapped(map, _) => &map[range],
        }
    }

    /// Counts what is read, and lets pages go when it has become much.
    fn count(&self, n_bytes: usize) {
        #[cfg(unix)]
        if let Bytes::Mapped(map, _) = &self.bytes {
            if self.read.fetch_add(n_bytes, Ordering::Relaxed) < RESIDENT {
                return;
            }
            self.read.store(0, Ordering::Relaxed);
            // SAFETY: the mapping is read-only and private to this struct; dropped
            // pages are read from the file again if they are ever needed.
            #[expect(unsafe_code, reason = "madvise(MADV_DONTNEED) has no safe form")]
            let released = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
            // Advice only: the system may keep the pages.
            drop(released);
        }
        #[cfg(not(unix))]
        let _ = (n_bytes, Ordering::Relaxed, &self.read);
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|word| u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_is_read_as_it_was_written_and_fits_one_length_alone() {
        for layout in [
            Layout::new(0, 0, false, 0).unwrap(),
            Layout::new(13, 3, false, 20).unwrap(),
            Layout::new(13, 3, true, 20).unwrap(),
        ] {
            let whole = (layout.end + FOOTER + CHECKSUM) as u64;
            let footer = layout.footer();
            assert_eq!(Layout::parse(&footer, whole), Some(layout));
            for wrong in [0, whole - 1, whole + 1] {
                assert_eq!(Layout::parse(&footer, wrong), None, "{wrong}");
            }
        }
    }

    #[test]
    fn sizes_that_overflow_are_none() {
        let mut footer = Layout::new(13, 3, false, 20).unwrap().footer();
        for at in [7, 15, 31] {
            let before = footer[at];
            footer[at] = 0xff;
            assert_eq!(Layout::parse(&footer, 1000), None, "{at}");
            footer[at] = before;
        }
        assert_eq!(Layout::new(usize::MAX / 4, 1, false, 0), None);
        assert_eq!(Layout::new(1, u32::MAX as usize + 1, false, 0), None);
    }
}
