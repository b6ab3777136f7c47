//! Tokens that a model's embedding has no row for. A tokenizer may have some, as
//! where a padding token was added, as long as nothing uses them.

use super::Tokenizer;
use crate::DataError;

/// Tokens that a note names; of more, it tells how many there are.
const EXAMPLES: usize = 3;

impl Tokenizer {
    /// The tokenizer for a model whose embedding has as many rows. Samples and
    /// prompts that use a token beyond them are refused from then on, and padding
    /// is done with a token that has a row.
    #[must_use]
    pub fn with_rows(mut self, rows: usize) -> Self {
        let has_row = |id: &u32| (*id as usize) < rows;
        if !has_row(&self.pad_id) {
            self.pad_id = self.eos_id.filter(has_row).unwrap_or(0);
        }
        self.rows = Some(rows);
        self
    }

    /// The rows of the model's embedding, if they were told.
    pub fn rows(&self) -> Option<usize> {
        self.rows
    }

    /// What is to be said of tokens that the model has no row for, if it has some.
    pub fn note_of_rows(&self) -> Option<String> {
        self.beyond(self.rows?)
    }

    /// Refuses tokens that the model has no row for.
    ///
    /// # Errors
    ///
    /// [`DataError::BeyondEmbedding`] names the first.
    pub fn check_rows(&self, ids: &[u32], rows: usize) -> Result<(), DataError> {
        match ids.iter().find(|&&id| id as usize >= rows) {
            None => Ok(()),
            Some(&id) => Err(DataError::BeyondEmbedding {
                token: self.token(id).unwrap_or_else(|| "?".to_owned()),
                id,
                rows,
                n_vocab: self.n_vocab,
            }),
        }
    }

    /// The same for the rows that it was told of.
    pub(crate) fn check(&self, ids: &[u32]) -> Result<(), DataError> {
        self.rows.map_or(Ok(()), |rows| self.check_rows(ids, rows))
    }

    /// Those of the tokens at which generation is to stop that the model has no
    /// row for, and so never writes, in words.
    ///
    /// # Errors
    ///
    /// [`DataError::StopsBeyondEmbedding`] if those are all of them.
    pub fn check_stops(&self, stop: &[u32]) -> Result<Option<String>, DataError> {
        let Some(rows) = self.rows else {
            return Ok(None);
        };
        let beyond: Vec<u32> = stop
            .iter()
            .copied()
            .filter(|&id| id as usize >= rows)
            .collect();
        if beyond.is_empty() {
            return Ok(None);
        }
        let tokens = listed(self, &beyond);
        if beyond.len() == stop.len() {
            return Err(DataError::StopsBeyondEmbedding { tokens, rows });
        }
        Ok(Some(format!(
            "generation is to stop at {tokens} too, which the model never writes: its embedding has {rows} rows, and \
             none for {}",
            if beyond.len() == 1 { "it" } else { "them" }
        )))
    }

    /// A note about the tokens beyond as many rows, if there are any.
    fn beyond(&self, rows: usize) -> Option<String> {
        if self.n_vocab <= rows {
            return None;
        }
        let all = self.inner.get_vocab(true);
        let n_all = all.len();
        let mut beyond: Vec<u32> = all
            .into_values()
            .filter(|&id| id as usize >= rows)
            .collect();
        beyond.sort_unstable();
        beyond.dedup();
        let n = beyond.len();
        let (lie, they) = if n == 1 {
            ("lies", "It is allowed as long as nothing uses it")
        } else {
            ("lie", "They are allowed as long as nothing uses them")
        };
        // Of a tokenizer of another checkpoint, many do.
        let other = if 2 * n > n_all {
            ". Is this the tokenizer of this checkpoint?"
        } else {
            ""
        };
        Some(format!(
            "{n} of the tokenizer's {n_all} tokens {lie} beyond the {rows} rows of the model's embedding: {}. {they}; \
             model.resize_embeddings = true in a recipe adds rows and trains them{other}",
            listed(self, &beyond)
        ))
    }
}

/// The first few tokens with their ids, and how many there are of more.
pub(super) fn listed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let named = ids
        .iter()
        .take(EXAMPLES)
        .map(|&id| match tokenizer.token(id) {
            Some(token) => format!("`{token}` ({id})"),
            None => id.to_string(),
        });
    let named = named.collect::<Vec<_>>().join(", ");
    match ids.len().saturating_sub(EXAMPLES) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}
