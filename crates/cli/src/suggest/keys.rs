//! The recipe's keys in the making, each with its reason.

#![allow(
    clippy::format_push_string,
    reason = "writing to text returns an error that there is not"
)]

use std::collections::BTreeMap;

use toml::Value;

/// A key of the recipe, with the reason for its value.
#[derive(Clone)]
pub(super) struct Key {
    /// Dotted.
    pub(super) name: String,
    pub(super) value: Value,
    pub(super) why: String,
}

/// The recipe's keys in the making.
pub(super) struct Keys {
    pub(super) keys: Vec<Key>,
    /// What the user has set.
    pub(super) given: BTreeMap<String, Value>,
}

impl Keys {
    /// Sets a key, unless the user has.
    pub(super) fn set(&mut self, key: &str, value: impl Into<Value>, why: impl Into<String>) {
        let (value, why) = match self.given.get(key) {
            Some(given) => (given.clone(), String::new()),
            None => (value.into(), why.into()),
        };
        self.keys.retain(|known| known.name != key);
        self.keys.push(Key {
            name: key.to_owned(),
            value,
            why,
        });
    }

    pub(super) fn is_given(&self, key: &str) -> bool {
        self.given.contains_key(key)
    }

    /// Text that the user has set.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.given.get(key).and_then(Value::as_str)
    }

    pub(super) fn trains_everything(&self) -> bool {
        self.text("adapter.method") == Some("none")
    }

    /// With what the user has set besides.
    pub(super) fn whole(&self) -> Vec<Key> {
        let mut all = self.keys.clone();
        for (key, value) in &self.given {
            if all.iter().all(|known| known.name != *key) {
                all.push(Key {
                    name: key.clone(),
                    value: value.clone(),
                    why: String::new(),
                });
            }
        }
        all
    }
}

/// Keys as TOML, by sections.
pub(super) fn text_of(keys: &[Key], with_reasons: bool) -> String {
    let mut sections: Vec<(&str, Vec<(&str, &Key)>)> = vec![("", Vec::new())];
    for name in ["model", "adapter", "objective", "data", "training"] {
        sections.push((name, Vec::new()));
    }
    for key in keys {
        let (section, name) = key.name.split_once('.').unwrap_or(("", &key.name));
        match sections.iter_mut().find(|(known, _)| *known == section) {
            Some((_, all)) => all.push((name, key)),
            None => sections.push((section, vec![(name, key)])),
        }
    }
    let mut text = String::new();
    for (section, all) in sections {
        if all.is_empty() {
            continue;
        }
        if !section.is_empty() {
            text.push_str(&format!("\n[{section}]\n"));
        }
        for (name, key) in all {
            if with_reasons && !key.why.is_empty() {
                text.push_str(&format!("# {}\n", key.why));
            }
            text.push_str(&format!("{name} = {}\n", written(&key.value)));
        }
    }
    text
}

/// A value as TOML, small numbers as people write them.
fn written(value: &Value) -> String {
    match value {
        Value::Float(number) if *number != 0.0 && number.abs() < 1e-2 => format!("{number:e}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_has_set_stays() {
        let given = [
            ("adapter.rank".to_owned(), Value::from(4)),
            ("data.system".to_owned(), Value::from("merge")),
            ("training.min_learning_rate".to_owned(), Value::from(1e-5)),
        ];
        let mut keys = Keys {
            keys: Vec::new(),
            given: given.into(),
        };
        keys.set("adapter.rank", 16, "Why.");
        keys.set("adapter.alpha", 16.0, "Why.");
        let text = text_of(&keys.whole(), true);
        assert_eq!(
            text,
            "\n[adapter]\nrank = 4\n# Why.\nalpha = 16.0\n\n[data]\nsystem = \"merge\"\n\n[training]\n\
             min_learning_rate = 1e-5\n"
        );
    }
}
