//! Text to tokens of which some are trained.

use std::{ops::Range, slice};

use super::{Tokenizer, failed};
use crate::{DataError, Message, Sample};

impl Tokenizer {
    /// A conversation with the assistant's turns trained.
    pub(crate) fn chat_sample(&self, messages: &[Message]) -> Result<Sample, DataError> {
        let (text, spans) = self.template()?.render_marked(messages)?;
        let mut sample = self.marked(&text, &spans, false)?;
        self.close(&mut sample)?;
        Ok(sample)
    }

    /// A prompt and its completion, joined with nothing between, the latter trained.
    pub(crate) fn pair_sample(&self, prompt: &str, completion: &str) -> Result<Sample, DataError> {
        let text = [prompt, completion].concat();
        let completion = prompt.len()..text.len();
        let add_special_tokens = !self.begins_with_bos(&text);
        let mut sample = self.marked(&text, slice::from_ref(&completion), add_special_tokens)?;
        self.close(&mut sample)?;
        Ok(sample)
    }

    /// A whole document, ended.
    pub(crate) fn document(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let mut ids = self.encode(text, !self.begins_with_bos(text))?;
        let eos = self.required_eos()?;
        if ids.last() != Some(&eos) {
            ids.push(eos);
        }
        Ok(ids)
    }

    /// The whole text is tokenised at once, as it will be in use: tokenised
    /// apart, its parts would meet in other tokens than the text has there. A
    /// token is trained if any of it lies within a span.
    fn marked(
        &self,
        text: &str,
        spans: &[Range<usize>],
        add_special_tokens: bool,
    ) -> Result<Sample, DataError> {
        let encoding = self
            .inner
            .encode(text, add_special_tokens)
            .map_err(failed)?;
        let mut before = 0;
        let is_trained = |&(start, end): &(usize, usize)| {
            // Some tokenizers trim the spaces from a token's offsets: of a token
            // that is only spaces, its end is left. One that was added around the
            // text has (0, 0) and lies within nothing.
            let start = if start == end {
                start.min(before)
            } else {
                start
            };
            before = end;
            spans
                .iter()
                .any(|span| start < span.end && span.start < end)
        };
        let mut trained: Vec<_> = encoding.get_offsets().iter().map(is_trained).collect();
        if let Some(first) = trained.first_mut() {
            *first = false;
        }
        Ok(Sample {
            tokens: encoding.get_ids().to_vec(),
            trained,
        })
    }

    /// Makes sure that the last thing trained is to stop.
    fn close(&self, sample: &mut Sample) -> Result<(), DataError> {
        let n = sample
            .trained
            .iter()
            .rposition(|&trained| trained)
            .map_or(sample.len(), |last| last + 1);
        let ended = n > 0 && sample.trained[n - 1] && self.stop_ids.contains(&sample.tokens[n - 1]);
        if !ended {
            let eos = self.required_eos()?;
            // What follows is white space, or an end-of-sequence that the tokenizer added.
            sample.truncate(n);
            sample.push_trained(eos);
        }
        if sample.n_trained() == 0 {
            return Err(DataError::NothingToTrain(
                "the tokenizer makes no tokens of it".to_owned(),
            ));
        }
        Ok(())
    }

    /// The special token with which the chat template closes a turn.
    pub(super) fn turn_end(&self) -> Option<u32> {
        let probe = [Message::new("user", "a"), Message::new("assistant", "b")];
        let (text, spans) = self.chat.as_ref()?.render_marked(&probe).ok()?;
        let sample = self.marked(&text, &spans, false).ok()?;
        let last = sample.trained.iter().rposition(|&trained| trained)?;
        let id = sample.tokens[last];
        let added = self.inner.get_added_tokens_decoder();
        added
            .get(&id)
            .is_some_and(|token| token.special)
            .then_some(id)
    }
}
