//! What tokenised samples depend on, as one number.

use std::{fs::File, io::Read, path::PathBuf};

use sha2::{Digest, Sha256};

use olora_records::kind;

use crate::{Answers, DataError, DataOptions};

/// Names a file of the cache.
pub(crate) type Key = [u8; 32];

/// To be raised whenever other samples are made of the same file.
const VERSION: u32 = 4;

/// Bytes of a file that are hashed at once.
const BUFFER: usize = 1 << 20;

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
    pub(crate) fn add(&mut self, field: impl AsRef<[u8]>) {
        let field = field.as_ref();
        self.0.update((field.len() as u64).to_le_bytes());
        self.0.update(field);
    }

    pub(crate) fn finish(self) -> Key {
        self.0.finalize().into()
    }
}

/// The key of a source's samples before any limit: of its files' bytes, what
/// they are read as, the options that decide what is read, and the tokenizer's
/// [identity](crate::Tokenizer). How long samples may be and whether prompts are
/// trained is decided after the cache, and is no part of it. Files are read in
/// pieces.
pub(crate) fn key(
    paths: &[PathBuf],
    options: &DataOptions,
    tokenizer: &Key,
) -> Result<Key, DataError> {
    let mut fields = Fields::default();
    fields.add(VERSION.to_le_bytes());
    fields.add(MADE_BY);
    // Another option has to be put here, or it is none of the cache's business.
    let DataOptions {
        format,
        answers,
        first,
        max_length: _,
        train_on_prompt: _,
        columns,
        ignore,
        system,
        first_turn,
        allow_omissions,
        allow_markup,
        max_skipped,
        template_variables,
    } = options;
    fields.add(format.map(|format| format.to_string()).unwrap_or_default());
    fields.add(format!(
        "{first:?} {columns:?} {ignore:?} {system:?} {first_turn:?}"
    ));
    fields.add(format!(
        "{allow_omissions} {allow_markup} {max_skipped} {template_variables:?}"
    ));
    // Nothing where there is one, so that what was tokenised before there were others is found.
    if *answers != Answers::One {
        fields.add(format!("{answers:?}"));
    }
    fields.add(tokenizer);
    let mut buffer = vec![0; BUFFER];
    for path in paths {
        fields.add(kind(path)?.to_string());
        let mut hash = Sha256::new();
        let failed = |source| DataError::Read {
            path: path.clone(),
            source,
        };
        let mut file = File::open(path).map_err(failed)?;
        loop {
            match file.read(&mut buffer).map_err(failed)? {
                0 => break,
                n => hash.update(&buffer[..n]),
            }
        }
        fields.add(hash.finalize());
    }
    Ok(fields.finish())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::Format;

    #[test]
    fn everything_that_decides_the_samples_changes_the_key() {
        let dir = TempDir::new().unwrap();
        let [data, datum, text] = [("a.jsonl", "data"), ("b.jsonl", "datum"), ("c.txt", "data")]
            .map(|(name, content)| {
                let path = dir.path().join(name);
                fs::write(&path, content).unwrap();
                path
            });
        let plain = DataOptions::default();
        let format = |format| DataOptions {
            format: Some(format),
            ..plain.clone()
        };
        let first = |n| DataOptions {
            first: Some(n),
            ..plain.clone()
        };
        let answers = |answers| DataOptions {
            answers,
            ..plain.clone()
        };
        let key = |paths: &[&PathBuf], options: &DataOptions, tokenizer| {
            let paths: Vec<_> = paths.iter().map(|&path| path.clone()).collect();
            key(&paths, options, &[tokenizer; 32]).unwrap()
        };
        let keys = [
            key(&[&data], &plain, 0),
            key(&[&datum], &plain, 0),
            key(&[&text], &plain, 0),
            key(&[&data, &datum], &plain, 0),
            key(&[&datum, &data], &plain, 0),
            key(&[&data], &format(Format::Text), 0),
            key(&[&data], &format(Format::Alpaca), 0),
            key(&[&data], &first(1), 0),
            key(&[&data], &first(2), 0),
            key(&[&data], &plain, 1),
            key(&[&data], &answers(Answers::Pair), 0),
            key(&[&data], &answers(Answers::Labelled), 0),
        ];
        for (i, a) in keys.iter().enumerate() {
            assert!(!keys[..i].contains(a), "{i}");
        }
        let other_limits = DataOptions {
            max_length: 7,
            train_on_prompt: true,
            ..plain.clone()
        };
        assert_eq!(keys[0], key(&[&data], &other_limits, 0));
        assert!(super::key(&[dir.path().join("none")], &plain, &[0; 32]).is_err());
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
        let lock = fs::read_to_string(lock).unwrap().replace('\r', "");
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
