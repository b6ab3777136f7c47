//! Records whose answers were judged, to samples: two of a pair, and of an answer
//! with a label one.

use olora_records::Record;

use super::{Encoded, Encoder};
use crate::{
    DataError, Format, KeyUse, Sample,
    format::preference::{self, BOTH, Pair},
};

impl Encoder<'_> {
    /// A record of two answers, as two samples.
    pub(super) fn pair(&self, record: &Record, only_keys: bool) -> Result<Encoded, DataError> {
        let chat = self.tokenizer.has_chat_template();
        let Pair {
            halves,
            keys,
            format,
            nothing,
        } = preference::pair(&record.fields, chat)?;
        let mut encoded = Encoded {
            keys,
            ..Encoded::default()
        };
        if let Some(nothing) = nothing {
            // Of what else is in the record, nothing is known.
            encoded.skipped = Some(nothing);
            return Ok(encoded);
        }
        let options = preference::options_of_halves(self.options);
        for ((fields, key), good) in halves.into_iter().zip(BOTH).zip([true, false]) {
            let at = record.at.clone();
            let half = Record { at, fields };
            // What one half does not use the other may, so that both are made first.
            let half = self
                .parsed(format, &half, &options)
                .and_then(|(parsed, mut half)| {
                    if !only_keys {
                        self.take(parsed, &mut half)?;
                    }
                    Ok(half)
                });
            let half = half.map_err(|error| error.renamed("completion", key))?;
            encoded.add_half(half, key, good)?;
        }
        if let [chosen, rejected] = encoded.samples.as_slice()
            && chosen.tokens == rejected.tokens
        {
            encoded.skipped = Some("its `chosen` and `rejected` are the same tokens".to_owned());
        }
        encoded.drop_if_refused();
        Ok(encoded)
    }

    /// A record of one answer with a label.
    pub(super) fn labelled(&self, record: &Record, only_keys: bool) -> Result<Encoded, DataError> {
        let (fields, good) = preference::labelled(&record.fields)?;
        let format = Format::detect(&fields)?;
        let at = record.at.clone();
        let half = self.answer(format, &Record { at, fields }, only_keys)?;
        let mut encoded = Encoded::default();
        encoded.keys.push(("label".to_owned(), KeyUse::Used));
        encoded.add_half(half, "completion", good)?;
        Ok(encoded)
    }
}

impl Encoded {
    /// Of a file with a key that nothing uses, no sample is needed any more.
    fn drop_if_refused(&mut self) {
        if self.keys.iter().any(|(_, use_)| *use_ == KeyUse::Unknown) {
            self.samples.clear();
            self.skipped = None;
        }
    }

    /// Adds what was made of one answer that was judged.
    fn add_half(&mut self, half: Self, key: &str, good: bool) -> Result<(), DataError> {
        for (name, use_) in half.keys {
            let name = renamed_key(name, "completion", key);
            // The turns of a prompt are in both; what one answer says again is no secret of the other.
            match self.keys.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => *known = (*known).min(use_),
                None => self.keys.push((name, use_)),
            }
        }
        if self.skipped.is_none() {
            self.skipped = half
                .skipped
                .map(|why| why.replace("`completion`", &format!("`{key}`")));
        }
        self.is_rendered |= half.is_rendered;
        self.is_boolean |= half.is_boolean;
        self.n_other_beginnings += half.n_other_beginnings;
        self.n_ended += half.n_ended;
        self.omitted.extend(half.omitted);
        self.markup.extend(half.markup);
        self.adaptations.extend(half.adaptations);
        if half.samples.iter().any(Sample::is_weighted) {
            return Err(DataError::JudgedWithWeights);
        }
        match <[Sample; 1]>::try_from(half.samples) {
            Ok([sample]) => self.samples.push(Sample {
                preferred: Some(good),
                ..sample
            }),
            Err(several) if several.len() > 1 && self.skipped.is_none() => {
                self.skipped = Some(format!(
                    "its `{key}` has several turns of the assistant, which the template renders otherwise once \
                     others follow: an answer that was judged is one text"
                ));
            }
            Err(_) => {}
        }
        Ok(())
    }
}

/// `completion[0].id` as `chosen[0].id`.
fn renamed_key(name: String, from: &str, to: &str) -> String {
    match name.strip_prefix(from) {
        Some(rest) if rest.is_empty() || rest.starts_with(['[', '.']) => format!("{to}{rest}"),
        _ => name,
    }
}
