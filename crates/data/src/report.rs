//! What a user should be told of a data file.

use std::fmt;

use serde::Serialize;

use crate::{Format, KeyUse, ReadReport, error::counted};

/// What a prompt looks like to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptStyle {
    /// As the checkpoint's chat template renders it.
    ChatTemplate,
    /// As [`alpaca_prompt`](crate::alpaca_prompt) writes it.
    AlpacaPrompt,
    /// As it is in the file.
    Verbatim,
}

/// What became of a data file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DataReport {
    /// How the records were laid out.
    pub format: Format,
    /// What prompts look like.
    pub prompt_style: PromptStyle,
    /// The limit that was asked for.
    pub max_length: usize,
    /// Records in the file.
    pub n_records: usize,
    /// Samples made of them.
    pub n_samples: usize,
    /// Tokens of the samples.
    pub n_tokens: usize,
    /// Those that the loss is taken on.
    pub n_trained_tokens: usize,
    /// Samples that were longer than the limit, dropped ones included.
    pub n_truncated: usize,
    /// Samples of which the limit left nothing that is trained.
    pub n_dropped: usize,
    /// Text records that were empty and left out.
    pub n_empty: usize,
    /// Tokens of the longest sample (of text, the longest document), before truncation.
    pub longest: usize,
    /// What became of records and keys.
    pub reading: ReadReport,
}

impl fmt::Display for PromptStyle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ChatTemplate => "chat template of the checkpoint",
            Self::AlpacaPrompt => "Alpaca prompt",
            Self::Verbatim => "no template",
        })
    }
}

impl fmt::Display for DataReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = 100.0 * self.n_trained_tokens as f64 / self.n_tokens as f64;
        write!(
            f,
            "{} of {}, {}: {} of {} tokens, {} ({share:.0} %) of them trained, the longest {}",
            counted(self.n_records, "record"),
            self.format,
            self.prompt_style,
            counted(
                self.n_samples,
                if self.format == Format::Preference {
                    "answer"
                } else {
                    "sample"
                }
            ),
            self.n_tokens,
            self.n_trained_tokens,
            self.longest,
        )?;
        if self.n_truncated > 0 {
            write!(
                f,
                "\n{} cut to the first {} tokens",
                counted(self.n_truncated, "sample"),
                self.max_length
            )?;
        }
        if self.n_dropped > 0 {
            write!(
                f,
                ", {} of them left out because nothing trained was within{}",
                self.n_dropped,
                if self.format == Format::Preference {
                    ", or no difference between the two"
                } else {
                    ""
                }
            )?;
        }
        if self.n_empty > 0 {
            write!(f, "\n{} left out", counted(self.n_empty, "empty record"))?;
        }
        write_reading(f, &self.reading)
    }
}

/// Keys that are not in the samples, or not there at all.
fn write_keys(f: &mut fmt::Formatter<'_>, reading: &ReadReport) -> fmt::Result {
    for (use_, what) in [
        (KeyUse::Harmless, "without a part in what is learnt"),
        (KeyUse::Repeated, "said again elsewhere"),
        (KeyUse::Ignored, "ignored, as asked"),
        (KeyUse::Unknown, "that a run refuses"),
    ] {
        let keys = reading.keys.iter().filter(|key| key.use_ == use_);
        let keys: Vec<_> = keys.map(|key| format!("`{}`", key.key)).collect();
        if !keys.is_empty() {
            write!(f, "\nkeys {what}: {}", keys.join(", "))?;
        }
    }
    if !reading.absent.is_empty() {
        let names: Vec<_> = reading
            .absent
            .iter()
            .map(|key| format!("`{key}`"))
            .collect();
        write!(
            f,
            "\nno record has {}, which data.columns or data.ignore names",
            names.join(", ")
        )?;
    }
    Ok(())
}

fn write_reading(f: &mut fmt::Formatter<'_>, reading: &ReadReport) -> fmt::Result {
    if reading.n_skipped > 0 {
        let more = if reading.n_skipped > reading.skipped.len() {
            "; …"
        } else {
            ""
        };
        write!(
            f,
            "\n{} left out, with nothing to train: {}{more}",
            counted(reading.n_skipped, "record"),
            reading.skipped.join("; "),
        )?;
    }
    write_keys(f, reading)?;
    if reading.n_weighted > 0 {
        let what = counted(reading.n_weighted, "record");
        write!(f, "\n{what} with weights or flags of what to train")?;
    }
    if reading.n_split > 0 {
        write!(
            f,
            "\n{} became {} samples, since the template renders earlier turns otherwise than the last: \
             {} more tokens",
            counted(reading.n_split, "conversation"),
            reading.n_split_samples,
            reading.n_split_tokens,
        )?;
    }
    if reading.n_booleans > 0 {
        let what = counted(reading.n_booleans, "answer");
        write!(f, "\n{what} true or false, trained as JSON writes it")?;
    }
    if reading.n_ended > 0 {
        let what = counted(reading.n_ended, "turn");
        write!(
            f,
            "\n{what} with the token that ends it written out: it is not doubled"
        )?;
    }
    if reading.n_rendered > 0 && reading.format == Format::Text {
        let what = counted(reading.n_rendered, "text");
        write!(
            f,
            "\n{what} beginning as a rendered chat: questions are trained too, since text is trained whole"
        )?;
    } else if reading.n_rendered > 0 {
        let what = counted(reading.n_rendered, "prompt");
        write!(f, "\n{what} rendered already, taken without a template")?;
    }
    if reading.n_other_beginnings > 0 {
        write!(
            f,
            "\n{} beginning otherwise than the template's generation prompt says: trained from where they differ",
            counted(reading.n_other_beginnings, "turn"),
        )?;
    }
    for part in &reading.adapted {
        write!(
            f,
            "\n{}: {}, since the chat template fails without (the first {})",
            counted(part.n_records, "record"),
            part.what,
            part.first,
        )?;
    }
    for part in &reading.omitted {
        write!(
            f,
            "\nthe template leaves out {} of {} (the first {}: \"{}\")",
            part.what,
            counted(part.n_records, "record"),
            part.first,
            part.text
        )?;
    }
    for part in &reading.markup {
        write!(
            f,
            "\nthe template's own {} of {}, taken as words (the first {}: \"{}\")",
            part.what,
            counted(part.n_records, "record"),
            part.first,
            part.text
        )?;
    }
    Ok(())
}
