//! How lines and bars look.

/// Okabe and Ito's colours, which can be told apart without colour vision; grey
/// in the place of their yellow, which is hardly seen on white.
pub const GREY: &str = "#505050";
/// Okabe and Ito's vermillion.
pub const VERMILLION: &str = "#d55e00";
/// Okabe and Ito's blue.
pub const BLUE: &str = "#0072b2";
/// Okabe and Ito's bluish green.
pub const GREEN: &str = "#009e73";
/// Okabe and Ito's reddish purple.
pub const PURPLE: &str = "#cc79a7";
/// Okabe and Ito's orange.
pub const ORANGE: &str = "#e69f00";
/// Okabe and Ito's sky blue.
pub const SKY: &str = "#56b4e9";
/// Okabe and Ito's black.
const BLACK: &str = "#000000";

const COLORS: [&str; 8] = [GREY, VERMILLION, BLUE, GREEN, PURPLE, ORANGE, SKY, BLACK];
/// Lengths of strokes and gaps in pixels. Their number has no factor in common with those of
/// colours and markers, so that the same three meet again only after 280 lines.
const DASHES: [&str; 5] = ["", "8 3", "3 2", "9 2.5 2.5 2.5", "14 3"];
const MARKERS: [Marker; 7] = [
    Marker::Circle,
    Marker::Square,
    Marker::Triangle,
    Marker::Diamond,
    Marker::TriangleDown,
    Marker::Cross,
    Marker::Plus,
];

/// The sign of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    /// A disc.
    Circle,
    /// A square.
    Square,
    /// A triangle that points up.
    Triangle,
    /// A square on its corner.
    Diamond,
    /// A triangle that points down.
    TriangleDown,
    /// ×
    Cross,
    /// +
    Plus,
}

/// How a line or a bar looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Style {
    /// As in SVG.
    pub color: &'static str,
    /// As in SVG's `stroke-dasharray`; nothing for a line without gaps.
    pub dash: &'static str,
    /// The sign of each point, if they have any.
    pub marker: Option<Marker>,
    /// Whether it stands behind others.
    pub pale: bool,
}

impl Style {
    /// A line without gaps and markers.
    pub fn plain(color: &'static str) -> Self {
        Self {
            color,
            dash: "",
            marker: None,
            pale: false,
        }
    }

    /// Differs from those of other numbers in colour, dashes and markers: a
    /// picture is also seen in grey, and by people who see colours differently.
    pub fn nth(index: usize) -> Self {
        Self {
            dash: DASHES[index % DASHES.len()],
            marker: Some(MARKERS[index % MARKERS.len()]),
            ..Self::plain(COLORS[index % COLORS.len()])
        }
    }

    /// With a sign for each point.
    #[must_use]
    pub fn marked(self, marker: Marker) -> Self {
        Self {
            marker: Some(marker),
            ..self
        }
    }

    /// Without signs.
    #[must_use]
    pub fn unmarked(self) -> Self {
        Self {
            marker: None,
            ..self
        }
    }

    /// With gaps.
    #[must_use]
    pub fn dashed(self, dash: &'static str) -> Self {
        Self { dash, ..self }
    }

    /// As what stands behind others: pale, thin, without gaps and signs.
    #[must_use]
    pub fn paler(self) -> Self {
        Self {
            dash: "",
            marker: None,
            pale: true,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_of_many_lines_look_alike() {
        for index in 0..100 {
            for other in 0..index {
                assert_ne!(Style::nth(index), Style::nth(other), "{index} and {other}");
            }
        }
    }

    #[test]
    fn lines_differ_without_their_colour() {
        for index in 0..30 {
            let grey = |index| Style {
                color: GREY,
                ..Style::nth(index)
            };
            for other in 0..index {
                assert_ne!(grey(index), grey(other), "{index} and {other}");
            }
        }
    }
}
