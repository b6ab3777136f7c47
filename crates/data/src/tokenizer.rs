//! A checkpoint's tokenizer, special tokens and chat template.

mod ends;
mod files;
mod guarded;
mod identity;
mod markup;
mod mask;
mod rows;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tokenizers::{
    DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
};

pub use files::has_tokenizer;
use files::{Config, Files};
use guarded::guarded;
use olora_gguf::is_gguf;

pub(crate) use markup::Markup;

use crate::{
    Conversation, DataError, Message,
    cache::{Fields, Key},
    chat::ChatTemplate,
};

/// What turns text into a checkpoint's tokens and back.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    dir: PathBuf,
    n_bytes: usize,
    inner: tokenizers::Tokenizer,
    chat: Option<ChatTemplate>,
    bos: Option<(u32, String)>,
    pad_id: u32,
    eos_id: Option<u32>,
    stop_ids: Vec<u32>,
    /// What closes a turn of the assistant in the chat template.
    turn_end: Option<u32>,
    n_vocab: usize,
    /// Rows of the model's embedding, if they were told.
    rows: Option<usize>,
    identity: Option<Key>,
    notes: Vec<String>,
}

impl Tokenizer {
    /// Reads the tokenizer of a checkpoint: of a directory, as
    /// [`from_dir`](Self::from_dir) does, or the one in a GGUF file.
    pub fn from_path(path: &Path) -> Result<Self, DataError> {
        Self::from_paths(path, None)
    }

    /// The same with the tokenizer of a directory, such as an adapter's, in the
    /// place of the checkpoint's, if one is given.
    pub fn from_paths(path: &Path, beside: Option<&Path>) -> Result<Self, DataError> {
        let files = if is_gguf(path) {
            Files::of_gguf(path)?
        } else {
            Files::of_directory(path)?
        };
        match beside {
            None => Self::new(path, files),
            Some(beside) => Self::new(path, files.with(beside)?),
        }
    }

    /// What is to be said of it: what was taken for granted, and special tokens
    /// that contradict each other.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Reads `tokenizer.json` of a checkpoint's directory, or what older
    /// checkpoints have in its place (`vocab.json` and `merges.txt`,
    /// `tokenizer.model`) and, where they are
    /// present, `tokenizer_config.json`, `chat_template.jinja`,
    /// `generation_config.json` and `config.json`.
    pub fn from_dir(dir: &Path) -> Result<Self, DataError> {
        Self::new(dir, Files::of_directory(dir)?)
    }

    fn new(path: &Path, files: Files) -> Result<Self, DataError> {
        guarded(path, "reading it", || Self::of_files(path, files))
    }

    fn of_files(path: &Path, files: Files) -> Result<Self, DataError> {
        let mut identity = Fields::default();
        identity.add(&files.tokenizer);
        let n_bytes = files.tokenizer.len();
        let mut inner = tokenizers::Tokenizer::from_bytes(files.tokenizer).map_err(|error| {
            DataError::Checkpoint {
                path: files.tokenizer_path,
                reason: error.to_string(),
            }
        })?;
        // Some tokenizer.json carry the truncation of whoever saved them.
        inner
            .with_truncation(None)
            .map_err(failed)?
            .with_padding(None);

        let config = files.config;
        let mut specials = BTreeMap::new();
        for (key, value) in config.iter().filter(|(key, _)| key.ends_with("_token")) {
            if let Some(token) = token_text(value) {
                specials.insert(key.clone(), token.to_owned());
            }
        }
        let mut notes: Vec<String> = files.note.into_iter().collect();
        let of_models = ends_of(&files.models)?;
        let named = |key: &str| match specials.get(key) {
            None => Ok(None),
            Some(token) => match inner.token_to_id(token) {
                Some(id) => Ok(Some(id)),
                None => Err(DataError::Checkpoint {
                    path: files.config_path.clone(),
                    reason: format!("its {key} `{token}` is not in tokenizer.json"),
                }),
            },
        };
        let known = |ids: &[u32]| {
            ids.iter()
                .copied()
                .find(|&id| inner.id_to_token(id).is_some())
        };
        let named_eos = match named("eos_token") {
            Ok(named) => named,
            Err(error) => {
                notes.push(given_way(error, &of_models, &inner)?);
                None
            }
        };
        let mut stop_ids: Vec<_> = named_eos.into_iter().collect();
        stop_ids.extend(of_models.iter().flat_map(|(_, ids)| ids));
        let eos_id = match named_eos {
            // As little as may be of what is no token.
            None => known(&stop_ids).or(stop_ids.first().copied()),
            named => named,
        };
        let mut models = files.models.iter();
        let bos_id = named("bos_token")?
            .or_else(|| models.find_map(|(config, _)| first_id(config.get("bos_token_id")?)));
        let bos = bos_id.and_then(|id| Some((id, inner.id_to_token(id)?)));
        // Any id will do to pad with, even one that the configuration gets wrong.
        let pad_id = named("pad_token").ok().flatten().or(eos_id).unwrap_or(0);
        for (key, id) in [("bos_token", bos_id), ("eos_token", eos_id)] {
            if let Some(token) = id.and_then(|id| inner.id_to_token(id)) {
                specials.entry(key.to_owned()).or_insert(token);
            }
        }
        let own_file = path.join("chat_template.jinja");
        let (source, origin) = match files.template {
            Some(source) if own_file.exists() => (Some(source), own_file),
            Some(source) => (Some(source), path.to_owned()),
            None => (
                template(&config, &files.config_path)?,
                files.config_path.clone(),
            ),
        };
        let chat = match &source {
            Some(source) => {
                let chat = ChatTemplate::new(source, &specials)?;
                Some(chat.of_file(origin.display().to_string()))
            }
            None => None,
        };
        let n_vocab = inner
            .get_vocab(true)
            .into_values()
            .max()
            .map_or(0, |id| id as usize + 1);
        let mut tokenizer = Self {
            dir: path.to_owned(),
            n_bytes,
            inner,
            chat,
            bos,
            pad_id,
            eos_id,
            stop_ids: Vec::new(),
            turn_end: None,
            n_vocab,
            rows: None,
            identity: None,
            notes,
        };
        tokenizer.find_ends(named_eos, &of_models, stop_ids);
        tokenizer.identity = tokenizer.identify(identity, source.as_deref(), &specials);
        Ok(tokenizer)
    }

