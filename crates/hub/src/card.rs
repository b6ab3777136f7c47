//! What a data set's description says of its files: the YAML at the top of its
//! `README.md`, as `datasets` reads it ("Manual configuration" of its documentation).

use std::collections::{BTreeMap, BTreeSet};

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

use crate::dataset_name::is_split;

/// Nested deeper than this, it is no description but an attack on the stack.
const DEPTH: usize = 64;
/// Nodes that aliases may stand for, in all.
const ALIASED: usize = 100_000;

/// What a description says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Card {
    /// In the order of the description.
    pub(crate) configs: Vec<Config>,
    /// The one configuration that `dataset_info` describes, if it is one.
    pub(crate) described: Option<String>,
}

/// One configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) name: String,
    /// Patterns for each split, in order; without them, the files' names decide.
    pub(crate) files: Option<Vec<(String, Vec<String>)>>,
    /// The directory that patterns start from.
    pub(crate) dir: Option<String>,
    pub(crate) default: bool,
    /// What else it asks for.
    pub(crate) parameters: Vec<(String, Value)>,
}

impl Card {
    /// Reads the description, and what overrides it: `.huggingface.yaml`.
    pub(crate) fn parse(readme: Option<&str>, overriding: Option<&str>) -> Result<Self, String> {
        let mut all = Map::new();
        for text in [readme.and_then(front_matter), overriding]
            .into_iter()
            .flatten()
        {
            match yaml(text)? {
                Value::Object(map) => all.extend(map),
                Value::Null => {}
                _ => return Err("its YAML is not a list of keys and values".to_owned()),
            }
        }
        Ok(Self {
            configs: configs(all.get("configs"))?,
            described: described(all.get("dataset_info")),
        })
    }

    /// The configuration that is meant when none is named.
    pub(crate) fn usual(&self) -> Result<Option<&Config>, String> {
        let mut found: Vec<&Config> = match &self.configs[..] {
            [one] => vec![one],
            all => all
                .iter()
                .filter(|config| config.default || config.name == "default")
                .collect(),
        };
        if let [one, other, ..] = found[..] {
            return Err(format!(
                "both `{}` and `{}` are its default configuration",
                one.name, other.name
            ));
        }
        if found.is_empty() {
            let described = self.described.as_deref();
            found.extend(
                self.configs
                    .iter()
                    .find(|config| described == Some(&config.name)),
            );
        }
        Ok(found.pop())
    }
}

/// The text between the first line `---` and the next one.
fn front_matter(readme: &str) -> Option<&str> {
    let text = readme.trim_start_matches('\u{feff}').trim_start();
    let text = text.strip_prefix("---")?;
    let text = text
        .strip_prefix("\r\n")
        .or_else(|| text.strip_prefix('\n'))?;
    let mut end = 0;
    for line in text.split_inclusive('\n') {
        if line.trim_end_matches(['\r', '\n']) == "---" {
            return Some(&text[..end]);
        }
        end += line.len();
    }
    None
}

/// A list or a map that is not finished.
enum Open {
    List(usize, Vec<Value>),
    Map(usize, Map<String, Value>, Option<String>),
}

/// A YAML document as JSON. All scalars but null stay the text that was
/// written: what is read here are names and patterns, also where they look
/// like numbers. Of keys that come twice, the last counts, as for Python.
fn yaml(text: &str) -> Result<Value, String> {
    let mut stack: Vec<Open> = Vec::new();
    let mut anchors: BTreeMap<usize, Value> = BTreeMap::new();
    let mut budget = ALIASED;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            format!(
                "its YAML is malformed, {} in line {}",
                error.info(),
                error.marker().line()
            )
        })?;
        let line = span.start.line();
        let (anchor, value) = match event {
            Event::SequenceStart(anchor, _) => {
                stack.push(Open::List(anchor, Vec::new()));
                if stack.len() > DEPTH {
                    return Err(format!("its YAML is nested too deeply in line {line}"));
                }
                continue;
            }
            Event::MappingStart(anchor, _) => {
                stack.push(Open::Map(anchor, Map::new(), None));
                if stack.len() > DEPTH {
                    return Err(format!("its YAML is nested too deeply in line {line}"));
                }
                continue;
            }
            Event::Scalar(text, style, anchor, _) => (anchor, scalar(&text, style)),
            Event::Alias(anchor) => {
                let value = anchors
                    .get(&anchor)
                    .ok_or_else(|| format!("its YAML refers to itself in line {line}"))?;
                budget = budget.checked_sub(nodes(value)).ok_or_else(|| {
                    format!("its YAML repeats too much by references in line {line}")
                })?;
                (0, value.clone())
            }
            Event::SequenceEnd | Event::MappingEnd => match stack.pop() {
                Some(Open::List(anchor, list)) => (anchor, Value::Array(list)),
                Some(Open::Map(anchor, map, _)) => (anchor, Value::Object(map)),
                None => continue,
            },
            Event::DocumentEnd => return Ok(Value::Null),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => {
                continue;
            }
        };
        if anchor > 0 {
            anchors.insert(anchor, value.clone());
        }
        match stack.last_mut() {
            None => return Ok(value),
            Some(Open::List(_, list)) => list.push(value),
            Some(Open::Map(_, map, key)) => match key.take() {
                Some(key) => {
                    map.insert(key, value);
                }
                None => {
                    let text = value.as_str().map(str::to_owned);
                    *key = Some(text.unwrap_or_else(|| value.to_string()));
                }
            },
        }
    }
    Ok(Value::Null)
}

