//! Panels beside and beneath each other.

use crate::{
    Bars, Curves, bars, curves,
    curves::draw_nothing,
    frame::EDGE,
    svg::{Anchor, INK, MUTED, Svg},
    text::wrapped,
};

const TITLE: f64 = 15.0;
const NOTE: f64 = 11.0;

/// One plot of a figure.
#[derive(Clone, Debug, PartialEq)]
pub enum Panel {
    /// Lines over an axis.
    Curves(Curves),
    /// Bars by name.
    Bars(Bars),
}

impl From<Curves> for Panel {
    fn from(curves: Curves) -> Self {
        Self::Curves(curves)
    }
}

impl From<Bars> for Panel {
    fn from(bars: Bars) -> Self {
        Self::Bars(bars)
    }
}

/// A picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    rows: Vec<Vec<Panel>>,
    /// Pixels of a panel.
    panel_width: f64,
    /// Pixels of the plot in it; bars take what they need.
    plot_height: f64,
}

/// A panel of which is known where everything goes.
enum Planned<'a> {
    Curves(curves::Planned<'a>),
    Bars(bars::Planned<'a>),
    Nothing,
}

impl Planned<'_> {
    fn height(&self) -> f64 {
        match self {
            Self::Curves(curves) => curves.height(),
            Self::Bars(bars) => bars.height(),
            Self::Nothing => 60.0,
        }
    }
}

/// Title and note, in lines.
struct Head {
    title: Vec<String>,
    note: Vec<String>,
}

impl Head {
    fn height(&self) -> f64 {
        let lines = |lines: &[String], size: f64| 1.35 * size * lines.len() as f64;
        10.0 + lines(&self.title, TITLE) + lines(&self.note, NOTE) + 6.0
    }

    fn draw(&self, svg: &mut Svg) {
        let mut y = 10.0;
        for (lines, size, color) in [(&self.title, TITLE, INK), (&self.note, NOTE, MUTED)] {
            for line in lines {
                y += 1.35 * size;
                svg.text((EDGE, y - 0.3 * size), size, Anchor::Start, color, line);
            }
        }
    }
}

impl Figure {
    /// One large panel.
    pub fn single(panel: impl Into<Panel>) -> Self {
        Self {
            rows: vec![vec![panel.into()]],
            panel_width: 800.0,
            plot_height: 380.0,
        }
    }

    /// Panels in rows.
    pub fn rows(rows: Vec<Vec<Panel>>) -> Self {
        Self {
            rows,
            panel_width: 560.0,
            plot_height: 330.0,
        }
    }

    fn plan<'a>(&self, panel: &'a Panel) -> Planned<'a> {
        let planned = match panel {
            Panel::Curves(curves) => {
                let plan = curves.plan(self.panel_width, self.plot_height);
                plan.map(Planned::Curves)
            }
            Panel::Bars(bars) => bars.plan(self.panel_width).map(Planned::Bars),
        };
        planned.unwrap_or(Planned::Nothing)
    }

    fn head(&self, panel: &Panel) -> Head {
        let (title, note) = match panel {
            Panel::Curves(curves) => (&curves.title, &curves.note),
            Panel::Bars(bars) => (&bars.title, &bars.note),
        };
        let room = self.panel_width - 2.0 * EDGE;
        Head {
            title: wrapped(title, TITLE, room),
            note: wrapped(note, NOTE, room),
        }
    }

    /// Whether there is nothing to draw.
    pub fn is_empty(&self) -> bool {
        let mut panels = self.rows.iter().flatten();
        panels.all(|panel| matches!(self.plan(panel), Planned::Nothing))
    }

    /// The picture; `None` if there is nothing to draw.
    pub fn svg(&self) -> Option<String> {
        let columns = self.rows.iter().map(Vec::len).max()?;
        let mut svg = Svg::default();
        let mut top = 0.0;
        let mut is_empty = true;
        for row in &self.rows {
            let heads: Vec<Head> = row.iter().map(|panel| self.head(panel)).collect();
            let plans: Vec<Planned<'_>> = row.iter().map(|panel| self.plan(panel)).collect();
            let head = heads.iter().map(Head::height).fold(0.0, f64::max);
            let body = plans.iter().map(Planned::height).fold(0.0, f64::max);
            for (index, (title, plan)) in heads.iter().zip(&plans).enumerate() {
                let left = self.panel_width * index as f64;
                svg.place_from((left, top));
                title.draw(&mut svg);
                svg.place_from((left, top + head));
                match plan {
                    Planned::Curves(curves) => curves.draw(&mut svg),
                    Planned::Bars(bars) => bars.draw(&mut svg),
                    Planned::Nothing => draw_nothing(&mut svg, self.panel_width),
                }
                is_empty &= matches!(plan, Planned::Nothing);
            }
            top += head + body;
        }
        let size = (self.panel_width * columns as f64, top.ceil() + 4.0);
        (!is_empty).then(|| svg.finish(size))
    }
}
