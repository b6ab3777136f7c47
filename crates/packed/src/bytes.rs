//! Bytes that are owned, or that lie in something larger.

use std::{fmt, ops::Range, sync::Arc};

use crate::PackedError;

/// Bytes of a tensor: owned, or a part of a file that is mapped.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Bytes {
    /// A part of what `owner` holds, a mapped file for one, which is kept alive.
    ///
    /// # Errors
    ///
    /// [`PackedError::Length`] if the part lies beyond the end.
    pub fn part(
        owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
        range: Range<usize>,
    ) -> Result<Self, PackedError> {
        let found = (*owner).as_ref().len();
        if range.start > range.end || range.end > found {
            return Err(PackedError::Length {
                what: "the part of a file".to_owned(),
                expected: range.end.max(range.start),
                found,
            });
        }
        Ok(Self { owner, range })
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // An owner that gives other bytes than before gives none: reading must not panic.
        (*self.owner)
            .as_ref()
            .get(self.range.clone())
            .unwrap_or_default()
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self {
            owner: Arc::new(bytes),
            range,
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes", self.len())
    }
}
