//! A `tokenizer.json` from the files of before there was one: `vocab.json` and
//! `merges.txt` (GPT-2, OPT, Qwen2), or `tokenizer.model` (`SentencePiece`, of
//! LLaMA 1 and 2 and of Mistral).
//!
//! What is made follows the classes of transformers 5.23
//! (`tokenization_gpt2.py`, `tokenization_qwen2.py`, `tokenization_llama.py`),
//! and gives its tokens: `fixtures/make_slow_tokenizers.py` compares them.

mod special;

use std::{
    collections::{HashMap, HashSet},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use olora_files::read_bounded;
use prost::Message;
use serde_json::{Map, Value, json};

use self::special::{Special, is_id};
use crate::{
    GgufError, Tokenizer,
    tokenizer::{pieces, token_type},
};

/// Bytes of the largest file: vocabularies of a quarter of a million tokens have
/// five million.
const MOST: u64 = 64 << 20;
const CONFIG: &str = "tokenizer_config.json";

/// A `SentencePiece` model, as far as it is used: `sentencepiece_model.proto`.
#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<NormalizerSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    piece: Option<String>,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", optional, tag = "2")]
    charsmap: Option<Vec<u8>>,
}

/// What a tokenizer class of transformers makes of the files.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Gpt2,
    Qwen2,
    Llama,
}

impl Class {
    /// By its name, with or without `Fast`.
    fn of_name(name: &str) -> Option<Self> {
        Some(match name.strip_suffix("Fast").unwrap_or(name) {
            "GPT2Tokenizer" => Self::Gpt2,
            "Qwen2Tokenizer" => Self::Qwen2,
            "LlamaTokenizer" => Self::Llama,
            _ => return None,
        })
    }

    /// What transformers takes for a model where no class is named.
    fn of_model(model_type: &str) -> Option<Self> {
        Some(match model_type {
            "opt" | "gpt2" => Self::Gpt2,
            "qwen2" | "qwen3" => Self::Qwen2,
            "llama" | "mistral" => Self::Llama,
            _ => return None,
        })
    }

    /// Its special tokens where nothing names others.
    fn defaults(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Gpt2 => &[
                ("unk_token", "<|endoftext|>"),
                ("bos_token", "<|endoftext|>"),
                ("eos_token", "<|endoftext|>"),
            ],
            Self::Qwen2 => &[
                ("unk_token", "<|endoftext|>"),
                ("eos_token", "<|endoftext|>"),
                ("pad_token", "<|endoftext|>"),
            ],
            Self::Llama => &[
                ("unk_token", "<unk>"),
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
            ],
        }
    }
}

/// A tokenizer that was made of older files.
#[derive(Clone, Debug)]
pub struct SlowTokenizer {
    /// `tokenizer.json`, and `tokenizer_config.json` with the special tokens that
    /// other files name.
    pub tokenizer: Tokenizer,
    /// The file with the vocabulary.
    pub path: PathBuf,
    /// What was taken for granted, to be said.
    pub note: Option<String>,
}

/// The tokenizer of a directory without a `tokenizer.json`; `None` if it has
/// none of the older files either.
///
/// # Errors
///
/// [`GgufError::Tokenizer`] for files that are damaged, or of a kind that is not
/// read, with what to do; [`GgufError::Io`].
pub fn slow_tokenizer(directory: &Path) -> Result<Option<SlowTokenizer>, GgufError> {
    let [vocabulary, merges, model] =
        ["vocab.json", "merges.txt", "tokenizer.model"].map(|name| directory.join(name));
    let config = object(&directory.join(CONFIG))?;
    if vocabulary.exists() && merges.exists() {
        return byte_level(directory, &vocabulary, &merges, config).map(Some);
    }
    if model.exists() {
        return sentence_piece(directory, &model, config).map(Some);
    }
    if vocabulary.exists() || merges.exists() {
        let (there, missing) = if vocabulary.exists() {
            (vocabulary, "merges.txt")
        } else {
            (merges, "vocab.json")
        };
        let reason = format!(
            "a tokenizer of this kind is two files, and {missing} is not beside it. Copy or download it too"
        );
        return Err(GgufError::tokenizer(&there, reason));
    }
    for (name, what) in OTHERS {
        let path = directory.join(name);
        if path.exists() {
            let reason = format!(
                "there is no tokenizer.json, and this is {what}, which is not read: {}",
                advice(directory)
            );
            return Err(GgufError::tokenizer(&path, reason));
        }
    }
    Ok(None)
}

