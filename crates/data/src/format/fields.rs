//! A record, of which every key is accounted for.

use std::{cell::RefCell, collections::BTreeMap};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    LISTS, PROMPTS, REPLIES, Record, TEXTS,
    parse::{CONTEXTS, OPTIONS},
    path,
};
use crate::DataError;

/// What became of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyUse {
    /// It is in the samples, or decided what of them is trained.
    Used,
    /// It says again what a key that is used says.
    Repeated,
    /// It is known to have no part in what is learnt, such as `id`.
    Harmless,
    /// The user said to ignore it.
    Ignored,
    /// Nobody knows what it is for: the file is refused.
    Unknown,
}

/// Keys that have no part in what is learnt, in a record or in a turn: names,
/// origins, dates, kinds and lengths, as long as their values are short.
///
/// In `docs/data.md` with the rule.
#[rustfmt::skip]
pub const HARMLESS: &[&str] = &[
    // Names of the record.
    "id", "_id", "ids", "uid", "uuid", "guid", "idx", "index", "key", "row", "row_id", "row_idx",
    "raw_index", "__index_level_0__", "hash", "sha", "sha1", "sha256", "md5", "prompt_id",
    "question_id", "answer_id", "problem_id", "task_id", "sample_id", "record_id", "example_id",
    "message_id", "parent_id", "conversation_id", "conversation_hash", "conv_id", "chat_id",
    "dialog_id", "dialogue_id", "session_id", "thread_id", "user_id", "message_tree_id",
    "tree_id", "turn_id", "doc_id",
    // Where it comes from.
    "source", "sources", "source_id", "source_type", "data_source", "source_dataset", "dataset",
    "dataset_name", "dataset_id", "dataset_source", "origin", "original_source", "url", "urls",
    "link", "links", "filename", "file_name", "file_path", "path", "filepath", "repo",
    "repo_name", "repository", "repository_name", "commit", "license", "licenses", "author",
    "authors", "annotator", "annotation_type", "creator", "domain_name", "avatarurl", "split",
    "dump", "hashed_ip", "country", "state", "header",
    // When.
    "date", "time", "timestamp", "created", "created_at", "created_date", "create_time",
    "updated", "updated_at", "update_time", "year",
    // Who or what wrote it.
    "model", "model_name", "model_id", "models", "generator", "generated_by", "generation_model",
    "teacher", "engine", "cot_type", "bot_id", "finish_reason", "openai_fingerprint",
    // What it is about.
    "lang", "language", "languages", "language_code", "lang_code", "language_score", "locale",
    "category", "categories", "subcategory", "subcategories", "topic", "topics", "full_topic",
    "subtopic", "subject", "subjects", "domain", "domains", "tasks", "task_type", "task_name",
    "task_category", "type", "types", "kind", "tag", "tags", "genre", "question_type",
    "problem_type", "difficulty", "level", "grade", "resource", "skip_prompt_formatting",
    // How long it is.
    "length", "len", "size", "n_tokens", "num_tokens", "token_count", "tokens_count", "n_turns",
    "num_turns", "turn_count", "turn", "word_count", "n_words", "num_chars", "n_chars",
    "token_length", "views", "conversation_tokens",
    // Where an answer stands in its context.
    "answer_start", "answer_end",
    // Of the set.
    "meta", "metadata", "meta_info", "_meta", "extra_info", "version", "stars", "forks",
    "redacted", "openai_moderation", "detoxify_moderation", "toxic", "used_in_training",
    // Of a request to a model, whose answer is what is learnt.
    "parallel_tool_calls",
    // Of MetaMathQA: the question that `query` was made from.
    "original_question",
    "unnamed: 0",
];

/// Bytes that a text under such a key may have, on one line: a longer one may
/// be what a record is about.
const SHORT: usize = 120;

/// Keys that change what should be learnt: whatever they say, they are never
/// taken for a repetition.
const NEVER_REPEATED: [&str; 24] = [
    "label",
    "labels",
    "is_correct",
    "correct",
    "incorrect",
    "correctness",
    "images",
    "image",
    "audio",
    "video",
    "loss",
    "weight",
    "train",
    "training",
    "tools",
    "system",
    "context",
    "options",
    "history",
    "chosen",
    "rejected",
    "score",
    "rank",
    "correction",
];

