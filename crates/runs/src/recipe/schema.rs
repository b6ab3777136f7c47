//! The recipe's keys, told by the types that read them: as a JSON schema, which
//! editors check and complete recipes with, and as the tables of `docs/recipe.md`.
//!
//! What a key means is its field's comment. Beside what JSON schema knows, a field
//! has `x-default`, what holds where nothing is given, and `x-see`, where to read
//! on.

mod tables;

use std::{borrow::Cow, collections::BTreeMap};

use olora_adapter::{AdapterConfig, MAX_ITERATIONS, MAX_RANK, Method, PeftForm, Placement};
use olora_model::{Dtype, Packing, Quantize};
use olora_tasks::TaskName;
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde::Serialize;
use serde_json::{Value, json};

pub use self::tables::tables;
use super::{AdapterSection, LoggingSection, Paths, Recipe};

/// The keys of `[adapter]`, which [`AdapterSection`] reads by hand.
#[derive(Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct AdapterKeys {
    /// How the low-rank factors start. `none` has no adapter and trains every weight; the other
    /// keys of `[adapter]` must then be left out.
    #[schemars(schema_with = "methods")]
    method: String,
    /// For methods that start from a nonzero update (`olora`, `olora-tail`, `pissa`, `milora`,
    /// `olora-gradient`): where that update is subtracted so that step 0 is the base model.
    /// `anchored` subtracts it in the forward pass and leaves the base unchanged. `residual`
    /// subtracts it from the weights once, as in the papers; only for these methods, and not for
    /// `olora-gradient`, whose start only the run's first session knows.
    #[schemars(schema_with = "placement")]
    placement: Placement,
    /// Rank of the update. For `lora-orthogonal` it must be even.
    #[schemars(range(min = 1, max = MAX_RANK))]
    rank: usize,
    /// The update is scaled by alpha / rank.
    #[schemars(extend("exclusiveMinimum" = 0))]
    alpha: f64,
    /// Rank-stabilised: scale by alpha / √rank.
    rslora: bool,
    /// Weight-decomposed: a magnitude per output trains beside the factors. Linear layers only.
    dora: bool,
    /// For `pissa` only: power iterations of a randomised decomposition.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = MAX_ITERATIONS), extend("x-default" = "exact"))]
    iterations: Option<usize>,
    /// For `eva` only: a layer gets at most this many times the rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.0, max = super::bounds::MAX_RHO), extend("x-default" = "2"))]
    rho: Option<f64>,
    /// For `olora-gradient` and `lora-gradient`: the run's first micro-batches, whose gradient the
    /// start is along.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = super::bounds::MAX_ACCUMULATION), extend("x-default" = "those of a step, 8 at most"))]
    gradient_batches: Option<usize>,
    /// For the same: the length of each column of `A` and each row of `B`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1e-06, max = 1_000_000.0), extend("x-default" = "1"))]
    gradient_scale: Option<f64>,
    /// Dropout on the adapter's input, while training.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1))]
    dropout: f64,
    /// Layers to adapt: `all-linear`, a name (`q_proj`), the end of a path (`self_attn.q_proj`), or
    /// a glob over the whole path in which `*` stops at a dot and `**` does not
    /// (`model.layers.{0,1}.*.q_proj`). An embedding is a target only by its name or path. A
    /// pattern that matches nothing is an error.
    #[schemars(length(min = 1))]
    targets: Vec<String>,
    /// Layers to leave out, by the same rules. If left out, `all-linear` leaves out `lm_head`, as
    /// in PEFT, unless `lm_head` is named in `targets`.
    #[serde(skip_serializing_if = "Option::is_none")]
    exclude: Option<Vec<String>>,
    /// Numbers of the decoder blocks to adapt, from 0. Targets outside the blocks are not affected.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "all"))]
    layers: Option<Vec<usize>>,
    /// Other ranks for some layers, by the rules of `targets`. Two patterns that name one layer are
    /// an error. Not with `eva`.
    rank_pattern: BTreeMap<String, usize>,
    /// Other alphas for some layers, by the same rules.
    alpha_pattern: BTreeMap<String, f64>,
    /// Modules that train whole, in float32, and are saved whole: `lm_head`, `model.norm`.
    modules_to_save: Vec<String>,
    /// Start from this adapter, with the optimiser afresh, in the place of `method`'s start. The
    /// other keys follow from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-type" = "path"), extend("x-see" = "#starting-from-an-adapter"))]
    from: Option<String>,
    /// How the adapter is saved. `plain` is LoRA on the original base, which every reader of PEFT
    /// files understands. `native` is PEFT's own form of `olora` and `pissa`.
    #[schemars(schema_with = "form", extend("x-see" = "methods.md#how-an-adapter-is-saved"))]
    form: PeftForm,
}

