//! The tokenizer in a file's metadata as a `tokenizer.json` and a
//! `tokenizer_config.json`.

pub(crate) mod pieces;
pub(crate) mod pre;

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::{GgufError, families::Family, metadata::Metadata};
use pre::Pre;

/// A tokenizer as a checkpoint's directory would hold it.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokenizer {
    /// `tokenizer.json`.
    pub json: Value,
    /// `tokenizer_config.json`: the special tokens' spelling, and the chat
    /// template if the file has one.
    pub config: Map<String, Value>,
}

/// `enum llama_token_type`.
pub(crate) mod token_type {
    pub(crate) const NORMAL: i32 = 1;
    pub(crate) const UNKNOWN: i32 = 2;
    pub(crate) const CONTROL: i32 = 3;
    pub(crate) const USER_DEFINED: i32 = 4;
    pub(crate) const UNUSED: i32 = 5;
    pub(crate) const BYTE: i32 = 6;
}

/// The spelling that converters give ids without a token.
pub(crate) fn placeholder(id: usize) -> String {
    format!("[PAD{id}]")
}

/// What `tokenizer.ggml.*` says.
struct Stored<'a> {
    metadata: Metadata<'a>,
    tokens: Vec<&'a str>,
    types: Vec<i32>,
}

impl<'a> Stored<'a> {
    fn new(metadata: Metadata<'a>) -> Result<Self, GgufError> {
        let key = "tokenizer.ggml.tokens";
        let tokens = metadata.texts(key)?.ok_or_else(|| metadata.missing(key))?;
        let types = match metadata.numbers("tokenizer.ggml.token_type")? {
            Some(types) => types.into_iter().map(|kind| kind as i32).collect(),
            None => vec![token_type::NORMAL; tokens.len()],
        };
        if types.len() != tokens.len() {
            return Err(GgufError::malformed(
                metadata.path,
                format!(
                    "it has {} tokens, but types of {}",
                    tokens.len(),
                    types.len()
                ),
            ));
        }
        Ok(Self {
            metadata,
            tokens,
            types,
        })
    }

    /// The id under a key, which must be one of a token.
    fn id(&self, key: &str) -> Result<Option<usize>, GgufError> {
        let key = format!("tokenizer.ggml.{key}_token_id");
        let id = self.metadata.size(&key)?.map(|id| id as usize);
        match id.filter(|&id| id >= self.tokens.len()) {
            Some(id) => Err(GgufError::malformed(
                self.metadata.path,
                format!(
                    "`{key}` is {id}, but there are only {} tokens",
                    self.tokens.len()
                ),
            )),
            None => Ok(id),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.metadata.flag(&format!("tokenizer.ggml.{key}"))
    }

    /// Spelling → id of all tokens but placeholders.
    fn vocabulary<'b>(
        &self,
        tokens: impl Iterator<Item = &'b str>,
    ) -> Result<HashMap<&'b str, usize>, GgufError> {
        let mut vocabulary = HashMap::new();
        for (id, token) in tokens.enumerate() {
            if self.types[id] == token_type::UNUSED && token == placeholder(id) {
                continue;
            }
            if let Some(other) = vocabulary.insert(token, id) {
                return Err(GgufError::malformed(
                    self.metadata.path,
                    format!("the tokens {other} and {id} are both spelled {token:?}"),
                ));
            }
        }
        Ok(vocabulary)
    }

    /// Control tokens are special, user-defined ones merely not to be split.
    fn added(&self) -> Vec<Value> {
        let added = self.tokens.iter().zip(&self.types).enumerate();
        added
            .filter_map(|(id, (token, &kind))| {
                let special = match kind {
                    token_type::CONTROL | token_type::UNKNOWN => true,
                    // Runs of spaces are tokens that merging arrives at.
                    token_type::USER_DEFINED if !token.trim_matches(' ').is_empty() => false,
                    _ => return None,
                };
                Some(json!({
                    "id": id,
                    "content": token,
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": false,
                    "special": special,
                }))
            })
            .collect()
    }
}

