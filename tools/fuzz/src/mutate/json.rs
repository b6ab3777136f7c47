//! Changes to values of JSON, written out by hand where JSON as a crate knows it
//! would not have them: numbers beyond all types, a key twice, a hundred thousand
//! brackets.

use serde_json::{Map, Value};

use super::Random;

/// What stands for text that is no JSON value, and for nothing in a key.
const MARK: char = '\u{f8ff}';

const RAW: [&str; 34] = [
    "0",
    "-1",
    "1",
    "2",
    "-0.0",
    "0.5",
    "1.0",
    "1.5",
    "1e308",
    "-1e308",
    "1e-320",
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "4294967295",
    "4294967296",
    "2147483648",
    "-2147483649",
    "1000000000",
    "1e12",
    "00",
    "0x10",
    "true",
    "null",
    "\"\"",
    "[]",
    "{}",
    "[[]]",
    "99999999999999999999999999999999999999",
];

const TEXTS: [&str; 14] = [
    "",
    " ",
    "\0",
    "\n",
    "\u{1b}[2J",
    "../../zora",
    "/",
    "Zora\r\nOxmere",
    "\u{202e}",
    "\u{feff}",
    "-1",
    "null",
    "*",
    "\u{10ffff}",
];

/// Changes one value or more of a JSON text, or of a line of it. `false` if it
/// is none.
pub(super) fn change(random: &mut Random, text: &mut Vec<u8>) -> bool {
    if let Ok(mut value) = serde_json::from_slice::<Value>(text) {
        if !(value.is_object() || value.is_array()) {
            return false;
        }
        *text = changed(random, &mut value);
        return true;
    }
    let mut lines: Vec<&[u8]> = text.split(|&byte| byte == b'\n').collect();
    let at = random.below(lines.len());
    let Ok(mut value) = serde_json::from_slice::<Value>(lines[at]) else {
        return false;
    };
    let line = changed(random, &mut value);
    lines[at] = &line;
    if random.once_in(10) {
        let line = lines[at];
        lines.extend(std::iter::repeat_n(line, 1 + random.below(100)));
    }
    *text = lines.join(&b'\n');
    true
}

/// The text of a value after some changes.
pub(super) fn changed(random: &mut Random, value: &mut Value) -> Vec<u8> {
    let mut raw = Vec::new();
    for _ in 0..=random.below(3) {
        let n = count(value);
        let (at, from) = (random.below(n), random.below(n));
        let other = node(value, &mut { from }).cloned().unwrap_or_default();
        if let Some(found) = node(value, &mut { at }) {
            alter(random, found, other, &mut raw);
        }
    }
    let mut text = value.to_string();
    for (i, raw) in raw.iter().enumerate() {
        text = text.replace(&format!("\"{MARK}{i}{MARK}\""), raw);
    }
    text.replace(MARK, "").into_bytes()
}

fn alter(random: &mut Random, found: &mut Value, other: Value, raw: &mut Vec<String>) {
    let mut literal = |text: String| {
        raw.push(text);
        Value::String(format!("{MARK}{}{MARK}", raw.len() - 1))
    };
    *found = match random.below(12) {
        0..=2 => literal((random.of(&RAW)).to_owned()),
        3 => Value::String((random.of(&TEXTS)).to_owned()),
        4 => {
            let unit = random.of(&["a", "Zora ", "\u{1f41d}", "\n", "[", "\\"]);
            Value::String(unit.repeat(random.of(&[10, 1000, 50_000])))
        }
        5 => other,
        6 => {
            let depth = random.of(&[1, 100, 127, 128, 1000, 20_000]);
            if random.once_in(2) {
                literal("[".repeat(depth) + &"]".repeat(depth))
            } else {
                literal("{\"a\":".repeat(depth) + "0" + &"}".repeat(depth))
            }
        }
        7 => {
            let inner = found.take();
            if random.once_in(2) {
                Value::Array(vec![inner])
            } else {
                Value::Object(Map::from_iter([("zora".to_owned(), inner)]))
            }
        }
        _ => {
            within(random, found, other);
            return;
        }
    };
}

/// Changes what a list or an object consists of, or a scalar a little.
fn within(random: &mut Random, found: &mut Value, other: Value) {
    match found {
        Value::Array(items) => {
            let at = random.below(items.len());
            match random.below(4) {
                0 if !items.is_empty() => drop(items.remove(at)),
                1 if !items.is_empty() => {
                    let item = items[at].clone();
                    let times = random.of(&[1, 2, 100, 5000]);
                    items.extend(std::iter::repeat_n(item, times));
                }
                2 => items.reverse(),
                _ => items.push(other),
            }
        }
        Value::Object(fields) => {
            let at = random.below(fields.len());
            let key = fields.keys().nth(at).cloned().unwrap_or_default();
            match random.below(4) {
                0 => drop(fields.shift_remove(&key)),
                // The mark goes, and the key is there twice.
                1 => drop(fields.insert(format!("{key}{MARK}"), other)),
                2 => {
                    let value = fields.shift_remove(&key).unwrap_or_default();
                    fields.insert((random.of(&TEXTS)).to_owned(), value);
                }
                _ => drop(fields.insert(key, other)),
            }
        }
        Value::Number(number) => {
            let value = number.as_f64().unwrap_or_default();
            let value = match random.below(5) {
                0 => value + 1.0,
                1 => value - 1.0,
                2 => -value,
                3 => value * 1024.0,
                _ => value / 3.0,
            };
            *found = if value.fract() == 0.0 && value.abs() < 1e15 {
                Value::from(value as i64)
            } else {
                Value::from(value)
            };
        }
        Value::String(text) => {
            let at = random.below(text.len() + 1);
            let at = text.floor_char_boundary(at);
            match random.below(3) {
                0 => text.truncate(at),
                1 => text.insert_str(at, random.of(&TEXTS)),
                _ => *text = text.repeat(3),
            }
        }
        Value::Bool(flag) => *flag = !*flag,
        Value::Null => *found = other,
    }
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

/// The node of a number, counted from the root down.
fn node<'a>(value: &'a mut Value, at: &mut usize) -> Option<&'a mut Value> {
    if *at == 0 {
        return Some(value);
    }
    *at -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| node(item, at)),
        Value::Object(fields) => fields.values_mut().find_map(|item| node(item, at)),
        _ => None,
    }
}
