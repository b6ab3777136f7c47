//! Paths into a record, such as `answers.text[0]`.

use serde_json::Value;

use super::Record;

enum Step<'a> {
    Key(&'a str),
    At(usize),
}

/// Puts what is at a path under the path as a key. The rest of the objects on the
/// way goes under their paths too, so that it is accounted for; of a list that
/// an index is given for, the one item is what the user means.
///
/// Nothing happens where a key is called like the whole path, or where nothing
/// is at it.
pub(super) fn lift(record: &mut Record, path: &str) {
    if record.contains_key(path) {
        return;
    }
    // What another path has lifted is there under a longer name.
    let ends = path.rmatch_indices(['.', '[']).map(|(at, _)| at);
    for (root, rest) in ends.map(|at| path.split_at(at)) {
        let (Some(value), Some(steps)) = (record.get(root), steps(rest)) else {
            continue;
        };
        let mut beside = Vec::new();
        // In a table an object is text.
        let parsed = match value {
            Value::String(text) => olora_records::parse(text).ok(),
            value => Some(value.clone()),
        };
        if let Some(found) = parsed.and_then(|value| walk(value, &steps, root, &mut beside)) {
            record.shift_remove(root);
            record.insert(path.to_owned(), found);
            record.extend(beside);
        }
        return;
    }
}

/// `.text[0]`.
fn steps(mut rest: &str) -> Option<Vec<Step<'_>>> {
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if let Some(index) = rest.strip_prefix('[') {
            let (index, after) = index.split_once(']')?;
            steps.push(Step::At(index.parse().ok()?));
            rest = after;
        } else {
            let name = rest.strip_prefix('.')?;
            let end = name.find(['.', '[']).unwrap_or(name.len());
            let (name, after) = name.split_at(end);
            steps.push(Step::Key(name));
            rest = after;
        }
    }
    Some(steps)
}

fn walk(
    value: Value,
    steps: &[Step<'_>],
    at: &str,
    beside: &mut Vec<(String, Value)>,
) -> Option<Value> {
    let Some((step, rest)) = steps.split_first() else {
        return Some(value);
    };
    match (step, value) {
        (Step::Key(name), Value::Object(mut fields)) => {
            let found = fields.shift_remove(*name)?;
            let others = fields.into_iter();
            beside.extend(others.map(|(key, value)| (format!("{at}.{key}"), value)));
            walk(found, rest, &format!("{at}.{name}"), beside)
        }
        (Step::At(index), Value::Array(items)) => {
            let found = items.into_iter().nth(*index)?;
            walk(found, rest, &format!("{at}[{index}]"), beside)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lifted(record: Value, paths: &[&str]) -> Value {
        let Value::Object(mut record) = record else {
            return record;
        };
        for path in paths {
            lift(&mut record, path);
        }
        Value::Object(record)
    }

    #[test]
    fn what_is_at_a_path_becomes_a_key_and_the_rest_stays() {
        let record = json!({"a": {"text": ["x", "y"], "start": [3]}});
        for (path, expected) in [
            ("a.text", json!({"a.text": ["x", "y"], "a.start": [3]})),
            ("a.text[1]", json!({"a.text[1]": "y", "a.start": [3]})),
            ("a.text[2]", record.clone()),
            ("a.words", record.clone()),
            ("a.text.b", record.clone()),
            ("b.text", record.clone()),
            ("a.text[", record.clone()),
        ] {
            assert_eq!(lifted(record.clone(), &[path]), expected, "{path}");
        }
        // A key of the same name goes first, and JSON as text is read.
        let record = json!({"a.b": 1, "a": {"b": 2}});
        assert_eq!(lifted(record.clone(), &["a.b"]), record);
        let table = json!({"a": "{\"b\": {\"c\": 2}}"});
        assert_eq!(lifted(table, &["a.b.c"]), json!({"a.b.c": 2}));
    }

    #[test]
    fn two_paths_may_begin_alike() {
        let record = json!({"a": {"b": {"c": 1, "d": 2}, "e": 3}});
        assert_eq!(
            lifted(record, &["a.b.c", "a.b.d", "a.e"]),
            json!({"a.b.c": 1, "a.b.d": 2, "a.e": 3})
        );
    }
}
