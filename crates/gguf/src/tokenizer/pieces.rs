//! `SentencePiece` BPE: merges from scores, and the `▁` that stands for a space.

use std::{cmp::Reverse, collections::HashMap};

use serde_json::{Value, json};

use super::token_type;

/// What `SentencePiece` writes for a space.
pub(crate) const SPACE: &str = "▁";

/// Bytes of the longest token that is split in search of merges. `SentencePiece`
/// itself stops at sixteen characters unless told otherwise.
pub(crate) const LONGEST: usize = 2048;

/// A token as `tokenizer.json` has it: runs of spaces with `▁`.
pub(crate) fn spelled(token: &str) -> String {
    if !token.is_empty() && token.trim_matches(' ').is_empty() {
        token.replace(' ', SPACE)
    } else {
        token.to_owned()
    }
}

/// Gemma's scores do not follow the order in which its tokens were merged; their
/// ids do.
pub(crate) fn scores_by_position(count: usize) -> Vec<f64> {
    (0..count).map(|id| -(id as f64)).collect()
}

/// Every way in which two tokens make a third, those with the best score first
/// (`generate_merges` of transformers). Tokens that `SentencePiece` never merges
/// towards are left out.
pub(crate) fn merges<'a>(
    tokens: &'a [String],
    types: &[i32],
    scores: &[f64],
    vocabulary: &HashMap<&str, usize>,
) -> Vec<[&'a str; 2]> {
    let mut merges = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let never = [token_type::UNKNOWN, token_type::CONTROL, token_type::BYTE];
        if never.contains(&types[id]) || vocabulary.get(token.as_str()) != Some(&id) {
            continue;
        }
        let mut own = Vec::new();
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(l), Some(r)) = (vocabulary.get(left), vocabulary.get(right)) {
                own.push(((l, r), [left, right]));
            }
        }
        own.sort_unstable_by_key(|&(ids, _)| ids);
        merges.extend(own.into_iter().map(|(_, pair)| (scores[id], pair)));
    }
    merges.sort_by(|(one, a), (other, b)| {
        let lengths = |pair: &[&str; 2]| Reverse(pair.map(|part| part.chars().count()));
        other.total_cmp(one).then(lengths(a).cmp(&lengths(b)))
    });
    merges.into_iter().map(|(_, pair)| pair).collect()
}

/// Spaces to `▁`, with one more in front if `prefix`.
pub(crate) fn normalizer(prefix: bool) -> Value {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    if prefix {
        let prepend = json!({"type": "Prepend", "prepend": SPACE});
        json!({"type": "Sequence", "normalizers": [prepend, replace]})
    } else {
        replace
    }
}

/// Undoes [`normalizer`], and puts bytes together.
pub(crate) fn decoder(prefix: bool) -> Value {
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}