    /// Finds what ends a turn, what generation is to stop at, and what is to be
    /// said of either.
    fn find_ends(
        &mut self,
        named: Option<u32>,
        of_models: &[(String, Vec<u32>)],
        mut stop_ids: Vec<u32>,
    ) {
        self.turn_end = self.find_turn_end();
        let ends = self.differing_ends(named, of_models);
        let split = self.split_turn_end();
        self.notes.extend(ends.into_iter().chain(split));
        stop_ids.extend(self.turn_end);
        for id in stop_ids {
            if !self.stop_ids.contains(&id) {
                self.stop_ids.push(id);
            }
        }
    }

    /// The tokens of a text. `add_special_tokens` adds what the tokenizer puts
    /// around a document, as a rule the beginning-of-sequence token; a rendered
    /// chat has its special tokens already.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, DataError> {
        let encode = || self.inner.encode_fast(text, add_special_tokens);
        let encoding = guarded(&self.dir, "encoding a text", || encode().map_err(failed))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of tokens.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, DataError> {
        let decode = || self.inner.decode(ids, skip_special_tokens);
        guarded(&self.dir, "decoding tokens", || decode().map_err(failed))
    }

    /// Decodes token by token, for text that is shown while it is generated.
    /// Special tokens are left out.
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream {
            dir: &self.dir,
            inner: self.inner.decode_stream(true),
        }
    }

    /// The same for whoever keeps what has been decoded so far by itself: takes the next
    /// token and gives the text that is now complete, if any.
    pub fn decode_next(&self, so_far: &mut Decoded, id: u32) -> Result<Option<String>, DataError> {
        let Decoded {
            ids,
            prefix,
            prefix_index,
        } = so_far;
        let mut step = || {
            tokenizers::tokenizer::step_decode_stream(
                &self.inner,
                vec![id],
                true,
                ids,
                prefix,
                prefix_index,
            )
            .map_err(failed)
        };
        guarded(&self.dir, "decoding tokens", &mut step)
    }

    /// What has been decoded where a text goes on after these tokens: with their last ones,
    /// so that a token's space is not taken for that at the beginning of a text.
    pub fn decoded_after(&self, ids: &[u32]) -> Decoded {
        for n in [4, 8, 16] {
            let last = &ids[ids.len().saturating_sub(n)..];
            match self.decode(last, true) {
                Ok(text) if !text.is_empty() && !text.ends_with('\u{fffd}') => {
                    return Decoded {
                        ids: last.to_vec(),
                        prefix: text,
                        prefix_index: last.len(),
                    };
                }
                _ => (),
            }
        }
        Decoded::default()
    }

    /// The end-of-sequence token.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos_id
    }

    /// The tokens at which generation is to stop: the end-of-sequence token, the
    /// others that the checkpoint's configuration names, and the token with
    /// which its chat template closes a turn of the assistant.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// Those tokens, and the ones that the model's own configuration names.
    pub fn stop_ids_with(&self, of_model: &[u32]) -> Vec<u32> {
        let mut ids = [of_model, self.stop_ids()].concat();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// A prompt as tokens: as a user's message if the checkpoint has a chat
    /// template, else as plain text.
    ///
    /// # Errors
    ///
    /// When the template or the tokenizer fails, or a token has no row in the
    /// model's embedding ([`with_rows`](Self::with_rows)).
    pub fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>, DataError> {
        let ids = if self.has_chat_template() {
            let text = self.render_chat(&[Message::new("user", prompt)], true)?;
            self.encode(&text, false)?
        } else {
            self.encode(prompt, true)?
        };
        self.check(&ids)?;
        Ok(ids)
    }

    /// The beginning-of-sequence token.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos.as_ref().map(|&(id, _)| id)
    }

    /// The token to pad with: the padding token, else end-of-sequence, else 0.
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// One more than the largest id, added tokens included: where the embedding
    /// has fewer rows, those beyond must not be used.
    pub fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    /// The size of its `tokenizer.json`, in bytes: what it takes in memory grows
    /// with that.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// Whether a text is one token.
    pub(crate) fn has_token(&self, text: &str) -> bool {
        self.inner.token_to_id(text).is_some()
    }

    /// The spelling of one token, as in `tokenizer.json`.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether the checkpoint has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.chat.is_some()
    }

    /// A conversation in the checkpoint's own form. With `add_generation_prompt`
    /// it ends where the assistant is to go on.
    pub fn render_chat(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, DataError> {
        let conversation = Conversation::from(messages.to_vec());
        self.template()?
            .render(&conversation, add_generation_prompt)
    }

    fn template(&self) -> Result<&ChatTemplate, DataError> {
        self.chat.as_ref().ok_or_else(|| DataError::NoChatTemplate {
            dir: self.dir.clone(),
        })
    }

    fn required_eos(&self) -> Result<u32, DataError> {
        self.eos_id.ok_or_else(|| DataError::NoEos {
            dir: self.dir.clone(),
        })
    }

    fn begins_with_bos(&self, text: &str) -> bool {
        self.bos
            .as_ref()
            .is_some_and(|(_, bos)| text.starts_with(bos))
    }
}

