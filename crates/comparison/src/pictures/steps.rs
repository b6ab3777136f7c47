//! How long each method takes to the reference's last loss.

use olora_pictures::{Axis, Bar, Bars};

use super::{Picture, figure, n_steps, place, placed, style, table};
use crate::{
    report::{Group, Report},
    trial::Trial,
};

/// How many steps, and how many seconds, each method takes to the reference's
/// last loss, with a dot for each seed.
pub(crate) fn steps(report: &Report) -> Picture {
    let bars = |groups: &[Group], unit: &str, by_time: bool| Bars {
        title: format!(
            "{}: {unit} to {}'s last loss",
            place(groups),
            report.reference
        ),
        note: note(groups, by_time),
        x: if by_time {
            Axis::linear("seconds of training, the start among them")
        } else {
            Axis::whole("steps")
        },
        unit: unit.to_owned(),
        bars: groups
            .iter()
            .map(|group| bar(report, group, by_time))
            .collect(),
    };
    let by_step = |groups: &[Group]| bars(groups, "steps", false).into();
    let by_time = |groups: &[Group]| bars(groups, "seconds", true).into();

    let mut table = table(&[
        "seed",
        "until the reference's last loss (steps; empty: not reached)",
        "until the reference's last loss (seconds of training with the start; empty: not reached)",
        "end of the run (steps)",
    ]);
    for group in &report.groups {
        let Some(standing) = report.standing(group) else {
            continue;
        };
        let found = standing.steps.iter().zip(&standing.seconds);
        for (seed, (steps, seconds)) in standing.seeds.iter().zip(found) {
            let end = n_steps(&group.trials);
            let row = vec![
                (*seed).into(),
                (*steps).into(),
                (*seconds).into(),
                end.into(),
            ];
            table.push(placed(group, row));
        }
    }
    Picture {
        name: "steps",
        figure: figure(report, &[&by_step, &by_time]),
        table,
    }
}

fn bar(report: &Report, group: &Group, by_time: bool) -> Bar {
    let standing = report.standing(group);
    let all = standing.map_or(Vec::new(), |standing| {
        if by_time {
            standing.seconds
        } else {
            standing.steps
        }
    });
    let reached: Vec<f64> = all.iter().copied().flatten().collect();
    Bar {
        name: group.variant.to_string(),
        style: style(report, group),
        missed: all.len() - reached.len(),
        reached,
        end: end(group, by_time),
    }
}

/// How far the seeds of a method were followed: until the last one's end.
fn end(group: &Group, by_time: bool) -> f64 {
    let n_steps = n_steps(&group.trials).unwrap_or(0) as f64;
    let each = Trial::seconds_by_step(&group.trials).filter(|_| by_time);
    each.map_or(n_steps, |each| {
        let starts = group.trials.iter().map(|trial| trial.attach_seconds);
        starts.fold(0.0, f64::max) + each * n_steps
    })
}

fn note(groups: &[Group], by_time: bool) -> String {
    let n = groups.iter().map(|group| group.trials.len()).max();
    let mut note = match n.unwrap_or(0) {
        0 | 1 => "one seed; open arrow: not reached in its run".to_owned(),
        n => format!("bar: mean of {n} seeds (dots); open arrow: not reached by all of them"),
    };
    if by_time {
        note += "; a step's time: the median of the method's runs";
    }
    note
}
