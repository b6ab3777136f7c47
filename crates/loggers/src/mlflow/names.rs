//! Keys and values in the form that MLflow allows.

use std::collections::HashSet;

/// The longest key.
const LONGEST_KEY: usize = 250;
/// The longest value of a parameter.
const LONGEST_PARAM: usize = 6000;
/// The longest value of a tag, of the oldest servers that are met.
const LONGEST_TAG: usize = 5000;

/// A metric's key: letters, digits, `_`, `-`, `.`, spaces, `:` and `/`.
pub(super) fn metric(key: &str) -> String {
    allowed(key, |c| matches!(c, '_' | '-' | '.' | ' ' | ':' | '/'))
}

/// Parameters with keys that are allowed and differ, and values that are not too
/// long.
pub(super) fn params(params: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut taken = HashSet::new();
    params
        .into_iter()
        .map(|(key, value)| {
            // A `/` would be a path, of which not every one is allowed.
            let key = allowed(&key, |c| matches!(c, '_' | '-' | '.' | ' ' | ':'));
            let numbered = (2..).map(|number| format!("{key}_{number}"));
            let mut keys = std::iter::once(key.clone()).chain(numbered);
            let key = keys.find(|key| taken.insert(key.clone())).unwrap_or(key);
            (key, cut(&value, LONGEST_PARAM))
        })
        .collect()
}

/// A tag's value.
pub(super) fn tag(value: &str) -> String {
    cut(value, LONGEST_TAG)
}

fn allowed(key: &str, is_allowed: impl Fn(char) -> bool) -> String {
    key.chars()
        .take(LONGEST_KEY)
        .map(|c| {
            if c.is_ascii_alphanumeric() || is_allowed(c) {
                c
            } else {
                '_'
            }
        })
        .collect()
}

fn cut(value: &str, longest: usize) -> String {
    if value.chars().count() <= longest {
        return value.to_owned();
    }
    value.chars().take(longest - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_allowed_and_stay_apart() {
        let given = [
            ("a.*.q", "1"),
            ("a.?.q", "2"),
            ("plain-key", "3"),
            ("x/y", "4"),
        ];
        let given = given.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let keys: Vec<_> = params(given.into())
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        assert_eq!(keys, ["a._.q", "a._.q_2", "plain-key", "x_y"]);
        assert_eq!(metric("tasks/arc easy%"), "tasks/arc easy_");
    }

    #[test]
    fn long_values_are_cut_at_a_character() {
        let long = "ä".repeat(7000);
        let given = vec![("a".to_owned(), long)];
        let value = &params(given)[0].1;
        assert_eq!(value.chars().count(), 6000);
        assert!(value.ends_with("ä…"), "{value}");
        assert_eq!(tag("short"), "short");
    }
}