fn scalar(text: &str, style: ScalarStyle) -> Value {
    match (style, text) {
        (ScalarStyle::Plain, "" | "~" | "null" | "Null" | "NULL") => Value::Null,
        _ => Value::String(text.to_owned()),
    }
}

fn nodes(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(nodes).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(nodes).sum::<usize>(),
        _ => 1,
    }
}

fn configs(value: Option<&Value>) -> Result<Vec<Config>, String> {
    let list = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err("`configs` is not a list".to_owned()),
    };
    let mut found: Vec<Config> = Vec::new();
    let mut places = BTreeMap::new();
    for value in list {
        let config = config(value)?;
        // Of those that are called alike, the last counts, as in Python.
        let at = *places.entry(config.name.clone()).or_insert(found.len());
        match found.get_mut(at) {
            Some(known) => *known = config,
            None => found.push(config),
        }
    }
    Ok(found)
}

fn config(value: &Value) -> Result<Config, String> {
    let map = value
        .as_object()
        .ok_or("an entry of `configs` is not a list of keys and values")?;
    let name = map
        .get("config_name")
        .and_then(Value::as_str)
        .ok_or("an entry of `configs` has no `config_name`")?;
    let mut config = Config {
        name: name.to_owned(),
        ..Config::default()
    };
    for (key, value) in map {
        match (key.as_str(), value) {
            ("config_name", _) => {}
            ("data_files" | "data_dir", Value::Null) => {}
            ("data_files", value) => config.files = Some(data_files(name, value)?),
            ("data_dir", Value::String(dir)) => {
                config.dir = Some(dir.clone()).filter(|dir| !dir.is_empty());
            }
            ("data_dir", _) => return Err(format!("`data_dir` of `{name}` is not a text")),
            ("default", value) => {
                config.default = value.as_str().is_some_and(|value| {
                    ["true", "yes", "on", "y"].contains(&value.to_ascii_lowercase().as_str())
                });
            }
            (_, value) => config.parameters.push((key.clone(), value.clone())),
        }
    }
    Ok(config)
}

/// The patterns of each split: a text, a list of texts, or a list of splits with theirs.
fn data_files(config: &str, value: &Value) -> Result<Vec<(String, Vec<String>)>, String> {
    let wrong = |what: &str| {
        format!(
            "`data_files` of `{config}` {what}, instead of a path, a list of paths, or a list of \
             entries with `split` and `path`"
        )
    };
    let texts = |value: &Value| -> Option<Vec<String>> {
        match value {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(list) => list
                .iter()
                .map(|text| text.as_str().map(str::to_owned))
                .collect(),
            _ => None,
        }
    };
    if let Some(patterns) = texts(value) {
        return Ok(vec![("train".to_owned(), patterns)]);
    }
    let list = value
        .as_array()
        .ok_or_else(|| wrong("is neither a text nor a list"))?;
    let mut splits: Vec<(String, Vec<String>)> = Vec::new();
    let mut known = BTreeSet::new();
    for entry in list {
        let map = entry
            .as_object()
            .filter(|map| map.len() == 2)
            .ok_or_else(|| wrong("has an entry of another form"))?;
        let split = map
            .get("split")
            .and_then(Value::as_str)
            .filter(|split| is_split(split))
            .ok_or_else(|| wrong("has an entry without a possible `split`"))?;
        let paths = map
            .get("path")
            .and_then(texts)
            .ok_or_else(|| wrong("has an entry without a `path`"))?;
        if !known.insert(split) {
            return Err(wrong(&format!("has the split `{split}` twice")));
        }
        splits.push((split.to_owned(), paths));
    }
    Ok(splits)
}

