//! The recipe's keys as tables for people.

#![allow(
    clippy::format_push_string,
    reason = "writing to text returns an error that there is not"
)]

use serde_json::Value;

use super::{is_required, members, schema};

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
    use super::shown;

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
