//! One training sample, as text too.

use serde::Serialize;

use crate::{DataError, Tokenizer};

/// Tokens, and which of them the loss is taken on.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The token ids.
    pub tokens: Vec<u32>,
    /// `trained[i]`: token `i` is a target of the loss. As long as `tokens`; the
    /// first is always `false`, since nothing comes before it to predict it.
    pub trained: Vec<bool>,
    /// What the loss of each token counts, as long as `tokens`. Of tokens that
    /// are not trained it means nothing. `None`: 1 wherever trained.
    pub weights: Option<Vec<f32>>,
    /// Of an answer that was judged, whether it is a good one: of a pair the
    /// chosen one, or by its label. `None`: nobody judged it.
    pub preferred: Option<bool>,
}

impl Sample {
    /// Tokens that count alike wherever they are trained.
    pub fn new(tokens: Vec<u32>, trained: Vec<bool>) -> Self {
        Self {
            tokens,
            trained,
            weights: None,
            preferred: None,
        }
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Number of tokens the loss is taken on.
    pub fn n_trained(&self) -> usize {
        self.trained.iter().filter(|&&trained| trained).count()
    }

    /// Number of tokens a model reads for this sample: all but the last.
    pub fn n_inputs(&self) -> usize {
        self.len().saturating_sub(1)
    }

    /// Every token but the first is trained.
    pub(crate) fn all_trained(tokens: Vec<u32>) -> Self {
        let trained = (0..tokens.len()).map(|i| i > 0).collect();
        Self::new(tokens, trained)
    }

    /// What the loss of token `i` counts: 0 where it is not trained.
    pub(crate) fn weight(&self, i: usize) -> f32 {
        if !self.trained.get(i).is_some_and(|&trained| trained) {
            return 0.0;
        }
        let weights = self.weights.as_ref();
        weights.map_or(1.0, |all| all.get(i).copied().unwrap_or(1.0))
    }

    /// Whether any trained token counts other than 1.
    pub(crate) fn is_weighted(&self) -> bool {
        let weights = self.weights.iter().flatten();
        weights
            .zip(&self.trained)
            .any(|(&weight, &trained)| trained && weight != 1.0)
    }

    pub(crate) fn push_trained(&mut self, token: u32) {
        self.trained.push(!self.tokens.is_empty());
        self.tokens.push(token);
        if let Some(weights) = &mut self.weights {
            weights.push(1.0);
        }
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.trained.truncate(len);
        if let Some(weights) = &mut self.weights {
            weights.truncate(len);
        }
    }
}

/// Tokens in a row that count alike, as text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Piece {
    /// The text.
    pub text: String,
    /// Whether the loss is taken on its tokens.
    pub trained: bool,
    /// What the loss of each counts; 0 where they are not trained.
    pub weight: f32,
}

/// The sample as text, cut where training begins and ends and where the weight
/// changes. The pieces, joined, are the decoded sample.
pub fn describe_sample(sample: &Sample, tokenizer: &Tokenizer) -> Result<Vec<Piece>, DataError> {
    let mut pieces = Vec::new();
    let (mut end, mut before) = (0, String::new());
    let kinds: Vec<_> = (sample.trained.iter().enumerate())
        .map(|(i, &trained)| (trained, sample.weight(i)))
        .collect();
    for run in kinds.chunk_by(|a, b| a == b) {
        end += run.len();
        // Some decoders strip the leading space of what they are given, so a
        // piece is what its tokens add to the text before them.
        let text = tokenizer.decode(&sample.tokens[..end], false)?;
        let piece = match text.strip_prefix(&before) {
            Some(piece) => piece.to_owned(),
            None => tokenizer.decode(&sample.tokens[end - run.len()..end], false)?,
        };
        let (trained, weight) = run.first().copied().unwrap_or_default();
        pieces.push(Piece {
            text: piece,
            trained,
            weight,
        });
        before = text;
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_go_with_their_tokens() {
        let mut sample = Sample {
            weights: Some(vec![1.0, 0.5, 2.0]),
            ..Sample::all_trained(vec![7, 8, 9])
        };
        sample.push_trained(6);
        assert_eq!(sample.weights, Some(vec![1.0, 0.5, 2.0, 1.0]));
        sample.truncate(2);
        assert_eq!(sample.weights, Some(vec![1.0, 0.5]));
        assert_eq!([0, 1, 2].map(|i| sample.weight(i)), [0.0, 0.5, 0.0]);
        assert!(sample.is_weighted());
        // What the first token would count is nobody's business.
        sample.weights = Some(vec![3.0, 1.0]);
        assert!(!sample.is_weighted());
    }
}
