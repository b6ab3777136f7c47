//! The errors of this crate. Each names the file and record, what was expected
//! and what was found.

use std::path::PathBuf;

use olora_records::{Location, RecordsError};

use crate::{Answers, Format};

/// Why data could not be read, rendered, tokenised or put into batches.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Data files could not be found, or read as records.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// A data file holds no records.
    #[error("{0} is empty: there is nothing to train on")]
    Empty(PathBuf),
    /// A record could not be used.
    #[error("{at}: {problem}")]
    Record {
        /// Which record.
        at: Location,
        /// What is wrong with it.
        problem: Box<DataError>,
    },
    /// The first record's keys fit no format.
    #[error(
        "its keys ({}) fit no known format. Say what they are, such as \
         data.columns = {{ prompt = \"…\", completion = \"…\" }}. Known are {}",
        quoted(.found),
        Format::ALL.map(|format| format!("{format} with {}", format.keys())).join("; ")
    )]
    UnknownFormat {
        /// The keys found.
        found: Vec<String>,
    },
    /// A plain-text file was to be read as records.
    #[error(
        "{path} is read as plain text, because it is neither JSON, CSV nor Parquet, but the format asked for is \
         {format}"
    )]
    PlainText {
        /// The file.
        path: PathBuf,
        /// The format asked for.
        format: Format,
    },
    /// A record or turn lacks a key.
    #[error("the key `{key}` is missing: {format} has {}; found {}", .format.keys(), quoted(.found))]
    MissingKey {
        /// The missing key.
        key: String,
        /// The format of the file.
        format: Format,
        /// The keys found.
        found: Vec<String>,
    },
    /// A value has the wrong JSON type.
    #[error("`{key}` must be {expected}, found {found}")]
    WrongType {
        /// The key.
        key: String,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// Several answers that differ.
    #[error(
        "`{key}` has {n} texts that differ: which of them is right? data.columns = {{ completion = \"{key}[0]\" }} \
         takes the first of each record"
    )]
    SeveralAnswers {
        /// Where they are.
        key: String,
        /// How many.
        n: usize,
    },
    /// An answer that is an object of which nobody knows what to take.
    #[error(
        "`{key}` is an object with {}: say which of them is the answer, such as \
         data.columns = {{ completion = \"{key}.{}\" }}",
        quoted(.parts),
        .parts.first().map_or("…", String::as_str)
    )]
    AnswerOfParts {
        /// Where it is.
        key: String,
        /// Its keys.
        parts: Vec<String>,
    },
    /// A record that is one turn of a conversation.
    #[error(
        "it is one turn of a conversation (`{role}` beside its text), whose turns are records of their own: \
         what is learnt is an answer after what was asked. Write the turns of each conversation into one record, \
         as a list under `messages`"
    )]
    OneTurn {
        /// The key that says whose turn it is.
        role: &'static str,
    },
    /// Turns hold the words with which the template tells turns apart.
    #[error(
        "{path}: turns were rendered by a template already, and would be once more: {}. Give the words alone, \
         prompt and completion as rendered texts, or set data.allow_markup = true if they are meant as words",
        .parts.iter().map(|part| format!(
            "{} in {} (the first {}: \"{}\")",
            part.what, counted(part.n_records, "record"), part.first, part.text,
        )).collect::<Vec<_>>().join(", ")
    )]
    Markup {
        /// The data.
        path: PathBuf,
        /// The words, and whose turn they are in.
        parts: Vec<OmittedPart>,
    },
    /// Keys of a file that nothing uses.
    #[error(
        "{path}: nothing uses {keys}, and leaving that out in silence could change what is learnt. \
         Say what it is (data.columns), that it may be ignored (data.ignore = [{names}]), or remove it",
        keys = .keys.iter().map(|key| format!(
            "`{}` ({}, the first {}{})",
            key.name, counted(key.n_records, "record"), key.first, why(&key.name),
        )).collect::<Vec<_>>().join(", "),
        names = .keys.iter().map(|key| format!("\"{}\"", key.name)).collect::<Vec<_>>().join(", "),
    )]
    UnusedKeys {
        /// The data.
        path: PathBuf,
        /// The keys.
        keys: Vec<UnusedKey>,
    },
    /// `data.columns` and the file do not go together.
    #[error("data.columns: {0}")]
    Columns(String),
    /// A record with two answers, of which one is better.
    #[error(
        "it has `chosen` and `rejected`: it is preference data. To learn from both: [objective] method = \"dpo\" in \
         the recipe (or \"orpo\", \"simpo\", \"kto\"). To train on the better answer alone: data.columns = {{ {name} = \"chosen\" }} and \
         data.ignore = [\"rejected\"]{}",
        if *.name == "messages" { ", and \"prompt\" if there is one: the turns have it" } else { "" }
    )]
    Preferences {
        /// What the better answer would be named.
        name: &'static str,
    },
    /// Records that are to be judged answers, and are none.
    #[error(
        "its keys ({}) are not those of answers that were judged, which the objective learns from: a record has {}. If they \
         have other names: data.columns = {{ chosen = \"…\", rejected = \"…\" }}",
        quoted(.found), .answers.needed()
    )]
    NotJudged {
        /// What was to be found.
        answers: Answers,
        /// The keys found.
        found: Vec<String>,
    },
    /// A layout was asked for that does not hold what the objective learns from.
    #[error(
        "data.format asks for {format}, but the objective learns from {}: remove it, or change [objective] method",
        .answers.needed()
    )]
    FormatOfAnswers {
        /// What was asked for.
        format: Format,
        /// What the objective learns from.
        answers: Answers,
    },
    /// Answers without a prompt.
    #[error(
        "there is no prompt beside `chosen` and `rejected` (only {found}), and {}: give it as `prompt`, or the answers \
         as lists of turns that begin with it",
        if *.in_words {
            "what both begin with is text, which the chat template has no place for"
        } else {
            "they do not begin alike"
        }
    )]
    NoPrompt {
        /// The other keys.
        found: String,
        /// Whether both begin with some words.
        in_words: bool,
    },
    /// An answer that counts more or less than others of a preference.
    #[error(
        "it has weights or flags of what to train: answers that were judged are taken whole. Remove them, or name \
         them in data.ignore"
    )]
    JudgedWithWeights,
    /// Labels that are all the same.
    #[error(
        "{path}: all {n} answers have the label {label}: what is learnt is the difference between good and bad ones. \
         Add records with the label {}",
        !.label
    )]
    OneClass {
        /// The data.
        path: PathBuf,
        /// How many are left within the limits.
        n: usize,
        /// Their label.
        label: bool,
    },
    /// What a prompt that was rendered already has no place for.
    #[error(
        "its prompt was rendered by a template already, so there is no place for {0} beside it: give the \
         prompt as the user's words, or put it into the rendering"
    )]
    RenderedAlready(String),
    /// A prompt was rendered by another model's template.
    #[error(
        "its prompt begins with `{0}`, as another model's template writes it, which is no token of this \
         tokenizer: give the prompt as the user's words"
    )]
    OthersMarkup(&'static str),
    /// A record with two system prompts that differ.
    #[error("it has a system turn and a `{0}` with other words: remove one")]
    TwoSystems(&'static str),
    /// There is no turn that the system prompt could go into.
    #[error("its system turn cannot be merged: there is no turn of the user")]
    NoUserTurn,
    /// A turn lacks a part.
    #[error("turn {turn} has no {what}; its keys are {}", quoted(.found))]
    TurnLacks {
        /// The turn, from 1.
        turn: usize,
        /// The part.
        what: &'static str,
        /// The keys found.
        found: Vec<String>,
    },
    /// A call of no function.
    #[error(
        "`{0}` must be a call such as {{\"function\": {{\"name\": …, \"arguments\": …}}}}; it has no name"
    )]
    NoFunctionName(String),
    /// A part of a turn that is no text.
    #[error(
        "`{at}` has a part that is no text, `{of}`: {}",
        part_advice(.of)
    )]
    UnsupportedPart {
        /// Where.
        at: String,
        /// What it is.
        of: String,
    },
    /// A number that would be another.
    #[error(
        "`{0}` is a number of more digits than numbers are read with: write it as text, in quotes"
    )]
    TooManyDigits(String),
    /// A weight that is none.
    #[error(
        "`{at}` is {found}, but a weight must be between 0 and 1e6, and a record's `loss` true or false"
    )]
    Weight {
        /// Where.
        at: String,
        /// The value.
        found: String,
    },
    /// A turn that is to be trained is not the assistant's.
    #[error(
        "turn {turn} has `{key}`, which asks to train it, but is the {role}'s: only the assistant's turns are \
         trained. If it means nothing: data.ignore = [\"messages[].{key}\"]"
    )]
    NotTheAssistants {
        /// The turn, from 1.
        turn: usize,
        /// Whose it is.
        role: String,
        /// The key.
        key: String,
    },
    /// All is to be trained, and some is not.
    #[error(
        "{path}: data.train_on_prompt trains everything, but weights, flags or earlier turns of {} leave something \
         out: remove one or the other",
        counted(*.n_records, "record")
    )]
    PromptsWithWeights {
        /// The data.
        path: PathBuf,
        /// Records with weights.
        n_records: usize,
    },
    /// What only a chat template has a place for.
    #[error(
        "there is no place for {0}: that takes a chat template. Use an instruction-tuned checkpoint"
    )]
    NeedsTemplate(String),
    /// The template refuses the roles or their order.
    #[error(
        "the chat template refuses these turns ({}): {reason}. As it seems, {advice}",
        .roles.join(", ")
    )]
    TemplateRefuses {
        /// The roles, in order.
        roles: Vec<String>,
        /// What the template says.
        reason: String,
        /// What may help.
        advice: &'static str,
    },
    /// The template leaves something out.
    #[error(
        "{path}: the chat template leaves out {}. What is left out is not learnt: change the records or the \
         template, or set data.allow_omissions = true",
        .parts.iter().map(|part| format!(
            "{} of {} (the first {}: \"{}\")",
            part.what, counted(part.n_records, "record"), part.first, part.text,
        )).collect::<Vec<_>>().join(", ")
    )]
    Omitted {
        /// The data.
        path: PathBuf,
        /// What is left out.
        parts: Vec<OmittedPart>,
    },
    /// Too many records have nothing to train.
    #[error(
        "{path}: {n_skipped} of {n_records} records have nothing to train, more than data.max_skipped = {limit} allows: {}",
        first_of(.first)
    )]
    TooManySkipped {
        /// The data.
        path: PathBuf,
        /// How many.
        n_skipped: usize,
        /// Of how many.
        n_records: usize,
        /// The share that is allowed.
        limit: f64,
        /// The first of them, with reasons.
        first: Vec<String>,
    },
    /// A `ShareGPT` turn comes from nobody we know.
    #[error(
        "turn {turn} is from `{found}`; known are human, user, gpt, chatgpt, assistant, system, tool, \
         function_call and observation"
    )]
    UnknownRole {
        /// The turn, from 1.
        turn: usize,
        /// The role found.
        found: String,
    },
    /// A record has nothing that the loss would be taken on.
    #[error("no token of this record would be trained: {0}")]
    NothingToTrain(String),
    /// Truncation left nothing to train on in the whole file.
    #[error(
        "{path}: none of its {n_records} records has anything left to train on within {max_length} tokens; \
         the longest has {longest}. Raise the maximum length"
    )]
    AllDropped {
        /// The file.
        path: PathBuf,
        /// Its records.
        n_records: usize,
        /// The limit.
        max_length: usize,
        /// The longest sample before truncation.
        longest: usize,
    },
    /// Conversations need a chat template.
    #[error(
        "the checkpoint in {dir} has no chat template (chat_template.jinja, or `chat_template` in \
         tokenizer_config.json): use an instruction-tuned checkpoint, or give the data as `prompt` and `completion`"
    )]
    NoChatTemplate {
        /// The checkpoint's directory.
        dir: PathBuf,
    },
    /// The chat template does not parse, or refuses a conversation.
    #[error("chat template: {0}")]
    ChatTemplate(String),
    /// The chat template does what no template that people use does.
    #[error(
        "{}: {bound}, beyond what a chat template may. Look at what it does before you use this model, or put \
         another in its place",
        template.as_ref().map_or_else(|| "chat template".to_owned(), |file| format!("the chat template of {file}"))
    )]
    TemplateBound {
        /// The file that it is from, if known.
        template: Option<String>,
        /// The bound, and what goes beyond it.
        bound: String,
    },
    /// No end-of-sequence token is known.
    #[error(
        "no end-of-sequence token is known for the checkpoint in {dir}: a model trained without one never stops. \
         Name `eos_token` in tokenizer_config.json"
    )]
    NoEos {
        /// The checkpoint's directory.
        dir: PathBuf,
    },
    /// A file of the checkpoint is not what its name says.
    #[error("{path}: {reason}")]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A GGUF file, or the tokenizer in it, could not be read.
    #[error(transparent)]
    Gguf(#[from] olora_gguf::GgufError),
    /// The tokenizer failed on a text or on ids.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The tokenizers library panicked.
    #[error(
        "the tokenizer of {path} cannot be used: the tokenizers library broke off while {doing} ({said}). Its \
         files contradict themselves: get them again, or from where they were made"
    )]
    TokenizerBroke {
        /// The checkpoint's directory or file.
        path: PathBuf,
        /// What it was doing, in words.
        doing: String,
        /// What it said.
        said: String,
    },
    /// The tokens of data files cannot be written to a temporary file.
    #[error(
        "cannot keep the tokens of the data in a temporary file in {directory}: {source}. Make room there, \
         or name another directory with the environment variable TMPDIR, or OLORA_CACHE"
    )]
    NoRoom {
        /// The directory.
        directory: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A sample fits no row of a packed batch.
    #[error(
        "sample {sample} takes {n_inputs} positions, but a packed row has only {max_length}: \
         cut samples to at most {} tokens, or pack into longer rows",
        .max_length + 1
    )]
    TooLongToPack {
        /// The sample, from 1.
        sample: usize,
        /// The positions that it takes.
        n_inputs: usize,
        /// Those of a row.
        max_length: usize,
    },
    /// A token that the model's embedding has no row for.
    #[error(
        "the token `{token}` ({id}) is used, and the model's embedding has only {rows} rows, none for it: train with \
         model.resize_embeddings = true in the recipe, which adds rows for all tokens, or take it out of the text or \
         the chat template{}",
        if *.n_vocab > 2 * *.rows { ". Or is this not the tokenizer of this checkpoint?" } else { "" }
    )]
    BeyondEmbedding {
        /// Its text.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the embedding.
        rows: usize,
        /// One more than the tokenizer's largest id.
        n_vocab: usize,
    },
    /// The model cannot write any token at which generation is to stop.
    #[error(
        "generation is to stop at {tokens}, which the model never writes: its embedding has {rows} rows. Name another \
         `eos_token` in tokenizer_config.json, or train with model.resize_embeddings = true in the recipe, which adds \
         rows for all tokens"
    )]
    StopsBeyondEmbedding {
        /// The tokens.
        tokens: String,
        /// Rows of the embedding.
        rows: usize,
    },
    /// A number is out of range.
    #[error("`{key}` is {found}, but must be {expected}")]
    OutOfRange {
        /// The option.
        key: &'static str,
        /// The value found.
        found: String,
        /// What is allowed.
        expected: String,
    },
}

