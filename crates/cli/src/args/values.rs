//! Values as they are typed, and within which bounds.

use std::path::PathBuf;

use clap::builder::{PathBufValueParser, PossibleValue, PossibleValuesParser, TypedValueParser};
use olora_adapter::{MAX_RANK, WEIGHTS, is_weight};
use olora_model::Dtype;
use olora_runs::recipe::bounds::{
    MAX_BATCH_SIZE, MAX_LENGTH, MAX_NEW_TOKENS, MAX_SAMPLES, MAX_STEPS, has_control,
};

/// The longest sequence that devices are examined at: what they are compared
/// with keeps all scores of attention.
const MAX_EXAMINED: usize = 16_384;

/// Of `--quantize`.
pub(super) const QUANTIZE: &str = "What the base's matrices are held in: stored (as the files have them), none (unpacked), \
    nf4, q8_0, q4_0 or q4_k; if not given, what the adapter was trained on";

/// `--dtype`: a number format by its name or its short name.
pub(super) fn dtype() -> impl TypedValueParser<Value = Dtype> {
    PossibleValuesParser::new(dtype_names()).try_map(|name| name.parse::<Dtype>())
}

pub(super) fn dtype_names() -> [PossibleValue; 3] {
    Dtype::ALL.map(|dtype| PossibleValue::new(dtype.name()).alias(dtype.short_name()))
}

/// `2GB`, `500 MiB` or a plain number of bytes.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 8] = [
        ("", 1),
        ("b", 1),
        ("kb", 1000),
        ("mb", 1_000_000),
        ("gb", 1_000_000_000),
        ("kib", 1 << 10),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
    ];
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_lowercase();
    let size = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .and_then(|(_, factor)| number.parse::<u64>().ok()?.checked_mul(*factor));
    size.filter(|&size| size > 0)
        .ok_or_else(|| "must be a size such as 2GB, 500MiB or 100000 (bytes)".to_owned())
}

/// A whole number within bounds, and why there are such.
pub(super) fn whole(
    least: usize,
    most: usize,
    why: &'static str,
) -> impl TypedValueParser<Value = usize> {
    move |text: &str| within(text, least, most, why)
}

fn within(text: &str, least: usize, most: usize, why: &str) -> Result<usize, String> {
    let number = text.parse().ok();
    number
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| format!("must be a whole number between {least} and {most}: {why}"))
}

pub(super) fn batch_size() -> impl TypedValueParser<Value = usize> {
    whole(1, MAX_BATCH_SIZE, "as many sequences are computed at once")
}

pub(super) fn batch_tokens() -> impl TypedValueParser<Value = usize> {
    whole(1, MAX_LENGTH, "as many tokens are computed at once")
}

pub(super) fn max_length() -> impl TypedValueParser<Value = usize> {
    let why = "one token to read and one to predict at least, and no more than positions are \
               counted exactly";
    whole(2, MAX_LENGTH, why)
}

/// How many tokens may be generated; the chat asks it too.
pub(crate) fn parse_max_new_tokens(text: &str) -> Result<usize, String> {
    within(text, 1, MAX_NEW_TOKENS, "as many tokens may be generated")
}

/// A number of samples or items, or of one of them.
pub(super) fn samples(least: usize) -> impl TypedValueParser<Value = usize> {
    whole(least, MAX_SAMPLES, "no file has more")
}

pub(super) fn rank() -> impl TypedValueParser<Value = usize> {
    let why = "a rank is no larger than the layer's smaller side";
    whole(1, MAX_RANK, why)
}

pub(super) fn widen() -> impl TypedValueParser<Value = usize> {
    whole(0, 100, "each may be another run of every method")
}

pub(super) fn steps() -> impl TypedValueParser<Value = usize> {
    whole(1, MAX_STEPS, "a run has at least one step")
}

pub(super) fn lengths() -> impl TypedValueParser<Value = usize> {
    let why = "every operation is run at each length, attention with all its scores in memory";
    whole(1, MAX_EXAMINED, why)
}

pub(super) fn top_k() -> impl TypedValueParser<Value = usize> {
    whole(1, MAX_SAMPLES, "leave it out to draw from all tokens")
}

/// A number of which `holds` says whether it can be meant.
fn number(text: &str, holds: fn(f32) -> bool, expected: &str) -> Result<f32, String> {
    let number = text.parse().ok();
    number
        .filter(|number| holds(*number))
        .ok_or_else(|| format!("must be a number {expected}"))
}

/// How freely tokens are drawn; the chat asks it too.
pub(crate) fn parse_temperature(text: &str) -> Result<f32, String> {
    let expected = "between 0, which takes the likeliest token, and 100";
    number(text, |number| (0.0..=100.0).contains(&number), expected)
}

pub(super) fn top_p(text: &str) -> Result<f32, String> {
    let holds = |number: f32| number > 0.0 && number <= 1.0;
    number(text, holds, "above 0 and at most 1, a probability")
}

pub(super) fn penalty(text: &str) -> Result<f32, String> {
    let expected = "between 0.01 and 100: logits are divided by it";
    number(text, |number| (0.01..=100.0).contains(&number), expected)
}

/// What an adapter is multiplied by: 0, or what float32 can hold.
pub(super) fn weight() -> impl TypedValueParser<Value = f64> {
    |text: &str| {
        let number = text.parse().ok();
        number
            .filter(|&number: &f64| is_weight(number))
            .ok_or_else(|| format!("must be {WEIGHTS}"))
    }
}

/// Where something is to be written.
pub(super) fn output() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| {
        let name = path.to_string_lossy();
        if has_control(&name) {
            return Err(format!(
                "{name:?} has line breaks or other control characters: give another name"
            ));
        }
        Ok(path)
    })
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_decimal_or_binary_or_plain() {
        assert_eq!(bytes("2GB"), Ok(2_000_000_000));
        assert_eq!(bytes(" 500 MiB "), Ok(500 << 20));
        assert_eq!(bytes("123"), Ok(123));
        for wrong in ["", "GB", "0", "2 TBs", "-1", "1.5GB", "99999999999999GB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
