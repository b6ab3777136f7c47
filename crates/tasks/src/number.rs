//! GSM8K's answers: the harness's filters and its `exact_match`.

use std::sync::LazyLock;

use regex::Regex;

/// What a filter gives that finds nothing.
const INVALID: &str = "[invalid]";

/// The texts at which the harness stops, beside the end-of-sequence token.
pub(crate) const STOP: [&str; 3] = ["Question:", "</s>", "<|im_end|>"];

#[expect(clippy::unwrap_used, reason = "the expressions are constants")]
fn expression(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap()
}

/// The filter `strict-match`: the first number after `#### `.
pub(crate) fn strict(response: &str) -> String {
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| expression(r"#### (-?[0-9.,]+)"));
    let found = NUMBER.captures(response);
    found
        .map_or(INVALID, |found| found.get(1).map_or("", |m| m.as_str()))
        .to_owned()
}

/// The filter `flexible-extract`: the last thing that looks like a number.
pub(crate) fn flexible(response: &str) -> String {
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| expression(r"-?[$0-9.,]{2,}|-?[0-9]+"));
    let last = NUMBER.find_iter(response).last();
    last.map_or(INVALID, |found| found.as_str()).to_owned()
}

/// Whether two answers are the same to the metric `exact_match` as the task
/// sets it up.
pub(crate) fn same(prediction: &str, reference: &str) -> bool {
    normalised(prediction) == normalised(reference)
}

/// Commas, dollar signs, everything up to the last `#### ` and a final full stop
/// taken out, in small letters.
pub(crate) fn normalised(answer: &str) -> String {
    let answer = answer.replace([',', '$'], "");
    let answer = match answer.rfind("#### ") {
        Some(at) => &answer[at + "#### ".len()..],
        None => &answer,
    };
    // Python's `$` also matches before a final line break, which stays.
    let end = answer.len() - usize::from(answer.ends_with('\n'));
    let (line, rest) = answer.split_at(end);
    let line = line.strip_suffix('.').unwrap_or(line);
    format!("{line}{rest}").to_lowercase()
}

/// The response up to the first of each stop text, one after the other.
pub(crate) fn until<'a>(response: &'a str, stop: impl IntoIterator<Item = &'a str>) -> &'a str {
    let stop = stop.into_iter().filter(|stop| !stop.is_empty());
    stop.fold(response, |text, stop| {
        text.split(stop).next().unwrap_or(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_takes_the_first_number_after_four_hashes() {
        assert_eq!(strict("so 3 + 4 = 7\n#### 7\n#### 8"), "7");
        assert_eq!(strict("#### -1,234.50."), "-1,234.50.");
        assert_eq!(strict("####7"), INVALID);
        assert_eq!(strict("#### $7"), INVALID);
        assert_eq!(strict(""), INVALID);
    }

    #[test]
    fn flexible_takes_the_last_number() {
        assert_eq!(flexible("from 12 to 7."), "7.");
        assert_eq!(flexible("it is 7 apples"), "7");
        assert_eq!(flexible("he has -5"), "-5");
        assert_eq!(flexible("costs $1,200.50 in all"), "$1,200.50");
        // Two characters of the set are enough: an ellipsis is one.
        assert_eq!(flexible("12 and so on..."), "...");
        assert_eq!(flexible("none"), INVALID);
    }

    #[test]
    fn answers_are_compared_without_what_the_task_ignores() {
        let gold = "12 * 6 = <<12*6=72>>72 dollars\n#### 1,072";
        for right in ["1072", "1,072", "$1072", "1072.", "x #### y #### 1072"] {
            assert!(same(right, gold), "{right}");
        }
        for wrong in ["1072.00", " 1072", "-1072", "[invalid]", "", "1072.."] {
            assert!(!same(wrong, gold), "{wrong}");
        }
        assert_eq!(normalised("7.\n"), "7\n");
    }

    #[test]
    fn the_response_ends_before_a_stop_text() {
        assert_eq!(until(" 7\n\nQuestion: 8 Question: 9", STOP), " 7\n\n");
        assert_eq!(until(" 7<|im_end|>", STOP), " 7");
        assert_eq!(until(" 7", STOP), " 7");
        assert_eq!(until(" 7", [""]), " 7");
    }
}
