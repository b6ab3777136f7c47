//! PEFT's own rules for which layers a configuration names
//! (`tuners_utils.check_target_module_exists`, `utils.other.get_pattern_key`).
//! They are regular expressions of Python's, of which the common part is that of
//! the `regex` crate, whose time is bounded by the text's length. What it does
//! not have, look-around above all, `fancy-regex` reads: by trying one way after
//! the other, as Python does, up to a number of steps.

use std::{ops::RangeInclusive, path::Path};

use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};

use super::read::malformed;
use crate::{
    AdapterError,
    target::{Kind, is_or_ends_with},
};

/// Names or one regular expression.
#[derive(Clone, Debug)]
enum Names {
    List(Vec<String>),
    Expression(Expression),
    AllLinear,
}

/// What `target_modules` and the keys beside it mean.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    targets: Names,
    exclude: Option<Names>,
    layers: Option<Vec<usize>>,
    patterns: Vec<Expression>,
    saved: Vec<String>,
}

impl Rules {
    /// `None` if the configuration leaves the targets to PEFT's table of
    /// architectures.
    pub(super) fn read(
        json: &Map<String, Value>,
        file: &Path,
    ) -> Result<Option<Self>, AdapterError> {
        let refuse = |reason: String| malformed(file, "adapter configuration", &reason);
        let names =
            |key: &str| match json.get(key) {
                None | Some(Value::Null) => Ok(None),
                Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => {
                    Ok(Some(Names::AllLinear))
                }
                Some(Value::String(text)) => full_match(text)
                    .map(Names::Expression)
                    .map(Some)
                    .map_err(|error| {
                        refuse(format!(
                            "`{key}` is {text:?}, no regular expression we read: {error}"
                        ))
                    }),
                Some(value) => strings(value)
                    .map(|list| Some(Names::List(list)))
                    .ok_or_else(|| {
                        refuse(format!(
                            "`{key}` is {value}, but must be text or a list of it"
                        ))
                    }),
            };
        let Some(targets) = names("target_modules")? else {
            return Ok(None);
        };
        let layers = match json.get("layers_to_transform") {
            None | Some(Value::Null) => None,
            Some(value) => Some(numbers(value).ok_or_else(|| {
                refuse(format!(
                    "`layers_to_transform` is {value}, but must be numbers"
                ))
            })?),
        };
        let names_of_lists = match json.get("layers_pattern") {
            None | Some(Value::Null) => Vec::new(),
            Some(value) => strings(value).ok_or_else(|| {
                refuse(format!(
                    "`layers_pattern` is {value}, but must be text or a list of it"
                ))
            })?,
        };
        if names_of_lists.len() > MOST_PATTERNS {
            return Err(refuse(format!(
                "`layers_pattern` has {} names, but at most {MOST_PATTERNS} are read",
                names_of_lists.len()
            )));
        }
        let mut patterns = Vec::new();
        for name in &names_of_lists {
            patterns.push(small(&format!(r"^(?:|.*?\.)(?:{name})\.(\d+)\.")));
        }
        if patterns.is_empty() {
            patterns.push(small(r"^.*?\.[^.]*\.(\d+)\."));
        }
        let patterns = patterns
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| refuse(format!("`layers_pattern` has no names we read: {error}")))?;
        let saved = json.get("modules_to_save").and_then(strings);
        Ok(Some(Self {
            targets,
            exclude: names("exclude_modules")?,
            layers: layers.filter(|layers| !layers.is_empty()),
            patterns,
            saved: saved.unwrap_or_default(),
        }))
    }

    /// Whether the configuration puts an adapter on this layer.
    ///
    /// # Errors
    ///
    /// In words, of an expression that takes too long.
    pub(super) fn name(&self, path: &str, kind: Kind) -> Result<bool, String> {
        let excluded = match &self.exclude {
            None => false,
            Some(names) => names.has(path, kind)?,
        };
        // A module that is saved whole takes everything in it along.
        let ends = path
            .match_indices('.')
            .map(|(end, _)| end)
            .chain([path.len()]);
        let mut holders = ends.map(|end| &path[..end]);
        let whole =
            holders.any(|holder| self.saved.iter().any(|name| is_or_ends_with(holder, name)));
        if excluded || whole {
            return Ok(false);
        }
        if let Names::List(list) = &self.targets
            && list.iter().any(|name| name == path)
        {
            // An exact path is not subject to `layers_to_transform`.
            return Ok(true);
        }
        if let Some(layers) = &self.layers {
            let mut number = None;
            for pattern in &self.patterns {
                number = number.or(pattern.first_group(path)?);
            }
            let number = number.and_then(|number| number.parse::<usize>().ok());
            if !number.is_some_and(|number| layers.contains(&number)) {
                return Ok(false);
            }
        }
        self.targets.has(path, kind)
    }
}

impl Names {
    fn has(&self, path: &str, kind: Kind) -> Result<bool, String> {
        Ok(match self {
            Self::AllLinear => kind == Kind::Linear && path != "lm_head",
            Self::Expression(expression) => expression.is_match(path)?,
            Self::List(list) => list.iter().any(|name| is_or_ends_with(path, name)),
        })
    }
}

