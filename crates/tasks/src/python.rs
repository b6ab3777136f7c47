//! Python's notions of text, where they are not Rust's.

/// `str.isspace` of one character: the four information separators are spaces
/// in Python and not in Unicode's property.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.capitalize`: the first letter large, all others small.
pub(crate) fn capitalize(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        None => String::new(),
        Some(first) => first
            .to_uppercase()
            .chain(letters.as_str().to_lowercase().chars())
            .collect(),
    }
}

/// `numpy.argmax`: the first of the largest.
pub(crate) fn argmax(values: &[f64]) -> usize {
    let largest = |best: usize, i: usize| if values[i] > values[best] { i } else { best };
    (0..values.len()).reduce(largest).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capitalize_makes_the_rest_small() {
        assert_eq!(capitalize("the Man AND his Dog"), "The man and his dog");
        assert_eq!(capitalize(""), "");
        assert_eq!(capitalize("école"), "École");
    }

    #[test]
    fn the_first_of_equals_is_the_largest() {
        assert_eq!(argmax(&[-2.0, -1.0, -1.0]), 1);
        assert_eq!(argmax(&[f64::NEG_INFINITY, -3.0]), 1);
    }
}
