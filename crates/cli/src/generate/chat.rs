//! A chat: what is typed, what is answered, and what is kept of both.

mod line;
#[cfg(test)]
mod tests;

use std::{
    fs,
    io::{BufRead, ErrorKind, Write},
    path::Path,
};

use anyhow::{Context, Result, bail};
use olora_data::Message;
use olora_model::Sampling;
use serde_json::json;

use line::Line;

/// What `/help` says.
const HELP: &str = "\
/reset          begin again; the system message stays
/system TEXT    tell the model this before the conversation; without TEXT, tell it nothing
/temperature X  0 takes the likeliest token, more draws more freely
/max N          the longest answer, in tokens
/undo           take the last message and its answer back
/retry          answer the last message again
/save FILE      write the conversation as a record that `olora train` reads
/quit           end the chat, as an empty line and Ctrl-D do
//…             a message that begins with a slash
A line that ends in \\ goes on in the next.";

/// What answers.
pub(super) trait Answers {
    /// Refuses a system message that would not reach the model.
    fn check_system(&self, text: &str) -> Result<()>;

    /// A conversation as the model reads it.
    fn encode(&self, messages: &[Message]) -> Result<Vec<u32>>;

    /// Answers, and shows the answer on the way.
    fn answer(&self, ids: &[u32], sampling: &Sampling, max_new_tokens: usize) -> Result<Answer>;
}

/// What was said.
pub(super) struct Answer {
    pub(super) text: String,
    /// Whether somebody stopped it.
    pub(super) was_stopped: bool,
}

/// A conversation, and how it goes on.
pub(super) struct Chat<'a> {
    model: &'a dyn Answers,
    system: Option<String>,
    /// Messages and answers in turn.
    turns: Vec<Message>,
    sampling: Sampling,
    max_new_tokens: usize,
}

impl<'a> Chat<'a> {
    pub(super) fn new(
        model: &'a dyn Answers,
        system: Option<String>,
        sampling: Sampling,
        max_new_tokens: usize,
    ) -> Self {
        Self {
            model,
            system,
            turns: Vec::new(),
            sampling,
            max_new_tokens,
        }
    }

    /// Goes on until the input ends or somebody says so. `ask` shows that a line is
    /// waited for, `tell` what is no answer of the model.
    ///
    /// # Errors
    ///
    /// Those of the model. What cannot be asked for or written is told instead.
    pub(super) fn run(
        &mut self,
        input: &mut dyn BufRead,
        ask: &mut dyn FnMut(&str),
        tell: &mut dyn FnMut(&str),
    ) -> Result<()> {
        while let Some(text) = read(input, ask)? {
            match Line::parse(&text) {
                Line::End => break,
                Line::Message(text) => self.say(text, tell)?,
                Line::Retry => self.retry(tell)?,
                Line::Wrong(reason) => tell(&reason),
                line => match self.change(line) {
                    Ok(told) => tell(&told),
                    Err(error) => tell(&format!("{error:#}")),
                },
            }
        }
        Ok(())
    }

    /// What needs no answer. Returns what is told of it.
    fn change(&mut self, line: Line) -> Result<String> {
        Ok(match line {
            Line::Reset => {
                self.turns.clear();
                "the conversation begins again".to_owned()
            }
            Line::System(None) => {
                self.system = None;
                "no system message from here on".to_owned()
            }
            Line::System(Some(text)) => {
                self.model.check_system(&text).context("/system")?;
                self.system = Some(text);
                "from here on the model is told that first".to_owned()
            }
            Line::Temperature(temperature) => {
                self.sampling.temperature = temperature;
                format!("temperature {temperature}")
            }
            Line::Max(tokens) => {
                self.max_new_tokens = tokens;
                format!("answers of {tokens} tokens at most")
            }
            Line::Undo => {
                if self.turns.len() < 2 {
                    bail!("/undo: there is no message to take back");
                }
                self.turns.truncate(self.turns.len() - 2);
                "taken back".to_owned()
            }
            Line::Save(path) => {
                self.save(&path)?;
                format!("wrote {}", path.display())
            }
            Line::Help | Line::End | Line::Message(_) | Line::Retry | Line::Wrong(_) => {
                HELP.to_owned()
            }
        })
    }

    /// All of it, as a template is given it.
    fn conversation(&self) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        system.chain(self.turns.iter().cloned()).collect()
    }

    fn say(&mut self, text: String, tell: &mut dyn FnMut(&str)) -> Result<()> {
        self.turns.push(Message::new("user", text));
        let ids = match self.model.encode(&self.conversation()) {
            Ok(ids) => ids,
            Err(error) => {
                self.turns.pop();
                tell(&format!("{error:#}; the message is taken back"));
                return Ok(());
            }
        };
        let Answer { text, was_stopped } =
            self.model
                .answer(&ids, &self.sampling, self.max_new_tokens)?;
        if was_stopped && text.is_empty() {
            self.turns.pop();
            tell("stopped before a word; the message is taken back");
            return Ok(());
        }
        if was_stopped {
            tell("stopped");
        }
        self.turns.push(Message::new("assistant", text));
        Ok(())
    }

    fn retry(&mut self, tell: &mut dyn FnMut(&str)) -> Result<()> {
        let (Some(_), Some(message)) = (self.turns.pop(), self.turns.pop()) else {
            tell("/retry: there is no message to answer again");
            return Ok(());
        };
        if self.sampling.temperature == 0.0 {
            tell("at temperature 0 the answer is the same; /temperature 0.8 draws others");
        }
        // Another draw.
        self.sampling.seed = self.sampling.seed.wrapping_add(1);
        self.say(message.content().to_owned(), tell)
    }

    /// As a record of chats, which `olora train` reads.
    fn save(&self, path: &Path) -> Result<()> {
        if self.turns.is_empty() {
            bail!("/save: nothing has been said yet");
        }
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path);
        let mut file = match file {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                bail!(
                    "/save: {} exists already: give another name",
                    path.display()
                )
            }
            file => file.with_context(|| format!("/save: {}", path.display()))?,
        };
        let record = json!({ "messages": self.conversation() });
        let written = writeln!(file, "{record}").and_then(|()| file.sync_all());
        if written.is_err() {
            // Half a record is none, and the name is to be free.
            let _ = fs::remove_file(path);
        }
        written.with_context(|| format!("/save: {}", path.display()))
    }
}

/// A line, and those that it goes on in; `None` at the end of the input.
fn read(input: &mut dyn BufRead, ask: &mut dyn FnMut(&str)) -> Result<Option<String>> {
    let mut text: Option<String> = None;
    loop {
        ask(if text.is_none() { "> " } else { ". " });
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Ok(text);
        }
        let line = line.trim_end_matches(['\n', '\r']);
        let mut all = text.map_or_else(String::new, |begun| begun + "\n");
        let Some(begun) = line.strip_suffix('\\') else {
            all += line;
            return Ok(Some(all));
        };
        all += begun;
        text = Some(all);
    }
}
