//! What the lines of a plot are, where no line goes.

use crate::{
    curves::{BAND, Line, stroke},
    frame::Frame,
    svg::{Anchor, At, INK, Svg},
    text::{fitted, width},
};

const SIZE: f64 = 11.5;
const ROW: f64 = 17.0;
const SWATCH: f64 = 32.0;
const GAP: f64 = 7.0;
const PADDING: f64 = 8.0;
/// From the axes, and from lines.
const DISTANCE: f64 = 8.0;

/// A legend that has found its place.
#[derive(Debug)]
pub(crate) struct Legend {
    /// Its upper left corner.
    corner: At,
    columns: usize,
    /// The width of a column.
    width: f64,
    rows: usize,
    framed: bool,
}

impl Legend {
    /// One for those lines that have a name, within the frame where nothing is drawn if there is
    /// such a place, else below it, from the height `below` on. `None` if no line has a name.
    pub(crate) fn of(lines: &[Line], frame: &Frame, drawn: &[At], below: f64) -> Option<Self> {
        let names: Vec<&str> = lines
            .iter()
            .filter_map(|line| line.name.as_deref())
            .collect();
        let widths = names.iter().map(|name| width(name, SIZE));
        let widest = SWATCH + GAP + widths.reduce(f64::max)?;
        let size = (
            widest + 2.0 * PADDING,
            ROW * names.len() as f64 + 2.0 * PADDING - 4.0,
        );
        let place = corners(frame, size)
            .into_iter()
            .find(|corner| !drawn.iter().any(|at| touches(*corner, size, *at)));
        let small = size.0 < 0.7 * frame.width() && size.1 < 0.8 * frame.height();
        if let Some(corner) = place.filter(|_| small) {
            return Some(Self {
                corner,
                columns: 1,
                width: widest,
                rows: names.len(),
                framed: true,
            });
        }
        let room = frame.width();
        let width = (widest + 18.0).min(room);
        let columns = ((room / width).floor() as usize).clamp(1, names.len());
        Some(Self {
            corner: (frame.left, below),
            columns,
            width,
            rows: names.len().div_ceil(columns),
            framed: false,
        })
    }

    /// How much height it takes below the axis.
    pub(crate) fn height_below(&self) -> f64 {
        if self.framed {
            0.0
        } else {
            ROW * self.rows as f64 + 6.0
        }
    }

    pub(crate) fn draw(&self, svg: &mut Svg, lines: &[Line]) {
        let (left, top) = self.corner;
        let padding = if self.framed { PADDING } else { 0.0 };
        if self.framed {
            let height = ROW * self.rows as f64 + 2.0 * PADDING - 4.0;
            svg.box_of(self.corner, (self.width + 2.0 * PADDING, height));
        }
        let named = lines
            .iter()
            .filter_map(|line| Some((line, line.name.as_deref()?)));
        for (index, (line, name)) in named.enumerate() {
            let (column, row) = (index % self.columns, index / self.columns);
            let x = left + padding + self.width * column as f64;
            let y = top + padding - 2.0 + ROW * (row as f64 + 0.5);
            if !line.band.is_empty() {
                let corner = (x, y - 5.0);
                svg.rectangle(corner, (SWATCH, 10.0), line.style.color, 2.0 * BAND);
            }
            svg.line((x, y), (x + SWATCH, y), &stroke(line.style));
            if let Some(marker) = line.style.marker {
                svg.marker((x + 0.5 * SWATCH, y), marker, 2.8, line.style.color, true);
            }
            let room = self.width - SWATCH - GAP;
            let at = (x + SWATCH + GAP, y + 0.36 * SIZE);
            svg.text(
                at,
                SIZE,
                Anchor::Start,
                INK,
                &fitted(name, SIZE, room + 0.01),
            );
        }
    }
}

/// Where it could stand, the best first: curves of losses leave the upper right free.
fn corners(frame: &Frame, size: At) -> [At; 6] {
    let (left, right) = (frame.left + DISTANCE, frame.right - DISTANCE - size.0);
    let (top, bottom) = (frame.top + DISTANCE, frame.bottom - DISTANCE - size.1);
    let middle = 0.5 * (left + right);
    [
        (right, top),
        (left, bottom),
        (left, top),
        (right, bottom),
        (middle, top),
        (middle, bottom),
    ]
}

/// Whether a place is in a box, or near it.
fn touches(corner: At, size: At, at: At) -> bool {
    let within = |low: f64, length: f64, value: f64| {
        (low - 0.5 * DISTANCE..=low + length + 0.5 * DISTANCE).contains(&value)
    };
    within(corner.0, size.0, at.0) && within(corner.1, size.1, at.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Style;

    const FRAME: Frame = Frame {
        left: 50.0,
        top: 10.0,
        right: 450.0,
        bottom: 310.0,
    };

    fn lines() -> Vec<Line> {
        let line = |index| Line::new("a method", Style::nth(index), Vec::new());
        (0..3).map(line).collect()
    }

    /// What a line from one place to another covers.
    fn between(from: At, to: At) -> Vec<At> {
        let at = |share: f64| {
            (
                from.0 + share * (to.0 - from.0),
                from.1 + share * (to.1 - from.1),
            )
        };
        (0..=400)
            .map(|index| at(f64::from(index) / 400.0))
            .collect()
    }

    #[test]
    fn a_legend_stands_where_no_line_goes() {
        let falling = between((50.0, 10.0), (450.0, 310.0));
        let rising = between((50.0, 310.0), (450.0, 10.0));
        for drawn in [falling, rising] {
            let legend = Legend::of(&lines(), &FRAME, &drawn, 340.0).unwrap();
            assert!(legend.framed && legend.height_below() == 0.0);
            let size = (legend.width + 2.0 * PADDING, 3.0 * ROW + 2.0 * PADDING);
            assert!(drawn.iter().all(|at| !touches(legend.corner, size, *at)));
        }
    }

    #[test]
    fn a_legend_without_a_place_is_below() {
        let everywhere: Vec<At> = (0..30)
            .flat_map(|row| {
                between(
                    (50.0, 10.0 * f64::from(row)),
                    (450.0, 10.0 * f64::from(row)),
                )
            })
            .collect();
        let legend = Legend::of(&lines(), &FRAME, &everywhere, 340.0).unwrap();
        assert!(!legend.framed && legend.corner.1 >= 340.0 && legend.height_below() > 0.0);
    }

    #[test]
    fn lines_without_names_have_no_legend() {
        let nameless = [Line::nameless(Style::nth(0), Vec::new())];
        assert!(Legend::of(&nameless, &FRAME, &[], 340.0).is_none());
    }
}
