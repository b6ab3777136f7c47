//! Two recipes, key by key.

/// The keys that differ between two recipes as TOML, with both values.
pub fn differences(before: &str, now: &str) -> Vec<String> {
    let flat = |text: &str| -> Vec<(String, String)> {
        let mut section = String::new();
        let mut values = Vec::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('[') {
                section = format!("{}.", name.trim_end_matches(']'));
            } else if let Some((key, value)) = line.split_once(" = ") {
                values.push((format!("{section}{key}"), value.to_owned()));
            }
        }
        values
    };
    let (before, now) = (flat(before), flat(now));
    let find = |values: &[(String, String)], key: &str| {
        values
            .iter()
            .find(|(k, _)| k == key)
            .map_or_else(|| "not set".to_owned(), |(_, value)| value.clone())
    };
    let mut keys: Vec<&String> = before.iter().chain(&now).map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .map(|key| (key, find(&before, key), find(&now, key)))
        .filter(|(_, before, now)| before != now)
        .map(|(key, before, now)| format!("{key}: was {before}, now {now}"))
        .collect()
}
