//! Bars by name: how far each has to go, and which did not get there.

use crate::{
    Axis, Style,
    axis::{Span, drawable},
    frame::{BELOW, EDGE, Frame, NAME},
    svg::{Anchor, INK, MUTED, Stroke, Svg, text_on_white},
    text::{fitted, widest, width},
    ticks::Way,
};

/// Pixels for each bar.
const ROW: f64 = 42.0;
const THICK: f64 = 20.0;
/// Names take this share of a panel's width at most.
const NAMES: f64 = 0.45;
/// The size of what is said of a bar.
const SAID: f64 = 11.0;

/// What one has in a picture of bars.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// Beside the bar.
    pub name: String,
    /// How it looks.
    pub style: Style,
    /// Where those of its seeds got that got there.
    pub reached: Vec<f64>,
    /// How many of its seeds did not.
    pub missed: usize,
    /// How far these were followed.
    pub end: f64,
}

impl Bar {
    fn n(&self) -> usize {
        self.reached.len() + self.missed
    }

    /// What is said of one that not all seeds have reached.
    fn told(&self, unit: &str) -> String {
        let end = trimmed(self.end);
        match (self.n(), self.missed) {
            (1, _) => format!("not reached in {end} {unit} (one seed)"),
            (n, missed) if missed == n => {
                format!("not reached in {end} {unit} by any of {n} seeds")
            }
            (n, missed) => format!("not reached in {end} {unit} by {missed} of {n} seeds"),
        }
    }
}

/// Bars from zero to the mean of the seeds, which are dots. One that not all of
/// its seeds have reached has no length: in its place is an open arrow, as far
/// as its seeds were followed.
#[derive(Clone, Debug, PartialEq)]
pub struct Bars {
    /// Above all.
    pub title: String,
    /// Beneath the title, smaller.
    pub note: String,
    /// From left to right, from zero on.
    pub x: Axis,
    /// In words, behind a number.
    pub unit: String,
    /// From top to bottom.
    pub bars: Vec<Bar>,
}

/// Bars that know where everything goes.
#[derive(Debug)]
pub(crate) struct Planned<'a> {
    bars: &'a Bars,
    frame: Frame,
    x: Span,
    furthest: f64,
}

impl Bars {
    /// `None` if no bar has a seed.
    pub(crate) fn plan(&self, panel_width: f64) -> Option<Planned<'_>> {
        let values = || {
            let bars = self.bars.iter().filter(|bar| bar.n() > 0);
            bars.flat_map(|bar| {
                let end = (bar.missed > 0).then_some(bar.end);
                bar.reached.iter().copied().chain(end)
            })
        };
        let furthest = values().filter(|value| drawable(*value)).reduce(f64::max)?;
        let names = widest(self.bars.iter().map(|bar| bar.name.as_str()), NAME);
        let top = 6.0;
        let frame = Frame {
            left: EDGE + names.min(NAMES * panel_width) + 10.0,
            top,
            right: panel_width - EDGE,
            bottom: top + ROW * self.bars.len() as f64,
        };
        // What is said behind the longest bar has to find room within the plot.
        let said = self.bars.iter().filter_map(mean_of).map(trimmed_to_tenths);
        let room = said.map(|said| width(&said, SAID)).fold(0.0, f64::max) + 14.0;
        let share = (1.0 - room / frame.width()).max(0.3);
        let x = self.x.clone().showing(0.0, furthest.max(1e-9) / share);
        let x = x.span(values(), 0.0)?;
        Some(Planned {
            bars: self,
            frame,
            x,
            furthest,
        })
    }
}

