//! Text generation, one token at a time.

use std::ops::ControlFlow;

use crate::{Continuation, Llama, ModelConfig, ModelError, Sampling};

/// Continues `prompt` by up to `max_new_tokens` tokens.
///
/// `on_token` sees each token as it is chosen and may stop the generation.
/// Stops by itself after any id of `stop_ids`, which is passed on too.
/// Returns the new tokens.
///
/// # Errors
///
/// [`ModelError::OutOfRange`] for an empty prompt, a prompt token beyond the
/// vocabulary, more tokens than the model has positions, where it has an end of
/// them, or impossible sampling options. [`ModelError::NotFinite`] if the model
/// computes logits that are NaN or infinite, naming where that begins.
pub fn generate(
    model: &Llama,
    prompt: &[u32],
    max_new_tokens: usize,
    sampling: &Sampling,
    stop_ids: &[u32],
    mut on_token: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Vec<u32>, ModelError> {
    let mut text = Continuation::new(model, prompt, max_new_tokens, sampling.clone())?;
    while text.generated().len() < max_new_tokens {
        let mut logits = text.next_logits(model)?;
        let next = text.choose(&mut logits);
        if on_token(next).is_break() || stop_ids.contains(&next) {
            break;
        }
    }
    Ok(text.generated().to_vec())
}

/// The last of the new tokens is never read: it takes no position.
pub(crate) fn check_positions(
    limit: Option<usize>,
    n_prompt: usize,
    max_new_tokens: usize,
) -> Result<(), ModelError> {
    let Some(limit) = limit else {
        return Ok(());
    };
    let n_positions = n_prompt.saturating_add(max_new_tokens.saturating_sub(1));
    if n_positions <= limit {
        return Ok(());
    }
    Err(ModelError::OutOfRange {
        key: "max-new-tokens",
        found: format!("{max_new_tokens} after a prompt of {n_prompt} tokens"),
        expected: if n_prompt <= limit {
            format!(
                "at most {}: the model has {limit} positions and none beyond",
                limit - n_prompt + 1
            )
        } else {
            format!("0: the model has only {limit} positions; shorten the prompt")
        },
    })
}

impl ModelConfig {
    /// Whether a prompt of `n_prompt` tokens is within the positions that the
    /// model was made for, rotary ones included; for those who ask before a
    /// model is loaded. What is generated may go beyond them, and gets worse.
    ///
    /// # Errors
    ///
    /// [`ModelError::OutOfRange`], saying how many there are.
    pub fn check_prompt(&self, n_prompt: usize) -> Result<(), ModelError> {
        let limit = self.longest_sequence();
        if n_prompt <= limit {
            return Ok(());
        }
        Err(ModelError::OutOfRange {
            key: "prompt",
            found: format!("{n_prompt} tokens long"),
            expected: format!(
                "at most {limit}: the model was made for as many positions, and reads nothing beyond them"
            ),
        })
    }

    /// Whether [`generate`] has the positions for `max_new_tokens` after a prompt
    /// of `n_prompt` tokens; for those who ask before a model is loaded.
    ///
    /// # Errors
    ///
    /// [`ModelError::OutOfRange`], saying how many there are.
    pub fn check_generation(
        &self,
        n_prompt: usize,
        max_new_tokens: usize,
    ) -> Result<(), ModelError> {
        check_positions(self.position_limit(), n_prompt, max_new_tokens)
    }
}
