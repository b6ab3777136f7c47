//! The samples shown before and after a run.

use std::{ops::ControlFlow, sync::Arc};

use burn::module::Module;
use olora_data::Tokenizer;
use olora_model::{Llama, Sampling, generate};
use serde::{Deserialize, Serialize};

use crate::{Event, Observer, RunError, prepare::Prepared};

/// What a prompt was continued with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// `before` or `after`.
    pub(crate) when: String,
    prompt: String,
    text: String,
}

/// Answers the recipe's prompts.
pub(crate) struct Sampler {
    /// Each prompt as written and as tokens.
    prompts: Vec<(String, Vec<u32>)>,
    max_new_tokens: usize,
    stop: Vec<u32>,
    tokenizer: Arc<Tokenizer>,
    observer: Arc<dyn Observer>,
}

impl Sampler {
    /// Encodes the prompts, so that a bad one, or one that leaves too few
    /// positions for an answer, is refused before training.
    pub(crate) fn new(prepared: &Prepared, observer: &Arc<dyn Observer>) -> Result<Self, RunError> {
        let Prepared {
            recipe,
            config,
            tokenizer,
            ..
        } = prepared;
        let prompts = recipe.samples.prompts.iter().map(|prompt| {
            let ids = tokenizer.encode_prompt(prompt)?;
            if ids.is_empty() {
                return Err(RunError::mismatch("a prompt of `samples.prompts` is empty"));
            }
            config
                .check_prompt(ids.len())
                .and_then(|()| config.check_generation(ids.len(), recipe.samples.max_new_tokens))
                .map_err(|error| RunError::mismatch(format!("`samples.prompts`: {error}")))?;
            Ok((prompt.clone(), ids))
        });
        let stop = tokenizer.stop_ids_with(&config.eos_token_ids);
        if !recipe.samples.prompts.is_empty()
            && let Some(note) = tokenizer.check_stops(&stop)?
        {
            observer.on(&Event::Note(note));
        }
        Ok(Self {
            prompts: prompts.collect::<Result<_, _>>()?,
            max_new_tokens: recipe.samples.max_new_tokens,
            stop,
            tokenizer: Arc::clone(tokenizer),
            observer: Arc::clone(observer),
        })
    }

    pub(crate) fn run(&self, when: &'static str, llama: &Llama) -> Result<Vec<Sample>, RunError> {
        let mut samples = Vec::with_capacity(self.prompts.len());
        if self.prompts.is_empty() {
            return Ok(samples);
        }
        let llama = llama.valid();
        for (prompt, ids) in &self.prompts {
            let go_on = |_| ControlFlow::Continue(());
            let greedy = Sampling::default();
            let mut tokens =
                generate(&llama, ids, self.max_new_tokens, &greedy, &self.stop, go_on)?;
            tokens.retain(|token| !self.stop.contains(token));
            let text = self.tokenizer.decode(&tokens, true)?;
            samples.push(Sample {
                when: when.to_owned(),
                prompt: prompt.clone(),
                text: text.clone(),
            });
            let prompt = prompt.clone();
            self.observer.on(&Event::Sample { when, prompt, text });
        }
        Ok(samples)
    }
}