/// The special tokens, and which of them every document gets.
struct Special {
    bos: Option<usize>,
    eos: Option<usize>,
    unk: Option<usize>,
    pad: Option<usize>,
    add_bos: bool,
    add_eos: bool,
}

impl Special {
    fn new(stored: &Stored<'_>, add_bos: bool) -> Result<Self, GgufError> {
        let special = Self {
            bos: stored.id("bos")?,
            eos: stored.id("eos")?,
            unk: stored.id("unknown")?,
            pad: stored.id("padding")?,
            add_bos: stored.flag("add_bos_token")?.unwrap_or(add_bos),
            add_eos: stored.flag("add_eos_token")?.unwrap_or(false),
        };
        Ok(special)
    }

    fn template(&self, stored: &Stored<'_>) -> Value {
        let before = self.bos.filter(|_| self.add_bos);
        let after = self.eos.filter(|_| self.add_eos);
        let sequence = |name: &str, kind: u8| -> Vec<Value> {
            let special = |id: usize| {
                let token = stored.tokens[id];
                json!({"SpecialToken": {"id": token, "type_id": kind}})
            };
            let text = json!({"Sequence": {"id": name, "type_id": kind}});
            let before = before.map(special).into_iter();
            before.chain([text]).chain(after.map(special)).collect()
        };
        let mut tokens = Map::new();
        for id in before.into_iter().chain(after) {
            let token = stored.tokens[id];
            let value = json!({"id": token, "ids": [id], "tokens": [token]});
            tokens.insert(token.to_owned(), value);
        }
        let pair = [sequence("A", 0), sequence("B", 1)].concat();
        json!({
            "type": "TemplateProcessing",
            "single": sequence("A", 0),
            "pair": pair,
            "special_tokens": tokens,
        })
    }

    fn adds_nothing(&self) -> bool {
        !(self.add_bos && self.bos.is_some() || self.add_eos && self.eos.is_some())
    }

    fn config(&self, stored: &Stored<'_>) -> Result<Map<String, Value>, GgufError> {
        let mut config = Map::new();
        for (key, id) in [
            ("bos_token", self.bos),
            ("eos_token", self.eos),
            ("unk_token", self.unk),
            ("pad_token", self.pad),
        ] {
            if let Some(id) = id {
                config.insert(key.to_owned(), json!(stored.tokens[id]));
            }
        }
        config.insert("add_bos_token".to_owned(), json!(self.add_bos));
        config.insert("add_eos_token".to_owned(), json!(self.add_eos));
        config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
        config.insert(
            "tokenizer_class".to_owned(),
            json!("PreTrainedTokenizerFast"),
        );
        if let Some(template) = stored.metadata.text("tokenizer.chat_template")? {
            config.insert("chat_template".to_owned(), json!(template));
        }
        Ok(config)
    }
}

pub(crate) fn read(metadata: Metadata<'_>, family: &Family) -> Result<Tokenizer, GgufError> {
    let key = "tokenizer.ggml.model";
    let model = metadata.text(key)?.ok_or_else(|| metadata.missing(key))?;
    match model {
        "gpt2" => byte_level(&Stored::new(metadata)?),
        "llama" => sentence_piece(&Stored::new(metadata)?, family),
        other => Err(GgufError::unsupported(
            metadata.path,
            format!("a tokenizer of the kind `{other}`"),
            "gpt2 (byte-level BPE) and llama (SentencePiece BPE)",
        )),
    }
}

