//! Tiny checkpoints, made in a temporary directory.
#![allow(dead_code)] // not every test file uses everything

use std::{fs, path::PathBuf};

use olora_data::{DataOptions, Sample, Samples, Tokenizer, describe_sample, load_samples};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

pub(crate) const CHATML: &str = "{% for message in messages %}\
    {{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}\
    {% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

pub(crate) const SPECIALS: [&str; 4] = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"];

/// A directory with a byte-level tokenizer and a data file.
pub(crate) struct World {
    pub dir: TempDir,
}

impl World {
    /// Ids 0 to 3 are [`SPECIALS`], then come the 256 bytes and "Ġy" (a space and
    /// a y). The tokenizer puts `<s>` before a document; end-of-sequence and
    /// padding are both `</s>`.
    pub(crate) fn new(chat_template: Option<&str>) -> Self {
        let world = Self {
            dir: TempDir::new().unwrap(),
        };
        let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
        alphabet.sort_unstable();
        let mut vocab = Map::new();
        let pieces = SPECIALS.map(str::to_owned).into_iter();
        let pieces = pieces
            .chain(alphabet.into_iter().map(String::from))
            .chain(["Ġy".to_owned()]);
        for (id, piece) in pieces.enumerate() {
            vocab.insert(piece, id.into());
        }
        let added = SPECIALS.iter().enumerate().map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        });
        let byte_level = |kind| json!({"type": kind, "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        world.write("tokenizer.json", &json!({
            "version": "1.0",
            // As left behind by whoever saved the tokenizer after training with it.
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
                        "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"},
            "added_tokens": added.collect::<Vec<_>>(),
            "normalizer": null,
            "pre_tokenizer": byte_level("ByteLevel"),
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}
            },
            "decoder": byte_level("ByteLevel"),
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                      "vocab": vocab, "merges": [["Ġ", "y"]]}
        }));
        let mut config =
            json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "</s>"});
        if let Some(template) = chat_template {
            config["chat_template"] = template.into();
        }
        world.write("tokenizer_config.json", &config);
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, value: &Value) {
        fs::write(self.path(name), value.to_string()).unwrap();
    }

    pub(crate) fn tokenizer(&self) -> Tokenizer {
        Tokenizer::from_dir(self.dir.path()).unwrap()
    }

    pub(crate) fn load_with(
        &self,
        name: &str,
        text: &str,
        options: &DataOptions,
    ) -> Result<Samples, String> {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        let result = load_samples(&path, &self.tokenizer(), options);
        // Without the temporary directory's name, messages can be compared whole.
        let dir = format!("{}{}", self.dir.path().display(), std::path::MAIN_SEPARATOR);
        result.map_err(|error| error.to_string().replace(&dir, ""))
    }

    pub(crate) fn load(&self, name: &str, text: &str) -> Result<Samples, String> {
        self.load_with(name, text, &DataOptions::default())
    }

    /// The one sample of one JSON record, as text with the trained parts in ⟦ ⟧.
    pub(crate) fn marked(&self, record: &Value) -> String {
        let data = self.load("data.jsonl", &record.to_string()).unwrap();
        assert_eq!(data.samples.len(), 1);
        mark(&data.samples.sample(0), &self.tokenizer())
    }

    /// Every sample of a file, marked, with what its reading found.
    pub(crate) fn all_marked(
        &self,
        name: &str,
        text: &str,
        options: &DataOptions,
    ) -> Result<(Vec<String>, Samples), String> {
        let data = self.load_with(name, text, options)?;
        let tokenizer = self.tokenizer();
        let samples = data.samples.iter();
        let marked = samples.map(|sample| mark(&sample, &tokenizer)).collect();
        Ok((marked, data))
    }
}

/// Records as JSON Lines.
pub(crate) fn lines(records: &[Value]) -> String {
    let lines: Vec<_> = records.iter().map(Value::to_string).collect();
    lines.join("\n")
}

/// A sample as text with the trained parts in ⟦ ⟧, and what they count behind
/// that if it is not 1: `⟦half⟧×0.5`.
pub(crate) fn mark(sample: &Sample, tokenizer: &Tokenizer) -> String {
    let pieces = describe_sample(sample, tokenizer).unwrap();
    pieces
        .into_iter()
        .map(|piece| {
            if !piece.trained {
                piece.text
            } else if piece.weight == 1.0 {
                format!("⟦{}⟧", piece.text)
            } else {
                format!("⟦{}⟧×{}", piece.text, piece.weight)
            }
        })
        .collect()
}