/// A regular expression, with a bound on the time that it takes.
#[derive(Clone, Debug)]
enum Expression {
    Plain(Regex),
    /// With look-around or the like.
    Fancy(Box<fancy_regex::Regex>),
}

impl Expression {
    fn is_match(&self, path: &str) -> Result<bool, String> {
        match self {
            Self::Plain(regex) => Ok(regex.is_match(path)),
            Self::Fancy(regex) => regex
                .is_match(path)
                .map_err(|error| too_long(regex, path, &error)),
        }
    }

    fn first_group<'a>(&self, path: &'a str) -> Result<Option<&'a str>, String> {
        Ok(match self {
            Self::Plain(regex) => {
                let found = regex.captures(path);
                found.and_then(|found| Some(found.get(1)?.as_str()))
            }
            Self::Fancy(regex) => {
                let found = regex
                    .captures(path)
                    .map_err(|error| too_long(regex, path, &error))?;
                found.and_then(|found| Some(found.get(1)?.as_str()))
            }
        })
    }
}

fn too_long(regex: &fancy_regex::Regex, path: &str, error: &fancy_regex::Error) -> String {
    let pattern: String = regex.as_str().chars().take(200).collect();
    format!("the expression {pattern:?} cannot be tried on `{path}`: {error}")
}

/// Python's `re.fullmatch`.
fn full_match(pattern: &str) -> Result<Expression, String> {
    small(&format!("^(?:{pattern})$"))
}