/// Vocabularies in files of other kinds.
const OTHERS: [(&str, &str); 5] = [
    ("tekken.json", "Mistral's own form of a tokenizer"),
    ("tokenizer.model.v3", "Mistral's own form of a tokenizer"),
    ("spiece.model", "a SentencePiece model of T5 or ALBERT"),
    ("qwen.tiktoken", "a vocabulary of tiktoken"),
    ("vocab.txt", "a vocabulary of BERT"),
];

/// How a user gets what is read.
fn advice(directory: &Path) -> String {
    format!(
        "transformers can write a tokenizer.json: AutoTokenizer.from_pretrained({:?}).save_pretrained(…)",
        directory.display().to_string()
    )
}

/// The class that the configuration names, else that of the model's type.
fn class(directory: &Path, config: &Map<String, Value>) -> Result<Option<Class>, GgufError> {
    let path = directory.join(CONFIG);
    match config.get("tokenizer_class").and_then(Value::as_str) {
        // Those say nothing of what is in them.
        None | Some("PreTrainedTokenizerFast" | "PreTrainedTokenizer" | "TokenizersBackend") => {}
        Some(name) => {
            return match Class::of_name(name) {
                Some(class) => Ok(Some(class)),
                None => Err(GgufError::tokenizer(
                    &path,
                    format!(
                        "there is no tokenizer.json, and a tokenizer of the class `{name}` is not made of older \
                         files (those of GPT2Tokenizer, Qwen2Tokenizer and LlamaTokenizer are); {}",
                        advice(directory)
                    ),
                )),
            };
        }
    }
    let model = object(&directory.join("config.json"))?;
    let of_model = model.get("model_type").and_then(Value::as_str);
    Ok(of_model.and_then(Class::of_model))
}

fn byte_level(
    directory: &Path,
    vocabulary_path: &Path,
    merges_path: &Path,
    config: Map<String, Value>,
) -> Result<SlowTokenizer, GgufError> {
    let mut note = None;
    let class = match class(directory, &config)? {
        Some(class @ (Class::Gpt2 | Class::Qwen2)) => class,
        // LLaMA's own has other files, and these do not say how they split a text into words.
        other => {
            let why = match other {
                Some(_) => "a LLaMA tokenizer is another file, tokenizer.model",
                None => "nothing says how vocab.json and merges.txt split a text",
            };
            note = Some(format!(
                "{} has no tokenizer.json, and {why}: texts are split as GPT-2 does. If that is wrong, {}",
                directory.display(),
                advice(directory)
            ));
            Class::Gpt2
        }
    };
    let vocabulary = object(vocabulary_path)?;
    if let Some((token, id)) = vocabulary.iter().find(|(_, id)| !is_id(id)) {
        let reason = format!("its token {token:?} has the number {id}, which is none of a token");
        return Err(GgufError::tokenizer(vocabulary_path, reason));
    }
    if let Some([one, other]) = same_number(&vocabulary) {
        let reason = format!("its tokens {one:?} and {other:?} have the same number");
        return Err(GgufError::tokenizer(vocabulary_path, reason));
    }
    let merges = read_merges(merges_path, &vocabulary)?;
    if let Some((made, wanted)) = too_few_merges(&merges, &vocabulary) {
        let reason = format!(
            "it makes {made} of the {wanted} tokens of more than one letter that vocab.json has: it is cut short, \
             or of another model"
        );
        return Err(GgufError::tokenizer(merges_path, reason));
    }
    let lost = lost_bytes(&vocabulary);
    if lost > 0 {
        let bytes = format!(
            "vocab.json has no tokens for {lost} of the 256 bytes: texts with them lose letters"
        );
        note = Some(note.map_or_else(|| bytes.clone(), |note| format!("{note}; {bytes}")));
    }
    let prefix = config.get("add_prefix_space") == Some(&Value::Bool(true));
    let (normalizer, pre_tokenizer) = match class {
        Class::Qwen2 => (
            json!({"type": "NFC"}),
            json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": false},
            ]}),
        ),
        _ => (
            Value::Null,
            json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true}),
        ),
    };
    let ids = vocabulary
        .iter()
        .filter_map(|(token, id)| Some((token.clone(), id.as_u64()? as usize)))
        .collect();
    let mut special = Special::new(directory, class, config, ids)?;
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": special.added(),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": special.template(false),
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocabulary,
            "merges": merges,
        },
    });
    Ok(SlowTokenizer {
        tokenizer: Tokenizer {
            json,
            config: special.config,
        },
        path: vocabulary_path.to_owned(),
        note,
    })
}

