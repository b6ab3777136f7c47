//! Which tokenizer this is, for the cache of tokenised files.

use std::collections::BTreeMap;

use super::Tokenizer;
use crate::cache::{Fields, Key};

impl Tokenizer {
    /// A hash of everything in the checkpoint that decides which samples are
    /// made of a data file. `None` if the template asks for the date: then
    /// nothing in the checkpoint decides it.
    pub(crate) fn identity(&self) -> Option<&Key> {
        self.identity.as_ref()
    }

    /// `fields` holds `tokenizer.json` already.
    pub(super) fn identify(
        &self,
        mut fields: Fields,
        template: Option<&str>,
        specials: &BTreeMap<String, String>,
    ) -> Option<Key> {
        if template.is_some_and(|template| template.contains("strftime_now")) {
            return None;
        }
        let Self {
            bos,
            eos_id,
            stop_ids,
            ..
        } = self;
        // Strings are quoted and escaped in this form: no two lists look the same.
        let rest = format!("{template:?} {specials:?} {bos:?} {eos_id:?} {stop_ids:?}");
        fields.add(rest);
        Some(fields.finish())
    }
}
