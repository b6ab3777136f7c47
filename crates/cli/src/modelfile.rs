//! Ollama's Modelfile for a GGUF file.
//!
//! Ollama renders conversations with a template of its own language, Go's, and
//! does not read the Jinja template that a GGUF file holds, but to guess by
//! likeness which of its own is meant (`template.Named` of its sources). So the
//! form of a turn is found by rendering conversations with the file's template,
//! and written as a Go template only if that gives the same text for all of them.

use std::{fmt::Write as _, path::Path};

use anyhow::{Context, Result};
use olora_data::{Message, Tokenizer};
use olora_files::write_atomically;
use olora_gguf::GgufFile;
use olora_model::ModelConfig;
use serde_json::json;

use crate::terminal::{emit, say, say_note};

/// What is written: the GGUF file's name, the template, and where to stop.
pub(crate) struct Modelfile {
    from: String,
    template: Result<Turns, String>,
    stop: Vec<String>,
}

impl Modelfile {
    /// For a GGUF file, from what is in it.
    pub(crate) fn of(gguf: &Path) -> Result<Self> {
        let tokenizer = Tokenizer::from_path(gguf)?;
        let config = ModelConfig::from_path(gguf)?;
        let source = GgufFile::open(gguf)?.tokenizer()?;
        let jinja = source.config.get("chat_template");
        let template = if !tokenizer.has_chat_template() {
            Err("the model has no chat template, so that Ollama continues texts".to_owned())
        } else if jinja.is_some_and(|jinja| jinja.to_string().contains("strftime_now")) {
            Err(unwritten("it asks for the date of the day"))
        } else {
            turns_of(&tokenizer)?.map_err(unwritten)
        };
        let stop = tokenizer.stop_ids_with(&config.eos_token_ids);
        let name = gguf.file_name().unwrap_or(gguf.as_os_str());
        Ok(Self {
            from: format!("./{}", name.to_string_lossy()),
            template,
            stop: stop
                .into_iter()
                .filter_map(|id| tokenizer.token(id))
                .collect(),
        })
    }

    /// Writes it, and says how it is used, and what is not in it.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        write_atomically(path, |file| file.write_all(self.text().as_bytes()))
            .with_context(|| format!("writing {}", path.display()))?;
        say(&format!(
            "wrote {}: `ollama create NAME -f {}`",
            path.display(),
            path.display()
        ));
        let shown = path.display().to_string();
        emit(&json!({ "event": "written", "path": shown, "format": "Modelfile" }));
        if let Err(why) = &self.template {
            say_note(&format!("it has no TEMPLATE: {why}"));
        }
        Ok(())
    }

    fn text(&self) -> String {
        let mut text = format!("FROM {}\n", quoted(&self.from));
        match &self.template {
            Ok(turns) => {
                text += "# The form of the turns of the model's own template, without tools and thoughts.\n";
                let _ = writeln!(text, "TEMPLATE \"\"\"{}\"\"\"", turns.template());
            }
            Err(why) => {
                let _ = writeln!(text, "# No TEMPLATE: {why}.");
            }
        }
        for stop in &self.stop {
            let _ = writeln!(text, "PARAMETER stop {}", quoted(stop));
        }
        text
    }
}

fn unwritten(why: &str) -> String {
    format!(
        "the model's own template has no simple form in Ollama's language ({why}). Ollama takes the likest of \
         those that it knows, or none; write one here if it is not right"
    )
}

/// The form of the turns of a tokenizer's template, or why it has none.
fn turns_of(tokenizer: &Tokenizer) -> Result<Result<Turns, &'static str>> {
    let bos = added_bos(tokenizer)?;
    Ok(Turns::of(&|messages, reply| {
        let text = tokenizer.render_chat(messages, reply).ok()?;
        let bare = bos.as_deref().and_then(|bos| text.strip_prefix(bos));
        Some(bare.map_or_else(|| text.clone(), str::to_owned))
    }))
}

