//! A `tokenizer.json` as metadata.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{TokenizerFiles, container::Metadata, object, shape::Shape};
use crate::{
    GgufError,
    tokenizer::{pieces, placeholder, pre::Pre, token_type},
};

/// Why a tokenizer cannot be written.
fn refused(reason: impl Into<String>) -> GgufError {
    GgufError::unwritable("the tokenizer", reason)
}

/// The tokens by id, and what is special about them.
struct Tokens {
    spelled: Vec<String>,
    types: Vec<i32>,
}

/// A parsed `tokenizer.json` with its `tokenizer_config.json`.
struct Source<'a> {
    json: Map<String, Value>,
    config: Map<String, Value>,
    shape: &'a Shape<'a>,
}

pub(super) fn describe(
    metadata: &mut Metadata,
    files: TokenizerFiles<'_>,
    shape: &Shape<'_>,
) -> Result<(), GgufError> {
    let config = match files.config {
        Some(bytes) => object(bytes, "tokenizer_config.json")?,
        None => Map::new(),
    };
    let source = Source {
        json: object(files.tokenizer, "tokenizer.json")?,
        config,
        shape,
    };
    let model = source.part("model");
    if text(model, "type") != "BPE" {
        let kind = text(model, "type");
        return Err(refused(format!(
            "its model is of the type `{kind}`, but only BPE can be written"
        )));
    }
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if !text(model, key).is_empty() {
            return Err(refused(format!("its model has a `{key}`")));
        }
    }
    let tokens = source.tokens()?;
    if flag(model, "byte_fallback") {
        source.sentence_piece(metadata, tokens)?;
    } else {
        source.byte_level(metadata, &tokens)?;
    }
    source.special(metadata)?;
    let template = files.chat_template.or_else(|| {
        let template = source.config.get("chat_template");
        template.and_then(Value::as_str)
    });
    if let Some(template) = template {
        metadata.text("tokenizer.chat_template", template);
    }
    Ok(())
}