/// Two tokens of one number, if there are any.
fn same_number(vocabulary: &Map<String, Value>) -> Option<[&str; 2]> {
    let mut known: HashMap<u64, &str> = HashMap::new();
    let mut all = vocabulary.iter();
    all.find_map(|(token, id)| {
        let before = known.insert(id.as_u64()?, token)?;
        Some([before, token.as_str()])
    })
}

/// How many tokens of several letters the merges make, and how many there are,
/// if that is less than half: then texts fall into more pieces than the model
/// has learned. Tokens that are no merges' are rare, but exist.
fn too_few_merges(
    merges: &[[String; 2]],
    vocabulary: &Map<String, Value>,
) -> Option<(usize, usize)> {
    let is_special = |token: &str| token.starts_with('<') && token.ends_with('>');
    let several = |token: &&String| token.chars().nth(1).is_some() && !is_special(token);
    let wanted = vocabulary.keys().filter(several).count();
    let made: HashSet<String> = merges.iter().map(|pair| pair.concat()).collect();
    let made = vocabulary
        .keys()
        .filter(several)
        .filter(|token| made.contains(*token))
        .count();
    (made * 2 < wanted).then_some((made, wanted))
}

/// How many of the 256 bytes have no letter of their own in the vocabulary
/// (GPT-2's `bytes_to_unicode`).
fn lost_bytes(vocabulary: &Map<String, Value>) -> usize {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut beyond = 256..;
    let letters = (0..256_u32).filter_map(|byte| {
        let code = if printable(byte) {
            Some(byte)
        } else {
            beyond.next()
        };
        code.and_then(char::from_u32)
    });
    let lost = letters.filter(|letter| !vocabulary.contains_key(&letter.to_string()));
    lost.count()
}

/// The pairs of `merges.txt`, the first to be merged first.
fn read_merges(
    path: &Path,
    vocabulary: &Map<String, Value>,
) -> Result<Vec<[String; 2]>, GgufError> {
    let text = String::from_utf8(read(path)?)
        .map_err(|_| GgufError::tokenizer(path, "it is not UTF-8".to_owned()))?;
    let mut merges = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.is_empty() || (i == 0 && line.starts_with("#version")) {
            continue;
        }
        let pair = line
            .split_once(' ')
            .filter(|(_, right)| !right.contains(' '));
        let Some((left, right)) = pair else {
            let reason = format!("its line {} is {line:?}, and not two tokens", i + 1);
            return Err(GgufError::tokenizer(path, reason));
        };
        for token in [left.to_owned(), right.to_owned(), format!("{left}{right}")] {
            if !vocabulary.contains_key(&token) {
                let reason = format!(
                    "its line {} has {token:?}, which vocab.json does not have: are the two files of one model?",
                    i + 1
                );
                return Err(GgufError::tokenizer(path, reason));
            }
        }
        merges.push([left.to_owned(), right.to_owned()]);
    }
    Ok(merges)
}

