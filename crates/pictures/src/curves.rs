//! Curves over an axis.

use crate::{
    Axis, Scale, Style,
    axis::{Span, drawable},
    frame::{BELOW, EDGE, Frame, NAME},
    legend::Legend,
    svg::{Anchor, At, MUTED, Stroke, Svg},
    text::{widest, width},
    ticks::{LABEL, Ticks, Way},
};

/// How much of its colour a band has.
pub(crate) const BAND: f64 = 0.13;
/// Signs nearer to each other than this would be a smear.
const APART: f64 = 7.0;
/// What is left free beyond the highest and the lowest value, as a share of what lies between.
const MARGIN: f64 = 0.05;
/// What an arrow takes of the height.
const ARROW: f64 = 12.0;
/// How far apart the places of a line are looked at when the legend looks for one.
const SAMPLE: f64 = 4.0;

/// A line of a plot.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// In the legend; `None` for one that another speaks for.
    pub name: Option<String>,
    /// How it looks.
    pub style: Style,
    /// From left to right. A value that is no number leaves a gap, and one that
    /// is infinite is an arrow at the upper edge.
    pub points: Vec<(f64, f64)>,
    /// From where to where others reach around it: place, lowest and highest.
    pub band: Vec<(f64, f64, f64)>,
    /// The point that was chosen of all, whose sign is large and filled while
    /// those of the others are hollow.
    pub chosen: Option<usize>,
}

impl Line {
    /// One in the legend.
    pub fn new(name: impl Into<String>, style: Style, points: Vec<(f64, f64)>) -> Self {
        Self {
            name: Some(name.into()),
            ..Self::nameless(style, points)
        }
    }

    /// One that another speaks for.
    pub fn nameless(style: Style, points: Vec<(f64, f64)>) -> Self {
        Self {
            name: None,
            style,
            points,
            band: Vec::new(),
            chosen: None,
        }
    }

    /// With a band around it.
    #[must_use]
    pub fn with_band(self, band: Vec<(f64, f64, f64)>) -> Self {
        Self { band, ..self }
    }

    /// With one point that was chosen of all.
    #[must_use]
    pub fn with_chosen(self, chosen: Option<usize>) -> Self {
        Self { chosen, ..self }
    }

    fn is_drawn(&self) -> bool {
        let mut points = self.points.iter();
        points.any(|(x, y)| drawable(*x) && (drawable(*y) || *y == f64::INFINITY))
    }
}

/// Lines over an axis, with their legend.
#[derive(Clone, Debug, PartialEq)]
pub struct Curves {
    /// Above all.
    pub title: String,
    /// Beneath the title, smaller: what bands, arrows and the like mean.
    pub note: String,
    /// From left to right.
    pub x: Axis,
    /// From below upwards.
    pub y: Axis,
    /// Later ones are drawn over earlier ones.
    pub lines: Vec<Line>,
}

/// Curves that know where everything goes.
#[derive(Debug)]
pub(crate) struct Planned<'a> {
    curves: &'a Curves,
    /// Those lines that have points.
    lines: Vec<Line>,
    frame: Frame,
    x: Span,
    y: Span,
    x_ticks: Ticks,
    y_ticks: Ticks,
    legend: Option<Legend>,
}