impl Source<'_> {
    fn part(&self, key: &str) -> &Value {
        self.json.get(key).unwrap_or(&Value::Null)
    }

    fn added(&self) -> impl Iterator<Item = (&str, usize, bool)> {
        let added = self.part("added_tokens").as_array().into_iter().flatten();
        added.filter_map(|token| {
            let id = token.get("id")?.as_u64()? as usize;
            Some((token.get("content")?.as_str()?, id, flag(token, "special")))
        })
    }

    fn vocabulary(&self) -> Result<&Map<String, Value>, GgufError> {
        let vocabulary = self.part("model").get("vocab").and_then(Value::as_object);
        vocabulary.ok_or_else(|| refused("its model has no `vocab`"))
    }

    /// As many as the embedding has rows.
    fn tokens(&self) -> Result<Tokens, GgufError> {
        let count = self.shape.vocab_size()?;
        let mut tokens = Tokens {
            spelled: (0..count).map(placeholder).collect(),
            types: vec![token_type::UNUSED; count],
        };
        let mut put = |token: &str, id: Option<usize>, kind| {
            let id = id.filter(|&id| id < count).ok_or_else(|| {
                refused(format!(
                    "its token {token:?} has no id below the model's vocab_size of {count}"
                ))
            })?;
            token.clone_into(&mut tokens.spelled[id]);
            tokens.types[id] = kind;
            Ok(())
        };
        for (token, id) in self.vocabulary()? {
            let id = id.as_u64().map(|id| id as usize);
            put(token, id, token_type::NORMAL)?;
        }
        for (token, id, special) in self.added() {
            let kind = if special {
                token_type::CONTROL
            } else {
                token_type::USER_DEFINED
            };
            put(token, Some(id), kind)?;
        }
        Ok(tokens)
    }

    fn merges(&self) -> Result<Vec<[&str; 2]>, GgufError> {
        let merges = self.part("model").get("merges").and_then(Value::as_array);
        let merges = merges.ok_or_else(|| refused("its model has no `merges`"))?;
        merges
            .iter()
            .map(|merge| {
                let pair = match merge {
                    Value::String(merge) => merge.split_once(' ').map(|(l, r)| [l, r]),
                    // transformers 4.45 and later.
                    Value::Array(pair) => match pair.as_slice() {
                        [Value::String(left), Value::String(right)] => {
                            Some([left.as_str(), right.as_str()])
                        }
                        _ => None,
                    },
                    _ => None,
                };
                pair.ok_or_else(|| refused(format!("its merge {merge} is not a pair of tokens")))
            })
            .collect()
    }

    fn byte_level(&self, metadata: &mut Metadata, tokens: &Tokens) -> Result<(), GgufError> {
        let pre = Pre::recognise(
            self.part("pre_tokenizer"),
            flag(self.part("model"), "ignore_merges"),
        )
        .map_err(refused)?;
        pre.check_normalizer(self.part("normalizer"))
            .map_err(refused)?;
        let merges: Vec<_> = self
            .merges()?
            .into_iter()
            .map(|[left, right]| format!("{left} {right}"))
            .collect();
        metadata.text("tokenizer.ggml.model", "gpt2");
        metadata.text("tokenizer.ggml.pre", pre.name());
        metadata.texts("tokenizer.ggml.tokens", &tokens.spelled);
        metadata.i32s("tokenizer.ggml.token_type", &tokens.types);
        metadata.texts("tokenizer.ggml.merges", &merges);
        Ok(())
    }

    /// `SentencePiece` has no list of merges, but a score for each token. The
    /// scores are made so that they give back the merges; where none do, the
    /// tokenizer cannot be written.
    fn sentence_piece(&self, metadata: &mut Metadata, mut tokens: Tokens) -> Result<(), GgufError> {
        let prefix = self.prefix()?;
        let unk = text(self.part("model"), "unk_token").to_owned();
        for (id, token) in tokens.spelled.iter().enumerate() {
            if is_byte(token) {
                tokens.types[id] = token_type::BYTE;
            } else if *token == unk {
                tokens.types[id] = token_type::UNKNOWN;
            }
        }
        let merges = self.merges()?;
        let scores = if self.shape.family.scores_by_position {
            pieces::scores_by_position(tokens.spelled.len())
        } else {
            scores(&tokens.spelled, &merges)
        };
        let by_spelling = tokens.spelled.iter().enumerate();
        let vocabulary: HashMap<&str, usize> = by_spelling
            .filter(|(id, _)| tokens.types[*id] != token_type::UNUSED)
            .map(|(id, token)| (token.as_str(), id))
            .collect();
        let implied = pieces::merges(&tokens.spelled, &tokens.types, &scores, &vocabulary);
        if let Some(reason) = difference(&merges, &implied, &tokens, &vocabulary) {
            return Err(refused(format!(
                "SentencePiece would merge differently: {reason}. Only tokenizers that were \
                 converted from SentencePiece can be written with byte fallback"
            )));
        }
        for (token, kind) in tokens.spelled.iter_mut().zip(&tokens.types) {
            if *kind == token_type::USER_DEFINED {
                // llama.cpp looks for these in the text before it puts in `▁`.
                *token = token.replace(pieces::SPACE, " ");
            }
        }
        let scores: Vec<_> = scores.into_iter().map(|score| score as f32).collect();
        metadata.text("tokenizer.ggml.model", "llama");
        metadata.text("tokenizer.ggml.pre", "default");
        metadata.texts("tokenizer.ggml.tokens", &tokens.spelled);
        metadata.f32s("tokenizer.ggml.scores", &scores);
        metadata.i32s("tokenizer.ggml.token_type", &tokens.types);
        metadata.flag("tokenizer.ggml.add_space_prefix", prefix);
        Ok(())
    }

    /// Whether a space is put before texts: by a normaliser, as in the
    /// tokenizers of transformers 4, or by `Metaspace`, as in those of 5.
    fn prefix(&self) -> Result<bool, GgufError> {
        let (normalizer, pre) = (self.part("normalizer"), self.part("pre_tokenizer"));
        for prefix in [true, false] {
            if *normalizer == pieces::normalizer(prefix) && (pre.is_null() || splits_at_spaces(pre))
            {
                return Ok(prefix);
            }
        }
        if normalizer.is_null()
            && text(pre, "type") == "Metaspace"
            && text(pre, "replacement") == pieces::SPACE
            && pre.get("split") == Some(&json!(false))
        {
            return Ok(text(pre, "prepend_scheme") != "never");
        }
        Err(refused(format!(
            "its normaliser {normalizer} with the pre-tokeniser {pre} is not SentencePiece's"
        )))
    }

    fn special(&self, metadata: &mut Metadata) -> Result<(), GgufError> {
        for (key, stored) in [
            ("bos", "bos"),
            ("eos", "eos"),
            ("unk", "unknown"),
            ("pad", "padding"),
        ] {
            if let Some(id) = self.special_id(key)? {
                let id = u32::try_from(id).map_err(|_| refused("an id has more than 32 bits"))?;
                metadata.u32(&format!("tokenizer.ggml.{stored}_token_id"), id);
            }
        }
        for key in ["bos", "eos"] {
            metadata.flag(&format!("tokenizer.ggml.add_{key}_token"), self.adds(key)?);
        }
        Ok(())
    }

    /// A special token by the spelling in `tokenizer_config.json`, else by the id
    /// in `config.json`.
    fn special_id(&self, key: &str) -> Result<Option<usize>, GgufError> {
        let Some(spelled) = self.spelled(key) else {
            let id = self.shape.config.get(&format!("{key}_token_id"));
            let first = id.and_then(|id| id.as_array().map_or(Some(id), |ids| ids.first()));
            return Ok(first.and_then(Value::as_u64).map(|id| id as usize));
        };
        let added = self.added().find(|(token, ..)| *token == spelled);
        let id = added.map(|(_, id, _)| id);
        let known = self.vocabulary()?.get(spelled).and_then(Value::as_u64);
        id.or(known.map(|id| id as usize)).map(Some).ok_or_else(|| {
            refused(format!(
                "the {key}_token {spelled:?} of tokenizer_config.json is not a token"
            ))
        })
    }

    fn spelled(&self, key: &str) -> Option<&str> {
        let token = self.config.get(&format!("{key}_token"))?;
        token.as_str().or_else(|| token.get("content")?.as_str())
    }

    /// Whether every text gets the token: what `tokenizer.json` does decides.
    fn adds(&self, key: &str) -> Result<bool, GgufError> {
        let processor = self.part("post_processor");
        let processors = match processor.get("processors").and_then(Value::as_array) {
            Some(processors) => processors.as_slice(),
            None => std::slice::from_ref(processor),
        };
        let template = processors
            .iter()
            .find(|processor| text(processor, "type") == "TemplateProcessing")
            .and_then(|template| template.get("single")?.as_array());
        let Some(template) = template else {
            return Ok(false);
        };
        let end = if key == "bos" {
            template.first()
        } else {
            template.last()
        };
        let Some(token) = end.and_then(|end| end.get("SpecialToken")?.get("id")?.as_str()) else {
            return Ok(false);
        };
        let id = self
            .added()
            .find(|(spelled, ..)| *spelled == token)
            .map(|(_, id, _)| id);
        if id.is_some() && id == self.special_id(key)? {
            return Ok(true);
        }
        Err(refused(format!(
            "it puts {token:?} around every text, which is not its {key}_token"
        )))
    }
}