/// An expression that is small when it is compiled: a few letters can stand for
/// millions of states, and a file may have many of them.
fn small(pattern: &str) -> Result<Expression, String> {
    const STATES: usize = 256 << 10;
    /// One step is a character or a turn back; real ones take some thousands.
    const STEPS: usize = 1_000_000;
    /// Bytes of an expression that is parsed a second time.
    const LONGEST: usize = 64 << 10;
    let plain = RegexBuilder::new(pattern)
        .size_limit(STATES)
        .dfa_size_limit(STATES)
        .build();
    match plain {
        Ok(regex) => Ok(Expression::Plain(regex)),
        Err(regex::Error::Syntax(_)) if pattern.len() <= LONGEST => {
            fancy_regex::RegexBuilder::new(pattern)
                .backtrack_limit(STEPS)
                .delegate_size_limit(STATES)
                .delegate_dfa_size_limit(STATES)
                .build()
                .map(|regex| Expression::Fancy(Box::new(regex)))
                .map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// The most expressions that one key may have: an adapter with a rank for each
/// layer has some hundreds.
const MOST_PATTERNS: usize = 4096;

/// The keys of `rank_pattern` or `alpha_pattern`, in the file's order.
pub(super) struct PatternKeys(Vec<(Expression, f64)>);

impl PatternKeys {
    pub(super) fn read(
        json: &Map<String, Value>,
        key: &str,
        allowed: &RangeInclusive<f64>,
        file: &Path,
    ) -> Result<Self, AdapterError> {
        let refuse = |reason: String| malformed(file, "adapter configuration", &reason);
        let map = match json.get(key) {
            None | Some(Value::Null) => return Ok(Self(Vec::new())),
            Some(Value::Object(map)) => map,
            Some(other) => {
                return Err(refuse(format!("`{key}` is {other}, but must be an object")));
            }
        };
        if map.len() > MOST_PATTERNS {
            return Err(refuse(format!(
                "`{key}` has {} entries, but at most {MOST_PATTERNS} are read",
                map.len()
            )));
        }
        let entries = map.iter().map(|(pattern, value)| {
            let number = value.as_f64().filter(|number| allowed.contains(number));
            let number = number.ok_or_else(|| {
                refuse(format!(
                    "`{key}.{pattern}` is {value}, but must be a positive number from {:?} to {:?}",
                    allowed.start(),
                    allowed.end()
                ))
            })?;
            // `re.match(rf"(.*\.)?({key})$", path)`.
            let regex = small(&format!(r"^(?:.*\.)?(?:{pattern})$")).map_err(|error| {
                refuse(format!(
                    "`{key}` has {pattern:?}, no regular expression we read: {error}"
                ))
            })?;
            Ok((regex, number))
        });
        entries.collect::<Result<_, _>>().map(Self)
    }

    /// The value of the first key that names the layer.
    ///
    /// # Errors
    ///
    /// In words, of an expression that takes too long.
    pub(super) fn of(&self, path: &str) -> Result<Option<f64>, String> {
        for (expression, value) in &self.0 {
            if expression.is_match(path)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}

/// Text or a list of it.
pub(super) fn strings(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(list) => list.iter().map(|x| x.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

fn numbers(value: &Value) -> Option<Vec<usize>> {
    let number = |value: &Value| value.as_u64().map(|number| number as usize);
    match value {
        Value::Array(list) => list.iter().map(number).collect(),
        value => number(value).map(|number| vec![number]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rules(json: &Value) -> Rules {
        let file = Path::new("adapter_config.json");
        Rules::read(json.as_object().unwrap(), file)
            .unwrap()
            .unwrap()
    }

    fn linear(rules: &Rules, path: &str) -> bool {
        rules.name(path, Kind::Linear).unwrap()
    }

    const Q0: &str = "model.layers.0.self_attn.q_proj";
    const Q1: &str = "model.layers.1.self_attn.q_proj";

    #[test]
    fn lists_match_at_dots_and_text_is_a_whole_expression() {
        let list = rules(&json!({"target_modules": ["q_proj"]}));
        assert!(linear(&list, Q0) && !linear(&list, "model.layers.0.self_attn.xq_proj"));
        let text = rules(&json!({"target_modules": r".*\.1\..*q_proj"}));
        assert!(linear(&text, Q1) && !linear(&text, Q0));
        let all = rules(&json!({"target_modules": "all-linear"}));
        assert!(linear(&all, Q0) && !linear(&all, "lm_head"));
        assert!(!all.name("model.embed_tokens", Kind::Embedding).unwrap());
    }

    #[test]
    fn expressions_may_look_ahead_and_behind() {
        let rules = rules(&json!({
            "target_modules": r"^(?!.*(?:visual|lm_head)).*(?:q_proj|(?<!mlp\.)v_proj)$",
        }));
        assert!(linear(&rules, Q0));
        assert!(linear(&rules, "model.layers.0.self_attn.v_proj"));
        assert!(!linear(&rules, "visual.layers.0.self_attn.q_proj"));
        assert!(!linear(&rules, "model.layers.0.mlp.v_proj"));
        assert!(
            !linear(&rules, "model.layers.0.self_attn.q_proj.more"),
            "the whole path"
        );
    }

    #[test]
    fn an_expression_that_would_never_end_is_an_error_that_names_it() {
        let rules = rules(&json!({"target_modules": r"(?=x)(?:(x+)+)+(?<!x)y"}));
        let path = "x".repeat(200);
        let message = rules.name(&path, Kind::Linear).unwrap_err();
        assert!(
            message.contains("(x+)+") && message.contains("cannot be tried"),
            "{message}"
        );
    }

    #[test]
    fn layers_and_exclusions_take_away_but_not_from_an_exact_path() {
        let some = rules(&json!({
            "target_modules": ["q_proj", "v_proj", Q0],
            "layers_to_transform": [1],
            "exclude_modules": ["v_proj"],
        }));
        assert!(linear(&some, Q1));
        assert!(linear(&some, Q0), "an exact path");
        assert!(!linear(&some, "model.layers.1.self_attn.v_proj"));
        assert!(!linear(&some, "model.layers.0.self_attn.v_proj"));
    }

    #[test]
    fn saved_modules_are_no_targets() {
        let saved = rules(
            &json!({"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]}),
        );
        assert!(linear(&saved, Q0) && !linear(&saved, "lm_head"));
        let whole = rules(&json!({"target_modules": ["q_proj"], "modules_to_save": ["self_attn"]}));
        assert!(!linear(&whole, Q0), "inside a saved module");
    }

    #[test]
    fn no_layers_are_all_layers_and_several_patterns_are_tried() {
        let all = rules(&json!({"target_modules": ["q_proj"], "layers_to_transform": []}));
        assert!(linear(&all, Q0) && linear(&all, Q1));
        let second = rules(&json!({
            "target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": ["h", "layers"],
        }));
        assert!(linear(&second, Q1) && !linear(&second, Q0));
    }

    #[test]
    fn the_first_pattern_in_the_files_order_decides() {
        let file = Path::new("adapter_config.json");
        let json =
            json!({"rank_pattern": {"q_proj": 6, "layers.1.self_attn.q_proj": 2, "^k_proj": 3}});
        let json = json.as_object().unwrap();
        let keys = PatternKeys::read(json, "rank_pattern", &(1.0..=9.0), file).unwrap();
        assert_eq!(keys.of(Q1), Ok(Some(6.0)), "not the longest, the first");
        assert_eq!(keys.of(Q0), Ok(Some(6.0)));
        assert_eq!(keys.of("model.layers.0.self_attn.k_proj"), Ok(None));
    }

    #[test]
    fn expressions_that_would_be_large_and_numbers_out_of_range_are_refused() {
        let file = Path::new("adapter_config.json");
        let read = |json: Value| {
            let read = PatternKeys::read(
                json.as_object().unwrap(),
                "rank_pattern",
                &(1.0..=9.0),
                file,
            );
            read.map(|_| ()).unwrap_err().to_string()
        };
        let message = read(json!({"rank_pattern": {r"\w{500}": 6}}));
        assert!(message.contains(r"\\w{500}"), "{message}");
        let message = read(json!({"rank_pattern": {"q_proj": 1e300}}));
        assert!(message.contains("`rank_pattern.q_proj` is 1e"), "{message}");
        let many: Map<String, Value> = (0..5000).map(|i| (i.to_string(), json!(2))).collect();
        let message = read(json!({"rank_pattern": many}));
        assert!(message.contains("5000 entries"), "{message}");
    }
}