/// How Qwen2 splits a text.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn sentence_piece(
    directory: &Path,
    path: &Path,
    config: Map<String, Value>,
) -> Result<SlowTokenizer, GgufError> {
    let refuse = |reason: String| Err(GgufError::tokenizer(path, reason));
    let model = read_model(directory, path, &config)?;
    let mut vocabulary = HashMap::new();
    let tokens: Vec<&str> = model
        .pieces
        .iter()
        .map(|piece| piece.piece.as_deref().unwrap_or_default())
        .collect();
    for (id, token) in tokens.iter().enumerate() {
        if token.len() > pieces::LONGEST {
            return refuse(format!(
                "the token {id} has {} bytes, but at most {} are read",
                token.len(),
                pieces::LONGEST
            ));
        }
        if let Some(other) = vocabulary.insert(*token, id) {
            return refuse(format!(
                "the tokens {other} and {id} are both spelled {token:?}"
            ));
        }
    }
    let merges = merges(&tokens, &vocabulary);
    let ordered: Map<String, Value> = tokens
        .iter()
        .enumerate()
        .map(|(id, token)| ((*token).to_owned(), json!(id)))
        .collect();
    // transformers 5 puts a space before the first word alone, unless `legacy` asks for one after
    // each special token.
    let legacy = config.get("legacy") == Some(&Value::Bool(true));
    let prefix = config.get("add_prefix_space") != Some(&Value::Bool(false));
    let scheme = match (prefix, legacy) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    let ids = vocabulary
        .iter()
        .map(|(token, id)| ((*token).to_owned(), *id))
        .collect();
    let mut special = Special::new(directory, Class::Llama, config, ids)?;
    for (id, piece) in model.pieces.iter().enumerate() {
        let control = match piece.kind.unwrap_or(token_type::NORMAL) {
            token_type::CONTROL => true,
            token_type::USER_DEFINED => false,
            _ => continue,
        };
        special.add_own(id, tokens[id], control);
    }
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": special.added(),
        "normalizer": null,
        "pre_tokenizer": {
            "type": "Metaspace", "replacement": pieces::SPACE, "prepend_scheme": scheme, "split": false,
        },
        "post_processor": special.template(true),
        "decoder": pieces::decoder(prefix),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": ordered,
            "merges": merges,
        },
    });
    Ok(SlowTokenizer {
        tokenizer: Tokenizer {
            json,
            config: special.config,
        },
        path: path.to_owned(),
        note: None,
    })
}

/// A `SentencePiece` model of the kind that is read.
fn read_model(
    directory: &Path,
    path: &Path,
    config: &Map<String, Value>,
) -> Result<ModelProto, GgufError> {
    const BPE: i32 = 2;
    let unread = |what: &str| {
        let reason = format!(
            "there is no tokenizer.json, and this is {what}, which is not read: {}",
            advice(directory)
        );
        Err(GgufError::tokenizer(path, reason))
    };
    match class(directory, config)? {
        Some(Class::Llama) => {}
        _ => return unread("a SentencePiece model that nothing says to be LLaMA's or Mistral's"),
    }
    let none = |reason: &str| {
        let reason = format!(
            "it is no SentencePiece model ({reason}). Is the file complete? If it is tiktoken's, {}",
            advice(directory)
        );
        GgufError::tokenizer(path, reason)
    };
    let model =
        ModelProto::decode(read(path)?.as_slice()).map_err(|error| none(&error.to_string()))?;
    // Almost any text is a message of fields that are not known.
    if model.pieces.is_empty() {
        return Err(none("it has no tokens"));
    }
    // The format's default is 1.
    let kind = model.trainer.as_ref().and_then(|spec| spec.model_type);
    if kind.unwrap_or(1) != BPE {
        return unread("a SentencePiece model of another kind than BPE (unigram, as a rule)");
    }
    let normalizer = model.normalizer.as_ref();
    let charsmap = normalizer.and_then(|spec| spec.charsmap.as_ref());
    if charsmap.is_some_and(|map| !map.is_empty()) {
        return unread("a SentencePiece model that rewrites characters (`precompiled_charsmap`)");
    }
    Ok(model)
}

/// Every way in which two tokens make a third, in the order of the third's
/// number (`generate_merges` of transformers 5).
fn merges<'a>(tokens: &[&'a str], vocabulary: &HashMap<&str, usize>) -> Vec<[&'a str; 2]> {
    let mut all = Vec::new();
    for token in tokens {
        let mut own = Vec::new();
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(l), Some(r)) = (vocabulary.get(left), vocabulary.get(right)) {
                let lengths = [left, right].map(|part| part.chars().count());
                own.push((lengths, (l, r), [left, right]));
            }
        }
        own.sort_unstable_by_key(|&(lengths, ids, _)| (lengths, ids));
        all.extend(own.into_iter().map(|(_, _, pair)| pair));
    }
    all
}

fn read(path: &Path) -> Result<Vec<u8>, GgufError> {
    read_bounded(path, MOST).map_err(|source| GgufError::io("reading", path, source))
}

/// A JSON object, empty if there is no such file.
fn object(path: &Path) -> Result<Map<String, Value>, GgufError> {
    match read_bounded(path, MOST) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| GgufError::tokenizer(path, error.to_string())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Map::new()),
        Err(source) => Err(GgufError::io("reading", path, source)),
    }
}
