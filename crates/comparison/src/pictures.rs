//! The pictures of a comparison.

mod losses;
mod rates;
mod steps;

use olora_data::Answers;
use olora_pictures::{Axis, Cell, Figure, Panel, Style, Table};

pub(crate) use self::{
    losses::{losses, training},
    rates::rates,
    steps::steps,
};
use crate::{
    report::{Group, Report},
    statistics::median,
    trial::Trial,
    variant::Variant,
};

/// Panels beside each other.
const COLUMNS: usize = 3;
/// The columns that say which method it is, and where.
const PLACE: [&str; 4] = [
    "rank",
    "run length (steps)",
    "method",
    "chosen learning rate",
];

/// A picture, and a table of what it shows.
pub(crate) struct Picture {
    /// Of its files, without their ends.
    pub(crate) name: &'static str,
    pub(crate) figure: Figure,
    pub(crate) table: Table,
}

/// All of them.
pub(crate) fn pictures(report: &Report) -> [Picture; 4] {
    [
        losses(report),
        training(report),
        steps(report),
        rates(report),
    ]
}

/// What a section's panel is.
type Way<'a> = &'a dyn Fn(&[Group]) -> Panel;

/// A figure with a panel for each rank and length and for each way of looking at it, those of one
/// way in rows.
fn figure(report: &Report, ways: &[Way<'_>]) -> Figure {
    let sections = report.sections();
    let rows = sections.chunks(COLUMNS).flat_map(|sections| {
        let row = |way: &Way<'_>| sections.iter().map(|groups| way(groups)).collect();
        ways.iter().map(row)
    });
    Figure::rows(rows.collect())
}

/// How a method looks, the same in all panels and pictures.
fn style(report: &Report, group: &Group) -> Style {
    let mut variants: Vec<Variant> = Vec::new();
    for group in &report.groups {
        if !variants.contains(&group.variant) {
            variants.push(group.variant);
        }
    }
    let mut variants = variants.iter();
    let index = variants.position(|variant| *variant == group.variant);
    Style::nth(index.unwrap_or_default())
}

/// What a loss is counted in.
fn unit(report: &Report) -> &'static str {
    let mut trials = report.groups.iter().flat_map(|group| &group.trials);
    let is_other = trials.any(|trial| trial.recipe.objective.answers() != Answers::One);
    if is_other {
        "objective"
    } else {
        "nats per trained token"
    }
}

/// The axis of a loss.
fn loss_axis(report: &Report, what: &str) -> Axis {
    Axis::new(match unit(report) {
        "objective" => format!("{what} of the objective"),
        nats => format!("{what}, {nats}"),
    })
}

fn place(groups: &[Group]) -> String {
    groups.first().map(Group::place).unwrap_or_default()
}

/// On how many seeds.
fn seeds(groups: &[Group]) -> String {
    let n = || groups.iter().map(|group| group.trials.len());
    match (n().min().unwrap_or(0), n().max().unwrap_or(0)) {
        (_, 0 | 1) => "one seed".to_owned(),
        (fewest, most) if fewest == most => format!("mean of {most} seeds"),
        (_, most) => format!("mean of up to {most} seeds"),
    }
}

/// A table with the columns that say which method it is, and others.
fn table(columns: &[&str]) -> Table {
    Table::new(&[&PLACE, columns].concat())
}

/// The first columns of a group's rows.
fn placed(group: &Group, rest: Vec<Cell>) -> Vec<Cell> {
    let mut row = vec![
        group.rank.into(),
        n_steps(&group.trials).into(),
        group.variant.to_string().into(),
        group.rate.into(),
    ];
    row.extend(rest);
    row
}

/// The length of some runs, which is the same of all.
fn n_steps(trials: &[Trial]) -> Option<usize> {
    trials.iter().map(|trial| trial.steps).max()
}

/// Seconds before the first step and for each, as of all runs of a method.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pace {
    start: f64,
    each: f64,
}

impl Pace {
    fn of(trials: &[Trial]) -> Option<Self> {
        let starts: Vec<f64> = trials.iter().map(|trial| trial.attach_seconds).collect();
        Some(Self {
            start: median(&starts)?,
            each: Trial::seconds_by_step(trials)?,
        })
    }

    fn at(self, step: f64) -> f64 {
        self.start + self.each * step
    }
}