/// The beginning-of-sequence token, if llama.cpp puts it before each text.
fn added_bos(tokenizer: &Tokenizer) -> Result<Option<String>> {
    let first = tokenizer.encode("", true)?.first().copied();
    let bos = tokenizer.bos_id().filter(|bos| first == Some(*bos));
    Ok(bos.and_then(|bos| tokenizer.token(bos)))
}

/// As the parser of Modelfiles reads it, which knows no escapes.
fn quoted(text: &str) -> String {
    if text.contains(['"', '\n']) {
        format!("\"\"\"{text}\"\"\"")
    } else if text.contains(char::is_whitespace) || text.starts_with(['<', '[']) {
        format!("\"{text}\"")
    } else {
        text.to_owned()
    }
}

/// Renders turns, with the beginning of a reply behind them or without;
/// `None` where the template refuses.
type Render<'a> = &'a dyn Fn(&[Message], bool) -> Option<String>;

/// What stands around what is said, turn by turn.
#[derive(Debug, PartialEq, Eq)]
struct Turns {
    /// Before everything, where there is no system prompt.
    default: String,
    /// `None` if the template takes no system prompt.
    system: Option<[String; 2]>,
    user: [String; 2],
    assistant: [String; 2],
    /// Behind the last turn, where the model goes on.
    reply: String,
}

const SYSTEM: &str = "Words-of-the-system";
const USER: [&str; 2] = ["First-words-of-the-user", "Second-words-of-the-user"];
const ASSISTANT: [&str; 2] = ["First-answer", "Second-answer"];