/// A record, whose keys are ticked off as they are used.
pub(super) struct Fields<'a> {
    record: &'a Record,
    used: RefCell<Vec<&'a str>>,
    /// Keys that have no part in what is learnt beside others that the record has.
    harmless: RefCell<Vec<&'static str>>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(record: &'a Record) -> Self {
        Self {
            record,
            used: RefCell::default(),
            harmless: RefCell::default(),
        }
    }

    /// What is under a key, if anything, which then counts as used.
    pub(super) fn take(&self, key: &str) -> Option<&'a Value> {
        let (key, value) = self.record.get_key_value(key)?;
        self.used.borrow_mut().push(key);
        (!is_blank(value)).then_some(value)
    }

    /// Whether there is anything under a key.
    pub(super) fn says(&self, key: &str) -> bool {
        self.record.get(key).is_some_and(|value| !is_blank(value))
    }

    /// The first of the keys that says anything, else the first that is there.
    pub(super) fn pick(&self, keys: &[&'static str]) -> Option<&'static str> {
        let there = |key: &&&str| self.record.contains_key(**key);
        let says = |key: &&&str| self.record.get(**key).is_some_and(|v| !is_blank(v));
        keys.iter()
            .find(says)
            .or_else(|| keys.iter().find(there))
            .copied()
    }

    /// A key without a part in what is learnt of this record, as long as it is short.
    pub(super) fn set_aside(&self, key: &'static str) {
        self.harmless.borrow_mut().push(key);
    }

    pub(super) fn record(&self) -> &'a Record {
        self.record
    }

    /// Every key with what became of it. `said` is all text that is used.
    pub(super) fn account(&self, said: &[&str], ignore: &[String]) -> Vec<(&'a str, KeyUse)> {
        let used = self.used.borrow();
        self.record
            .iter()
            .filter_map(|(key, value)| {
                let key = key.as_str();
                if used.contains(&key) {
                    return (!is_blank(value)).then_some((key, KeyUse::Used));
                }
                let set_aside = self.harmless.borrow().contains(&key) && is_short(value);
                match judge(key, value, said, ignore)? {
                    KeyUse::Unknown if set_aside => Some((key, KeyUse::Harmless)),
                    use_ => Some((key, use_)),
                }
            })
            .collect()
    }
}

/// What becomes of a key that nothing uses; `None` if nothing is under it.
pub(super) fn judge(key: &str, value: &Value, said: &[&str], ignore: &[String]) -> Option<KeyUse> {
    if is_blank(value) {
        return None;
    }
    let ignored = ignore.iter().any(|ignored| ignored == key);
    // Of a path, such as `answers.answer_start`, the last name says what it is.
    let key = key.rsplit('.').next().unwrap_or(key);
    Some(if ignored {
        KeyUse::Ignored
    } else if HARMLESS.contains(&key.to_lowercase().as_str()) && is_short(value) {
        KeyUse::Harmless
    } else if !NEVER_REPEATED.contains(&key.to_lowercase().as_str()) && repeats(key, value, said) {
        KeyUse::Repeated
    } else {
        KeyUse::Unknown
    })
}

fn is_short(value: &Value) -> bool {
    value
        .as_str()
        .is_none_or(|text| text.len() <= SHORT && !text.trim().contains('\n'))
}

/// Whether a value says nothing that is not said already: it is one of the texts
/// that are used, as `prompt` beside `messages` often is, or several of them; it
/// is the last words of a solution, as its `answer`; or it is the record as one
/// text, as Alpaca's `text` is.
fn repeats(key: &str, value: &Value, said: &[&str]) -> bool {
    match value {
        Value::String(text) => {
            let text = text.trim();
            let one = said.iter().any(|said| said.trim() == text);
            let answer = ["answer", "solution", "final_answer"].contains(&key)
                && said.last().is_some_and(|said| said.contains(text));
            one || answer || (key == "text" && is_alpaca(text, said))
        }
        Value::Array(items) => {
            !items.is_empty() && items.iter().all(|item| repeats(key, item, said))
        }
        // Turns once more, in other words.
        Value::Object(fields) => {
            let is_role = |key: &str| ["role", "from"].contains(&key);
            let has_role = fields.keys().any(|key| is_role(key));
            has_role
                && fields.iter().all(|(key, value)| {
                    is_role(key) || is_blank(value) || repeats(key, value, said)
                })
        }
        _ => false,
    }
}

/// Whether a text is a prompt with headings, as Alpaca has it, with its answer.
fn is_alpaca(text: &str, said: &[&str]) -> bool {
    let [prompt, answer] = said else {
        return false;
    };
    let mut rest = text.to_owned();
    for part in prompt.split("\n\n").chain([*answer]) {
        let part = part.trim();
        if !rest.contains(part) {
            return false;
        }
        rest = rest.replacen(part, "", 1);
    }
    // What is left are headings, and the sentence that Alpaca's prompt begins with.
    rest.lines().map(str::trim).all(|line| {
        line.is_empty() || line.starts_with("###") || line.starts_with("Below is an instruction")
    })
}

/// Whether there is nothing.
pub(super) fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        // A table whose rows have objects of several kinds fills each with nulls.
        Value::Array(items) => items.iter().all(Value::is_null),
        Value::Object(fields) => fields.values().all(is_null),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Whether a value is null, or an object of nothing but nulls.
