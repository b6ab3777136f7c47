//! Shapes as SVG.

use std::fmt::Write;

use crate::{Marker, text::width};

/// A place in pixels, from the left and from the top.
pub(crate) type At = (f64, f64);

/// The colour of text and axes.
pub(crate) const INK: &str = "#222222";
/// That of what explains.
pub(crate) const MUTED: &str = "#555555";
/// So many points to a pixel's width are drawn; of more, those that can be seen.
const POINTS_BY_PIXEL: f64 = 2.0;

/// Where a text's place is in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// How a line is drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stroke<'a> {
    pub(crate) color: &'a str,
    pub(crate) width: f64,
    pub(crate) dash: &'a str,
    pub(crate) opacity: f64,
}

impl<'a> Stroke<'a> {
    pub(crate) fn new(color: &'a str, width: f64) -> Self {
        Self {
            color,
            width,
            dash: "",
            opacity: 1.0,
        }
    }

    fn attributes(&self) -> String {
        let mut all = format!(
            r#"stroke="{}" stroke-width="{}""#,
            self.color,
            number(self.width)
        );
        if !self.dash.is_empty() {
            all = format!(r#"{all} stroke-dasharray="{}""#, self.dash);
        }
        if self.opacity < 1.0 {
            all = format!(r#"{all} stroke-opacity="{}""#, number(self.opacity));
        }
        all
    }
}

/// A picture under way, whose shapes are placed from an origin.
#[derive(Debug, Default)]
pub(crate) struct Svg {
    body: String,
    origin: At,
}

impl Svg {
    /// What follows is placed from there.
    pub(crate) fn place_from(&mut self, origin: At) {
        self.origin = origin;
    }

    fn put(&mut self, shape: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.body.write_fmt(shape);
        self.body.push('\n');
    }

    fn x(&self, x: f64) -> String {
        number(self.origin.0 + x)
    }

    fn y(&self, y: f64) -> String {
        number(self.origin.1 + y)
    }

    fn points(&self, points: &[At]) -> String {
        let points = points.iter();
        let all: Vec<String> = points.map(|&(x, y)| self.x(x) + "," + &self.y(y)).collect();
        all.join(" ")
    }

    pub(crate) fn line(&mut self, from: At, to: At, stroke: &Stroke<'_>) {
        let (x1, y1, x2, y2) = (self.x(from.0), self.y(from.1), self.x(to.0), self.y(to.1));
        let stroke = stroke.attributes();
        self.put(format_args!(
            r#"<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" {stroke}/>"#
        ));
    }

    pub(crate) fn polyline(&mut self, points: &[At], stroke: &Stroke<'_>) {
        let points = self.points(&visible(points));
        let stroke = stroke.attributes();
        self.put(format_args!(
            r#"<polyline points="{points}" fill="none" stroke-linejoin="round" {stroke}/>"#
        ));
    }

    /// An area between two edges.
    pub(crate) fn area(&mut self, upper: &[At], lower: &[At], color: &str, opacity: f64) {
        let back: Vec<At> = visible(lower).into_iter().rev().collect();
        let outline = self.points(&[visible(upper), back].concat());
        let opacity = number(opacity);
        self.put(format_args!(
            r#"<polygon points="{outline}" fill="{color}" fill-opacity="{opacity}"/>"#
        ));
    }

    pub(crate) fn rectangle(&mut self, corner: At, size: At, fill: &str, opacity: f64) {
        let (x, y) = (self.x(corner.0), self.y(corner.1));
        let (width, height, opacity) = (number(size.0), number(size.1), number(opacity));
        self.put(format_args!(
            r#"<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}" fill-opacity="{opacity}"/>"#
        ));
    }

    /// A white one with an edge.
    pub(crate) fn box_of(&mut self, corner: At, size: At) {
        let (x, y) = (self.x(corner.0), self.y(corner.1));
        let (width, height) = (number(size.0), number(size.1));
        self.put(format_args!(
            r##"<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" fill="#ffffff" fill-opacity="0.9" stroke="#c8c8c8" stroke-width="1"/>"##
        ));
    }

    /// Text whose letters stand on the place's height.
    pub(crate) fn text(&mut self, at: At, size: f64, anchor: Anchor, color: &str, text: &str) {
        let (x, y, size, text) = (self.x(at.0), self.y(at.1), number(size), escaped(text));
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        self.put(format_args!(
            r#"<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{color}">{text}</text>"#
        ));
    }

    /// Text from below upwards, with its middle at the place.
    pub(crate) fn text_upwards(&mut self, at: At, size: f64, color: &str, text: &str) {
        let (x, y, size, text) = (self.x(at.0), self.y(at.1), number(size), escaped(text));
        self.put(format_args!(
            r#"<text x="{x}" y="{y}" font-size="{size}" text-anchor="middle" fill="{color}" transform="rotate(-90 {x} {y})">{text}</text>"#
        ));
    }

    /// The sign of a point, filled with its colour or with white.
    pub(crate) fn marker(
        &mut self,
        at: At,
        marker: Marker,
        radius: f64,
        color: &str,
        filled: bool,
    ) {
        let (x, y, r) = (at.0, at.1, radius);
        let fill = if filled { color } else { "#ffffff" };
        let outline: &[At] = match marker {
            Marker::Circle => {
                let (x, y, r) = (self.x(x), self.y(y), number(r));
                self.put(format_args!(
                    r#"<circle cx="{x}" cy="{y}" r="{r}" fill="{fill}" stroke="{color}" stroke-width="1.2"/>"#
                ));
                return;
            }
            Marker::Cross | Marker::Plus => {
                let stroke = Stroke::new(color, if filled { 2.2 } else { 1.4 });
                let (dx, dy) = if marker == Marker::Plus {
                    (r * 1.2, 0.0)
                } else {
                    (r * 0.9, r * 0.9)
                };
                self.line((x - dx, y - dy), (x + dx, y + dy), &stroke);
                self.line((x - dy, y + dx), (x + dy, y - dx), &stroke);
                return;
            }
            Marker::Square => &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            Marker::Triangle => &[(0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
            Marker::TriangleDown => &[(0.0, 1.2), (1.1, -0.8), (-1.1, -0.8)],
            Marker::Diamond => &[(0.0, -1.3), (1.1, 0.0), (0.0, 1.3), (-1.1, 0.0)],
        };
        let outline: Vec<At> = outline
            .iter()
            .map(|(dx, dy)| (x + r * dx, y + r * dy))
            .collect();
        let outline = self.points(&outline);
        self.put(format_args!(
            r#"<polygon points="{outline}" fill="{fill}" stroke="{color}" stroke-width="1.2"/>"#
        ));
    }

    /// The whole picture, on white.
    pub(crate) fn finish(self, size: At) -> String {
        let (width, height) = (number(size.0), number(size.1));
        format!(
            "<svg width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             xmlns=\"http://www.w3.org/2000/svg\" font-family=\"DejaVu Sans, Verdana, sans-serif\">\n\
             <rect x=\"0\" y=\"0\" width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n{}</svg>\n",
            self.body
        )
    }
}

/// Text with a halo's worth of white behind it, for where lines may pass.
pub(crate) fn text_on_white(svg: &mut Svg, at: At, size: f64, color: &str, text: &str) {
    let behind = (width(text, size) + 4.0, size + 3.0);
    svg.rectangle((at.0 - behind.0 + 2.0, at.1 - size), behind, "#ffffff", 0.8);
    svg.text(at, size, Anchor::End, color, text);
}

/// With two digits behind the point at most, which is less than can be seen, and
/// the same on machines whose logarithms differ in their last digit.
fn number(value: f64) -> String {
    let rounded = (value * 100.0).round() / 100.0;
    // Not -0.
    (rounded + 0.0).to_string()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// A line's points, from left to right, without those that cannot be seen: of many in one column
/// of pixels the first, the lowest, the highest and the last are all there is to it.
fn visible(points: &[At]) -> Vec<At> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return Vec::new();
    };
    if (points.len() as f64) < 2.0 * POINTS_BY_PIXEL * (last.0 - first.0).abs().max(100.0) {
        return points.to_vec();
    }
    let column = |at: &At| (POINTS_BY_PIXEL * at.0).floor();
    let mut seen = Vec::new();
    for group in points.chunk_by(|one, other| column(one) == column(other)) {
        let place = |pick: &dyn Fn(&At, &At) -> bool| {
            let all = 0..group.len();
            all.reduce(|best, at| {
                if pick(&group[at], &group[best]) {
                    at
                } else {
                    best
                }
            })
        };
        let lowest = place(&|one, other| one.1 > other.1);
        let highest = place(&|one, other| one.1 < other.1);
        let mut kept: Vec<usize> = [Some(0), lowest, highest, group.len().checked_sub(1)]
            .into_iter()
            .flatten()
            .collect();
        kept.sort_unstable();
        kept.dedup();
        seen.extend(kept.into_iter().map(|at| group[at]));
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_keeps_its_peaks_and_is_short() {
        let mut points: Vec<At> = (0..100_000)
            .map(|at| (f64::from(at) * 0.005, 50.0))
            .collect();
        points[61_803].1 = -7.0;
        points[31_415].1 = 99.0;
        let seen = visible(&points);
        assert!(seen.len() < 5_000, "{} points", seen.len());
        for peak in [points[61_803], points[31_415], points[0], points[99_999]] {
            assert!(seen.contains(&peak), "{peak:?} is gone");
        }
        assert!(seen.windows(2).all(|pair| pair[0].0 <= pair[1].0));
    }

    #[test]
    fn a_short_line_keeps_every_point() {
        let points: Vec<At> = (0..300).map(|at| (f64::from(at), 1.0)).collect();
        assert_eq!(visible(&points), points);
    }

    #[test]
    fn numbers_are_short_and_have_no_negative_zero() {
        assert_eq!(number(-0.001), "0");
        assert_eq!(number(12.345_678), "12.35");
        assert_eq!(number(3.0), "3");
    }
}
