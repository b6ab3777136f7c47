//! What a request may say. Each key is used, harmless and listed here, or refused by
//! name.

use std::collections::BTreeMap;

use olora_data::Message;
use olora_model::Sampling;
use serde_json::{Map, Value};

use crate::{
    error::{ApiError, shortened},
    models::Card,
    service::Limits,
};

/// Keys that change nothing about an answer here.
const HARMLESS: [&str; 9] = [
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
];

/// Keys of the interface that are not built, with what may be given all the same: what
/// asks for nothing.
const ABSENT: [&str; 9] = [
    "audio",
    "function_call",
    "functions",
    "modalities",
    "prediction",
    "suffix",
    "tool_choice",
    "tools",
    "web_search_options",
];

/// More tokens than can be meant.
const MOST_TOKENS: usize = 1 << 32;

/// What both kinds of request have.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) model: String,
    /// As many as there is room for, if not given.
    pub(crate) max_tokens: Option<usize>,
    /// The key that says so.
    max_tokens_key: &'static str,
    /// Drawn afresh if no seed is given.
    pub(crate) sampling: Sampling,
    /// How many answers to each prompt.
    pub(crate) n: usize,
    pub(crate) stop: Vec<String>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    /// How many likeliest tokens to name beside each, if scores are wanted.
    pub(crate) scores: Option<usize>,
}

/// `/v1/chat/completions`.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    pub(crate) asked: Asked,
    pub(crate) messages: Vec<Message>,
}

/// `/v1/completions`.
#[derive(Debug)]
pub(crate) struct CompletionRequest {
    pub(crate) asked: Asked,
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) echo: bool,
}

/// What is to be continued.
#[derive(Debug, PartialEq)]
pub(crate) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// The keys of a request that have not been taken.
struct Keys(Map<String, Value>);

impl Keys {
    fn of(body: &[u8]) -> Result<Self, ApiError> {
        let bad = |message: String| {
            ApiError::new(olora_web::axum::http::StatusCode::BAD_REQUEST, message)
        };
        let text = std::str::from_utf8(body)
            .map_err(|error| bad(format!("the body is not UTF-8: {error}")))?;
        match serde_json::from_str(text) {
            Ok(Value::Object(keys)) => Ok(Self(keys)),
            Ok(other) => Err(bad(format!(
                "the body must be a JSON object, and is {}",
                kind(&other)
            ))),
            Err(error) => Err(bad(format!("the body is no JSON: {error}"))),
        }
    }

