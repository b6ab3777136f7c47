//! An exchange between all ranks, from its first message to its last.

use std::time::Instant;

use crate::{
    service::Answer,
    wire::{Flight, Kept, Tag, World},
};

/// An exchange on its way.
pub(crate) enum Job {
    Gather {
        sent: Vec<Flight>,
        from: Vec<Incoming>,
        answer: Answer<Vec<Vec<u8>>>,
        since: Instant,
    },
    Trade {
        sent: Vec<Flight>,
        received: Vec<Option<Flight>>,
        answer: Answer<Vec<Vec<f32>>>,
    },
}

/// What a rank has sent to a gathering.
pub(crate) enum Incoming {
    Nothing,
    /// The length, with what is short.
    First(Flight),
    Long(Flight),
    Here(Vec<u8>),
}

impl Incoming {
    /// Whether all of it is here.
    pub(crate) fn progress(&mut self, world: &World, from: usize) -> Result<bool, String> {
        loop {
            if let Self::First(flight) | Self::Long(flight) = self
                && !flight.landed(world)?
            {
                return Ok(false);
            }
            *self = match self {
                Self::Here(_) => return Ok(true),
                Self::Nothing => match world.waiting(Some(from), Tag::Gather)? {
                    None => return Ok(false),
                    Some((_, length)) => {
                        let room = Kept::Bytes(vec![0; length]);
                        Self::First(world.receive(room, from, Tag::Gather)?)
                    }
                },
                Self::First(_) => {
                    let bytes = std::mem::replace(self, Self::Nothing).into_bytes();
                    let Some((length, short)) = bytes.split_at_checked(8) else {
                        return Err("a message without its length came".to_owned());
                    };
                    let length = length.try_into().map_or(0, u64::from_le_bytes) as usize;
                    if short.len() == length {
                        Self::Here(short.to_vec())
                    } else {
                        let room = Kept::Bytes(vec![0; length]);
                        Self::Long(world.receive(room, from, Tag::Gather)?)
                    }
                }
                Self::Long(_) => Self::Here(std::mem::replace(self, Self::Nothing).into_bytes()),
            };
        }
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Here(bytes) => bytes,
            Self::First(flight) | Self::Long(flight) => match flight.into_kept() {
                Kept::Bytes(bytes) => bytes,
                _ => Vec::new(),
            },
            Self::Nothing => Vec::new(),
        }
    }
}
