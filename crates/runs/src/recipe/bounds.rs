//! How large the numbers of a recipe, and of the command line, may be.
//!
//! What is beyond can only be a slip. It is refused before anything is read or
//! made, so that it takes neither hours nor memory to find out, and so that no
//! size that is made of such numbers overflows.

use std::{fmt::Debug, ops::RangeInclusive};

/// The most steps of a run, or between two of its events: at a thousand a
/// second, eleven days.
pub const MAX_STEPS: usize = 1_000_000_000;
/// The most passes over the data.
pub const MAX_EPOCHS: f64 = 1e5;
/// The most sequences of a micro-batch, which are computed at once.
pub const MAX_BATCH_SIZE: usize = 65_536;
/// The most micro-batches of a step.
pub const MAX_ACCUMULATION: usize = 65_536;
/// The most tokens of a sequence: up to here, positions are exact in float32.
pub const MAX_LENGTH: usize = 1 << 24;
/// The most tokens that are generated at a time.
pub const MAX_NEW_TOKENS: usize = 1 << 20;
/// The most samples, or records, of a data set: they are counted in 32 bits.
pub const MAX_SAMPLES: usize = u32::MAX as usize;
/// The largest length that others are padded to a multiple of.
pub const MAX_PADDING: usize = 65_536;
/// The most rows of an embedding. Vocabularies have up to 300,000.
pub const MAX_ROWS: usize = 1 << 24;
/// The most times that an epoch goes through a source.
pub const MAX_WEIGHT: f64 = 1e6;
/// The largest rank of a layer in multiples of the one asked for.
pub const MAX_RHO: f64 = 1e3;
/// The largest seed that TOML can hold.
pub const MAX_SEED: u64 = i64::MAX as u64;
/// The longest name of a run in bytes. File systems have 255, and files in the
/// making have longer names.
pub const MAX_NAME: usize = 200;

/// What is wrong with a recipe.
#[derive(Default)]
pub(super) struct Problems(pub(super) Vec<String>);

impl Problems {
    pub(super) fn check(&mut self, holds: bool, problem: &str) {
        if !holds {
            self.0.push(problem.to_owned());
        }
    }

    /// A number that must be within bounds; NaN is within none.
    pub(super) fn within<T: Copy + PartialOrd + Debug>(
        &mut self,
        key: &str,
        found: T,
        allowed: &RangeInclusive<T>,
        why: &str,
    ) {
        if !allowed.contains(&found) {
            self.0.push(format!(
                "`{key}` is {found:?}, but must be between {:?} and {:?}: {why}",
                allowed.start(),
                allowed.end()
            ));
        }
    }

    /// A number that must be what `expected` says.
    pub(super) fn number(&mut self, key: &str, found: f64, holds: bool, expected: &str) {
        if !holds {
            self.0
                .push(format!("`{key}` is {found:?}, but must be {expected}"));
        }
    }
}

/// Whether a number is what it is in 32 bits too: neither infinite there, nor
/// too small for its digits.
pub(super) fn is_single(number: f64) -> bool {
    number == 0.0 || (number as f32).is_normal()
}

/// Whether a text would move the cursor, colour or clear a terminal, or break a
/// line of a log.
pub fn has_control(text: &str) -> bool {
    text.chars().any(char::is_control)
}
