//! What ends a text: whether a checkpoint's files agree on it, and whether its
//! chat template ends turns with a token.

use super::{Tokenizer, rows::listed};
use crate::{Conversation, Message, contexts::Contexts};

impl Tokenizer {
    /// Says where a file of the model names other tokens that end a text than
    /// `named`, which is the tokenizer's own, and which of them counts for what.
    /// `of_models` has the name of each file and the tokens in it.
    pub(super) fn differing_ends(
        &self,
        named: Option<u32>,
        of_models: &[(String, Vec<u32>)],
    ) -> Option<String> {
        let own = named?;
        let others: Vec<String> = of_models
            .iter()
            .filter(|(_, ids)| !ids.is_empty() && !ids.contains(&own))
            .map(|(file, ids)| format!("{file} with {}", listed(self, ids)))
            .collect();
        if others.is_empty() {
            return None;
        }
        let own = listed(self, &[own]);
        let turns = self.turn_end.map_or_else(String::new, |end| {
            format!(
                " (a turn of the chat template ends with {})",
                listed(self, &[end])
            )
        });
        Some(format!(
            "the files of the checkpoint end a text with different tokens: tokenizer_config.json with {own}, {}. \
             Training writes {own} after an answer{turns}, and generation stops at any of them",
            others.join(" and ")
        ))
    }

    /// Says where the chat template ends turns with what looks like a token, such
    /// as `<|im_end|>`, and is several to this tokenizer.
    pub(super) fn split_turn_end(&self) -> Option<String> {
        if self.turn_end.is_some() {
            return None;
        }
        let probe = vec![Message::new("user", "a"), Message::new("assistant", "b")];
        let probe = Conversation::from(probe);
        let template = self.chat.as_ref()?;
        let contexts = Contexts::of(template, &probe, &template.turns(&probe)).ok()?;
        let marked = contexts.samples.first()?;
        let (span, _) = marked.spans.last()?;
        let (_, after) = marked.text.get(span.start..)?.split_once('b')?;
        let word = after.trim_start();
        let end = word.starts_with('<').then(|| word.find('>')).flatten()?;
        let word = &word[..=end];
        if self.has_token(word) || word.contains(char::is_whitespace) {
            return None;
        }
        let ids = self.encode(word, false).ok()?;
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        let stops = match self.eos_id {
            Some(eos) => format!(
                "Training puts {} after it, at which generation stops",
                listed(self, &[eos])
            ),
            None => "Nothing tells generation to stop there".to_owned(),
        };
        Some(format!(
            "the chat template ends turns with `{word}`, which is no token of this tokenizer, but {} of them ({}). \
             {stops}. If the model was trained with `{word}`, this is not its tokenizer; to make it a token, add it \
             to the tokenizer (added_tokens), and set model.resize_embeddings = true",
            ids.len(),
            ids.join(", ")
        ))
    }
}