/// The configuration that `dataset_info` describes, if that is one.
fn described(value: Option<&Value>) -> Option<String> {
    let one = match value? {
        Value::Array(list) if list.len() == 1 => &list[0],
        Value::Array(_) => return None,
        one => one,
    };
    let name = one.as_object()?.get("config_name");
    Some(name.and_then(Value::as_str).unwrap_or("default").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(yaml: &str) -> Result<Card, String> {
        Card::parse(
            Some(&format!("---\n{yaml}\n---\n# Tales of Oxmere\n")),
            None,
        )
    }

    fn files(config: &Config) -> Vec<(&str, Vec<&str>)> {
        config
            .files
            .iter()
            .flatten()
            .map(|(split, paths)| (split.as_str(), paths.iter().map(String::as_str).collect()))
            .collect()
    }

    #[test]
    fn data_files_are_a_path_a_list_or_splits() {
        let card = card(
            "configs:
- config_name: one
  data_files: a.csv
- config_name: list
  data_files: [a.csv, 'b*.csv']
  data_dir: part
- config_name: 2023
  default: true
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path:
    - x.csv
    - \"y.csv\"",
        )
        .unwrap();
        let [one, list, splits] = &card.configs[..] else {
            panic!("{card:?}");
        };
        assert_eq!(files(one), [("train", vec!["a.csv"])]);
        assert_eq!(files(list), [("train", vec!["a.csv", "b*.csv"])]);
        assert_eq!(list.dir.as_deref(), Some("part"));
        assert_eq!(splits.name, "2023");
        assert_eq!(
            files(splits),
            [
                ("train", vec!["data/train-*"]),
                ("test", vec!["x.csv", "y.csv"])
            ]
        );
        assert_eq!(card.usual().unwrap().unwrap().name, "2023");
    }

    #[test]
    fn the_default_is_the_only_one_or_the_marked_one_or_the_described_one() {
        let default = |yaml: &str| {
            let card = card(yaml).unwrap();
            card.usual()
                .map(|config| config.map(|config| config.name.clone()))
        };
        let name = |name: &str| Ok(Some(name.to_owned()));
        assert_eq!(default("configs: [{config_name: a}]"), name("a"));
        assert_eq!(
            default("configs: [{config_name: a}, {config_name: default}]"),
            name("default")
        );
        assert_eq!(
            default("configs: [{config_name: a}, {config_name: b, default: true}]"),
            name("b")
        );
        assert_eq!(
            default("configs: [{config_name: a}, {config_name: b}]"),
            Ok(None)
        );
        assert_eq!(
            default(
                "configs: [{config_name: a}, {config_name: b}]\ndataset_info: {config_name: b}"
            ),
            name("b")
        );
        let twice = default("configs: [{config_name: a, default: true}, {config_name: default}]");
        assert!(twice.unwrap_err().contains("both `a` and `default`"));
    }

    #[test]
    fn a_description_without_configurations_says_nothing() {
        for readme in [
            "",
            "# Tales",
            "---\nlicense: mit\n",
            "---\nlicense: mit\n---\n",
            "---\n\n---\nconfigs: 5",
            "# Title\n---\nconfigs: 5\n---\n",
        ] {
            assert_eq!(Card::parse(Some(readme), None), Ok(Card::default()));
        }
    }

    #[test]
    fn windows_lines_and_anchors_are_read() {
        let readme = "---\r\nlicense: mit\r\nconfigs:\r\n- config_name: a\r\n  data_files: &id001\r\n  \
                      - x.csv\r\n- config_name: b\r\n  data_files: *id001\r\n---\r\n";
        let card = Card::parse(Some(readme), None).unwrap();
        assert_eq!(card.configs[0].files, card.configs[1].files);
        assert_eq!(files(&card.configs[1]), [("train", vec!["x.csv"])]);
    }

    #[test]
    fn a_file_of_its_own_overrides_the_description() {
        let readme = "---\nconfigs: [{config_name: a}]\n---\n";
        let card = Card::parse(Some(readme), Some("configs: [{config_name: b}]")).unwrap();
        assert_eq!(card.configs[0].name, "b");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (yaml, part) in [
            ("a: [1, 2", "malformed"),
            ("a:\n\tb: 1", "line 2"),
            ("- a", "not a list of keys"),
            ("configs: {a: 1}", "not a list"),
            ("configs: [a]", "an entry of `configs`"),
            ("configs: [{data_files: a}]", "no `config_name`"),
            (
                "configs: [{config_name: a, data_files: {b: c}}]",
                "neither a text",
            ),
            (
                "configs: [{config_name: a, data_files: [b, {c: d}]}]",
                "another form",
            ),
            (
                "configs: [{config_name: a, data_files: [{split: x-y, path: p}]}]",
                "possible `split`",
            ),
            (
                "configs: [{config_name: a, data_files: [{split: x, path: {}}]}]",
                "without a `path`",
            ),
            (
                "configs: [{config_name: a, data_files: [{split: x, path: p}, {split: x, path: q}]}]",
                "`x` twice",
            ),
        ] {
            let error = card(yaml).unwrap_err();
            assert!(error.contains(part), "{yaml}: {error}");
        }
    }

    #[test]
    fn hostile_yaml_is_refused_without_harm() {
        let deep = format!("a: {}", "- ".repeat(100_000));
        assert!(card(&deep).is_err());
        let deep = "- ".repeat(100_000);
        assert!(card(&deep).unwrap_err().contains("nested"));
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..12 {
            let ten = vec![format!("*a{}", i - 1); 10].join(", ");
            laughs = format!("{laughs}a{i}: &a{i} [{ten}]\n");
        }
        assert!(card(&laughs).unwrap_err().contains("repeats too much"));
    }
}
