//! The recipe's keys, told by the types that read them: as a JSON schema, which
//! editors check and complete recipes with, and as the tables of `docs/recipe.md`.
//!
//! What a key means is its field's comment. Beside what JSON schema knows, a field
//! has `x-default`, what holds where nothing is given, and `x-see`, where to read
//! on.

#![allow(
    clippy::format_push_string,
    reason = "writing to text returns an error that there is not"
)]

use std::{borrow::Cow, collections::BTreeMap};

use olora_adapter::{AdapterConfig, Method, PeftForm, Placement};
use olora_model::{Dtype, Packing, Quantize};
use olora_tasks::TaskName;
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde::Serialize;
use serde_json::{Value, json};

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
    #[schemars(range(min = 1, max = 65_536))]
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
    #[schemars(range(max = 1000), extend("x-default" = "exact"))]
    iterations: Option<usize>,
    /// For `eva` only: a layer gets at most this many times the rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.0, max = 1000.0), extend("x-default" = "2"))]
    rho: Option<f64>,
    /// For `olora-gradient` and `lora-gradient`: the run's first micro-batches, whose gradient the
    /// start is along.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536), extend("x-default" = "those of a step, 8 at most"))]
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

/// A key, as a table of the documentation has it.
struct Row {
    key: String,
    kind: String,
    default: String,
    meaning: String,
}

/// The tables of `docs/recipe.md`, by the heading that each stands under.
pub fn tables() -> Vec<(String, String)> {
    let schema = schema();
    let mut top = Vec::new();
    let mut sections = Vec::new();
    for (name, property) in members(&schema) {
        if property["type"] == "object" && property["properties"].is_object() {
            let rows = rows_of(property, "");
            sections.push((format!("[{name}]"), rows));
            for (inner, property) in members(property) {
                if property["items"]["properties"].is_object() {
                    let heading = format!("[[{name}.{inner}]]");
                    sections.push((heading, rows_of(&property["items"], "")));
                }
            }
        } else {
            top.push(row(name, property, is_required(&schema, name)));
        }
    }
    let all = [("Top level".to_owned(), top)].into_iter().chain(sections);
    all.map(|(heading, rows)| (heading, table(&rows))).collect()
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

fn rows_of(schema: &Value, prefix: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, property) in members(schema) {
        // Has a table of its own.
        if property["items"]["properties"].is_object() {
            continue;
        }
        let required = is_required(schema, name);
        rows.push(row(&format!("{prefix}{name}"), property, required));
        let forms = property["anyOf"].as_array().into_iter().flatten();
        for form in forms.filter(|_| name == "mlflow") {
            rows.extend(rows_of(form, &format!("{prefix}{name}.")));
        }
    }
    rows
}

fn row(key: &str, property: &Value, required: bool) -> Row {
    let text = |name: &str| property[name].as_str();
    let default = match (&property["default"], text("x-default")) {
        (_, Some(said)) if said.contains('`') || said.starts_with("see ") => said.to_owned(),
        (Value::Null, None) if required => "required".to_owned(),
        (Value::Null, None) => "–".to_owned(),
        (Value::Null, Some(said)) => format!("– ({said})"),
        (default, None) => format!("`{}`", as_toml(default)),
        (default, Some(said)) => format!("`{}`; {said}", as_toml(default)),
    };
    let mut meaning = text("description").unwrap_or_default().replace('|', "\\|");
    if let Some(see) = text("x-see") {
        let name = see.split('#').next().unwrap_or_default();
        let shown = if name.is_empty() { "below" } else { name };
        meaning = format!("{meaning} [{shown}]({see})");
    }
    Row {
        key: format!("`{key}`"),
        kind: text("x-type").map_or_else(|| kind(property), str::to_owned),
        default,
        meaning,
    }
}

/// A default as it is written in a recipe.
fn as_toml(value: &Value) -> String {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float) if !number.is_u64() && (float.abs() < 1e-3 && float != 0.0) => {
                format!("{float:e}")
            }
            Some(float) if !number.is_u64() => format!("{float:?}"),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

/// A key's type and bounds in words.
fn kind(property: &Value) -> String {
    let quoted = |names: &mut dyn Iterator<Item = &Value>| {
        let names = names.filter_map(Value::as_str);
        let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
        names.join(", ")
    };
    if let Some(names) = property["enum"].as_array() {
        return quoted(&mut names.iter());
    }
    if let Some(forms) = property["oneOf"].as_array() {
        return quoted(&mut forms.iter().flat_map(|form| match &form["enum"] {
            Value::Array(names) => names.iter().collect(),
            _ => vec![&form["const"]],
        }));
    }
    if let Some(forms) = property["anyOf"].as_array() {
        let kinds: Vec<_> = forms.iter().map(kind).collect();
        return kinds.join(" or ");
    }
    match property["type"].as_str() {
        Some("boolean") => "boolean".to_owned(),
        Some("string") => "text".to_owned(),
        Some("integer") => format!("whole number{}", bounds(property)),
        Some("number") => format!("number{}", bounds(property)),
        Some("array") => match property["items"]["type"].as_str() {
            Some("integer") => "list of whole numbers".to_owned(),
            _ => "list of text".to_owned(),
        },
        _ => match property["additionalProperties"]["type"].as_str() {
            Some("integer") => "table of text = whole number".to_owned(),
            Some("number") => "table of text = number".to_owned(),
            Some("string") => "table of text = text".to_owned(),
            _ => "table".to_owned(),
        },
    }
}