impl Default for AdapterKeys {
    fn default() -> Self {
        let config = AdapterConfig::default();
        Self {
            method: config.method.name().to_owned(),
            placement: config.placement,
            rank: config.rank,
            alpha: config.alpha,
            rslora: config.rslora,
            dora: config.dora,
            iterations: config.iterations,
            rho: None,
            gradient_batches: None,
            gradient_scale: None,
            dropout: config.dropout,
            targets: config.targets,
            exclude: None,
            layers: config.layers,
            rank_pattern: config.rank_pattern,
            alpha_pattern: config.alpha_pattern,
            modules_to_save: config.modules_to_save,
            from: None,
            form: PeftForm::default(),
        }
    }
}

impl JsonSchema for AdapterSection {
    fn schema_name() -> Cow<'static, str> {
        "AdapterSection".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        AdapterKeys::json_schema(generator)
    }
}

/// The keys of `[logging]`, which [`LoggingSection`] reads by hand.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "its keys are told, and it is never filled in")]
struct LoggingKeys {
    /// `true` writes event files of TensorBoard into `tensorboard/` in the run's directory. A path
    /// writes them into a directory of the run's name in that one, beside those of other runs.
    #[schemars(
        default,
        schema_with = "tensorboard",
        extend("default" = false, "x-type" = "boolean or path")
    )]
    tensorboard: Option<bool>,
    /// A run on a tracking server of MLflow: its address, as `"http://127.0.0.1:5000"`; `true` for
    /// that of `MLFLOW_TRACKING_URI`; or a table of the keys below.
    #[schemars(default, schema_with = "mlflow", extend("default" = false, "x-type" = "boolean, text or table"))]
    mlflow: Option<bool>,
}

/// The keys of a table `logging.mlflow`.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "its keys are told, and it is never filled in")]
struct MlflowKeys {
    /// The server's address, `http://` or `https://`, without name and password.
    #[schemars(extend("x-default" = "`MLFLOW_TRACKING_URI`"))]
    uri: Option<String>,
    /// The experiment, which is made where it is missing.
    #[schemars(extend("x-default" = "`MLFLOW_EXPERIMENT_NAME`, else `Default`"))]
    experiment: Option<String>,
}

impl JsonSchema for LoggingSection {
    fn schema_name() -> Cow<'static, str> {
        "LoggingSection".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        LoggingKeys::json_schema(generator)
    }
}

fn tensorboard(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["boolean", "string"] })
}

fn mlflow(generator: &mut SchemaGenerator) -> Schema {
    let table = MlflowKeys::json_schema(generator);
    json_schema!({ "anyOf": [{ "type": "boolean" }, { "type": "string" }, table] })
}

impl JsonSchema for Paths {
    fn schema_name() -> Cow<'static, str> {
        "Paths".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
    }
}

fn one_of(names: impl IntoIterator<Item = String>) -> Schema {
    let names: Vec<_> = names.into_iter().collect();
    json_schema!({ "type": "string", "enum": names })
}

/// The names of all values of a type, as serde writes them.
fn written<T: Serialize>(all: impl IntoIterator<Item = T>) -> Schema {
    let names = all.into_iter().filter_map(|value| {
        let name = serde_json::to_value(value).ok()?;
        name.as_str().map(str::to_owned)
    });
    one_of(names)
}

fn methods(_: &mut SchemaGenerator) -> Schema {
    let names = Method::ALL.map(|method| method.name().to_owned());
    one_of(names.into_iter().chain(["none".to_owned()]))
}

fn placement(_: &mut SchemaGenerator) -> Schema {
    written([Placement::Anchored, Placement::Residual])
}

fn form(_: &mut SchemaGenerator) -> Schema {
    written([PeftForm::Plain, PeftForm::Native])
}

pub(super) fn dtype(_: &mut SchemaGenerator) -> Schema {
    one_of(Dtype::ALL.map(|dtype| dtype.name().to_owned()))
}

pub(super) fn packing(_: &mut SchemaGenerator) -> Schema {
    let packings = [Packing::Stored, Packing::None].into_iter();
    written(packings.chain(Quantize::ALL.map(Packing::As)))
}

pub(super) fn format(_: &mut SchemaGenerator) -> Schema {
    use olora_data::Format;
    written([
        Format::Alpaca,
        Format::PromptCompletion,
        Format::Messages,
        Format::ShareGpt,
        Format::Text,
        Format::Preference,
        Format::Labelled,
    ])
}

