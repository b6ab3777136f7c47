//! More rows for tokens that were added to a tokenizer: what of a recipe follows
//! from `model.resize_embeddings`.

use olora_adapter::{AdapterError, PeftAdapter, is_saved_with};
use olora_data::Tokenizer;
use olora_model::ModelConfig;

use crate::{Event, Observer, Recipe, RunError};

/// The recipe and the configuration with the vocabulary that the recipe asks
/// for. An adapter trains embedding and vocabulary projection whole then: new
/// rows that stay as they start would teach nothing.
///
/// # Errors
///
/// [`AdapterError::Impossible`] where one of the two is a target of the adapter.
pub(crate) fn resized(
    recipe: Recipe,
    config: ModelConfig,
    tokenizer: &Tokenizer,
    observer: &dyn Observer,
) -> Result<(Recipe, ModelConfig), RunError> {
    let n_tokens = tokenizer.n_vocab();
    let Some(rows) = recipe.model.resize_embeddings.rows(n_tokens) else {
        return Ok((recipe, config));
    };
    let before = config.vocab_size;
    if rows <= before {
        observer.on(&Event::Note(format!(
            "model.resize_embeddings: the embedding has {before} rows, which are enough for {n_tokens} tokens: \
             nothing is resized"
        )));
        return Ok((recipe, config));
    }
    let mut recipe = recipe;
    let tied = config.tie_word_embeddings;
    let ends: &[&str] = if tied {
        &["embed_tokens"]
    } else {
        &["embed_tokens", "lm_head"]
    };
    if !recipe.adapter.everything {
        let adapter = &mut recipe.adapter.config;
        for end in ends {
            if let Some(target) = adapter.targets.iter().find(|target| {
                let last = target.rsplit('.').next();
                last == Some(end)
            }) {
                return Err(AdapterError::Impossible {
                    path: target.clone(),
                    what: "a place in `adapter.targets` beside `model.resize_embeddings`"
                        .to_owned(),
                    reason: "new rows train whole, and are saved whole: take it out of the targets"
                        .to_owned(),
                }
                .into());
            }
            let path = format!("{end}.weight");
            let names = &mut adapter.modules_to_save;
            if !names
                .iter()
                .any(|name| is_saved_with(&path, last_name(name)))
            {
                names.push((*end).to_owned());
            }
        }
    }
    let what = if tied {
        "the embedding, which is tied to the vocabulary projection, grows"
    } else {
        "embedding and vocabulary projection grow"
    };
    let n_new = rows - before;
    observer.on(&Event::Note(format!(
        "model.resize_embeddings: {what} from {before} to {rows} rows for {n_tokens} tokens; {n_new} new row{} \
         start{} {}{}",
        if n_new == 1 { "" } else { "s" },
        if n_new == 1 { "s" } else { "" },
        if before > config.hidden_size {
            "around the mean of the others, drawn from the seed with 1e-9 of their covariance"
        } else {
            "at the mean of the others"
        },
        if recipe.adapter.everything {
            ""
        } else {
            ". All rows train whole, and are saved with the adapter (adapter.modules_to_save)"
        },
    )));
    Ok((recipe, config.with_vocabulary(rows)))
}

/// Refuses an adapter to start from that does not hold an embedding of so many
/// rows: new ones would stay as they start.
///
/// # Errors
///
/// [`RunError::Recipe`], saying what to do.
pub(crate) fn check_from(from: &PeftAdapter, rows: usize) -> Result<(), RunError> {
    let holds = from.saved().any(|(path, shape, trained)| {
        trained && path.ends_with("embed_tokens.weight") && shape.first() == Some(&rows)
    });
    if holds {
        return Ok(());
    }
    Err(RunError::Recipe {
        recipe: "model.resize_embeddings".to_owned(),
        reason: format!(
            "the adapter that the run is to start from holds no embedding of {rows} rows, so that new rows would not \
             train: put it on its base first, with `olora merge`, and train on the result"
        ),
    })
}

/// `embed_tokens` of `model.embed_tokens`.
fn last_name(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}
