//! Losses over the run.

use olora_pictures::{Axis, Cell, Curves, Line};

use super::{Pace, Picture, figure, loss_axis, place, placed, seeds, style, table, unit};
use crate::{
    report::{Group, Report},
    statistics::{Point, mean},
    trial::Trial,
};

/// What seeds have at a step.
struct At {
    step: f64,
    mean: f64,
    low: f64,
    high: f64,
}

/// The mean validation loss of each method, with a band from the lowest to the
/// highest of its seeds; by step, and by time.
pub(crate) fn losses(report: &Report) -> Picture {
    let evaluated = |group: &Group| band(group, |trial| &trial.validation, true);
    let over = |groups: &[Group], what: &str, x: Axis, by_time: bool| Curves {
        title: format!("{}: {what}", place(groups)),
        note: note(groups, by_time),
        x,
        y: loss_axis(report, "validation loss"),
        lines: groups
            .iter()
            .map(|group| {
                let pace = Pace::of(&group.trials).filter(|_| by_time);
                line(report, group, &evaluated(group), pace)
            })
            .collect(),
    };
    let steps =
        |groups: &[Group]| over(groups, "validation loss", Axis::whole("step"), false).into();
    let time = Axis::linear("seconds of training, the start among them");
    let seconds =
        |groups: &[Group]| over(groups, "validation loss over time", time.clone(), true).into();

    let unit = unit(report);
    let mut table = table(&[
        "step",
        "time (seconds of training with the start)",
        &format!("validation loss: mean of the seeds ({unit})"),
        &format!("validation loss: lowest of the seeds ({unit})"),
        &format!("validation loss: highest of the seeds ({unit})"),
        "seeds",
    ]);
    for group in &report.groups {
        let pace = Pace::of(&group.trials);
        for at in evaluated(group) {
            table.push(placed(
                group,
                vec![
                    at.step.into(),
                    pace.map(|pace| pace.at(at.step)).into(),
                    at.mean.into(),
                    at.low.into(),
                    at.high.into(),
                    group.trials.len().into(),
                ],
            ));
        }
    }
    Picture {
        name: "loss",
        figure: figure(report, &[&steps, &seconds]),
        table,
    }
}

/// The mean training loss of each method as logged, with the same band. Each point is a mean over
/// steps and seeds already, and smoothed it would lag behind.
pub(crate) fn training(report: &Report) -> Picture {
    let logged = |group: &Group| band(group, |trial| &trial.training, false);
    let curves = |groups: &[Group]| {
        Curves {
            title: format!("{}: training loss", place(groups)),
            note: note(groups, false),
            x: Axis::whole("step"),
            y: loss_axis(report, "training loss"),
            lines: groups
                .iter()
                .map(|group| line(report, group, &logged(group), None))
                .collect(),
        }
        .into()
    };
    let unit = unit(report);
    let mut table = table(&[
        "step",
        &format!("training loss: mean of the seeds ({unit})"),
        &format!("training loss: lowest of the seeds ({unit})"),
        &format!("training loss: highest of the seeds ({unit})"),
        "seeds",
    ]);
    for group in &report.groups {
        for at in logged(group) {
            let n = group.trials.len();
            let losses = [at.mean, at.low, at.high].map(Cell::from);
            let row = [vec![at.step.into()], losses.to_vec(), vec![n.into()]];
            table.push(placed(group, row.concat()));
        }
    }
    Picture {
        name: "training",
        figure: figure(report, &[&curves]),
        table,
    }
}

/// A method's mean with its band, over steps or, with a pace, over time.
fn line(report: &Report, group: &Group, band: &[At], pace: Option<Pace>) -> Line {
    let x = |step: f64| pace.map_or(step, |pace| pace.at(step));
    let means = band.iter().map(|at| (x(at.step), at.mean)).collect();
    let around = band.iter().map(|at| (x(at.step), at.low, at.high));
    let around = around.filter(|_| group.trials.len() > 1).collect();
    let name = format!("{} (lr {:e})", group.variant, group.rate);
    Line::new(name, style(report, group), means).with_band(around)
}

fn note(groups: &[Group], by_time: bool) -> String {
    let mut note = seeds(groups);
    if groups.iter().any(|group| group.trials.len() > 1) {
        note += "; band: lowest to highest of the seeds";
    }
    if by_time {
        note += "; a step's time: the median of the method's runs";
    }
    note
}

/// A group's curve at the steps that all seeds have; if so asked without step 0, where there is a
/// curve without it: all share it, and beside it no difference would be seen.
fn band<'a>(
    group: &'a Group,
    curve: impl Fn(&'a Trial) -> &'a [Point],
    without_start: bool,
) -> Vec<At> {
    let at = |curve: &[Point], step: usize| {
        let found = curve.iter().find(|(other, _)| *other == step);
        found.map(|(_, loss)| *loss)
    };
    let steps = group.trials.first().map_or(&[][..], &curve);
    let without_start = without_start && steps.iter().filter(|(step, _)| *step > 0).count() > 1;
    steps
        .iter()
        .filter(|(step, _)| *step > 0 || !without_start)
        .filter_map(|(step, _)| {
            let losses: Option<Vec<f64>> = group
                .trials
                .iter()
                .map(|trial| at(curve(trial), *step))
                .collect();
            let losses = losses?;
            Some(At {
                step: *step as f64,
                mean: mean(&losses),
                low: losses.iter().copied().fold(f64::INFINITY, f64::min),
                high: losses.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            })
        })
        .collect()
}
