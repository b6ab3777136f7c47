//! `olora generate`: a prompt continued, or a chat.

mod chat;

use std::{
    io::{BufRead, IsTerminal, Read, Write},
    ops::ControlFlow,
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use olora_data::{Message, Tokenizer};
use olora_devices::KernelOptions;
use olora_model::{ModelConfig, Sampling};

use self::chat::{Answer, Answers, Chat};
use crate::{
    Usage,
    args::GenerateArgs,
    commands::{Loaded, Opening},
    devices,
    signals::Stopper,
    terminal::{answer, out, say, say_detail, say_note},
};

/// The longest prompt that is read from stdin, in bytes: no model reads as much.
const MOST_BYTES: u64 = 16 << 20;

pub(crate) fn generate(args: &GenerateArgs, kernels: KernelOptions) -> Result<ExitCode> {
    let sampling = Sampling {
        repetition_penalty: args.repetition_penalty,
        temperature: args.temperature,
        top_k: args.top_k.unwrap_or(0),
        top_p: args.top_p.unwrap_or(1.0),
        seed: args.seed.unwrap_or(0),
        ..Sampling::default()
    };
    let draws = args.top_k.is_some() || args.top_p.is_some() || args.seed.is_some();
    if draws && args.temperature == 0.0 {
        return Err(Usage::new(
            "--top-k, --top-p and --seed have no use at temperature 0, which always takes the \
             likeliest token: give --temperature too",
        ));
    }
    if args
        .system
        .as_deref()
        .is_some_and(|text| text.trim().is_empty())
    {
        return Err(Usage::new(
            "--system is empty: leave it out, or say something",
        ));
    }
    let prompt = prompt(args.prompt.as_deref())?;
    let opening = Opening::new(&args.model, kernels)?;
    let form = Form {
        is_chat: opening.tokenizer.has_chat_template() && !args.raw,
    };
    if let Some(system) = &args.system {
        form.check_system(&opening.tokenizer, system)
            .context("--system")?;
    }
    let ids = prompt
        .map(|prompt| {
            let system = args.system.iter().map(|text| Message::new("system", text));
            let messages: Vec<_> = system.chain([Message::new("user", prompt)]).collect();
            form.encode(&opening.tokenizer, &opening.config, &messages)
        })
        .transpose()?;
    let stop = opening
        .tokenizer
        .stop_ids_with(&opening.config.eos_token_ids);
    if let Some(note) = opening.tokenizer.check_stops(&stop)? {
        say_note(&note);
    }
    let loaded = opening.load()?;
    let advice = "Lower --max-new-tokens, or hold the weights in half precision (--dtype)";
    devices::guarded(&loaded.details, advice, || {
        let Some(ids) = &ids else {
            return chat(&loaded, form, args, sampling);
        };
        let (_, speed) = stream(&loaded, ids, args.max_new_tokens, &sampling, || false)?;
        say(&speed.in_words());
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The prompt that is given, or read from stdin; `None` for a chat.
fn prompt(given: Option<&str>) -> Result<Option<String>> {
    let stdin = std::io::stdin();
    match given {
        Some("-") => {}
        Some(text) => return Ok(Some(text.to_owned())),
        None if stdin.is_terminal() => return Ok(None),
        None => {}
    }
    read_prompt(&mut stdin.lock()).map(Some)
}

/// All of it, but for a line break at its end.
fn read_prompt(input: &mut dyn BufRead) -> Result<String> {
    let mut bytes = Vec::new();
    input
        .take(MOST_BYTES + 1)
        .read_to_end(&mut bytes)
        .context("reading the prompt from stdin")?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(Usage::new(&format!(
            "the prompt on stdin is longer than {} MiB, which no model reads: give a shorter one",
            MOST_BYTES >> 20
        )));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        Usage::new(&format!(
            "the prompt on stdin is not UTF-8 at byte {place}: convert it, or give text"
        ))
    })?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.trim().is_empty() {
        return Err(Usage::new(
            "stdin is empty: give a prompt with --prompt or on stdin, or run on a terminal to chat",
        ));
    }
    Ok(line.to_owned())
}

/// How text becomes what the model reads.
#[derive(Clone, Copy)]
struct Form {
    /// Through the checkpoint's chat template, with all turns.
    is_chat: bool,
}

impl Form {
    /// A conversation, or, without a template, its last turn by itself, if the model
    /// has positions and rows for it.
    fn encode(
        self,
        tokenizer: &Tokenizer,
        config: &ModelConfig,
        messages: &[Message],
    ) -> Result<Vec<u32>> {
        let ids = if self.is_chat {
            let text = tokenizer.render_chat(messages, true)?;
            tokenizer.encode(&text, false)?
        } else {
            let text = messages.last().map(Message::content).unwrap_or_default();
            tokenizer.encode(text, true)?
        };
        tokenizer.check_rows(&ids, config.vocab_size)?;
        config.check_prompt(ids.len())?;
        Ok(ids)
    }

    /// Refuses a system message that would not reach the model.
    fn check_system(self, tokenizer: &Tokenizer, text: &str) -> Result<()> {
        if !self.is_chat {
            bail!("there is no chat template to put it in: put it into the prompt");
        }
        let user = Message::new("user", "…");
        let without = tokenizer.render_chat(std::slice::from_ref(&user), true)?;
        let with = tokenizer
            .render_chat(&[Message::new("system", text), user], true)
            .context("the chat template takes none: put it into the first message")?;
        if with == without {
            bail!("the chat template leaves it out: put it into the first message");
        }
        Ok(())
    }
}

/// How fast a continuation came.
struct Speed {
    n_prompt: usize,
    /// Seconds until the first new token, which reading the prompt gives.
    first: f64,
    n_new: usize,
    /// Seconds until the last.
    last: f64,
}

impl Speed {
    fn in_words(&self) -> String {
        let rate = |n: usize, seconds: f64| n as f64 / seconds.max(1e-9);
        let prompt = format!(
            "{} prompt {} in {:.2} s ({:.1} tokens/s)",
            self.n_prompt,
            if self.n_prompt == 1 {
                "token"
            } else {
                "tokens"
            },
            self.first,
            rate(self.n_prompt, self.first)
        );
        let seconds = self.last - self.first;
        match self.n_new {
            0 | 1 => format!("{prompt}, {} new", self.n_new),
            n => format!(
                "{prompt}, {n} new in {seconds:.2} s ({:.1} tokens/s)",
                rate(n - 1, seconds)
            ),
        }
    }
}

/// Prints the continuation as it comes and returns it.
fn stream(
    loaded: &Loaded,
    ids: &[u32],
    max_new_tokens: usize,
    sampling: &Sampling,
    is_stopped: impl Fn() -> bool,
) -> Result<(String, Speed)> {
    let stop = loaded.tokenizer.stop_ids_with(&loaded.config.eos_token_ids);
    let limit = loaded.config.longest_sequence();
    // Where there is an end of positions, generating says so itself.
    if loaded.llama.position_limit().is_none() && ids.len().saturating_add(max_new_tokens) > limit {
        say_note(&format!(
            "{} prompt tokens and {max_new_tokens} new ones go beyond the {limit} positions that the \
             model was made for",
            ids.len()
        ));
    }
    let mut pieces = loaded.tokenizer.decode_stream();
    let mut out = out();
    let mut text = String::new();
    let mut failed = None;
    let began = Instant::now();
    let mut speed = Speed {
        n_prompt: ids.len(),
        first: 0.0,
        n_new: 0,
        last: 0.0,
    };
    olora_model::generate(
        &loaded.llama,
        ids,
        max_new_tokens,
        sampling,
        &stop,
        |token| {
            speed.last = began.elapsed().as_secs_f64();
            if speed.n_new == 0 {
                speed.first = speed.last;
            }
            speed.n_new += 1;
            if stop.contains(&token) || is_stopped() {
                return ControlFlow::Break(());
            }
            let printed = pieces
                .push(token)
                .map_err(anyhow::Error::from)
                .and_then(|piece| {
                    if let Some(piece) = piece {
                        text += &piece;
                        out.write_all(piece.as_bytes())?;
                        out.flush()?;
                    }
                    Ok(())
                });
            match printed {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        },
    )?;
    if let Some(error) = failed {
        return Err(error);
    }
    writeln!(out)?;
    Ok((text, speed))
}

/// Reads a line, answers it, and keeps what was said.
fn chat(loaded: &Loaded, form: Form, args: &GenerateArgs, sampling: Sampling) -> Result<()> {
    let model = Model {
        loaded,
        form,
        stopper: Stopper::new()?,
    };
    let mut chat = Chat::new(&model, args.system.clone(), sampling, args.max_new_tokens);
    if !form.is_chat {
        answer("no chat template: each line is continued on its own");
    }
    answer(
        "type a message; an empty line or Ctrl-D ends the chat, Ctrl-C stops an answer, /help lists \
         what else there is",
    );
    let mut ask = |mark: &str| {
        let mut err = std::io::stderr();
        // A closed stderr is seen by nobody.
        let _ = write!(err, "{mark}").and_then(|()| err.flush());
    };
    chat.run(&mut std::io::stdin().lock(), &mut ask, &mut answer)
}

/// The model that answers in a chat.
struct Model<'a> {
    loaded: &'a Loaded,
    form: Form,
    stopper: Stopper,
}

impl Answers for Model<'_> {
    fn check_system(&self, text: &str) -> Result<()> {
        self.form.check_system(&self.loaded.tokenizer, text)
    }

    fn encode(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let Loaded {
            tokenizer, config, ..
        } = self.loaded;
        self.form.encode(tokenizer, config, messages)
    }

    fn answer(&self, ids: &[u32], sampling: &Sampling, max_new_tokens: usize) -> Result<Answer> {
        self.stopper.begin();
        let is_stopped = || self.stopper.is_stopped();
        let streamed = stream(self.loaded, ids, max_new_tokens, sampling, is_stopped);
        let was_stopped = self.stopper.finish();
        let (text, speed) = streamed?;
        say_detail(&speed.in_words());
        Ok(Answer { text, was_stopped })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_on_stdin_is_all_of_it_but_for_the_last_line_break() {
        for (given, expected) in [
            ("Where?\n", "Where?"),
            ("Where?\r\n", "Where?"),
            ("Where?\n\n", "Where?\n"),
            (" Where?\nAnd why?", " Where?\nAnd why?"),
        ] {
            assert_eq!(read_prompt(&mut given.as_bytes()).unwrap(), expected);
        }
    }

    #[test]
    fn a_prompt_that_says_nothing_is_refused() {
        for (given, expected) in [
            (&b""[..], "stdin is empty"),
            (b" \n", "stdin is empty"),
            (b"Z\xf3ra", "not UTF-8 at byte 1"),
        ] {
            let error = read_prompt(&mut &*given).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let long = vec![b'x'; usize::try_from(MOST_BYTES).unwrap() + 1];
        let error = read_prompt(&mut long.as_slice()).unwrap_err().to_string();
        assert!(error.contains("longer than 16 MiB"), "{error}");
    }

    #[test]
    fn the_first_new_token_is_of_the_prompts_time() {
        let speed = Speed {
            n_prompt: 12,
            first: 0.5,
            n_new: 5,
            last: 2.5,
        };
        assert_eq!(
            speed.in_words(),
            "12 prompt tokens in 0.50 s (24.0 tokens/s), 5 new in 2.00 s (2.0 tokens/s)"
        );
        let one = Speed { n_new: 1, ..speed };
        assert_eq!(
            one.in_words(),
            "12 prompt tokens in 0.50 s (24.0 tokens/s), 1 new"
        );
    }
}