fn bounds(property: &Value) -> String {
    let bound = |name: &str| property[name].as_f64();
    let (least, above) = (bound("minimum"), bound("exclusiveMinimum"));
    // Whole numbers are not negative: that says nothing.
    let least = least.filter(|least| *least > 0.0 || property["type"] == "number");
    let most = bound("maximum").map(|most| (most, "up to "));
    let below = bound("exclusiveMaximum").map(|below| (below, "below "));
    let upper = most.or(below);
    match (least, above, upper) {
        (_, Some(above), None) => format!(" above {}", shown(above)),
        (_, Some(above), Some((most, how))) => {
            format!(" above {}, {how}{}", shown(above), shown(most))
        }
        (Some(least), None, None) => format!(", at least {}", shown(least)),
        (Some(least), None, Some((most, "below "))) => {
            format!(", {} to below {}", shown(least), shown(most))
        }
        (Some(least), None, Some((most, _))) => format!(", {} to {}", shown(least), shown(most)),
        (None, None, Some((most, how))) => format!(", {how}{}", shown(most)),
        (None, None, None) => String::new(),
    }
}

/// A bound as people write it: 65,536; 10⁹; 2²⁴; 2⁶³ − 1.
fn shown(number: f64) -> String {
    if number == 2f64.powi(63) {
        return "2⁶³ − 1".to_owned();
    }
    let power = |base: f64| {
        let exponent = number.log(base).round();
        (number > 0.0 && (base.powf(exponent) / number - 1.0).abs() < 1e-12)
            .then_some(exponent as i32)
    };
    let raised = |exponent: i32| -> String {
        let digit = |letter: char| match letter {
            '-' => '⁻',
            '1' => '¹',
            '2' => '²',
            '3' => '³',
            digit @ '4'..='9' => {
                char::from_u32('⁰' as u32 + digit as u32 - '0' as u32).unwrap_or(digit)
            }
            _ => '⁰',
        };
        exponent.to_string().chars().map(digit).collect()
    };
    match (power(10.0), power(2.0)) {
        (Some(exponent), _) if !(-4..5).contains(&exponent) => format!("10{}", raised(exponent)),
        (_, Some(exponent)) if exponent > 16 => format!("2{}", raised(exponent)),
        _ => {
            let text = format!("{number}");
            let (whole, rest) = text.split_once('.').unwrap_or((&text, ""));
            let mut grouped = String::new();
            for (at, digit) in whole.chars().enumerate() {
                if at > 0 && (whole.len() - at) % 3 == 0 && whole.len() > 4 {
                    grouped.push(',');
                }
                grouped.push(digit);
            }
            if rest.is_empty() {
                grouped
            } else {
                format!("{grouped}.{rest}")
            }
        }
    }
}

fn table(rows: &[Row]) -> String {
    let mut text = "| key | type | default | meaning |\n|---|---|---|---|\n".to_owned();
    for row in rows {
        let cells = [&row.key, &row.kind, &row.default, &row.meaning];
        text.push_str(&format!("| {} |\n", cells.map(String::as_str).join(" | ")));
    }
    text
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

    #[test]
    fn defaults_are_those_of_a_recipe_that_gives_none() {
        let recipe = Recipe::parse(
            "name = \"x\"\n[model]\npath = \"m\"\n[data]\ntrain = \"d\"\n",
            "x",
            &[],
        )
        .unwrap();
        let recipe = serde_json::to_value(recipe).unwrap();
        let schema = schema();
        let mut compared = 0;
        for (name, section) in members(&schema) {
            for (key, property) in members(section) {
                let written = &recipe[name][key];
                if !property["default"].is_null() && !written.is_null() {
                    assert_eq!(&property["default"], written, "{name}.{key}");
                    compared += 1;
                }
            }
        }
        assert!(compared > 30, "{compared}");
    }

    #[test]
    fn bounds_are_written_as_people_write_them() {
        for (number, expected) in [
            (1.0, "1"),
            (1000.0, "1000"),
            (65_536.0, "65,536"),
            (1e9, "10⁹"),
            (1e-6, "10⁻⁶"),
            (16_777_216.0, "2²⁴"),
            (9_223_372_036_854_775_807.0, "2⁶³ − 1"),
            (0.5, "0.5"),
        ] {
            assert_eq!(shown(number), expected);
        }
    }
}