    /// What stands under a key; null is nothing.
    fn take(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key).filter(|value| !value.is_null())
    }

    fn wrong<T>(key: &str, expected: &str, found: &Value) -> Result<T, ApiError> {
        let found = shortened(&found.to_string());
        let message = format!("`{key}` must be {expected}, and is {found}");
        Err(ApiError::invalid(key, message))
    }

    fn boolean(&mut self, key: &str) -> Result<Option<bool>, ApiError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Self::wrong(key, "true or false", &other),
        }
    }

    fn number(&mut self, key: &str, least: f64, most: f64) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number as f32)),
            _ => Self::wrong(key, &format!("a number between {least} and {most}"), &value),
        }
    }

    fn whole(&mut self, key: &str, least: usize, most: usize) -> Result<Option<usize>, ApiError> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let number = value
            .as_u64()
            .and_then(|number| usize::try_from(number).ok());
        match number {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => Self::wrong(
                key,
                &format!("a whole number between {least} and {most}"),
                &value,
            ),
        }
    }

    /// Refuses what is left.
    fn end(mut self) -> Result<(), ApiError> {
        for key in HARMLESS {
            self.0.remove(key);
        }
        for key in ABSENT {
            let asks = match self.0.remove(key) {
                None | Some(Value::Null) => false,
                Some(Value::Array(list)) => {
                    !list.is_empty() && (key != "modalities" || list != ["text"])
                }
                Some(Value::String(text)) => {
                    let is_choice = ["tool_choice", "function_call"].contains(&key);
                    !text.is_empty() && !(is_choice && (text == "none" || text == "auto"))
                }
                Some(_) => true,
            };
            if asks {
                return Err(ApiError::invalid(
                    key,
                    format!("`{key}` is not supported by this server"),
                ));
            }
        }
        match self.0.keys().next() {
            None => Ok(()),
            Some(key) => {
                let key = shortened(key);
                Err(ApiError::invalid(
                    &key,
                    format!("`{key}` is no key of this request"),
                ))
            }
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

impl Asked {
    fn of(keys: &mut Keys) -> Result<Self, ApiError> {
        let model = match keys.take("model") {
            Some(Value::String(model)) => model,
            Some(other) => return Keys::wrong("model", "a model's name", &other),
            None => {
                return Err(ApiError::invalid(
                    "model",
                    "`model` is missing: a name of GET /v1/models",
                ));
            }
        };
        response_format(keys)?;
        let stream = keys.boolean("stream")?.unwrap_or(false);
        Ok(Self {
            model,
            max_tokens: keys.whole("max_tokens", 0, MOST_TOKENS)?,
            max_tokens_key: "max_tokens",
            sampling: sampling(keys)?,
            n: keys.whole("n", 1, 8)?.unwrap_or(1),
            stop: stop(keys)?,
            include_usage: include_usage(keys, stream)?,
            stream,
            scores: None,
        })
    }

    /// Refuses biases on tokens that the model has not.
    pub(crate) fn check_bias(&self, card: &Card) -> Result<(), ApiError> {
        let beyond = |id: &&u32| **id as usize >= card.vocab_size;
        match self.sampling.bias.keys().find(beyond) {
            None => Ok(()),
            Some(id) => Err(ApiError::invalid(
                "logit_bias",
                format!(
                    "`logit_bias` has token {id}, and the model has {}",
                    card.vocab_size
                ),
            )),
        }
    }

    /// Tokens to generate at most after a prompt.
    pub(crate) fn room(
        &self,
        n_prompt: usize,
        usual: usize,
        card: &Card,
        limits: &Limits,
    ) -> Result<usize, ApiError> {
        let all = card.positions.min(limits.cache_tokens);
        let left = all.saturating_sub(n_prompt);
        let key = self.max_tokens_key;
        let too_long = |message: String| {
            Err(ApiError::invalid(key, message).with_code("context_length_exceeded"))
        };
        match self.max_tokens {
            Some(0) if n_prompt <= all => Ok(0),
            Some(asked) if asked > limits.max_tokens && asked <= left => Err(ApiError::invalid(
                key,
                format!(
                    "`{key}`: this server's answers have at most {} tokens (--max-tokens), and {asked} are asked for",
                    limits.max_tokens
                ),
            )),
            Some(asked) if asked > 0 && asked <= left => Ok(asked),
            None if left > 0 => Ok(usual.min(left).min(limits.max_tokens)),
            Some(asked) => too_long(format!(
                "`{key}`: the model has {all} positions, and {n_prompt} tokens of the prompt and {asked} new ones are too many"
            )),
            None => too_long(format!(
                "the model has {all} positions, and the prompt takes {n_prompt} of them: there is no room for an answer"
            )),
        }
    }
}

fn response_format(keys: &mut Keys) -> Result<(), ApiError> {
    match keys.take("response_format") {
        None => Ok(()),
        Some(format) if format["type"] == "text" => Ok(()),
        Some(format) => Err(ApiError::invalid(
            "response_format",
            format!(
                "`response_format` of type {} is not supported by this server: answers are text",
                shortened(&format["type"].to_string())
            ),
        )),
    }
}

fn include_usage(keys: &mut Keys, stream: bool) -> Result<bool, ApiError> {
    let Some(options) = keys.take("stream_options") else {
        return Ok(false);
    };
    let Value::Object(mut options) = options else {
        return Keys::wrong("stream_options", "an object", &options);
    };
    let usage = options
        .remove("include_usage")
        .unwrap_or(Value::Bool(false));
    options.remove("include_obfuscation");
    if let Some(key) = options.keys().next() {
        let message = format!("`stream_options` has no key `{}`", shortened(key));
        return Err(ApiError::invalid("stream_options", message));
    }
    match usage {
        Value::Bool(_) if !stream => Err(ApiError::invalid(
            "stream_options",
            "`stream_options` has no use without `stream`",
        )),
        Value::Bool(usage) => Ok(usage),
        other => Keys::wrong("stream_options", "true or false for include_usage", &other),
    }
}

fn sampling(keys: &mut Keys) -> Result<Sampling, ApiError> {
    let seed = match keys.take("seed") {
        None => fresh(),
        Some(seed) => match seed.as_i64() {
            Some(seed) => seed.cast_unsigned(),
            None => match seed.as_u64() {
                Some(seed) => seed,
                None => return Keys::wrong("seed", "a whole number", &seed),
            },
        },
    };
    Ok(Sampling {
        temperature: keys.number("temperature", 0.0, 2.0)?.unwrap_or(1.0),
        top_p: keys.number("top_p", 1e-6, 1.0)?.unwrap_or(1.0),
        top_k: keys.whole("top_k", 0, 1 << 24)?.unwrap_or(0),
        repetition_penalty: keys
            .number("repetition_penalty", 0.01, 100.0)?
            .unwrap_or(1.0),
        presence_penalty: keys.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        frequency_penalty: keys.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        bias: bias(keys)?,
        seed,
    })
}

/// A seed that was not there before.
fn fresh() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

fn bias(keys: &mut Keys) -> Result<BTreeMap<u32, f32>, ApiError> {
    const KEY: &str = "logit_bias";
    let of = |(id, bias): (&String, &Value)| {
        let bias = bias
            .as_f64()
            .filter(|bias| (-100.0..=100.0).contains(bias))?;
        Some((id.parse().ok()?, bias as f32))
    };
    match keys.take(KEY) {
        None => Ok(BTreeMap::new()),
        Some(Value::Object(biases)) if biases.len() <= 1024 => {
            match biases.iter().map(of).collect() {
                Some(biases) => Ok(biases),
                None => Keys::wrong(
                    KEY,
                    "an object of tokens with numbers between -100 and 100",
                    &Value::Object(biases),
                ),
            }
        }
        Some(other) => Keys::wrong(KEY, "an object of tokens with numbers", &other),
    }
}

fn stop(keys: &mut Keys) -> Result<Vec<String>, ApiError> {
    const KEY: &str = "stop";
    const MOST: usize = 4;
    const LONGEST: usize = 1024;
    let given = match keys.take(KEY) {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    let text = |value: &Value| {
        value
            .as_str()
            .filter(|text| !text.is_empty() && text.len() <= LONGEST)
            .map(str::to_owned)
    };
    match given.iter().map(text).collect::<Option<Vec<_>>>() {
        Some(stop) if stop.len() <= MOST => Ok(stop),
        _ => Keys::wrong(
            KEY,
            &format!("a text or a list of at most {MOST}, none of them empty"),
            &Value::Array(given),
        ),
    }
}

impl ChatRequest {
    pub(crate) fn of(body: &[u8]) -> Result<Self, ApiError> {
        let mut keys = Keys::of(body)?;
        let mut asked = Asked::of(&mut keys)?;
        if let Some(most) = keys.whole("max_completion_tokens", 0, MOST_TOKENS)? {
            if asked.max_tokens.is_some_and(|other| other != most) {
                return Err(ApiError::invalid(
                    "max_completion_tokens",
                    "`max_tokens` and `max_completion_tokens` say different things: give one",
                ));
            }
            asked.max_tokens = Some(most);
            asked.max_tokens_key = "max_completion_tokens";
        }
        let wanted = keys.boolean("logprobs")?.unwrap_or(false);
        let top = keys.whole("top_logprobs", 0, 20)?;
        if top.is_some() && !wanted {
            return Err(ApiError::invalid(
                "top_logprobs",
                "`top_logprobs` has no use without `logprobs`: true",
            ));
        }
        asked.scores = wanted.then_some(top.unwrap_or(0));
        let messages = messages(&mut keys)?;
        keys.end()?;
        Ok(Self { asked, messages })
    }
}

fn messages(keys: &mut Keys) -> Result<Vec<Message>, ApiError> {
    const KEY: &str = "messages";
    match keys.take(KEY) {
        None => Err(ApiError::invalid(KEY, "`messages` is missing")),
        Some(Value::Array(list)) if !list.is_empty() => {
            let each = list.into_iter().enumerate();
            each.map(|(i, value)| message(i, value)).collect()
        }
        Some(other) => Keys::wrong(KEY, "a list of at least one message", &other),
    }
}

fn message(i: usize, value: Value) -> Result<Message, ApiError> {
    let at = |key: &str| format!("messages[{i}].{key}");
    let Value::Object(fields) = value else {
        return Keys::wrong(&format!("messages[{i}]"), "an object", &value);
    };
    let mut fields = Keys(fields);
    let role = match fields.take("role") {
        // Newer models' name for it.
        Some(Value::String(role)) if role == "developer" => "system".to_owned(),
        Some(Value::String(role)) if ["system", "user", "assistant"].contains(&role.as_str()) => {
            role
        }
        Some(other) => {
            return Keys::wrong(
                &at("role"),
                "system, developer, user or assistant (tools are not supported by this server)",
                &other,
            );
        }
        None => {
            return Err(ApiError::invalid(
                &at("role"),
                format!("`{}` is missing", at("role")),
            ));
        }
    };
    let content = match fields.take("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let texts = parts.iter().map(|part| {
                let text = part["text"].as_str().filter(|_| part["type"] == "text");
                match text {
                    Some(text) => Ok(text),
                    None => Keys::wrong(&at("content"), "text, or parts of type text", part),
                }
            });
            texts.collect::<Result<Vec<_>, _>>()?.join("")
        }
        Some(other) => return Keys::wrong(&at("content"), "a text", &other),
        None => {
            return Err(ApiError::invalid(
                &at("content"),
                format!("`{}` is missing", at("content")),
            ));
        }
    };
    let mut message = Message::new(role, content);
    if let Some(name) = fields.take("name") {
        message = message.with("name", name);
    }
    for key in [
        "refusal",
        "tool_calls",
        "function_call",
        "audio",
        "annotations",
    ] {
        match fields.take(key) {
            None => (),
            Some(Value::Array(list)) if list.is_empty() => (),
            Some(_) => {
                return Err(ApiError::invalid(
                    &at(key),
                    format!("`{}` is not supported by this server", at(key)),
                ));
            }
        }
    }
    match fields.0.keys().next() {
        None => Ok(message),
        Some(key) => {
            let key = at(&shortened(key));
            Err(ApiError::invalid(
                &key,
                format!("`{key}` is no key of a message"),
            ))
        }
    }
}

