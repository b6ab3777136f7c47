//! What an objective measures beside its loss, for people.

use std::collections::BTreeMap;

/// The measures that are told in a line, in their order, and what they are called.
const TOLD: [(&str, &str); 7] = [
    ("rewards/margins", "margin"),
    ("rewards/accuracies", "accuracy"),
    ("rewards/chosen", "chosen"),
    ("rewards/rejected", "rejected"),
    ("kl", "KL"),
    ("logps/chosen", "log-likelihoods"),
    ("nll_loss", "cross-entropy"),
];

/// Measures in a line: `margin 0.512, accuracy 0.81, …`. Those of preferences go by
/// short names, others by their own; empty if there are none.
pub fn in_words(measures: &BTreeMap<String, f64>) -> String {
    let known = TOLD.iter().filter_map(|(key, name)| {
        let value = measures.get(*key)?;
        Some(match (*key, measures.get("logps/rejected")) {
            ("logps/chosen", Some(rejected)) => format!("{name} {value:.2} and {rejected:.2}"),
            _ => format!("{name} {value:.3}"),
        })
    });
    let is_known =
        |key: &str| key == "logps/rejected" || TOLD.iter().any(|(known, _)| *known == key);
    let others = measures
        .iter()
        .filter(|(key, _)| !is_known(key))
        .map(|(key, value)| format!("{key} {value:.3}"));
    known.chain(others).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_measures_go_by_short_names_in_their_order_and_others_by_theirs() {
        let measures = [
            ("entropy", 1.0),
            ("logps/chosen", -12.0),
            ("logps/rejected", -14.5),
            ("rewards/accuracies", 0.75),
            ("rewards/margins", 0.25),
        ];
        let measures = measures.map(|(key, value)| (key.to_owned(), value));
        assert_eq!(
            in_words(&measures.into()),
            "margin 0.250, accuracy 0.750, log-likelihoods -12.00 and -14.50, entropy 1.000"
        );
        assert_eq!(in_words(&BTreeMap::new()), "");
    }
}