fn byte_level(stored: &Stored<'_>) -> Result<Tokenizer, GgufError> {
    let metadata = stored.metadata;
    let pre = match metadata.text("tokenizer.ggml.pre")? {
        None => Pre::Default,
        Some(name) => Pre::from_name(name).ok_or_else(|| {
            let what = format!("a tokenizer with the pre-tokenisation `{name}`");
            GgufError::unsupported(metadata.path, what, Pre::names())
        })?,
    };
    let key = "tokenizer.ggml.merges";
    let merges = metadata.texts(key)?.ok_or_else(|| metadata.missing(key))?;
    let vocabulary = stored.vocabulary(stored.tokens.iter().copied())?;
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        let known = |token: &str| vocabulary.contains_key(token);
        let pair = merge.split_once(' ').filter(|(left, right)| {
            known(left) && known(right) && known(&format!("{left}{right}"))
        });
        let Some((left, right)) = pair else {
            return Err(GgufError::malformed(
                metadata.path,
                format!("its merge {merge:?} is not of two tokens that make a third"),
            ));
        };
        pairs.push([left, right]);
    }
    let special = Special::new(stored, pre.adds_bos())?;
    let byte_level = json!({
        "type": "ByteLevel",
        "add_prefix_space": false,
        "trim_offsets": false,
        "use_regex": false,
    });
    let post_processor = if special.adds_nothing() {
        byte_level
    } else {
        json!({"type": "Sequence", "processors": [byte_level, special.template(stored)]})
    };
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": stored.added(),
        "normalizer": pre.normalizer(),
        "pre_tokenizer": pre.json(),
        "post_processor": post_processor,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": true,
            "trim_offsets": true,
            "use_regex": true,
        },
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pre.ignores_merges(),
            "vocab": vocabulary_json(&vocabulary),
            "merges": pairs,
        },
    });
    let config = special.config(stored)?;
    Ok(Tokenizer { json, config })
}

/// In the order of the ids, as transformers writes it.
fn vocabulary_json(vocabulary: &HashMap<&str, usize>) -> Map<String, Value> {
    let mut sorted: Vec<_> = vocabulary.iter().collect();
    sorted.sort_unstable_by_key(|&(_, id)| id);
    let entry = |(token, id): (&&str, &usize)| ((*token).to_owned(), json!(id));
    sorted.into_iter().map(entry).collect()
}

/// What llama.cpp takes for granted in tokenizers of this kind.
mod sentence_piece_defaults {
    pub(super) const UNK: usize = 0;
    pub(super) const BOS: usize = 1;
    pub(super) const EOS: usize = 2;
}

fn sentence_piece(stored: &Stored<'_>, family: &Family) -> Result<Tokenizer, GgufError> {
    let metadata = stored.metadata;
    let scores = if family.scores_by_position {
        pieces::scores_by_position(stored.tokens.len())
    } else {
        let key = "tokenizer.ggml.scores";
        metadata
            .numbers(key)?
            .ok_or_else(|| metadata.missing(key))?
    };
    if scores.len() != stored.tokens.len() {
        return Err(GgufError::malformed(
            metadata.path,
            format!(
                "it has {} tokens, but scores of {}",
                stored.tokens.len(),
                scores.len()
            ),
        ));
    }
    let mut special = Special::new(stored, true)?;
    let there = |id: usize| (id < stored.tokens.len()).then_some(id);
    special.bos = special.bos.or(there(sentence_piece_defaults::BOS));
    special.eos = special.eos.or(there(sentence_piece_defaults::EOS));
    special.unk = special.unk.or(there(sentence_piece_defaults::UNK));
    let config = special.config(stored)?;
    let template = special.template(stored);
    let added = stored.added();
    let prefix = stored.flag("add_space_prefix")?.unwrap_or(true);

    // Each place where a token could be split is tried, which takes the square of its length.
    if let Some(id) = (stored.tokens.iter()).position(|token| token.len() > pieces::LONGEST) {
        return Err(GgufError::malformed(
            metadata.path,
            format!(
                "the token {id} has {} bytes, but at most {} are read",
                stored.tokens[id].len(),
                pieces::LONGEST
            ),
        ));
    }
    // llama.cpp has real spaces in the user-defined tokens.
    let spelled: Vec<String> = stored
        .tokens
        .iter()
        .map(|token| pieces::spelled(token))
        .collect();
    let vocabulary = stored.vocabulary(spelled.iter().map(String::as_str))?;
    let merges = pieces::merges(&spelled, &stored.types, &scores, &vocabulary);
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": pieces::normalizer(prefix),
        "pre_tokenizer": null,
        "post_processor": template,
        "decoder": pieces::decoder(prefix),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": special.unk.map(|id| spelled[id].as_str()),
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocabulary_json(&vocabulary),
            "merges": merges,
        },
    });
    Ok(Tokenizer { json, config })
}
