//! A run's samples, and whether they fit its model.

use std::{path::Path, sync::Arc};

use olora_data::{
    DataOptions, Format, Sample, Samples, Tokenizer, ValidationSplit, load_samples, split,
};
use olora_files::Fnv1a;
use olora_model::{ModelConfig, config_bytes, sample_weights};

use crate::{Event, Observer, Recipe, RunError, recipe::Weights};

/// Training and validation samples.
pub struct Data {
    /// What is trained on.
    pub train: Arc<[Sample]>,
    /// What is held out, if anything is.
    pub validation: Option<Arc<[Sample]>>,
    format: Format,
}

impl Data {
    /// Reads, tokenises and splits the data of a recipe.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or holds nothing to train on.
    pub fn load(
        recipe: &Recipe,
        tokenizer: &Tokenizer,
        observer: &dyn Observer,
    ) -> Result<Self, RunError> {
        let section = &recipe.data;
        let options = DataOptions {
            format: section.format,
            max_length: section.max_length,
            train_on_prompt: section.train_on_prompt,
        };
        let read = |role: &'static str, path: &Path| -> Result<Samples, RunError> {
            let samples = load_samples(path, tokenizer, &options)?;
            observer.on(&Event::Data {
                role,
                path: path.to_owned(),
                report: samples.report.to_string(),
            });
            Ok(samples)
        };
        let train = read("training", &section.train)?;
        let format = train.format;
        let (train, validation) = match (&section.validation, section.validation_samples) {
            (Some(path), _) => (train.samples, Some(read("validation", path)?.samples)),
            (None, Some(count)) => {
                let seed = section.split_seed.unwrap_or(recipe.seed);
                let (train, validation) =
                    split(train.samples, ValidationSplit::Count(count), seed)?;
                (train, Some(validation))
            }
            (None, None) => (train.samples, None),
        };
        Ok(Self {
            train: train.into(),
            validation: validation.map(Into::into),
            format,
        })
    }

    pub(crate) fn check_against(
        &self,
        config: &ModelConfig,
        tokenizer: &Tokenizer,
    ) -> Result<(), RunError> {
        check_samples(&self.train, config, tokenizer)?;
        if let Some(validation) = &self.validation {
            check_samples(validation, config, tokenizer)?;
        }
        let stop = tokenizer.stop_ids_with(&config.eos_token_ids);
        let ends = |sample: &Sample| {
            let trained = sample.tokens.iter().zip(&sample.trained);
            trained
                .into_iter()
                .any(|(token, trained)| *trained && stop.contains(token))
        };
        if self.format != Format::Text && !stop.is_empty() && !self.train.iter().any(ends) {
            return Err(RunError::mismatch(
                "no training sample contains its end-of-sequence token, so the model would never \
                 learn to stop: raise data.max_length"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}

/// Refuses samples that the model would index out of its embedding, or beyond
/// the positions it was made for.
///
/// # Errors
///
/// [`RunError::Train`], saying which.
pub fn check_samples(
    samples: &[Sample],
    config: &ModelConfig,
    tokenizer: &Tokenizer,
) -> Result<(), RunError> {
    if tokenizer.n_vocab() > config.vocab_size {
        return Err(RunError::mismatch(format!(
            "the tokenizer knows {} tokens, but the model's embedding has only {} rows: \
             this is not the tokenizer of this checkpoint",
            tokenizer.n_vocab(),
            config.vocab_size
        )));
    }
    // The last token is only ever predicted: it takes no position.
    let longest = samples.iter().map(Sample::n_inputs).max().unwrap_or(0);
    if longest > config.max_position_embeddings {
        return Err(RunError::mismatch(format!(
            "the longest sequence takes {longest} positions, but the model was made for {}: \
             lower the maximum length",
            config.max_position_embeddings
        )));
    }
    Ok(())
}

/// A number that changes when the samples or the base do: 64-bit FNV-1a over
/// every token, the configuration, and, unless the weights are drawn afresh, the
/// weight files' sizes and one block in each mebibyte.
///
/// # Errors
///
/// When a file of the base cannot be read.
pub fn fingerprint(data: &Data, recipe: &Recipe) -> Result<u64, RunError> {
    let mut hash = Fnv1a::default();
    let base = recipe.model.path.as_path();
    for sample in data
        .train
        .iter()
        .chain(data.validation.iter().flat_map(|v| v.iter()))
    {
        for (token, trained) in sample.tokens.iter().zip(&sample.trained) {
            hash.add(&token.to_le_bytes());
            hash.add(&[u8::from(*trained)]);
        }
        hash.add(&[0xff]);
    }
    hash.add(&config_bytes(base)?);
    if recipe.model.weights == Weights::Checkpoint {
        sample_weights(base, &mut |bytes| hash.add(bytes))?;
    }
    Ok(hash.value())
}
