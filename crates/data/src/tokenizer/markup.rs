//! The words with which a checkpoint's template tells turns apart.

use super::Tokenizer;
use crate::{Conversation, Message, format::MARKUP};

/// Of a checkpoint with a chat template; of another there are none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Markup {
    /// All of them, the longest first.
    words: Vec<String>,
    /// Those that end a turn.
    ends: Vec<String>,
}

impl Tokenizer {
    /// What the template writes around the words of turns: special tokens, and what
    /// some templates begin turns with.
    pub(crate) fn markup(&self) -> Markup {
        let [user, assistant] =
            [("user", "a"), ("assistant", "b")].map(|(r, c)| Message::new(r, c));
        // Some refuse a turn of the assistant where others want one.
        let rendered = [&[user.clone(), assistant][..], &[user]]
            .into_iter()
            .find_map(|turns| self.render_chat(turns, true).ok());
        let Some(rendered) = rendered else {
            return Markup::default();
        };
        let added = self.inner.get_added_tokens_decoder();
        let specials = added
            .into_values()
            .filter(|token| token.special && !token.content.contains("think"))
            .map(|token| token.content);
        let known = MARKUP.iter().map(|word| (*word).to_owned());
        let ends: Vec<_> = [self.turn_end, self.eos_id]
            .into_iter()
            .flatten()
            .filter_map(|id| self.token(id))
            .collect();
        let mut words: Vec<_> = specials
            .chain(known)
            .filter(|word| !word.trim().is_empty() && rendered.contains(word.as_str()))
            .chain(ends.clone())
            .collect();
        words.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        words.dedup();
        Markup { words, ends }
    }
}

impl Markup {
    /// Takes the words that end a turn from the ends of turns, since the template
    /// writes them again. Returns how many turns had them.
    pub(crate) fn take_ends(&self, conversation: &mut Conversation) -> usize {
        let mut n = 0;
        for message in &mut conversation.messages {
            let content = message.content().trim_end();
            let end = self
                .ends
                .iter()
                .find_map(|end| content.strip_suffix(end.as_str()));
            if let Some(words) = end.map(str::to_owned) {
                message.set_content(words);
                n += 1;
            }
        }
        n
    }

    /// The first such word of each turn that has one: what it is and where, and how
    /// the turn begins.
    pub(crate) fn found(&self, conversation: &Conversation) -> Vec<(String, String)> {
        let turns = conversation.messages.iter();
        turns
            .filter_map(|message| {
                let content = message.content();
                let there = self
                    .words
                    .iter()
                    .filter(|word| content.contains(word.as_str()));
                let word = there.min_by_key(|word| content.find(word.as_str()))?;
                let what = format!("`{word}` in the {} turn", message.role());
                Some((what, content.trim().chars().take(60).collect()))
            })
            .collect()
    }
}