/// What [`Tokenizer::decode_next`] has decoded; of a new text, nothing.
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    ids: Vec<u32>,
    prefix: String,
    prefix_index: usize,
}

/// Decodes a growing list of tokens.
pub struct DecodeStream<'a> {
    dir: &'a Path,
    inner: tokenizers::DecodeStream<
        'a,
        ModelWrapper,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >,
}

impl DecodeStream<'_> {
    /// Takes the next token and gives the text that is now complete, if any: a
    /// character of several tokens comes with its last.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, DataError> {
        let step = || self.inner.step(id).map_err(failed);
        guarded(self.dir, "decoding tokens", step)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn failed(error: tokenizers::Error) -> DataError {
    DataError::Tokenizer(error.to_string())
}

/// `"</s>"` or `{"content": "</s>", …}`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// What `eos_token_id` names: `2` or `[2, 3]`. What is none would be a stop that
/// never comes.
fn stop_tokens(config: &Config, path: &Path) -> Result<Vec<u32>, DataError> {
    let Some(value) = config.get("eos_token_id").filter(|value| !value.is_null()) else {
        return Ok(Vec::new());
    };
    let one = std::slice::from_ref(value);
    let all = value.as_array().map_or(one, Vec::as_slice).iter();
    all.map(token_id).collect::<Option<_>>().ok_or_else(|| {
        // The list may be as long as the file.
        let shown: String = value.to_string().chars().take(100).collect();
        DataError::Checkpoint {
            path: path.to_owned(),
            reason: format!("`eos_token_id` is {shown}, but must be a token or a list of tokens"),
        }
    })
}

/// The tokens that end a text, by each file that may name some.
fn ends_of(models: &[(Config, PathBuf)]) -> Result<Vec<(String, Vec<u32>)>, DataError> {
    let ends = |(config, path): &(Config, PathBuf)| {
        Ok::<_, DataError>((file_name(path), stop_tokens(config, path)?))
    };
    models.iter().map(ends).collect()
}

/// What to say where the end that is named is no token, and another file names
/// one that is; else the error.
fn given_way(
    error: DataError,
    of_models: &[(String, Vec<u32>)],
    inner: &tokenizers::Tokenizer,
) -> Result<String, DataError> {
    let known = of_models.iter().find_map(|(file, ids)| {
        let token = |&id: &u32| Some((id, inner.id_to_token(id)?));
        Some((file, ids.iter().find_map(token)?))
    });
    let Some((file, (id, token))) = known else {
        return Err(error);
    };
    Ok(format!(
        "{error}: texts end with the `eos_token_id` of {file} in training and generation, `{token}` ({id})"
    ))
}

/// As people call a file.
fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// `2` or the first of `[2, 3]`.
fn first_id(value: &Value) -> Option<u32> {
    token_id(
        value
            .as_array()
            .and_then(|all| all.first())
            .unwrap_or(value),
    )
}

fn token_id(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

/// `chat_template` in the configuration: one template, or a list of named ones
/// of which `default` counts.
fn template(config: &Config, path: &Path) -> Result<Option<String>, DataError> {
    let source = match config.get("chat_template") {
        Some(Value::Array(named)) => {
            let default = named.iter().find(|template| template["name"] == "default");
            default.and_then(|template| template["template"].as_str())
        }
        Some(Value::Null) | None => return Ok(None),
        Some(value) => value.as_str(),
    };
    source
        .map(|source| Some(source.to_owned()))
        .ok_or_else(|| DataError::Checkpoint {
            path: path.to_owned(),
            reason: "`chat_template` must be a string, or a list with a template named `default`"
                .to_owned(),
        })
}