impl Turns {
    /// The form of a template's turns.
    ///
    /// # Errors
    ///
    /// Why it has none, in words.
    fn of(render: Render<'_>) -> Result<Self, &'static str> {
        const REFUSED: &str = "it refuses a conversation of user and assistant";
        const OTHER: &str = "turns depend on those around them";
        let system = Message::new("system", SYSTEM);
        let user = USER.map(|words| Message::new("user", words));
        let assistant = ASSISTANT.map(|words| Message::new("assistant", words));
        let [u, v] = &user;
        let [a, b] = &assistant;
        let of = |turns: &[&Message], reply| {
            let turns: Vec<Message> = turns.iter().copied().cloned().collect();
            render(&turns, reply)
        };
        let one = of(&[u], true).ok_or(REFUSED)?;
        let unanswered = of(&[u], false).ok_or(REFUSED)?;
        let answered = of(&[u, a], false).ok_or(REFUSED)?;
        let two = of(&[u, a, v], true).ok_or(REFUSED)?;

        let (before, after) = one.split_once(USER[0]).ok_or(OTHER)?;
        let (first, second) = two.split_once(ASSISTANT[0]).ok_or(OTHER)?;
        let (_, answer) = first.split_once(USER[0]).ok_or(OTHER)?;
        let (question, _) = second.split_once(USER[1]).ok_or(OTHER)?;
        // What ends a turn is what stands there if nothing follows. Some templates end a
        // conversation otherwise; then it goes with the beginning of the next turn.
        let (_, user_end) = unanswered.split_once(USER[0]).ok_or(OTHER)?;
        let begins = after.starts_with(user_end) && answer.starts_with(user_end);
        let user_end = if begins { user_end } else { "" };
        let reply = &after[user_end.len()..];
        let assistant_begin = &answer[user_end.len()..];
        let (_, assistant_end) = answered.split_once(ASSISTANT[0]).ok_or(OTHER)?;
        let user_begin = question
            .strip_prefix(assistant_end)
            .filter(|begin| before.ends_with(begin))
            .unwrap_or_else(|| common_end(question, before));
        let assistant_end = &question[..question.len() - user_begin.len()];
        let default = &before[..before.len() - user_begin.len()];
        let with_system = of(&[&system, u], true);
        let system_of = |text: &str| {
            let (begin, rest) = text.split_once(SYSTEM)?;
            let (end, _) = rest.split_once(USER[0])?;
            let end = end.strip_suffix(user_begin)?;
            Some([begin.to_owned(), end.to_owned()])
        };
        let found = Self {
            default: default.to_owned(),
            // Some leave it out without a word, and so does this form then.
            system: match with_system.filter(|text| text.contains(SYSTEM)) {
                None => None,
                Some(text) => {
                    Some(system_of(&text).ok_or("system prompts stand within a user's turn")?)
                }
            },
            user: [user_begin.to_owned(), user_end.to_owned()],
            assistant: [assistant_begin.to_owned(), assistant_end.to_owned()],
            reply: reply.to_owned(),
        };
        let mut tried = vec![vec![u], vec![u, a, v], vec![u, a, v, b, u]];
        if found.system.is_some() {
            tried.extend([vec![&system, u], vec![&system, u, a, v, b, u]]);
        }
        if tried
            .iter()
            .any(|turns| of(turns, true).as_deref() != Some(&found.render(turns)))
        {
            return Err(OTHER);
        }
        if found
            .pieces()
            .iter()
            .any(|text| text.contains("{{") || text.contains("\"\"\""))
        {
            return Err("it has characters that mean something there");
        }
        Ok(found)
    }

    fn pieces(&self) -> Vec<&str> {
        let Self {
            default,
            system,
            user,
            assistant,
            reply,
        } = self;
        let system = system.iter().flatten();
        [default, reply]
            .into_iter()
            .chain(system)
            .chain(user)
            .chain(assistant)
            .map(String::as_str)
            .collect()
    }

    /// What the Go template makes of turns, of which only the first may be a
    /// system's.
    fn render(&self, turns: &[&Message]) -> String {
        let system = self.system.as_ref().zip(turns.first());
        let mut text = match system.filter(|(_, first)| first.role() == "system") {
            Some(([begin, end], first)) => format!("{begin}{}{end}", first.content()),
            None => self.default.clone(),
        };
        for turn in turns {
            let around = match turn.role() {
                "user" => &self.user,
                "assistant" => &self.assistant,
                _ => continue,
            };
            let _ = write!(text, "{}{}{}", around[0], turn.content(), around[1]);
        }
        text + &self.reply
    }

    /// In Go's template language, over the variables that Ollama gives.
    fn template(&self) -> String {
        let Self {
            default,
            system,
            user: [user, user_end],
            assistant: [assistant, assistant_end],
            reply,
        } = self;
        let head = match (system, default.as_str()) {
            (Some([begin, end]), "") => {
                format!("{{{{ if .System }}}}{begin}{{{{ .System }}}}{end}{{{{ end }}}}")
            }
            (Some([begin, end]), default) => format!(
                "{{{{ if .System }}}}{begin}{{{{ .System }}}}{end}{{{{ else }}}}{default}{{{{ end }}}}"
            ),
            (None, default) => default.to_owned(),
        };
        format!(
            "{head}{{{{ range .Messages }}}}\
             {{{{ if eq .Role \"user\" }}}}{user}{{{{ .Content }}}}{user_end}\
             {{{{ else if eq .Role \"assistant\" }}}}{assistant}{{{{ .Content }}}}{assistant_end}\
             {{{{ end }}}}{{{{ end }}}}{reply}"
        )
    }
}

/// The longest end of the first that the second ends with, too.
fn common_end<'a>(one: &'a str, other: &str) -> &'a str {
    let mut starts = one.char_indices().map(|(at, _)| &one[at..]);
    starts.find(|end| other.ends_with(end)).unwrap_or_default()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::fs;

    use super::*;

    /// As `ChatML` does, with a system prompt where none is given.
    fn chatml(messages: &[Message], reply: bool) -> String {
        let mut text = String::new();
        if messages[0].role() != "system" {
            text += "<|im_start|>system\nHelp.<|im_end|>\n";
        }
        for message in messages {
            let (role, content) = (message.role(), message.content());
            writeln!(text, "<|im_start|>{role}\n{content}<|im_end|>").unwrap();
        }
        text + if reply { "<|im_start|>assistant\n" } else { "" }
    }

    #[test]
    fn chatml_has_a_form_in_ollamas_language() {
        let turns = Turns::of(&|turns, reply| Some(chatml(turns, reply))).unwrap();
        assert_eq!(
            turns.template(),
            "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n\
             {{ else }}<|im_start|>system\nHelp.<|im_end|>\n{{ end }}\
             {{ range .Messages }}\
             {{ if eq .Role \"user\" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n\
             {{ else if eq .Role \"assistant\" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n\
             {{ end }}{{ end }}<|im_start|>assistant\n"
        );
    }

    /// Whether `fixtures/chat_masks/templates/NAME.jinja` has a form.
    #[test]
    fn templates_of_public_models_have_one_where_turns_stand_alone() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/chat_masks");
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::copy(fixtures.join("tokenizer.json"), at("tokenizer.json")).unwrap();
        let config = r#"{"bos_token": "<s>", "eos_token": "</s>"}"#;
        fs::write(at("tokenizer_config.json"), config).unwrap();
        for (name, expected) in [
            ("chatml", true),
            ("gemma", true),
            ("llama3", true),
            ("phi3", true),
            ("qwen3", true),
            ("zephyr", true),
            ("mistral", false),
        ] {
            let template = fixtures.join(format!("templates/{name}.jinja"));
            fs::copy(template, at("chat_template.jinja")).unwrap();
            let tokenizer = Tokenizer::from_path(directory.path()).unwrap();
            let turns = turns_of(&tokenizer).unwrap();
            assert_eq!(turns.is_ok(), expected, "{name}: {turns:?}");
        }
    }

    #[test]
    fn a_template_without_a_system_turn_has_a_form_too() {
        let render = |messages: &[Message], reply: bool| {
            let has_system = messages.iter().any(|message| message.role() == "system");
            let mut text = String::new();
            for message in messages {
                let role = if message.role() == "user" {
                    "user"
                } else {
                    "model"
                };
                let content = message.content();
                writeln!(text, "<start_of_turn>{role}\n{content}<end_of_turn>").unwrap();
            }
            if reply {
                text += "<start_of_turn>model\n";
            }
            (!has_system).then_some(text)
        };
        let turns = Turns::of(&render).unwrap();
        assert_eq!(turns.system, None);
        assert!(turns.template().starts_with("{{ range .Messages }}"));
    }

    #[test]
    fn a_system_prompt_within_the_users_turn_has_none() {
        let render = |messages: &[Message], _: bool| {
            let mut text = String::new();
            let mut system = String::new();
            for message in messages {
                match message.role() {
                    "system" => system = format!("{}\n\n", message.content()),
                    "user" => {
                        let system = std::mem::take(&mut system);
                        write!(text, "[INST] {system}{} [/INST]", message.content()).unwrap();
                    }
                    _ => write!(text, " {}</s>", message.content()).unwrap(),
                }
            }
            Some(text)
        };
        let why = Turns::of(&render).unwrap_err();
        assert!(why.contains("within a user's turn"), "{why}");
    }

    #[test]
    fn a_turn_that_depends_on_its_place_has_none() {
        let render = |messages: &[Message], _: bool| {
            let mut text = String::new();
            for (i, turn) in messages.iter().enumerate() {
                writeln!(text, "{i}: {}", turn.content()).unwrap();
            }
            Some(text)
        };
        assert!(Turns::of(&render).is_err());
    }

    #[test]
    fn the_file_names_what_is_beside_it() {
        let file = Modelfile {
            from: "./x.gguf".to_owned(),
            template: Ok(Turns::of(&|turns, reply| Some(chatml(turns, reply))).unwrap()),
            stop: vec!["<|im_end|>".to_owned()],
        };
        let text = file.text();
        assert!(text.starts_with("FROM ./x.gguf\n"), "{text}");
        assert!(
            text.ends_with("\"\"\"\nPARAMETER stop \"<|im_end|>\"\n"),
            "{text}"
        );
        let file = Modelfile {
            template: Err("why".to_owned()),
            ..file
        };
        assert!(!file.text().contains("TEMPLATE \""));
    }
}
