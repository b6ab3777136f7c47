//! Run and comparison directories as pages: live in a browser, and as one file to send.
//!
//! A [`Board`] is what is below a directory; [`router`] answers for it, and [`report`]
//! writes the same page with its data in it. Both only read. What a run is and what
//! stands in its files is known here from the files alone: this crate knows neither
//! Burn nor `olora-runs`, so that a page can be had of runs that are made elsewhere.
//!
//! - `find` walks the directory; `place` is the one way to the files in what it found.
//! - `lines` reads a file that grows, `metrics` makes points of its lines, `curve`
//!   keeps few points of many, `tracked` is all three for one run.
//! - `list` is a line for each run, `standing` whether it is still running.
//! - `details` and `comparison` are what a page shows beside curves.
//! - `routes` and `events` are HTTP, `page` is what a browser is given.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod board;
mod comparison;
mod curve;
mod details;
mod error;
mod events;
mod find;
mod lines;
mod list;
mod metrics;
mod page;
mod place;
mod report;
mod routes;
mod standing;
mod tracked;

pub use board::Board;
pub use error::BoardError;
pub use report::report;
pub use routes::router;

/// Has the example of `README.md` compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
