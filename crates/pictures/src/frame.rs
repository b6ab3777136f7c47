//! The axes around a plot.

use crate::{
    Axis,
    svg::{Anchor, At, INK, Stroke, Svg},
    text::fitted,
    ticks::{LABEL, Tick, Ticks},
};

/// The size of the names of axes.
pub(crate) const NAME: f64 = 12.0;
/// From the edge of a panel.
pub(crate) const EDGE: f64 = 14.0;
/// What an axis takes below a plot: marks, labels and the name.
pub(crate) const BELOW: f64 = 42.0;
/// The colour of lines through the plot at each label.
const GRID: &str = "#e2e2e2";
/// That of those in between.
const FINE: &str = "#f3f3f3";

/// Where the plot is in its panel, in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Frame {
    pub(crate) left: f64,
    pub(crate) top: f64,
    pub(crate) right: f64,
    pub(crate) bottom: f64,
}

impl Frame {
    pub(crate) fn width(&self) -> f64 {
        self.right - self.left
    }

    pub(crate) fn height(&self) -> f64 {
        self.bottom - self.top
    }

    /// The place of shares of both axes.
    pub(crate) fn at(&self, x: f64, y: f64) -> At {
        (
            self.left + x * self.width(),
            self.bottom - y * self.height(),
        )
    }

    /// The lower axis with its lines through the plot.
    pub(crate) fn draw_x(&self, svg: &mut Svg, axis: &Axis, ticks: &Ticks) {
        let across = |svg: &mut Svg, share: f64, color: &str| {
            let x = self.at(share, 0.0).0;
            svg.line((x, self.top), (x, self.bottom), &Stroke::new(color, 1.0));
        };
        for share in &ticks.others {
            across(svg, *share, FINE);
        }
        for Tick { share, label } in &ticks.labelled {
            across(svg, *share, GRID);
            let x = self.at(*share, 0.0).0;
            let ink = Stroke::new(INK, 1.0);
            svg.line((x, self.bottom), (x, self.bottom + 4.0), &ink);
            let below = (x, self.bottom + 17.0);
            svg.text(below, LABEL, Anchor::Middle, INK, label);
        }
        let name = fitted(&axis.name, NAME, self.width());
        let middle = (0.5 * (self.left + self.right), self.bottom + 35.0);
        svg.text(middle, NAME, Anchor::Middle, INK, &name);
    }

    /// The axis on the left with its lines through the plot.
    pub(crate) fn draw_y(&self, svg: &mut Svg, axis: &Axis, ticks: &Ticks) {
        let along = |svg: &mut Svg, share: f64, color: &str| {
            let y = self.at(0.0, share).1;
            svg.line((self.left, y), (self.right, y), &Stroke::new(color, 1.0));
        };
        for share in &ticks.others {
            along(svg, *share, FINE);
        }
        for Tick { share, label } in &ticks.labelled {
            along(svg, *share, GRID);
            let y = self.at(0.0, *share).1;
            let ink = Stroke::new(INK, 1.0);
            svg.line((self.left - 4.0, y), (self.left, y), &ink);
            let beside = (self.left - 7.0, y + 0.36 * LABEL);
            svg.text(beside, LABEL, Anchor::End, INK, label);
        }
        let name = fitted(&axis.name, NAME, self.height());
        let middle = (EDGE + 0.75 * NAME, 0.5 * (self.top + self.bottom));
        svg.text_upwards(middle, NAME, INK, &name);
    }

    /// The two lines that values are read from.
    pub(crate) fn draw_edges(&self, svg: &mut Svg) {
        let ink = Stroke::new(INK, 1.0);
        let corner = (self.left, self.bottom);
        svg.line((self.left, self.top), corner, &ink);
        svg.line(corner, (self.right, self.bottom), &ink);
    }
}
