//! What ranks tell each other beside the run: that they live, that one has
//! failed, that all is done.

use olora_training::ExchangeError;

/// A message between the first rank and another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// Nothing but that the sender lives.
    Alive,
    /// A rank has failed or is gone.
    Failed(Failure),
    /// The sender has heard of a failure and ends.
    Gone,
    /// The sender has finished its work.
    Done,
}

/// What became of a rank, as every other is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Which rank.
    pub(crate) rank: usize,
    /// The exit code that all end with.
    pub(crate) code: u8,
    /// Seconds without a sign of life, of one that did not say anything itself.
    pub(crate) silent: Option<u64>,
    /// Its error.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn error(&self, who: String) -> ExchangeError {
        match self.silent {
            Some(seconds) => ExchangeError::Lost { who, seconds },
            None => ExchangeError::Failed {
                who,
                message: self.message.clone(),
            },
        }
    }
}

impl Control {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Alive => vec![0],
            Self::Gone => vec![2],
            Self::Done => vec![3],
            Self::Failed(failure) => {
                let mut bytes = vec![1, failure.code];
                bytes.extend((failure.rank as u64).to_le_bytes());
                // A second more, as none is not zero.
                let silent = failure.silent.map_or(0, |seconds| seconds + 1);
                bytes.extend(silent.to_le_bytes());
                bytes.extend(failure.message.as_bytes());
                bytes
            }
        }
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        Some(match kind {
            0 => Self::Alive,
            2 => Self::Gone,
            3 => Self::Done,
            1 => {
                let (code, rest) = rest.split_first()?;
                let (rank, rest) = rest.split_at_checked(8)?;
                let (silent, message) = rest.split_at_checked(8)?;
                let silent = u64::from_le_bytes(silent.try_into().ok()?);
                Self::Failed(Failure {
                    rank: usize::try_from(u64::from_le_bytes(rank.try_into().ok()?)).ok()?,
                    code: *code,
                    silent: silent.checked_sub(1),
                    message: String::from_utf8_lossy(message).into_owned(),
                })
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back() {
        let failure = |silent| {
            Control::Failed(Failure {
                rank: 3,
                code: 2,
                silent,
                message: "out of memory".to_owned(),
            })
        };
        let all = [
            Control::Alive,
            Control::Gone,
            Control::Done,
            failure(None),
            failure(Some(0)),
        ];
        for control in all {
            assert_eq!(Control::from_bytes(&control.to_bytes()), Some(control));
        }
        assert_eq!(Control::from_bytes(&[1, 2, 3]), None);
        assert_eq!(Control::from_bytes(&[9]), None);
    }
}
