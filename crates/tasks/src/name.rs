//! Which tasks there are.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A task, by the harness's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskName {
    /// Grade-school science questions ([arXiv 1803.05457](https://arxiv.org/abs/1803.05457)).
    ArcEasy,
    /// Those that retrieval and co-occurrence get wrong.
    ArcChallenge,
    /// Yes or no, from a passage ([arXiv 1905.10044](https://arxiv.org/abs/1905.10044)).
    #[serde(rename = "boolq")]
    BoolQ,
    /// How a story goes on ([arXiv 1905.07830](https://arxiv.org/abs/1905.07830)).
    #[serde(rename = "hellaswag")]
    HellaSwag,
    /// Science questions without the book ([arXiv 1809.02789](https://arxiv.org/abs/1809.02789)).
    #[serde(rename = "openbookqa")]
    OpenBookQa,
    /// Physical common sense ([arXiv 1911.11641](https://arxiv.org/abs/1911.11641)).
    Piqa,
    /// Which of two a sentence is about ([arXiv 1907.10641](https://arxiv.org/abs/1907.10641)).
    #[serde(rename = "winogrande")]
    WinoGrande,
    /// Word problems, answered by generating ([arXiv 2110.14168](https://arxiv.org/abs/2110.14168)).
    Gsm8k,
}

impl TaskName {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::ArcEasy,
        Self::ArcChallenge,
        Self::BoolQ,
        Self::HellaSwag,
        Self::OpenBookQa,
        Self::Piqa,
        Self::WinoGrande,
        Self::Gsm8k,
    ];

    /// As in the harness, and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ArcEasy => "arc_easy",
            Self::ArcChallenge => "arc_challenge",
            Self::BoolQ => "boolq",
            Self::HellaSwag => "hellaswag",
            Self::OpenBookQa => "openbookqa",
            Self::Piqa => "piqa",
            Self::WinoGrande => "winogrande",
            Self::Gsm8k => "gsm8k",
        }
    }

    /// Whether answers are generated, rather than chosen.
    pub fn generates(self) -> bool {
        self == Self::Gsm8k
    }

    /// Whether the harness reports `acc_norm` for it.
    pub(crate) fn normalises(self) -> bool {
        !matches!(self, Self::BoolQ | Self::WinoGrande | Self::Gsm8k)
    }

    /// The names that its file may have, the first of which is looked for first.
    pub(crate) fn files(self) -> &'static [&'static str] {
        match self {
            Self::ArcEasy => &["arc_easy.jsonl", "ARC-Easy-Test.jsonl"],
            Self::ArcChallenge => &["arc_challenge.jsonl", "ARC-Challenge-Test.jsonl"],
            Self::BoolQ => &["boolq.jsonl"],
            Self::HellaSwag => &["hellaswag.jsonl", "hellaswag_val.jsonl"],
            Self::OpenBookQa => &["openbookqa.jsonl", "openbook_qa.jsonl"],
            Self::Piqa => &["piqa.jsonl"],
            Self::WinoGrande => &["winogrande.jsonl"],
            Self::Gsm8k => &["gsm8k.jsonl", "gsm8k/test.jsonl", "test.jsonl"],
        }
    }
}

impl fmt::Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for TaskName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|task| task.as_str() == name);
        found.ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            format!("there is no task `{name}`; known are {known}")
        })
    }
}
