//! The samples shown before and after a run.

use std::ops::ControlFlow;

use burn::module::Module;
use olora_data::{Message, Tokenizer};
use olora_model::{Llama, ModelConfig, Sampling, generate};

use crate::{Event, Observer, Recipe, TrainError};

/// Answers the recipe's prompts.
pub(crate) struct Sampler<'a> {
    /// Each prompt as written and as tokens.
    prompts: Vec<(&'a str, Vec<u32>)>,
    max_new_tokens: usize,
    stop: Vec<u32>,
    tokenizer: &'a Tokenizer,
    observer: &'a dyn Observer,
}

impl<'a> Sampler<'a> {
    /// Encodes the prompts, so that a bad one, or one that leaves too few
    /// positions for an answer, is refused before training.
    pub(crate) fn new(
        recipe: &'a Recipe,
        config: &ModelConfig,
        tokenizer: &'a Tokenizer,
        observer: &'a dyn Observer,
    ) -> Result<Self, TrainError> {
        let prompts = recipe.samples.prompts.iter().map(|prompt| {
            let ids = encode_prompt(tokenizer, prompt)?;
            if ids.is_empty() {
                return Err(TrainError::Mismatch(
                    "a prompt of `samples.prompts` is empty".to_owned(),
                ));
            }
            config
                .check_generation(ids.len(), recipe.samples.max_new_tokens)
                .map_err(|error| TrainError::Mismatch(format!("`samples.prompts`: {error}")))?;
            Ok((prompt.as_str(), ids))
        });
        Ok(Self {
            prompts: prompts.collect::<Result<_, _>>()?,
            max_new_tokens: recipe.samples.max_new_tokens,
            stop: stop_ids(config, tokenizer),
            tokenizer,
            observer,
        })
    }

    pub(crate) fn run(&self, when: &'static str, llama: &Llama) -> Result<(), TrainError> {
        if self.prompts.is_empty() {
            return Ok(());
        }
        let llama = llama.valid();
        for (prompt, ids) in &self.prompts {
            let go_on = |_| ControlFlow::Continue(());
            let greedy = Sampling::default();
            let mut tokens =
                generate(&llama, ids, self.max_new_tokens, &greedy, &self.stop, go_on)?;
            tokens.retain(|token| !self.stop.contains(token));
            let text = self.tokenizer.decode(&tokens, true)?;
            let prompt = (*prompt).to_owned();
            self.observer.on(&Event::Sample { when, prompt, text });
        }
        Ok(())
    }
}

/// A prompt as tokens: as a user's message if the checkpoint has a chat
/// template, else as plain text.
///
/// # Errors
///
/// When the template or the tokenizer fails.
pub fn encode_prompt(tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>, TrainError> {
    if !tokenizer.has_chat_template() {
        return Ok(tokenizer.encode(prompt, true)?);
    }
    let message = Message {
        role: "user".to_owned(),
        content: prompt.to_owned(),
    };
    let text = tokenizer.render_chat(&[message], true)?;
    Ok(tokenizer.encode(&text, false)?)
}

/// Every token that ends a generation: the configuration's and the tokenizer's.
pub fn stop_ids(config: &ModelConfig, tokenizer: &Tokenizer) -> Vec<u32> {
    let mut ids = config.eos_token_ids.clone();
    ids.extend(tokenizer.stop_ids());
    ids.sort_unstable();
    ids.dedup();
    ids
}