/// What to do with a part of a turn that is no text.
fn part_advice(of: &str) -> &'static str {
    match of {
        "tool_use" | "tool_call" | "function_call" => {
            "give the calls beside `content`, as `tool_calls` ({\"function\": {\"name\": …, \"arguments\": …}})"
        }
        "tool_result" | "function_call_output" => {
            "give the result of a call as a turn of its own, with the role `tool`"
        }
        "thinking" | "reasoning" => "give thoughts beside `content`, as `reasoning_content`",
        _ => {
            "only text is trained. Remove the record, or use a tool that trains on images and sounds"
        }
    }
}

/// A key that nothing uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnusedKey {
    /// Its name, of a turn with that of its list: `messages[].score`.
    pub name: String,
    /// In how many records it says something.
    pub n_records: usize,
    /// The first of them, as a user would look it up.
    pub first: String,
}

impl UnusedKey {
    /// Whether the key is known for changing what is learnt: a label of an answer, a
    /// picture, a rejected answer. It is nothing to leave out unasked.
    pub fn is_known_to_matter(&self) -> bool {
        !why(&self.name).is_empty()
    }
}

/// What a template leaves out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OmittedPart {
    /// Such as `the system turn`.
    pub what: String,
    /// Of how many records.
    pub n_records: usize,
    /// The first of them.
    pub first: String,
    /// How it begins there.
    pub text: String,
}

/// What a key is known for, where it is known for changing what is learnt.
fn why(key: &str) -> &'static str {
    match key.rsplit('.').next().unwrap_or(key) {
        "label" | "labels" | "is_correct" | "correct" => {
            "; such a label may say that an answer is wrong"
        }
        "images" | "image" | "audio" | "audios" | "video" | "videos" => {
            "; only text is trained here"
        }
        "chosen" | "rejected" => "; [objective] method = \"dpo\" learns from preferences",
        _ => "",
    }
}

/// A few of a list, as a sentence goes on.
pub(crate) fn first_of(names: &[String]) -> String {
    names.join("; ")
}

pub(crate) fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

impl DataError {
    /// What is said of a key, of the key that stands behind it.
    pub(crate) fn renamed(mut self, from: &str, to: &str) -> Self {
        if let Self::WrongType { key, .. } | Self::TooManyDigits(key) = &mut self
            && let Some(rest) = key.strip_prefix(from)
        {
            *key = format!("{to}{rest}");
        }
        self
    }

    pub(crate) fn at(self, at: &Location) -> Self {
        Self::Record {
            at: at.clone(),
            problem: Box::new(self),
        }
    }
}

fn quoted(names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}
