//! What is shown of a run beside its curves.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use toml::Table;

use crate::{
    list::{DATA, MOST_SMALL, RECIPE, RunEntry, SUMMARY, parse},
    metrics::{Curves, Metrics},
    place::{Content, Place},
};

/// What the recipe's prompts were answered before and after, in a run directory.
const SAMPLES: &str = "samples.json";

/// A run, as a page is given it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Details {
    #[serde(flatten)]
    entry: RunEntry,
    #[serde(flatten)]
    curves: Curves,
    /// The recipe's keys, such as `adapter.rank`, and their values.
    recipe: Content<BTreeMap<String, String>>,
    summary: Content<Value>,
    data: Content<Value>,
    samples: Content<Value>,
    /// The most memory that the process has had by the last line, in bytes.
    peak_memory: Option<f64>,
    /// What the device's allocator held at the last line, in bytes.
    device_memory: Option<f64>,
}

impl Details {
    pub(crate) fn of(entry: RunEntry, place: &Place, metrics: &Metrics) -> Self {
        let json = |name: &'static str| {
            let text = place.text(name, MOST_SMALL);
            text.and_then(|text| parse::<Value>(name, &text))
        };
        Self {
            entry,
            curves: metrics.drawn(),
            recipe: place.text(RECIPE, MOST_SMALL).and_then(|text| flat(&text)),
            summary: json(SUMMARY),
            data: json(DATA),
            samples: json(SAMPLES),
            peak_memory: metrics.last("peak_memory"),
            device_memory: metrics.last("device_memory"),
        }
    }
}

/// The keys of a recipe with those of the tables that they are in.
fn flat(recipe: &str) -> Result<BTreeMap<String, String>, String> {
    let table: Table =
        toml::from_str(recipe).map_err(|error| format!("{RECIPE}: {}", error.message()))?;
    let mut all = BTreeMap::new();
    flatten("", &table, &mut all);
    Ok(all)
}

fn flatten(above: &str, table: &Table, all: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let key = match above {
            "" => key.clone(),
            above => format!("{above}.{key}"),
        };
        match value {
            toml::Value::Table(table) => flatten(&key, table, all),
            toml::Value::String(text) => {
                all.insert(key, text.clone());
            }
            value => {
                all.insert(key, value.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipes_keys_have_their_tables_before_them() {
        let all = flat(
            "name = \"a\"\n[adapter]\nrank = 8\n[adapter.rank_pattern]\nq = 4\n[data]\nfiles = [\"x\"]\n",
        );
        let all: Vec<(String, String)> = all.unwrap().into_iter().collect();
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            all,
            [
                pair("adapter.rank", "8"),
                pair("adapter.rank_pattern.q", "4"),
                pair("data.files", "[\"x\"]"),
                pair("name", "a"),
            ]
        );
    }

    #[test]
    fn a_broken_recipe_is_an_error_with_its_name() {
        assert!(flat("rank = ").unwrap_err().starts_with(RECIPE));
    }
}
