//! Tokenizers, chat templates, what is made of records with both, and what is
//! kept of that.

use std::{collections::BTreeMap, fs, time::Instant};

use olora_data::{
    ChatTemplate, Conversation, DataError, DataOptions, Message, Sample, TokenCache, Tokenizer,
    describe_sample, load_samples_cached,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::records;
use crate::parts::{put, scratch, split, twice};

/// A tokenizer of the village's words.
pub(crate) const TOKENIZER: &str = r#"{"version": "1.0", "added_tokens": [
    {"id": 1, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
  "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
  "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "</s>": 1, "Zora": 2, "Alder": 3, "Jorun": 4,
    "Oxmere": 5, "Thornby": 6, "user": 7, "assistant": 8, "system": 9, "lives": 10, "in": 11, ".": 12, "Where": 13,
    "does": 14, "live": 15}}}"#;
pub(crate) const TOKENIZER_CONFIG: &str = r#"{"eos_token": "</s>"}"#;

/// Parts: `tokenizer.json`, `tokenizer_config.json`, a text, and
/// `generation_config.json`. Behind a `!`, older files: `tokenizer_config.json`
/// and `tokenizer.model`, or `vocab.json` and `merges.txt`.
pub fn tokenizer(data: &[u8]) {
    let directory = scratch();
    let parts = split(data);
    if let Some(config) = parts[0].strip_prefix(b"!") {
        put(directory.path(), "tokenizer_config.json", config);
        match parts.get(1..).unwrap_or_default() {
            [vocabulary, merges, ..] => {
                put(directory.path(), "vocab.json", vocabulary);
                put(directory.path(), "merges.txt", merges);
            }
            [model] => {
                put(directory.path(), "tokenizer.model", model);
            }
            [] => {}
        }
        let text = "Zora lives in  Oxmere.\n<s>é🙂";
        return encode(Tokenizer::from_dir(directory.path()), text);
    }
    put(directory.path(), "tokenizer.json", parts[0]);
    for (name, part) in ["tokenizer_config.json", "", "generation_config.json"]
        .into_iter()
        .zip(parts.iter().skip(1))
    {
        if !name.is_empty() && !part.is_empty() {
            put(directory.path(), name, part);
        }
    }
    let text = parts.get(2).copied().unwrap_or(b"Zora lives in Oxmere.\n");
    encode(
        Tokenizer::from_dir(directory.path()),
        &String::from_utf8_lossy(text),
    );
}