impl CompletionRequest {
    pub(crate) fn of(body: &[u8]) -> Result<Self, ApiError> {
        let mut keys = Keys::of(body)?;
        let mut asked = Asked::of(&mut keys)?;
        asked.scores = keys.whole("logprobs", 0, 20)?;
        let echo = keys.boolean("echo")?.unwrap_or(false);
        let n = asked.n;
        if keys
            .whole("best_of", 1, 8)?
            .is_some_and(|best_of| best_of != n)
        {
            return Err(ApiError::invalid(
                "best_of",
                "`best_of` other than `n` is not supported by this server",
            ));
        }
        let prompts = prompts(&mut keys)?;
        if prompts.len() * n > 1024 {
            return Err(ApiError::invalid(
                "n",
                "a request has at most 1024 answers: `n` for each prompt",
            ));
        }
        if echo && asked.stream {
            return Err(ApiError::invalid(
                "echo",
                "`echo` together with `stream` is not supported by this server",
            ));
        }
        keys.end()?;
        Ok(Self {
            asked,
            prompts,
            echo,
        })
    }
}

fn prompts(keys: &mut Keys) -> Result<Vec<Prompt>, ApiError> {
    const KEY: &str = "prompt";
    const MOST: usize = 1024;
    let expected = format!("a text, a list of tokens, or a list of at most {MOST} of either");
    let Some(value) = keys.take(KEY) else {
        return Err(ApiError::invalid(KEY, "`prompt` is missing"));
    };
    let one = |value: &Value| match value {
        Value::String(text) => Some(Prompt::Text(text.clone())),
        Value::Array(ids) if !ids.is_empty() => {
            let id = |id: &Value| u32::try_from(id.as_u64()?).ok();
            ids.iter().map(id).collect::<Option<_>>().map(Prompt::Ids)
        }
        _ => None,
    };
    if let Some(prompt) = one(&value) {
        return Ok(vec![prompt]);
    }
    let prompts: Option<Vec<Prompt>> = match &value {
        Value::Array(list) if !list.is_empty() && list.len() <= MOST => {
            list.iter().map(one).collect()
        }
        _ => None,
    };
    match prompts {
        Some(prompts) => Ok(prompts),
        None => Keys::wrong(KEY, &expected, &value),
    }
}
