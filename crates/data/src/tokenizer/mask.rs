//! Text to tokens of which some are trained.

use std::ops::Range;

use super::{Tokenizer, failed, guarded::guarded};
use crate::{
    Conversation, DataError, Message, Sample,
    chat::Adaptation,
    contexts::Contexts,
    omitted::{Omission, omitted},
};

/// A part of a text that is trained, and what its loss counts.
type Span = (Range<usize>, f32);

/// What a conversation became.
pub(crate) struct ChatSamples {
    pub samples: Vec<Sample>,
    /// What the template left out.
    pub omitted: Vec<Omission>,
    pub n_other_beginnings: usize,
    /// What the conversation was given for the template's sake.
    pub adaptations: Vec<Adaptation>,
}

impl Tokenizer {
    /// A conversation with the assistant's turns trained, each in the context
    /// that inference gives it.
    pub(crate) fn chat_samples(
        &self,
        conversation: &Conversation,
    ) -> Result<ChatSamples, DataError> {
        let template = self.template()?;
        let (conversation, adaptations) = template.adapted(conversation);
        let conversation = conversation.as_ref();
        let turns = template.turns(conversation);
        let Contexts {
            samples,
            n_other_beginnings,
        } = Contexts::of(template, conversation, &turns)?;
        let omitted = omitted(conversation, &turns, &samples);
        let samples = samples.iter().map(|marked| {
            let mut sample = self.marked(&marked.text, &marked.spans, false)?;
            self.close(&mut sample)?;
            Ok(sample)
        });
        Ok(ChatSamples {
            samples: samples.collect::<Result<_, DataError>>()?,
            omitted,
            n_other_beginnings,
            adaptations,
        })
    }

    /// A prompt and its completion, joined with nothing between, the latter trained.
    /// One that a template rendered has its special tokens already, and ends as
    /// the template ends turns.
    pub(crate) fn pair_sample(
        &self,
        prompt: &str,
        completion: &str,
        weight: f32,
        is_rendered: bool,
    ) -> Result<Sample, DataError> {
        let text = [prompt, completion].concat();
        let completion = (prompt.len()..text.len(), weight);
        let add_special_tokens = !is_rendered && !self.begins_with_bos(&text);
        let mut sample = self.marked(&text, &[completion], add_special_tokens)?;
        let end = self.turn_end.filter(|_| is_rendered).or(self.eos_id);
        self.close_with(&mut sample, end)?;
        Ok(sample)
    }

    /// A whole document, ended.
    pub(crate) fn document(&self, text: &str) -> Result<Vec<u32>, DataError> {
        // A rendered chat ends with its last turn, whatever line break follows.
        let trimmed = text.trim_end();
        let ids = self.encode(trimmed, !self.begins_with_bos(text))?;
        if ids.last().is_some_and(|id| self.turn_end == Some(*id)) {
            return Ok(ids);
        }
        let mut ids = if trimmed.len() == text.len() {
            ids
        } else {
            self.encode(text, !self.begins_with_bos(text))?
        };
        let eos = self.required_eos()?;
        if ids.last() != Some(&eos) {
            ids.push(eos);
        }
        Ok(ids)
    }

    /// The whole text is tokenised at once, as it will be in use: tokenised
    /// apart, its parts would meet in other tokens than the text has there. A
    /// token is trained if any of it lies within a span, as much as the span says.
    fn marked(
        &self,
        text: &str,
        spans: &[Span],
        add_special_tokens: bool,
    ) -> Result<Sample, DataError> {
        let encode = || self.inner.encode(text, add_special_tokens);
        let encoding = guarded(&self.dir, "encoding a text", || encode().map_err(failed))?;
        let mut before = 0;
        let weight = |&(start, end): &(usize, usize)| {
            // Some tokenizers trim the spaces from a token's offsets: of a token
            // that is only spaces, its end is left. One that was added around the
            // text has (0, 0) and lies within nothing.
            let start = if start == end {
                start.min(before)
            } else {
                start
            };
            before = end;
            let mut within = spans
                .iter()
                .filter(|(span, _)| start < span.end && span.start < end);
            within.next().map_or(0.0, |(_, weight)| *weight)
        };
        let mut weights: Vec<f32> = encoding.get_offsets().iter().map(weight).collect();
        if let Some(first) = weights.first_mut() {
            *first = 0.0;
        }
        let trained = weights.iter().map(|weight| *weight > 0.0).collect();
        let mut sample = Sample::new(encoding.get_ids().to_vec(), trained);
        if weights.iter().any(|weight| ![0.0, 1.0].contains(weight)) {
            sample.weights = Some(weights);
        }
        Ok(sample)
    }

    /// Makes sure that the last thing trained is to stop.
    fn close(&self, sample: &mut Sample) -> Result<(), DataError> {
        self.close_with(sample, self.eos_id)
    }

    fn close_with(&self, sample: &mut Sample, end: Option<u32>) -> Result<(), DataError> {
        let n = sample
            .trained
            .iter()
            .rposition(|&trained| trained)
            .map_or(sample.len(), |last| last + 1);
        let ended = n > 0 && sample.trained[n - 1] && self.stop_ids.contains(&sample.tokens[n - 1]);
        if !ended {
            let eos = match end {
                Some(end) => end,
                None => self.required_eos()?,
            };
            // What follows is white space, or an end-of-sequence that the tokenizer added.
            let weight = n.checked_sub(1).map_or(1.0, |last| sample.weight(last));
            sample.truncate(n);
            sample.push_trained(eos);
            if let Some(last) = sample.weights.as_mut().and_then(|all| all.last_mut()) {
                *last = weight;
            }
        }
        if sample.n_trained() == 0 {
            return Err(DataError::NothingToTrain(
                "the tokenizer makes no tokens of it".to_owned(),
            ));
        }
        Ok(())
    }

    /// The special token with which the chat template closes a turn.
    pub(super) fn find_turn_end(&self) -> Option<u32> {
        let probe = vec![Message::new("user", "a"), Message::new("assistant", "b")];
        let probe = Conversation::from(probe);
        let template = self.chat.as_ref()?;
        let contexts = Contexts::of(template, &probe, &template.turns(&probe)).ok()?;
        let marked = contexts.samples.first()?;
        let sample = self.marked(&marked.text, &marked.spans, false).ok()?;
        let last = sample.trained.iter().rposition(|&trained| trained)?;
        let id = sample.tokens[last];
        let added = self.inner.get_added_tokens_decoder();
        added
            .get(&id)
            .is_some_and(|token| token.special)
            .then_some(id)
    }
}