/// Gemma's pre-tokeniser, which finds nothing to split once spaces are replaced.
fn splits_at_spaces(pre: &Value) -> bool {
    text(pre, "type") == "Split" && pre.get("pattern") == Some(&json!({"String": " "}))
}

/// Minus a token's place in the order of merging.
fn scores(tokens: &[String], merges: &[[&str; 2]]) -> Vec<f64> {
    let mut places = HashMap::new();
    for [left, right] in merges {
        let next = places.len() + 1;
        places.entry(format!("{left}{right}")).or_insert(next);
    }
    let score = |token| places.get(token).map_or(0.0, |&place| -(place as f64));
    tokens.iter().map(score).collect()
}

/// The first difference between two lists of merges that would ever show.
/// Merges towards a token may be in any order among themselves.
fn difference(
    merges: &[[&str; 2]],
    implied: &[[&str; 2]],
    tokens: &Tokens,
    vocabulary: &HashMap<&str, usize>,
) -> Option<String> {
    let grouped = |merges: &[[&str; 2]]| {
        let mut groups: Vec<(String, Vec<[String; 2]>)> = Vec::new();
        for &[left, right] in merges {
            let token = format!("{left}{right}");
            let kind = vocabulary.get(token.as_str()).map(|&id| tokens.types[id]);
            // Nothing merges towards tokens that are cut out of the text before.
            if kind.is_none_or(|kind| kind != token_type::NORMAL) {
                continue;
            }
            let pair = [left.to_owned(), right.to_owned()];
            match groups.last_mut() {
                Some((last, pairs)) if *last == token => pairs.push(pair),
                _ => groups.push((token, vec![pair])),
            }
        }
        for (_, pairs) in &mut groups {
            pairs.sort_unstable();
        }
        groups
    };
    let (given, implied) = (grouped(merges), grouped(implied));
    let differing = given.iter().zip(&implied).find(|(one, other)| one != other);
    match differing {
        Some(((token, pairs), (other, others))) => Some(format!(
            "{token:?} from {pairs:?} where scores give {other:?} from {others:?}"
        )),
        None if given.len() != implied.len() => Some(format!(
            "towards {} tokens where scores give {}",
            given.len(),
            implied.len()
        )),
        None => None,
    }
}

/// `<0x0A>` and its like.
fn is_byte(token: &str) -> bool {
    let digits = token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn flag(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or(false)
}
