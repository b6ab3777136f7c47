//! A sample that people are shown.

use serde::Serialize;

use crate::{Corpus, DataError, Piece, Tokenizer, describe_sample};

/// A sample as people read it, which a run keeps of each of its data sets.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Example {
    /// Which of the samples it is, from 0.
    pub index: usize,
    /// Its tokens.
    pub n_tokens: usize,
    /// Those that the loss is taken on.
    pub n_trained_tokens: usize,
    /// Its first tokens, so many that `pieces` are of.
    pub n_shown_tokens: usize,
    /// Of an answer that was judged, whether it is a good one.
    pub preferred: Option<bool>,
    /// Its text, cut where training begins and ends and where weights change.
    pub pieces: Vec<Piece>,
}

impl Example {
    /// What is longer is passed over, or cut where nothing is shorter.
    pub const MOST_TOKENS: usize = 2048;

    /// The first of the samples that is short enough to be shown whole, else the
    /// first; of pairs both answers. Empty if there are no samples.
    ///
    /// # Errors
    ///
    /// When the tokenizer cannot make text of its tokens.
    pub fn of(samples: &Corpus, tokenizer: &Tokenizer) -> Result<Vec<Self>, DataError> {
        let unit = samples.unit();
        let answers = |first: usize| first..(first + unit).min(samples.len());
        let is_short = |index: usize| samples.n_inputs(index) < Self::MOST_TOKENS;
        let mut firsts = (0..samples.len()).step_by(unit);
        let first = firsts.find(|&first| answers(first).all(is_short));
        answers(first.unwrap_or(0))
            .map(|index| Self::nth(samples, index, tokenizer))
            .collect()
    }

    fn nth(samples: &Corpus, index: usize, tokenizer: &Tokenizer) -> Result<Self, DataError> {
        let mut sample = samples.sample(index);
        let (n_tokens, n_trained_tokens) = (sample.len(), sample.n_trained());
        sample.truncate(Self::MOST_TOKENS);
        Ok(Self {
            index,
            n_tokens,
            n_trained_tokens,
            n_shown_tokens: sample.len(),
            preferred: sample.preferred,
            pieces: describe_sample(&sample, tokenizer)?,
        })
    }
}