impl Curves {
    /// `None` if there is nothing to draw.
    pub(crate) fn plan(&self, panel_width: f64, plot_height: f64) -> Option<Planned<'_>> {
        let lines: Vec<Line> = self
            .lines
            .iter()
            .filter(|line| line.is_drawn())
            .cloned()
            .map(|mut line| {
                // As points are: what no axis reaches.
                let reached = |value: f64| drawable(value);
                line.band
                    .retain(|&(x, low, high)| reached(x) && reached(low) && reached(high));
                line
            })
            .collect();
        let points = || lines.iter().flat_map(|line| &line.points);
        let bands = || lines.iter().flat_map(|line| &line.band);
        let even = self.x.scale == Scale::Linear;
        let x_margin = if even { 0.0 } else { MARGIN };
        let x = self.x.span(points().map(|point| point.0), x_margin)?;
        let heights = points().map(|point| point.1);
        let heights = heights.chain(bands().flat_map(|band| [band.1, band.2]));
        let heights: Vec<f64> = heights.collect();
        // Of nothing but arrows the axis is without meaning, and there is one.
        let y = self.y.span(heights.into_iter(), MARGIN);
        let y = y.or_else(|| self.y.span([1.0].into_iter(), MARGIN))?;
        // Arrows stand above all that has a value.
        let infinite = |line: &Line| line.points.iter().any(|point| point.1 == f64::INFINITY);
        let n_arrows = lines.iter().filter(|line| infinite(line)).count();
        let y = y.with_room_above((ARROW * n_arrows as f64 / plot_height).min(0.4));

        let y_ticks = y.ticks(plot_height, Way::Up);
        let labels = y_ticks.labelled.iter().map(|tick| tick.label.as_str());
        let top = 6.0;
        let mut frame = Frame {
            left: EDGE + NAME + 14.0 + widest(labels, LABEL),
            top,
            right: panel_width - EDGE,
            bottom: top + plot_height,
        };
        let mut x_ticks = x.ticks(frame.width(), Way::Across);
        if let Some(last) = x_ticks.labelled.last() {
            let reach = frame.at(last.share, 0.0).0 + 0.5 * width(&last.label, LABEL);
            let beyond = reach + 2.0 - panel_width;
            if beyond > 0.0 {
                frame.right -= beyond;
                x_ticks = x.ticks(frame.width(), Way::Across);
            }
        }
        let mut planned = Planned {
            curves: self,
            lines,
            frame,
            x,
            y,
            x_ticks,
            y_ticks,
            legend: None,
        };
        let drawn = planned.drawn();
        let below = frame.bottom + BELOW + 4.0;
        planned.legend = Legend::of(&planned.lines, &frame, &drawn, below);
        Some(planned)
    }
}