fn is_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.values().all(is_null),
        _ => false,
    }
}

/// Names that `data.columns` can give to a file's keys.
const COLUMNS: [&str; 15] = [
    "prompt",
    "completion",
    "input",
    "context",
    "options",
    "system",
    "history",
    "messages",
    "tools",
    "text",
    "reasoning_content",
    "weight",
    "chosen",
    "rejected",
    "label",
];

/// Takes out what a user says is to be ignored, and returns the names of what
/// said anything.
pub(crate) fn ignored(record: &mut Record, ignore: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for key in ignore {
        if let Some(value) = record.shift_remove(key)
            && !is_blank(&value)
        {
            found.push(key.clone());
        }
    }
    found
}

/// Whether anything is under a key or a path, be it nothing.
pub(crate) fn has_key(record: &Record, key: &str) -> bool {
    record.contains_key(key)
        || key.contains(['.', '[']) && {
            let mut record = record.clone();
            path::lift(&mut record, key);
            record.contains_key(key)
        }
}

/// Gives keys that are known in small letters these, as spreadsheets and some sets
/// begin them with a capital, unless the record has both.
pub(crate) fn in_small_letters(record: Record) -> Record {
    let known = |key: &str| {
        let small = key.to_lowercase();
        let lists = [&PROMPTS[..], &REPLIES, &LISTS, &TEXTS, &CONTEXTS, &OPTIONS];
        let is_known = lists.iter().any(|names| names.contains(&small.as_str()))
            || ["system", "history", "tools", "chosen", "rejected", "label"]
                .contains(&small.as_str());
        is_known.then_some(small)
    };
    let is_small = |key: &String| !key.contains(char::is_uppercase);
    if record.keys().all(is_small) {
        return record;
    }
    let mut renamed = Record::with_capacity(record.len());
    let all: Vec<String> = record.keys().cloned().collect();
    for (key, value) in record {
        let small = if is_small(&key) { None } else { known(&key) };
        let same = |small: &String| {
            all.iter()
                .filter(|key| key.to_lowercase() == *small)
                .count()
        };
        match small.filter(|small| same(small) == 1) {
            Some(small) => renamed.insert(small, value),
            None => renamed.insert(key, value),
        };
    }
    renamed
}

fn without_column(name: &str, key: &str, record: &Record) -> DataError {
    DataError::Columns(format!(
        "`{name}` is to be `{key}`, but the record has only {}",
        super::quoted(record.keys())
    ))
}

/// Refuses a name for answers that none of some records has: the first is named.
pub(crate) fn check_answers<'a>(
    mut records: impl Iterator<Item = &'a Record>,
    columns: &BTreeMap<String, String>,
) -> Result<(), DataError> {
    let Some(key) = columns.get("completion") else {
        return Ok(());
    };
    let has = |record: &Record| {
        let mut record = record.clone();
        path::lift(&mut record, key);
        record.contains_key(key)
    };
    match records.next() {
        Some(first) if !has(first) && !records.any(&has) => {
            Err(without_column("completion", key, first))
        }
        _ => Ok(()),
    }
}

/// Gives a record's keys the names that a user says they stand for.
pub(crate) fn renamed(
    mut record: Record,
    columns: &BTreeMap<String, String>,
) -> Result<Record, DataError> {
    if columns.is_empty() {
        return Ok(record);
    }
    let columns_error = |reason: String| DataError::Columns(reason);
    let known = COLUMNS.map(|name| format!("`{name}`")).join(", ");
    if let Some(name) = columns
        .keys()
        .find(|name| !COLUMNS.contains(&name.as_str()))
    {
        return Err(columns_error(format!(
            "`{name}` is none of the names that a key can be given: {known}"
        )));
    }
    for key in columns.values() {
        path::lift(&mut record, key);
    }
    for (name, key) in columns {
        // Without an answer a record is left out, as long as others have one.
        let needed = ["prompt", "messages", "text"].contains(&name.as_str());
        if needed && !record.contains_key(key) {
            return Err(without_column(name, key, &record));
        }
        let is_taken = |taken: &Value| !is_blank(taken);
        let is_moved = columns.values().any(|key| key == name);
        if key != name
            && !is_moved
            && record.get(name).is_some_and(is_taken)
            && record.contains_key(key)
        {
            return Err(columns_error(format!(
                "`{name}` is to be `{key}`, but the record has a `{name}` as well: \
                 remove one, or give `{name}` another name"
            )));
        }
    }
    let name_of = |key: &str| {
        columns
            .iter()
            .find(|(_, of)| *of == key)
            .map(|(name, _)| name)
    };
    Ok(record
        .into_iter()
        .map(|(key, value)| match name_of(&key) {
            Some(name) => (name.clone(), value),
            None => (key, value),
        })
        .collect())
}
