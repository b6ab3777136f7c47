//! How much the learning rate matters.

use olora_pictures::{Axis, Curves, Line, Scale};

use super::{Picture, figure, loss_axis, place, placed, style, table, unit};
use crate::report::{Group, Report};

/// The last loss by learning rate, both logarithmic, of the seeds that chose the rates.
pub(crate) fn rates(report: &Report) -> Picture {
    let curves = |groups: &[Group]| {
        Curves {
            title: format!("{}: last loss by learning rate", place(groups)),
            note: note(report, groups),
            x: Axis::rate("learning rate"),
            y: Axis {
                scale: Scale::Log,
                ..loss_axis(report, "last validation loss")
            },
            lines: groups
                .iter()
                .map(|group| {
                    let mut tried = group.tried.iter();
                    let chosen = tried.position(|(rate, _)| *rate == group.rate);
                    let name = group.variant.to_string();
                    Line::new(name, style(report, group), group.tried.clone()).with_chosen(chosen)
                })
                .collect(),
        }
        .into()
    };
    let unit = unit(report);
    let mut table = table(&[
        "tried learning rate",
        &format!("last validation loss ({unit}; inf: diverged)"),
    ]);
    for group in &report.groups {
        for &(rate, loss) in &group.tried {
            table.push(placed(group, vec![rate.into(), loss.into()]));
        }
    }
    Picture {
        name: "rates",
        figure: figure(report, &[&curves]),
        table,
    }
}

fn note(report: &Report, groups: &[Group]) -> String {
    let of = match report.tuning_seeds {
        0 | 1 => "the seed that chooses".to_owned(),
        n => format!("mean of the {n} seeds that choose"),
    };
    let mut tried = groups.iter().flat_map(|group| &group.tried);
    let diverged = tried.any(|(_, loss)| loss.is_infinite());
    let arrows = if diverged {
        "; arrow at the top: diverged"
    } else {
        ""
    };
    format!("{of}; large: the rate that was chosen{arrows}")
}
