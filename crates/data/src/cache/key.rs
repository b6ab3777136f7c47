//! What tokenised samples depend on, as one number.

use sha2::{Digest, Sha256};

use crate::Format;

/// Names a file of the cache.
pub(crate) type Key = [u8; 32];

/// To be raised whenever other samples are made of the same file.
const VERSION: u32 = 1;

/// The crates that turn text into tokens and conversations into text, with
/// their versions in this build: another version may do it otherwise. Such as
/// `minijinja 2.24.0, minijinja-contrib 2.24.0, tokenizers 0.23.2`; `build.rs`
/// reads them in `Cargo.lock`.
const MADE_BY: &str = env!("OLORA_MADE_BY");

/// SHA-256 of a list of byte strings. The length of each is hashed before it,
/// so that no two lists are hashed as the same bytes.
#[derive(Clone, Default)]
pub(crate) struct Fields(Sha256);

impl Fields {
    pub fn add(&mut self, field: impl AsRef<[u8]>) {
        let field = field.as_ref();
        self.0.update((field.len() as u64).to_le_bytes());
        self.0.update(field);
    }

    pub fn finish(self) -> Key {
        self.0.finalize().into()
    }
}

/// The key of a data file's samples before any limit: of its bytes, whether
/// they are JSON, the format asked for, and the tokenizer's
/// [identity](crate::Tokenizer). How long samples may be and whether prompts
/// are trained is decided after the cache, and is no part of it.
pub(crate) fn key(data: &[u8], json: bool, format: Option<Format>, tokenizer: &Key) -> Key {
    let mut fields = Fields::default();
    fields.add(VERSION.to_le_bytes());
    fields.add(MADE_BY);
    fields.add([u8::from(json)]);
    fields.add(format.map(|format| format.to_string()).unwrap_or_default());
    fields.add(tokenizer);
    fields.add(data);
    fields.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_decides_the_samples_changes_the_key() {
        let keys = [
            key(b"data", true, None, &[0; 32]),
            key(b"datum", true, None, &[0; 32]),
            key(b"data", false, None, &[0; 32]),
            key(b"data", true, Some(Format::Text), &[0; 32]),
            key(b"data", true, Some(Format::Alpaca), &[0; 32]),
            key(b"data", true, None, &[1; 32]),
        ];
        for (i, a) in keys.iter().enumerate() {
            assert!(!keys[..i].contains(a), "{i}");
        }
        assert_eq!(keys[0], key(b"data", true, None, &[0; 32]));
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        let hash = |fields: &[&str]| {
            let mut hash = Fields::default();
            for field in fields {
                hash.add(field);
            }
            hash.finish()
        };
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
        assert_ne!(hash(&["a"]), hash(&["a", ""]));
    }

    #[test]
    fn the_crates_named_are_those_in_use() {
        let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock");
        let lock = std::fs::read_to_string(lock).unwrap().replace('\r', "");
        let named: Vec<_> = MADE_BY
            .split(", ")
            .map(|named| named.split_once(' ').unwrap())
            .collect();
        let names: Vec<_> = named.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["minijinja", "minijinja-contrib", "tokenizers"]);
        for (name, version) in named {
            let entry = format!("name = \"{name}\"\nversion = \"{version}\"\n");
            assert!(lock.contains(&entry), "{entry}");
        }
    }
}
