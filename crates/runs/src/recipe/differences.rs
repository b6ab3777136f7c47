//! Two recipes, key by key.

use std::{collections::BTreeMap, fmt};

/// The value of a key that a recipe does not have.
const NOT_SET: &str = "not set";

/// A key that two recipes have different values for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Dotted, as in `--set`.
    pub(crate) key: String,
    pub(crate) before: String,
    pub(crate) now: String,
}

impl Change {
    /// Whether both recipes have the key, with different values.
    pub(crate) fn is_of_both(&self) -> bool {
        self.before != NOT_SET && self.now != NOT_SET
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: was {}, now {}", self.key, self.before, self.now)
    }
}

/// The keys that differ between two recipes as TOML, with both values, in order.
pub(crate) fn changes(before: &str, now: &str) -> Vec<Change> {
    let (before, now) = (flat(before), flat(now));
    let value = |values: &BTreeMap<String, toml::Value>, key: &str| {
        let value = values.get(key);
        value.map_or_else(|| NOT_SET.to_owned(), ToString::to_string)
    };
    let mut keys: Vec<&String> = before.keys().chain(now.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .map(|key| Change {
            key: key.clone(),
            before: value(&before, key),
            now: value(&now, key),
        })
        .filter(|change| change.before != change.now)
        .collect()
}

/// The same, each as a line.
pub fn differences(before: &str, now: &str) -> Vec<String> {
    let changes = changes(before, now);
    changes.iter().map(ToString::to_string).collect()
}

/// Every value by its dotted key. A list is one value, whatever is in it.
pub(crate) fn flat(text: &str) -> BTreeMap<String, toml::Value> {
    fn add(prefix: &str, table: &toml::Table, all: &mut BTreeMap<String, toml::Value>) {
        for (name, value) in table {
            let key = format!("{prefix}{name}");
            match value {
                toml::Value::Table(inner) => add(&format!("{key}."), inner, all),
                value => {
                    all.insert(key, value.clone());
                }
            }
        }
    }
    let mut all = BTreeMap::new();
    // What a recipe is written as can be read.
    add("", &text.parse().unwrap_or_default(), &mut all);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_that_differs_is_listed_with_both_values() {
        let before =
            "name = \"a\"\n[adapter]\ntargets = [\n    \"q_proj\",\n    \"v_proj\",\n]\nrank = 8\n";
        let now = "name = \"a\"\n[adapter]\ntargets = [\n    \"q_proj\",\n]\nrank = 8\nrho = 2.0\n";
        assert_eq!(
            differences(before, now),
            [
                "adapter.rho: was not set, now 2.0",
                "adapter.targets: was [\"q_proj\", \"v_proj\"], now [\"q_proj\"]",
            ]
        );
    }
}