/// What is done with a tokenizer that could be read.
pub(crate) fn encode(tokenizer: Result<Tokenizer, DataError>, text: &str) {
    let tokenizer = match tokenizer {
        Ok(tokenizer) => tokenizer,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let _ = (
        tokenizer.eos_id(),
        tokenizer.bos_id(),
        tokenizer.stop_ids_with(&[7]),
    );
    let _ = tokenizer.token(u32::MAX);
    let _ = tokenizer.encode_prompt(text);
    for special in [false, true] {
        let ids = twice("a text", || tokenizer.encode(text, special), PartialEq::eq);
        let Ok(ids) = ids else { continue };
        let _ = tokenizer.decode(&ids, true);
        let _ = tokenizer.decode(&ids, false);
        let mut stream = tokenizer.decode_stream();
        for &id in ids.iter().take(1000) {
            if stream.push(id).is_err() {
                break;
            }
        }
    }
    let _ = tokenizer.decode(&[0, u32::MAX, 1], false);
}

/// Parts: a template's source, and a conversation: `messages`, `tools` and
/// `variables`, as JSON.
pub fn template(data: &[u8]) {
    let parts = split(data);
    let source = String::from_utf8_lossy(parts[0]);
    let told: Value = parts
        .get(1)
        .and_then(|part| serde_json::from_slice(part).ok())
        .unwrap_or_default();
    let specials = BTreeMap::from([("eos_token".to_owned(), "</s>".to_owned())]);
    let Ok(template) = ChatTemplate::new(&source, &specials) else {
        return;
    };
    let messages: Vec<Message> = match told
        .get("messages")
        .map(|messages| serde_json::from_value(messages.clone()))
    {
        Some(Ok(messages)) => messages,
        _ => vec![
            Message::new("user", "Where does Zora live?"),
            Message::new("assistant", "In Oxmere."),
        ],
    };
    let conversation = Conversation {
        messages,
        tools: told.get("tools").cloned(),
        variables: told
            .get("variables")
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default(),
        ..Conversation::default()
    };
    // One that uses up its steps takes some seconds, as it may: to see that once is enough.
    let began = Instant::now();
    if template.render(&conversation, false).is_err() && began.elapsed().as_secs() >= 1 {
        return;
    }
    for prompt in [false, true] {
        let render = || template.render(&conversation, prompt);
        if source.contains("strftime_now") || source.contains("random") {
            let _ = render();
        } else {
            let _ = twice("a conversation", render, PartialEq::eq);
        }
    }
}

/// Parts: a chat template, or nothing; a data file as for `records`; optionally
/// keys of `[data]` as JSON (`system`, `first_turn`, `ignore`, `columns`).
pub fn samples(data: &[u8]) {
    let directory = scratch();
    let parts = split(data);
    put(directory.path(), "tokenizer.json", TOKENIZER.as_bytes());
    put(
        directory.path(),
        "tokenizer_config.json",
        TOKENIZER_CONFIG.as_bytes(),
    );
    if !parts[0].is_empty() {
        put(directory.path(), "chat_template.jinja", parts[0]);
    }
    let Ok(tokenizer) = Tokenizer::from_dir(directory.path()) else {
        return;
    };
    let place = directory.path().join("data");
    fs::create_dir(&place).expect("a place for files");
    let path = records::write(&place, parts.get(1).copied().unwrap_or_default());
    let keys: Value = parts
        .get(2)
        .and_then(|part| serde_json::from_slice(part).ok())
        .unwrap_or_default();
    let take = |key: &str| keys.get(key).cloned().unwrap_or_default();
    let options = DataOptions {
        max_length: 64,
        format: serde_json::from_value(take("format")).ok(),
        columns: serde_json::from_value(take("columns")).unwrap_or_default(),
        ignore: serde_json::from_value(take("ignore")).unwrap_or_default(),
        system: serde_json::from_value(take("system")).unwrap_or_default(),
        first_turn: serde_json::from_value(take("first_turn")).unwrap_or_default(),
        allow_omissions: take("allow_omissions") == Value::Bool(true),
        ..DataOptions::default()
    };
    let read = || load_samples_cached(&path, &tokenizer, &options, None);
    let same = |one: &olora_data::Samples, other: &olora_data::Samples| {
        one.samples == other.samples && one.report == other.report
    };
    let read = if parts[0].windows(8).any(|word| word == b"strftime") {
        read().map_err(|error| error.to_string())
    } else {
        twice("a data file", read, same)
    };
    let Ok(read) = read else { return };
    assert!(
        !read.samples.is_empty(),
        "without samples there is an error"
    );
    for sample in read.samples.iter().take(100) {
        check(&sample, options.max_length, tokenizer.n_vocab());
        describe_sample(&sample, &tokenizer).expect("tokens of this tokenizer");
    }
}

fn check(sample: &Sample, max_length: usize, n_vocab: usize) {
    assert_eq!(sample.tokens.len(), sample.trained.len());
    assert!(
        sample.len() <= max_length,
        "a sample is longer than asked for"
    );
    assert!(sample.n_trained() > 0, "a sample trains nothing");
    assert!(
        sample
            .tokens
            .iter()
            .all(|&token| (token as usize) < n_vocab),
        "a sample has a token that is not in the vocabulary"
    );
    if let Some(weights) = &sample.weights {
        assert_eq!(weights.len(), sample.len());
        assert!(
            weights
                .iter()
                .all(|weight| weight.is_finite() && *weight >= 0.0),
            "a sample has a weight that is none"
        );
    }
}

/// A file of the cache of tokens, in the place of the one that the cache has. If
/// the input begins with `!`, its key and its hash are made right, so that what
/// is behind them is looked at.
pub fn token_cache(data: &[u8]) {
    let directory = scratch();
    put(directory.path(), "tokenizer.json", TOKENIZER.as_bytes());
    put(
        directory.path(),
        "tokenizer_config.json",
        TOKENIZER_CONFIG.as_bytes(),
    );
    let tokenizer = Tokenizer::from_dir(directory.path()).expect("our own");
    let record = br#"{"prompt": "Where does Zora live", "completion": "in Oxmere ."}"#;
    let path = put(directory.path(), "data.jsonl", record);
    let cache = TokenCache {
        directory: directory.path().join("tokens"),
        min_bytes: 0,
        max_bytes: 1 << 30,
    };
    let options = DataOptions::default();
    let read = || load_samples_cached(&path, &tokenizer, &options, Some(&cache));
    let expected = read().expect("our own");
    let mut kept = fs::read_dir(&cache.directory).expect("it was made");
    let place = kept.next().expect("a file").expect("a file").path();
    let right = fs::read(&place).expect("a file");
    let repaired = data.first() == Some(&b'!');
    let mut bytes = data.strip_prefix(b"!").unwrap_or(data).to_vec();
    if repaired && bytes.len() >= 72 {
        bytes[..40].copy_from_slice(&right[..40]);
        let end = bytes.len() - 32;
        let hash = Sha256::digest(&bytes[..end]);
        bytes[end..].copy_from_slice(&hash);
    }
    drop(expected.samples.clone());
    fs::remove_file(&place).expect("a file");
    fs::write(&place, &bytes).expect("a file");
    let found = match read() {
        Ok(found) => found,
        // With the right hash it is believed, and may hold nothing to train.
        Err(error) if repaired => return assert!(!error.to_string().is_empty()),
        Err(error) => panic!("a damaged cache costs time and nothing else: {error}"),
    };
    if !found.from_cache || !repaired {
        assert!(
            found.samples == expected.samples,
            "the cache gave other samples"
        );
    }
    for sample in found.samples.iter().take(100) {
        assert_eq!(sample.tokens.len(), sample.trained.len());
    }
}