pub(super) fn system_turn(_: &mut SchemaGenerator) -> Schema {
    use olora_data::SystemTurn;
    written([SystemTurn::Keep, SystemTurn::Merge, SystemTurn::Drop])
}

pub(super) fn first_turn(_: &mut SchemaGenerator) -> Schema {
    use olora_data::FirstTurn;
    written([FirstTurn::Keep, FirstTurn::Drop])
}

pub(super) fn decay(_: &mut SchemaGenerator) -> Schema {
    use olora_training::Decay;
    written([Decay::Cosine, Decay::Linear, Decay::Constant, Decay::Wsd])
}

pub(super) fn recompute(_: &mut SchemaGenerator) -> Schema {
    use olora_training::Recompute;
    written([Recompute::None, Recompute::Blocks])
}

pub(super) fn resize_embeddings(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "anyOf": [
            { "type": "boolean" },
            { "type": "integer", "minimum": 1, "maximum": super::bounds::MAX_ROWS },
            {
                "type": "object",
                "properties": {
                    "pad_to_multiple_of": { "type": "integer", "minimum": 1, "maximum": super::bounds::MAX_PADDING },
                },
                "required": ["pad_to_multiple_of"],
                "additionalProperties": false,
            },
        ],
        "x-type": "`true`, a number, or `{ pad_to_multiple_of = 64 }`",
    })
}

pub(super) fn rate(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "anyOf": [{ "type": "number", "exclusiveMinimum": 0 }, { "type": "string", "enum": ["auto"] }],
        "x-type": "number above 0, or `\"auto\"`",
    })
}

pub(super) fn best_by(_: &mut SchemaGenerator) -> Schema {
    let tasks = TaskName::ALL.map(|task| task.as_str().to_owned());
    let mut schema = one_of(["loss".to_owned()].into_iter().chain(tasks));
    schema.insert("x-type".to_owned(), json!("`loss`, or a task of `[tasks]`"));
    schema
}

pub(super) fn task_names(_: &mut SchemaGenerator) -> Schema {
    let tasks = TaskName::ALL.map(TaskName::as_str);
    json_schema!({
        "type": "array",
        "items": { "type": "string", "enum": tasks },
        "uniqueItems": true,
        "x-type": "list of text",
    })
}

/// The recipe as a JSON schema (draft 2020-12), every section in its place.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
    });
    let schema = settings.into_generator().into_root_schema_for::<Recipe>();
    let mut schema = schema.to_value();
    tidy(&mut schema);
    schema["title"] = json!("Recipe of an Olora run");
    schema
}

/// Takes out what TOML does not have, and what says nothing about a key.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Array(all) => all.iter_mut().for_each(tidy),
        Value::Object(keys) => {
            keys.remove("format");
            if keys.get("default").is_some_and(Value::is_null) {
                keys.remove("default");
            }
            // A key that need not be there is not `null` for that.
            if let Some(Value::Array(kinds)) = keys.get_mut("type") {
                kinds.retain(|kind| kind != "null");
                if let [kind] = kinds.as_slice() {
                    let kind = kind.clone();
                    keys.insert("type".to_owned(), kind);
                }
            }
            if let Some(Value::Array(names)) = keys.get_mut("enum") {
                names.retain(|name| !name.is_null());
            }
            if let Some(Value::Array(forms)) = keys.get_mut("anyOf") {
                forms.retain(|form| form["type"] != "null");
                if let [form] = forms.as_slice() {
                    let form = form.as_object().cloned().unwrap_or_default();
                    keys.remove("anyOf");
                    for (key, value) in form {
                        keys.entry(key).or_insert(value);
                    }
                }
            }
            // The comment of a type says how it is read, and the sections have none of their own.
            for (name, value) in keys.iter_mut() {
                match name.as_str() {
                    "default" | "enum" | "const" => {}
                    // Names of keys are none of a schema's own.
                    "properties" => {
                        let properties = value.as_object_mut().into_iter().flatten();
                        properties.for_each(|(_, property)| tidy(property));
                    }
                    _ => tidy(value),
                }
            }
            if let Some(Value::String(text)) = keys.get_mut("description") {
                *text = text.replace('\n', " ");
            }
        }
        _ => {}
    }
}

/// Every key by its dotted name, with the sections themselves.
pub(super) fn keys() -> Vec<String> {
    fn add(schema: &Value, prefix: &str, all: &mut Vec<String>) {
        for (name, property) in members(schema) {
            let key = format!("{prefix}{name}");
            let inner = format!("{key}.");
            all.push(key);
            add(property, &inner, all);
            add(&property["items"], &inner, all);
            for form in property["anyOf"].as_array().into_iter().flatten() {
                add(form, &inner, all);
            }
        }
    }
    let mut all = Vec::new();
    add(&schema(), "", &mut all);
    all
}

