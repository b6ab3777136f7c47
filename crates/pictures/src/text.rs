//! How wide text is.
//!
//! By a table of `DejaVu` Sans, which PNGs are drawn with and which is wider than
//! what browsers take in its place: what fits by it fits.

/// The widths of the printable ASCII characters, in 2,048ths of the size.
const WIDTHS: [u16; 95] = [
    651, 821, 942, 1716, 1303, 1946, 1597, 563, 799, 799, 1024, 1716, 651, 739, 651,
    690, // to /
    1303, 1303, 1303, 1303, 1303, 1303, 1303, 1303, 1303, 1303, 690, 690, 1716, 1716, 1716, 1087,
    2048, 1401, 1405, 1430, 1577, 1294, 1178, 1587, 1540, 604, 604, 1343, 1141, 1767, 1532,
    1612, // @ to O
    1235, 1612, 1423, 1300, 1251, 1499, 1401, 2025, 1403, 1251, 1403, 799, 690, 799, 1716, 1024,
    1024, 1255, 1300, 1126, 1300, 1260, 721, 1300, 1298, 569, 569, 1186, 569, 1995, 1298,
    1253, // ` to o
    1300, 1300, 842, 1067, 803, 1298, 1212, 1675, 1212, 1212, 1075, 1303, 690, 1303, 1716,
];
const EM: f64 = 2048.0;

/// The width of text in pixels. What is not ASCII counts as wide as it is high, which no
/// character of ours exceeds.
pub(crate) fn width(text: &str, size: f64) -> f64 {
    let each = text.chars().map(|character| {
        let place = (character as usize).checked_sub(' ' as usize);
        let known = place.and_then(|place| WIDTHS.get(place));
        known.map_or(EM, |width| f64::from(*width))
    });
    size * each.sum::<f64>() / EM
}

/// The widest of some texts.
pub(crate) fn widest<'a>(texts: impl Iterator<Item = &'a str>, size: f64) -> f64 {
    texts.map(|text| width(text, size)).fold(0.0, f64::max)
}

/// The text, or as much of its beginning as there is room for, with `…` behind it.
pub(crate) fn fitted(text: &str, size: f64, room: f64) -> String {
    if width(text, size) <= room {
        return text.to_owned();
    }
    let mut kept = text.to_owned();
    while kept.pop().is_some() {
        let shortened = format!("{}…", kept.trim_end());
        if width(&shortened, size) <= room {
            return shortened;
        }
    }
    String::new()
}

/// The text in lines that are no wider than the room, broken between words; nothing of nothing.
pub(crate) fn wrapped(text: &str, size: f64, room: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let longer = lines.last().map(|line| format!("{line} {word}"));
        match (lines.last_mut(), longer) {
            (Some(line), Some(longer)) if width(&longer, size) <= room => *line = longer,
            _ => lines.push(word.to_owned()),
        }
    }
    lines.iter().map(|line| fitted(line, size, room)).collect()
}

#[cfg(test)]
mod tests {
    use resvg::usvg::{Node, Tree};

    use super::*;
    use crate::png::options;

    /// Against what draws the PNG. A box of letters may be a little wider or narrower than the way
    /// that they take.
    #[test]
    fn text_is_as_wide_as_it_is_drawn() {
        for text in [
            "validation loss, nats",
            "olora-gradient+c0.5 (lr 5.5e-3)",
            "WMQ@&%",
            "ijl1|",
        ] {
            let escaped = text.replace('&', "&amp;");
            let svg = format!(
                r#"<svg width="400" height="40" xmlns="http://www.w3.org/2000/svg"><text x="20" y="20" font-family="sans-serif" font-size="16">{escaped}</text></svg>"#
            );
            let tree = Tree::from_str(&svg, &options()).unwrap();
            let Node::Text(drawn) = &tree.root().children()[0] else {
                panic!("{text} is no text");
            };
            let drawn = f64::from(drawn.abs_bounding_box().width());
            let expected = width(text, 16.0);
            assert!(
                (drawn - expected).abs() < 2.0,
                "{text}: {drawn}, {expected}"
            );
        }
    }

    #[test]
    fn lines_are_broken_between_words_and_cut_where_one_is_too_long() {
        let room = width("one two", 12.0) + 0.1;
        assert_eq!(wrapped("one two three", 12.0, room), ["one two", "three"]);
        assert_eq!(wrapped("", 12.0, room), [""; 0]);
        let cut = wrapped("incomprehensibilities", 12.0, room);
        assert!(cut.len() == 1 && cut[0].ends_with('…'), "{cut:?}");
        assert!(width(&cut[0], 12.0) <= room);
    }
}
