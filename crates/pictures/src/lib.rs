//! Curves and bars as SVG, as PNG and as CSV.
//!
//! What is drawn is plain data: a [`Figure`] of panels, each [`Curves`] or
//! [`Bars`]. Nothing but that data goes into a picture, so the same data give
//! the same bytes, on any machine: text is measured by a table, and a PNG's
//! font comes along.
//!
//! ```
//! use olora_pictures::{Axis, Curves, Figure, Line, Style, png};
//!
//! let line = Line::new("training", Style::nth(0), vec![(1.0, 3.0), (2.0, 0.5)]);
//! let figure = Figure::single(Curves {
//!     title: "Loss".to_owned(),
//!     note: String::new(),
//!     x: Axis::whole("step"),
//!     y: Axis::new("loss, nats per trained token"),
//!     lines: vec![line],
//! });
//! let svg = figure.svg().ok_or("there is nothing to draw")?;
//! assert!(png(&svg)?.starts_with(b"\x89PNG"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod axis;
mod bars;
mod curves;
mod figure;
mod frame;
mod legend;
mod png;
mod smooth;
mod style;
mod svg;
mod table;
#[cfg(test)]
mod tests;
mod text;
mod ticks;

pub use self::{
    axis::{Axis, Notation, Scale},
    bars::{Bar, Bars},
    curves::{Curves, Line},
    figure::{Figure, Panel},
    png::{PngError, png},
    smooth::smoothed,
    style::{BLUE, GREEN, GREY, Marker, ORANGE, PURPLE, SKY, Style, VERMILLION},
    table::{Cell, Table},
};
