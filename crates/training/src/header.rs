//! What a rank says of its share of a step before the sums are exchanged, as
//! bytes: the same on every machine.

/// One rank's share of a step.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Header {
    /// Names what trains.
    pub(crate) layout: u64,
    /// From the beginning of the step until its values were on the host.
    pub(crate) seconds: f64,
    pub(crate) tokens: u64,
    /// Whether this rank was asked to stop.
    pub(crate) stop: bool,
    /// What the sums of each micro-batch are divided by.
    pub(crate) counts: Vec<f64>,
    /// The names of what is measured, one a line; `None` without a micro-batch.
    pub(crate) names: Option<String>,
    /// Which parameters have a gradient.
    pub(crate) present: Vec<bool>,
}

impl Header {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.layout.to_le_bytes());
        bytes.extend(self.seconds.to_le_bytes());
        bytes.extend(self.tokens.to_le_bytes());
        bytes.push(u8::from(self.stop));
        bytes.extend((self.counts.len() as u64).to_le_bytes());
        for count in &self.counts {
            bytes.extend(count.to_le_bytes());
        }
        let names = self.names.as_deref();
        bytes.push(u8::from(names.is_some()));
        let names = names.unwrap_or_default();
        bytes.extend((names.len() as u64).to_le_bytes());
        bytes.extend(names.as_bytes());
        bytes.extend(self.present.iter().map(|present| u8::from(*present)));
        bytes
    }

    /// `None` if the bytes are no header.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut rest = Bytes(bytes);
        let layout = rest.u64()?;
        let seconds = f64::from_bits(rest.u64()?);
        let tokens = rest.u64()?;
        let stop = rest.flag()?;
        let n_counts = usize::try_from(rest.u64()?).ok()?;
        let mut counts = Vec::new();
        for _ in 0..n_counts {
            counts.push(f64::from_bits(rest.u64()?));
        }
        let has_names = rest.flag()?;
        let n_bytes = usize::try_from(rest.u64()?).ok()?;
        let names = String::from_utf8(rest.take(n_bytes)?.to_vec()).ok()?;
        let present = rest.0.iter().map(|present| *present == 1).collect();
        Some(Self {
            layout,
            seconds,
            tokens,
            stop,
            counts,
            names: has_names.then_some(names),
            present,
        })
    }

    /// How many sums there are beside the loss; `None` if this rank cannot know.
    pub(crate) fn n_measures(&self) -> Option<usize> {
        let names = self.names.as_deref()?;
        Some(if names.is_empty() {
            0
        } else {
            names.split('\n').count()
        })
    }
}

/// Bytes that are read from the front.
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        let taken = self.take(8)?.try_into().ok()?;
        Some(u64::from_le_bytes(taken))
    }

    fn flag(&mut self) -> Option<bool> {
        Some(self.take(1)?[0] == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_and_half_of_one_does_not() {
        let header = Header {
            layout: 7,
            seconds: 0.1,
            tokens: 123,
            stop: true,
            counts: vec![0.1 + 0.2, 5.0],
            names: Some("margin\naccuracy".to_owned()),
            present: vec![true, false, true],
        };
        let bytes = header.to_bytes();
        assert_eq!(Header::from_bytes(&bytes).as_ref(), Some(&header));
        assert_eq!(header.n_measures(), Some(2));
        assert_eq!(Header::from_bytes(&bytes[..40]), None);
        // A count beyond the bytes takes no memory.
        let mut huge = bytes;
        huge[25..33].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(Header::from_bytes(&huge), None);
    }
}