impl Planned<'_> {
    pub(crate) fn height(&self) -> f64 {
        let legend = self.legend.as_ref().map_or(0.0, Legend::height_below);
        self.frame.bottom + BELOW + legend + 6.0
    }

    pub(crate) fn draw(&self, svg: &mut Svg) {
        self.frame.draw_x(svg, &self.curves.x, &self.x_ticks);
        self.frame.draw_y(svg, &self.curves.y, &self.y_ticks);
        for line in &self.lines {
            let edge = |high: bool| -> Vec<At> {
                let band = line.band.iter();
                band.map(|&(x, low, up)| self.at(x, if high { up } else { low }))
                    .collect()
            };
            if !line.band.is_empty() {
                svg.area(&edge(true), &edge(false), line.style.color, BAND);
            }
        }
        self.frame.draw_edges(svg);
        for line in &self.lines {
            for piece in self.pieces(line) {
                svg.polyline(&piece, &stroke(line.style));
            }
        }
        for line in &self.lines {
            self.draw_markers(svg, line);
        }
        for (at, color) in self.arrows() {
            let stroke = Stroke::new(color, 1.6);
            svg.line((at.0, at.1 + 9.0), at, &stroke);
            svg.polyline(
                &[(at.0 - 3.5, at.1 + 4.5), at, (at.0 + 3.5, at.1 + 4.5)],
                &stroke,
            );
        }
        if let Some(legend) = &self.legend {
            legend.draw(svg, &self.lines);
        }
    }

    fn draw_markers(&self, svg: &mut Svg, line: &Line) {
        let color = line.style.color;
        let mut last = f64::NEG_INFINITY;
        // A single point is no line.
        let alone = (line.points.len() == 1).then_some(crate::Marker::Circle);
        let Some(marker) = line.style.marker.or(alone) else {
            return;
        };
        for (index, &(x, y)) in line.points.iter().enumerate() {
            if !(drawable(x) && drawable(y)) {
                continue;
            }
            let at = self.at(x, y);
            let is_chosen = line.chosen == Some(index);
            if at.0 - last < APART && !is_chosen && line.chosen.is_none() {
                continue;
            }
            last = at.0;
            let (radius, filled) = match line.chosen {
                Some(_) if is_chosen => (5.0, true),
                Some(_) => (3.0, false),
                None => (2.6, true),
            };
            svg.marker(at, marker, radius, color, filled);
        }
    }

    fn at(&self, x: f64, y: f64) -> At {
        self.frame.at(self.x.share(x), self.y.share(y))
    }

    /// A line between its gaps.
    fn pieces(&self, line: &Line) -> Vec<Vec<At>> {
        let numbers = |point: &(f64, f64)| drawable(point.0) && drawable(point.1);
        line.points
            .split(|point| !numbers(point))
            .filter(|piece| piece.len() > 1)
            .map(|piece| piece.iter().map(|&(x, y)| self.at(x, y)).collect())
            .collect()
    }

    /// The tips of arrows, those at one place beneath each other.
    fn arrows(&self) -> Vec<(At, &'static str)> {
        let mut all: Vec<(At, &'static str)> = Vec::new();
        for line in &self.lines {
            let infinite = line.points.iter();
            let infinite = infinite.filter(|(x, y)| drawable(*x) && *y == f64::INFINITY);
            for (x, _) in infinite {
                let x = self.frame.at(self.x.share(*x), 0.0).0;
                let above = all.iter().filter(|(at, _)| (at.0 - x).abs() < 6.0).count();
                all.push((
                    (x, self.frame.top + 3.0 + ARROW * above as f64),
                    line.style.color,
                ));
            }
        }
        all
    }

    /// Places that are drawn on.
    fn drawn(&self) -> Vec<At> {
        let mut all: Vec<At> = Vec::new();
        for line in &self.lines {
            let single = line.points.iter().filter(|point| drawable(point.1));
            all.extend(single.map(|&(x, y)| self.at(x, y)));
            for piece in self.pieces(line) {
                for pair in piece.windows(2) {
                    let (dx, dy) = (pair[1].0 - pair[0].0, pair[1].1 - pair[0].1);
                    let n = (dx.hypot(dy) / SAMPLE).ceil();
                    let between = (1..n as usize).map(|index| index as f64 / n);
                    all.extend(
                        between.map(|share| (pair[0].0 + share * dx, pair[0].1 + share * dy)),
                    );
                }
            }
            for pair in line.band.windows(2) {
                let [low, high] = [0, 1].map(|end| {
                    let (x, low, high) = pair[end];
                    (self.at(x, low), self.at(x, high))
                });
                let n = ((high.0.0 - low.0.0) / SAMPLE).ceil().max(1.0);
                for share in (0..=n as usize).map(|index| index as f64 / n) {
                    let mix = |from: f64, to: f64| from + share * (to - from);
                    let x = mix(low.0.0, high.0.0);
                    let (lower, upper) = (mix(low.0.1, high.0.1), mix(low.1.1, high.1.1));
                    let rows = ((lower - upper) / SAMPLE).ceil().max(1.0);
                    let heights = (0..=rows as usize).map(|row| row as f64 / rows);
                    all.extend(heights.map(|row| (x, upper + row * (lower - upper))));
                }
            }
        }
        for ((x, y), _) in self.arrows() {
            all.extend([(x, y), (x, y + 9.0)]);
        }
        all
    }
}

/// What is said where a panel has nothing to show.
pub(crate) fn draw_nothing(svg: &mut Svg, panel_width: f64) {
    let middle = (0.5 * panel_width, 40.0);
    svg.text(middle, NAME, Anchor::Middle, MUTED, "nothing to show");
}

pub(crate) fn stroke(style: Style) -> Stroke<'static> {
    let (width, opacity) = if style.pale { (1.1, 0.4) } else { (1.8, 1.0) };
    Stroke {
        dash: style.dash,
        opacity,
        ..Stroke::new(style.color, width)
    }
}