impl Planned<'_> {
    pub(crate) fn height(&self) -> f64 {
        self.frame.bottom + BELOW + 6.0
    }

    pub(crate) fn draw(&self, svg: &mut Svg) {
        let frame = &self.frame;
        let mut ticks = self.x.ticks(frame.width(), Way::Across);
        let last = self.x.share(self.furthest) + 1e-9;
        ticks.labelled.retain(|tick| tick.share <= last);
        frame.draw_x(svg, &self.bars.x, &ticks);
        for (index, bar) in self.bars.bars.iter().enumerate() {
            let middle = frame.top + ROW * (index as f64 + 0.5);
            let room = frame.left - EDGE - 10.0;
            let name = fitted(&bar.name, NAME, room + 0.01);
            let at = (frame.left - 8.0, middle + 0.36 * NAME);
            svg.text(at, NAME, Anchor::End, INK, &name);
            match mean_of(bar) {
                Some(mean) => self.draw_reached(svg, bar, mean, middle),
                None if bar.n() > 0 => self.draw_missed(svg, bar, middle),
                None => {
                    let at = (frame.left + 8.0, middle + 0.36 * SAID);
                    svg.text(at, SAID, Anchor::Start, MUTED, "no finished run");
                }
            }
        }
        frame.draw_edges(svg);
    }

    fn x(&self, value: f64) -> f64 {
        self.frame.at(self.x.share(value), 0.0).0
    }

    fn draw_reached(&self, svg: &mut Svg, bar: &Bar, mean: f64, middle: f64) {
        let left = self.frame.left;
        let size = (self.x(mean) - left, THICK);
        let corner = (left, middle - 0.5 * THICK);
        // Without the axis's lines shining through.
        svg.rectangle(corner, size, "#ffffff", 1.0);
        svg.rectangle(corner, size, bar.style.color, 0.75);
        self.draw_dots(svg, bar, middle);
        let furthest = bar.reached.iter().copied().fold(mean, f64::max);
        let at = (self.x(furthest) + 8.0, middle + 0.36 * SAID);
        svg.text(at, SAID, Anchor::Start, INK, &trimmed_to_tenths(mean));
    }

    fn draw_missed(&self, svg: &mut Svg, bar: &Bar, middle: f64) {
        let (left, tip, y) = (self.frame.left, self.x(bar.end), middle + 8.0);
        let stroke = Stroke::new(bar.style.color, 1.6);
        let dashed = Stroke {
            dash: "5 4",
            ..stroke
        };
        svg.line((left, y), (tip - 1.0, y), &dashed);
        svg.polyline(
            &[(tip - 7.0, y - 5.0), (tip, y), (tip - 7.0, y + 5.0)],
            &stroke,
        );
        self.draw_dots(svg, bar, y);
        let room = self.frame.width() - 8.0;
        let told = fitted(&bar.told(&self.bars.unit), SAID, room);
        // It ends where the arrow does if there is room for that to its left.
        let right = tip.max(left + width(&told, SAID) + 6.0);
        text_on_white(svg, (right, middle - 5.0), SAID, MUTED, &told);
    }

    /// A dot for each seed, in three rows, so that equal ones are seen beside each other.
    fn draw_dots(&self, svg: &mut Svg, bar: &Bar, y: f64) {
        let mut sorted = bar.reached.clone();
        sorted.sort_by(f64::total_cmp);
        for (index, value) in sorted.into_iter().enumerate() {
            let row = [0.0, -3.5, 3.5][index % 3];
            svg.marker(
                (self.x(value), y + row),
                crate::Marker::Circle,
                2.2,
                INK,
                true,
            );
        }
    }
}

/// The mean of those that all got there.
fn mean_of(bar: &Bar) -> Option<f64> {
    let n = bar.reached.len();
    (bar.missed == 0 && n > 0).then(|| bar.reached.iter().sum::<f64>() / n as f64)
}

fn trimmed_to_tenths(value: f64) -> String {
    format!("{value:.1}")
}

/// To a tenth, and without it if there is none.
fn trimmed(value: f64) -> String {
    let tenths = trimmed_to_tenths(value);
    tenths.strip_suffix(".0").unwrap_or(&tenths).to_owned()
}
