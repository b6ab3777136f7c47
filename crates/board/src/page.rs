//! What a browser is given: a page, its style and its script, all of them compiled in.

use std::sync::LazyLock;

/// The style of the board and of reports.
pub(crate) const STYLE: &str = include_str!("../assets/board.css");

/// The script of both: one topic for each file, in the order in which they need each
/// other, within a function of their own.
pub(crate) const SCRIPT: &str = concat!(
    "(() => {\n\"use strict\";\n",
    include_str!("../assets/elements.js"),
    include_str!("../assets/numbers.js"),
    include_str!("../assets/markdown.js"),
    include_str!("../assets/chart.js"),
    include_str!("../assets/series.js"),
    include_str!("../assets/curves.js"),
    include_str!("../assets/details.js"),
    include_str!("../assets/comparison.js"),
    include_str!("../assets/list.js"),
    include_str!("../assets/theme.js"),
    include_str!("../assets/main.js"),
    "})();\n",
);

/// What a board and a report have in common.
const MAIN: &str = include_str!("../assets/main.html");

/// The board's page.
pub(crate) static BOARD: LazyLock<String> =
    LazyLock::new(|| include_str!("../assets/board.html").replace("{{main}}", MAIN));

/// A report's page: with `{{title}}`, `{{policy}}` and `{{data}}` in it.
pub(crate) static REPORT: LazyLock<String> = LazyLock::new(|| {
    include_str!("../assets/report.html")
        .replace("{{main}}", MAIN)
        .replace("{{style}}", STYLE)
        .replace("{{script}}", SCRIPT)
});

#[cfg(test)]
mod tests {
    use super::*;

    /// The server's policy forbids both, and so do texts from files that others wrote.
    #[test]
    fn the_page_has_no_script_and_no_style_in_it() {
        let page = BOARD.to_lowercase();
        assert!(!page.contains("style=") && !page.contains("<style"));
        assert_eq!(page.matches("<script").count(), 1);
        assert!(page.contains("<script src=\"/board.js\""));
        for handler in [" onclick", " onload", " onchange", " oninput"] {
            assert!(!page.contains(handler), "{handler}");
        }
    }

    #[test]
    fn the_script_makes_no_html_of_text() {
        for way in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "DOMParser",
        ] {
            assert!(!SCRIPT.contains(way), "{way}");
        }
    }

    #[test]
    fn nothing_is_fetched_from_elsewhere() {
        for text in [BOARD.as_str(), STYLE, SCRIPT] {
            let elsewhere = text.match_indices("://").filter(|(place, _)| {
                // The name of SVG, which is no address, and what the Markdown renderer lets be a link.
                let before = &text[..*place];
                let after = &text[*place..];
                !after.starts_with("://www.w3.org/2000/svg") && !before.ends_with("https?")
            });
            assert_eq!(elsewhere.count(), 0);
        }
    }
}
