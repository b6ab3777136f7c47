//! The base and its adapters: what each is, and where more are.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{SystemTime, UNIX_EPOCH},
};

use olora_data::Tokenizer;
use olora_model::{Llama, ModelConfig};
use serde_json::{Value, json};

use crate::error::ApiError;

/// A model that is ready to run: the base, or the base with an adapter. The weights of
/// the base are shared.
pub struct Model {
    /// The model.
    pub llama: Llama,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Its shape.
    pub config: ModelConfig,
}

/// Where adapters are that are not loaded yet, by name.
pub trait Shelf: Send + Sync {
    /// The names of all that are there now; nothing if there is no such place.
    ///
    /// # Errors
    ///
    /// Why it cannot be said, for people.
    fn names(&self) -> Result<Vec<String>, String>;

    /// Whether there is such a place at all.
    fn is_there(&self) -> bool;

    /// The base with one of them on it.
    ///
    /// # Errors
    ///
    /// Why it cannot be loaded, for people.
    fn load(&self, name: &str, base: &Model) -> Result<Model, String>;
}

/// What is known of a model without its weights.
#[derive(Clone, Debug)]
pub(crate) struct Card {
    pub(crate) name: String,
    /// The base's name, of an adapter.
    pub(crate) parent: Option<String>,
    created: u64,
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// Positions that the model was made for.
    pub(crate) positions: usize,
    /// Rows of its embedding.
    pub(crate) vocab_size: usize,
}

impl Card {
    pub(crate) fn new(name: &str, parent: Option<&str>, model: &Model) -> Self {
        Self {
            name: name.to_owned(),
            parent: parent.map(str::to_owned),
            created: seconds(),
            tokenizer: Arc::clone(&model.tokenizer),
            positions: model.config.longest_sequence(),
            vocab_size: model.config.vocab_size,
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "olora",
            "parent": self.parent,
            "root": self.parent.as_ref().unwrap_or(&self.name),
            "max_model_len": self.positions,
            "chat_template": self.tokenizer.has_chat_template(),
        })
    }
}

/// Seconds since 1970.
pub(crate) fn seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// The cards of all models that are loaded, the base first.
#[derive(Debug, Default)]
pub(crate) struct Catalogue(RwLock<Vec<Card>>);

impl Catalogue {
    pub(crate) fn add(&self, card: Card) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(card);
    }

    pub(crate) fn remove(&self, name: &str) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|card| card.name != name);
    }

    pub(crate) fn all(&self) -> Vec<Card> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.all().into_iter().map(|card| card.name).collect()
    }

    pub(crate) fn find(&self, name: &str) -> Result<Card, ApiError> {
        let all = self.all();
        let found = all.iter().find(|card| card.name == name);
        found
            .cloned()
            .ok_or_else(|| ApiError::no_model(name, &self.names()))
    }
}
