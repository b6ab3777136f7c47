//! The quickstart's files, held in the binary: an installed `olora` has no clone
//! of the repository beside it.

/// A file of the quickstart.
#[derive(Clone, Copy, Debug)]
pub struct Example {
    /// Where it lies, relative to the directory of its recipe.
    pub path: &'static str,
    /// What it holds.
    pub bytes: &'static [u8],
}

macro_rules! examples {
    ($($path:literal),* $(,)?) => {
        &[$(Example { path: $path, bytes: include_bytes!(concat!("../", $path)) }),*]
    };
}

/// Everything that `quickstart.toml` needs, the recipe first.
pub const QUICKSTART: &[Example] = examples![
    "quickstart.toml",
    "quickstart/train.jsonl",
    "quickstart/valid.jsonl",
    "quickstart/base/config.json",
    "quickstart/base/model.safetensors",
    "quickstart/base/tokenizer.json",
    "quickstart/base/tokenizer_config.json",
];
