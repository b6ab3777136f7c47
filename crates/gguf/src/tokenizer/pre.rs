//! Pre-tokenisation of byte-level BPE: GGUF files name it, `tokenizer.json`
//! spells it out.

use serde_json::{Value, json};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// What llama.cpp splits by, one after the other, where a file does not say.
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

/// One of the pre-tokenisations that `tokenizer.ggml.pre` may name
/// (`llama-vocab.cpp`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pre {
    /// Digits one by one, then GPT-2's.
    SmolLm,
    /// GPT-2's.
    Gpt2,
    /// Llama 3's: digits in threes; whole words that are tokens are not merged.
    Llama3,
    /// The same, but every token is merged.
    Smaug,
    /// Qwen2's: digits one by one.
    Qwen2,
    /// Mistral's, since Nemo.
    Tekken,
    /// What llama.cpp does where the file does not say.
    Default,
}

impl Pre {
    /// All of them, each with the names it goes by, the written one first.
    const ALL: [(Self, &'static [&'static str]); 7] = [
        (Self::SmolLm, &["smollm"]),
        (Self::Gpt2, &["gpt-2"]),
        (
            Self::Llama3,
            &["llama-bpe", "llama3", "llama-v3", "falcon3"],
        ),
        (Self::Smaug, &["smaug-bpe", "dbrx"]),
        (Self::Qwen2, &["qwen2"]),
        (Self::Tekken, &["tekken"]),
        (Self::Default, &["default"]),
    ];

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|(_, names)| names.contains(&name));
        found.map(|&(pre, _)| pre)
    }

    /// The names that are known, for messages.
    pub(crate) fn names() -> String {
        Self::ALL.map(|(_, names)| names.join(", ")).join(", ")
    }

    /// Whether a word that is a token is taken as it is.
    pub(crate) fn ignores_merges(self) -> bool {
        matches!(self, Self::Llama3 | Self::Tekken)
    }

    /// Whether texts begin with the beginning-of-sequence token, unless the file
    /// says otherwise.
    pub(crate) fn adds_bos(self) -> bool {
        matches!(self, Self::Llama3 | Self::Tekken)
    }

    /// llama.cpp does not normalise; Qwen2's own tokenizer does.
    pub(crate) fn normalizer(self) -> Value {
        match self {
            Self::Qwen2 => json!({"type": "NFC"}),
            _ => Value::Null,
        }
    }

    /// The name to write.
    pub(crate) fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(pre, _)| *pre == self);
        found.map_or("default", |(_, names)| names[0])
    }

    /// The one that does what a `pre_tokenizer` of a `tokenizer.json` does.
    ///
    /// # Errors
    ///
    /// What it is instead, in words.
    pub(crate) fn recognise(pre_tokenizer: &Value, ignore_merges: bool) -> Result<Self, String> {
        let found = steps(pre_tokenizer);
        let same = |pre: &&Self| steps(&pre.json()) == found;
        let all = Self::ALL.map(|(pre, _)| pre);
        let alike: Vec<_> = all.iter().filter(same).collect();
        if alike.is_empty() {
            return Err(format!(
                "GGUF has no name for its pre-tokeniser {pre_tokenizer}. Known: {}",
                Self::names()
            ));
        }
        let found = alike
            .into_iter()
            .find(|pre| pre.ignores_merges() == ignore_merges);
        found.copied().ok_or_else(|| {
            format!(
                "llama.cpp knows its pre-tokeniser only without `ignore_merges: {ignore_merges}`"
            )
        })
    }

    /// Refuses normalisers that llama.cpp would leave out to a visible effect.
    pub(crate) fn check_normalizer(self, normalizer: &Value) -> Result<(), String> {
        let nothing = normalizer.is_null()
            || normalizer.get("normalizers") == Some(&Value::Array(Vec::new()));
        if nothing || *normalizer == self.normalizer() {
            Ok(())
        } else {
            Err(format!(
                "llama.cpp would leave out its normaliser {normalizer}"
            ))
        }
    }

    /// As `tokenizer.json` has it.
    pub(crate) fn json(self) -> Value {
        let byte_level = |use_regex: bool| {
            json!({
                "type": "ByteLevel",
                "add_prefix_space": false,
                "trim_offsets": true,
                "use_regex": use_regex,
            })
        };
        let split = |pattern: &str| {
            json!({
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": false,
            })
        };
        let steps = match self {
            Self::Gpt2 => return byte_level(true),
            Self::SmolLm => vec![
                json!({"type": "Digits", "individual_digits": true}),
                byte_level(true),
            ],
            Self::Llama3 | Self::Smaug => vec![split(LLAMA3), byte_level(false)],
            Self::Qwen2 => vec![split(QWEN2), byte_level(false)],
            Self::Tekken => vec![split(TEKKEN), byte_level(false)],
            Self::Default => {
                let steps = DEFAULT.iter().map(|pattern| split(pattern));
                steps.chain([byte_level(false)]).collect()
            }
        };
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

/// One step of a pre-tokeniser, without what makes no difference to the tokens.
#[derive(Debug, PartialEq)]
enum Step<'a> {
    Split(&'a str),
    Digits,
    ByteLevel { use_regex: bool },
    Other(&'a Value),
}

fn steps(pre_tokenizer: &Value) -> Vec<Step<'_>> {
    let text = |key| pre_tokenizer.get(key).and_then(Value::as_str);
    let is = |key, expected: bool| pre_tokenizer.get(key) == Some(&Value::Bool(expected));
    let step = match text("type") {
        Some("Sequence") => {
            let inner = pre_tokenizer.get("pretokenizers").and_then(Value::as_array);
            return inner.into_iter().flatten().flat_map(steps).collect();
        }
        Some("Split") => {
            let pattern = pre_tokenizer
                .get("pattern")
                .and_then(|pattern| pattern.get("Regex")?.as_str());
            // A pattern that matches everything can also be what is kept.
            let isolated = text("behavior") == Some("Isolated") && is("invert", false)
                || text("behavior") == Some("Removed") && is("invert", true);
            pattern.filter(|_| isolated).map(Step::Split)
        }
        Some("Digits") if is("individual_digits", true) => Some(Step::Digits),
        Some("ByteLevel") if is("add_prefix_space", false) => Some(Step::ByteLevel {
            use_regex: !is("use_regex", false),
        }),
        _ => None,
    };
    vec![step.unwrap_or(Step::Other(pre_tokenizer))]
}