fn members(schema: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let properties = schema["properties"].as_object();
    let properties = properties.into_iter().flatten();
    properties.map(|(name, property)| (name.as_str(), property))
}

fn is_required(schema: &Value, name: &str) -> bool {
    let required = schema["required"].as_array();
    required.is_some_and(|required| required.iter().any(|key| key == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys that a section says it takes, of what it says when it is given
    /// another.
    fn taken(section: &str) -> Vec<String> {
        let text = match section {
            "" => "zzz = 1\n".to_owned(),
            section => format!("name = \"x\"\n{section}\nzzz = 1\n"),
        };
        let error = toml::from_str::<Recipe>(&text).unwrap_err().to_string();
        let said = error.split_once("expected").unwrap().1;
        let mut keys: Vec<_> = said
            .split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect();
        keys.sort();
        keys
    }

    #[test]
    fn the_schema_has_the_keys_that_are_read_and_no_others() {
        let schema = schema();
        let mut sections = vec![(String::new(), &schema)];
        for (name, property) in members(&schema) {
            if property["properties"].is_object() {
                sections.push((format!("[{name}]"), property));
            }
            for (inner, property) in members(property) {
                if property["items"]["properties"].is_object() {
                    sections.push((format!("[[{name}.{inner}]]"), &property["items"]));
                }
            }
        }
        assert_eq!(sections.len(), 11);
        for (heading, section) in sections {
            assert_eq!(section["additionalProperties"], false, "{heading}");
            let mut keys: Vec<_> = members(section).map(|(key, _)| key.to_owned()).collect();
            keys.sort();
            assert_eq!(keys, taken(&heading), "{heading}");
            for (key, property) in members(section) {
                assert!(property["description"].is_string(), "{heading} {key}");
                let dotted = format!("{heading} {key}");
                let needed = [
                    " name",
                    " model",
                    " data",
                    "[model] path",
                    "[[data.sources]] path",
                ];
                assert_eq!(
                    is_required(section, key),
                    needed.contains(&&*dotted),
                    "{dotted}"
                );
            }
        }
    }

    /// A recipe with what it cannot be without, and a key of a section or of the top.
    fn with(section: &str, key: &str, value: &Value) -> Result<Recipe, toml::de::Error> {
        let mut recipe = json!({ "name": "x", "model": { "path": "m" }, "data": { "train": "d" } });
        if section.is_empty() {
            recipe[key] = value.clone();
        } else {
            recipe[section][key] = value.clone();
        }
        toml::from_str(&toml::to_string(&recipe).unwrap())
    }

    #[test]
    fn a_default_that_is_given_changes_nothing() {
        let without = with("", "name", &json!("x")).unwrap();
        let schema = schema();
        let mut compared = 0;
        for (section, property) in members(&schema) {
            let inner = members(property).map(|(key, property)| (section, key, property));
            for (section, key, property) in [("", section, property)].into_iter().chain(inner) {
                let default = &property["default"];
                if property["properties"].is_object() || default.is_null() {
                    continue;
                }
                assert_eq!(
                    with(section, key, default).unwrap(),
                    without,
                    "{section}.{key}"
                );
                compared += 1;
            }
        }
        assert!(compared > 45, "{compared}");
    }

    #[test]
    fn every_name_that_is_read_is_in_the_schema() {
        let schema = schema();
        let mut compared = 0;
        for (section, property) in members(&schema) {
            for (key, property) in members(property) {
                let listed: Vec<_> = match (&property["enum"], &property["oneOf"]) {
                    (Value::Array(names), _) => names.iter().collect(),
                    (_, Value::Array(forms)) => forms.iter().map(|form| &form["const"]).collect(),
                    _ => continue,
                };
                let error = with(section, key, &json!("zzz")).unwrap_err().to_string();
                // What of it serde lists: the rest of the formats says its names in words.
                let Some((_, said)) = error.split_once("expected one of ") else {
                    continue;
                };
                let mut read: Vec<_> = said.split('`').skip(1).step_by(2).collect();
                let mut listed: Vec<_> = listed.into_iter().filter_map(Value::as_str).collect();
                read.sort_unstable();
                listed.sort_unstable();
                // The line that says where it is ends with the section's name.
                read.retain(|name| !name.starts_with(section) || listed.contains(name));
                assert_eq!(read, listed, "{section}.{key}");
                compared += 1;
            }
        }
        assert!(compared > 6, "{compared}");
    }
}
