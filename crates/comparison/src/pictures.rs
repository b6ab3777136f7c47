//! The pictures of a comparison.

use std::sync::Arc;

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use resvg::{
    tiny_skia::{Pixmap, Transform},
    usvg::{Options, Tree, fontdb::Database},
};

use crate::{
    ComparisonError,
    report::{Group, Report},
    statistics::{Point, mean},
};

type Failure = Box<dyn std::error::Error>;
type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Pixels of a rank's panel.
const PANEL: (u32, u32) = (560, 420);
/// Pixels of a PNG for each of the SVG.
const SCALE: f32 = 2.0;
/// Okabe and Ito's colours, which can be told apart without colour vision.
const COLORS: [RGBColor; 8] = [
    RGBColor(0x60, 0x60, 0x60),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x00, 0x00, 0x00),
];

/// The mean validation loss of each method, with a band from the lowest to the
/// highest of its seeds; a panel for each rank, as SVG.
pub(crate) fn losses(report: &Report) -> Result<String, ComparisonError> {
    panels(report, |panel, groups| {
        let curves: Vec<Band> = groups.iter().map(band).collect();
        let points = || curves.iter().flatten();
        let first = points().map(|at| at.step).fold(f64::INFINITY, f64::min);
        let last = points().map(|at| at.step).fold(1.0, f64::max);
        let low = points().map(|at| at.low).fold(f64::INFINITY, f64::min);
        let high = points().map(|at| at.high).fold(f64::NEG_INFINITY, f64::max);
        if !(low < high && first < last) {
            return Ok(());
        }
        let margin = 0.05 * (high - low);
        let mut chart = ChartBuilder::on(panel)
            .margin(12)
            .caption(caption(groups, "validation loss"), ("sans-serif", 17))
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(first..last, (low - margin)..(high + margin))?;
        chart
            .configure_mesh()
            .x_desc("step")
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_label_formatter(&|loss| format!("{loss:.3}"))
            .light_line_style(WHITE)
            .bold_line_style(BLACK.mix(0.1))
            .draw()?;
        for (index, (group, curve)) in groups.iter().zip(&curves).enumerate() {
            let color = COLORS[index % COLORS.len()];
            let there = curve.iter().map(|at| (at.step, at.high));
            let back = curve.iter().rev().map(|at| (at.step, at.low));
            let outline: Vec<(f64, f64)> = there.chain(back).collect();
            chart.draw_series(std::iter::once(Polygon::new(
                outline,
                color.mix(0.15).filled(),
            )))?;
            let line = curve.iter().map(|at| (at.step, at.mean));
            chart
                .draw_series(LineSeries::new(line, color.stroke_width(2)))?
                .label(format!("{} (lr {:e})", group.variant, group.rate))
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        Ok(())
    })
}

/// How many steps each method takes to the reference's last loss, with a dot
/// for each seed; a panel for each rank, as SVG.
pub(crate) fn steps(report: &Report) -> Result<String, ComparisonError> {
    panels(report, |panel, groups| {
        let n_steps = groups
            .iter()
            .flat_map(|group| &group.trials)
            .map(|trial| trial.steps)
            .max()
            .unwrap_or(1) as f64;
        // The first method is on top, and both ends of a segmented axis are in it.
        let last = groups.len().saturating_sub(1);
        let names: Vec<String> = groups.iter().map(|g| g.variant.to_string()).rev().collect();
        let title = format!("steps to {}'s last loss", report.reference);
        let mut chart = ChartBuilder::on(panel)
            .margin(12)
            .caption(caption(groups, &title), ("sans-serif", 17))
            .x_label_area_size(40)
            .y_label_area_size(96)
            .build_cartesian_2d(0.0..1.18 * n_steps, (0..last.max(1)).into_segmented())?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .x_desc("step")
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_labels(groups.len())
            .y_label_formatter(&|segment| match segment {
                SegmentValue::CenterOf(index) => names.get(*index).cloned().unwrap_or_default(),
                _ => String::new(),
            })
            .light_line_style(WHITE)
            .bold_line_style(BLACK.mix(0.1))
            .draw()?;
        for (order, group) in groups.iter().enumerate() {
            let index = last - order;
            let Some(standing) = report.standing(group).filter(|it| !it.steps.is_empty()) else {
                continue;
            };
            let there: Vec<f64> = standing.steps.iter().copied().flatten().collect();
            let all = there.len() == standing.steps.len() && !there.is_empty();
            let color = COLORS[order % COLORS.len()];
            // Where not every seed got there, the bar is as long as the run, and pale.
            let (length, strength, label) = if all {
                (mean(&there), 0.8, format!("{:.1}", mean(&there)))
            } else {
                let n = standing.steps.len();
                (n_steps, 0.2, format!("{} of {n} seeds", there.len()))
            };
            let corners = [
                (0.0, SegmentValue::Exact(index)),
                (length, SegmentValue::Exact(index + 1)),
            ];
            let mut bar = Rectangle::new(corners, color.mix(strength).filled());
            bar.set_margin(8, 8, 0, 0);
            chart.draw_series(std::iter::once(bar))?;
            chart.draw_series(there.iter().map(|step| {
                Circle::new((*step, SegmentValue::CenterOf(index)), 3, BLACK.filled())
            }))?;
            let style = ("sans-serif", 13)
                .into_text_style(panel)
                .pos(Pos::new(HPos::Left, VPos::Center));
            let furthest = there.iter().copied().fold(length, f64::max);
            chart.draw_series(std::iter::once(
                EmptyElement::at((furthest, SegmentValue::CenterOf(index)))
                    + Text::new(label, (8, 0), style),
            ))?;
        }
        Ok(())
    })
}

/// The last loss by learning rate, both logarithmic, of the seeds that chose the rates; a panel
/// for each rank and length, as SVG.
pub(crate) fn rates(report: &Report) -> Result<String, ComparisonError> {
    panels(report, |panel, groups| {
        let curves: Vec<Vec<(f64, f64)>> = groups
            .iter()
            .map(|group| {
                let tried = group.tried.iter().copied();
                tried
                    .filter(|(_, loss)| loss.is_finite() && *loss > 0.0)
                    .collect()
            })
            .collect();
        let points = || curves.iter().flatten();
        let first = points().map(|at| at.0).fold(f64::INFINITY, f64::min);
        let last = points().map(|at| at.0).fold(0.0, f64::max);
        let low = points().map(|at| at.1).fold(f64::INFINITY, f64::min);
        let high = points().map(|at| at.1).fold(0.0, f64::max);
        if !(low < high && first < last) {
            return Ok(());
        }
        let mut chart = ChartBuilder::on(panel)
            .margin(12)
            .caption(
                format!("{}: last loss by learning rate", place(groups)),
                ("sans-serif", 17),
            )
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(
                (first / 1.2..last * 1.2).log_scale(),
                (low / 1.15..high * 1.05).log_scale(),
            )?;
        chart
            .configure_mesh()
            .x_desc("learning rate")
            .y_desc("validation loss after the last step")
            .x_label_formatter(&|rate| sparse(*rate, format!("{rate:.0e}")))
            .y_label_formatter(&|loss| sparse(*loss, round_digits(*loss)))
            .light_line_style(WHITE)
            .bold_line_style(BLACK.mix(0.1))
            .draw()?;
        for (index, (group, curve)) in groups.iter().zip(&curves).enumerate() {
            let color = COLORS[index % COLORS.len()];
            let name = group.variant.to_string();
            chart
                .draw_series(LineSeries::new(
                    curve.iter().copied(),
                    color.stroke_width(2),
                ))?
                .label(name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2))
                });
            // The best one filled.
            chart.draw_series(curve.iter().map(|&(rate, loss)| {
                if rate == group.rate {
                    Circle::new((rate, loss), 5, color.filled())
                } else {
                    Circle::new((rate, loss), 3, color.stroke_width(1))
                }
            }))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperMiddle)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        Ok(())
    })
}

/// A number of one digit, without what is beyond it in binary.
fn round_digits(value: f64) -> String {
    let rounded = format!("{value:.0e}").parse::<f64>();
    rounded.unwrap_or(value).to_string()
}

/// The label of 1, 2 or 5 times a power of ten; of the other marks of a logarithmic axis none, for
/// want of room.
fn sparse(value: f64, label: String) -> String {
    let digits = format!("{value:.1e}");
    if ["1.0e", "2.0e", "5.0e"]
        .iter()
        .any(|first| digits.starts_with(first))
    {
        label
    } else {
        String::new()
    }
}

/// A panel for each rank and length, side by side.
fn panels(
    report: &Report,
    draw: impl Fn(&Panel<'_>, &[Group]) -> Result<(), Failure>,
) -> Result<String, ComparisonError> {
    let ranks = report.sections();
    let mut svg = String::new();
    let drawn = (|| -> Result<(), Failure> {
        let size = (PANEL.0 * ranks.len() as u32, PANEL.1);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        for (panel, groups) in root.split_evenly((1, ranks.len())).iter().zip(&ranks) {
            draw(panel, groups)?;
        }
        root.present()?;
        Ok(())
    })();
    drawn.map_err(|error| ComparisonError::Drawing(format!("drawing a comparison: {error}")))?;
    Ok(svg)
}

fn caption(groups: &[Group], what: &str) -> String {
    let place = place(groups);
    let seeds = groups.iter().map(|group| group.trials.len()).max();
    match seeds.unwrap_or(0) {
        1 => format!("{place}: {what}, one seed"),
        n => format!("{place}: {what}, {n} seeds"),
    }
}

fn place(groups: &[Group]) -> String {
    groups.first().map(Group::place).unwrap_or_default()
}

/// What seeds have at a step.
struct At {
    step: f64,
    mean: f64,
    low: f64,
    high: f64,
}

type Band = Vec<At>;

/// A group's curve at the steps that all seeds have, without step 0 if there is
/// a curve without it: all share it, and beside it no difference would be seen.
fn band(group: &Group) -> Band {
    let finished = || group.trials.iter();
    let at = |curve: &[Point], step: usize| {
        let found = curve.iter().find(|(other, _)| *other == step);
        found.map(|(_, loss)| *loss)
    };
    let steps = finished().next().map_or(&[][..], |trial| &trial.validation);
    let without_start = steps.iter().filter(|(step, _)| *step > 0).count() > 1;
    steps
        .iter()
        .filter(|(step, _)| *step > 0 || !without_start)
        .filter_map(|(step, _)| {
            let losses: Option<Vec<f64>> = finished()
                .map(|trial| at(&trial.validation, *step))
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

/// An SVG's picture, with a font that comes along: a machine may have none.
pub(crate) fn png(svg: &str) -> Result<Vec<u8>, ComparisonError> {
    let failed = |error: String| ComparisonError::Drawing(format!("drawing a PNG: {error}"));
    let mut fonts = Database::new();
    fonts.load_font_data(dejavu::sans::regular().to_vec());
    fonts.set_sans_serif_family("DejaVu Sans");
    let options = Options {
        fontdb: Arc::new(fonts),
        ..Options::default()
    };
    let tree = Tree::from_str(svg, &options).map_err(|error| failed(error.to_string()))?;
    let size = tree.size();
    let (width, height) = (SCALE * size.width(), SCALE * size.height());
    #[expect(clippy::cast_sign_loss, reason = "an SVG's size is positive")]
    let mut pixels = Pixmap::new(width.ceil() as u32, height.ceil() as u32)
        .ok_or_else(|| failed(format!("{width} × {height} pixels are too many")))?;
    resvg::render(
        &tree,
        Transform::from_scale(SCALE, SCALE),
        &mut pixels.as_mut(),
    );
    pixels
        .encode_png()
        .map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::png;

    #[test]
    fn text_is_drawn_without_a_font_of_the_machine() {
        let svg = |text: &str| {
            format!(
                r##"<svg width="60" height="20" xmlns="http://www.w3.org/2000/svg">
                <rect width="60" height="20" fill="#ffffff"/>
                <text x="2" y="15" font-family="sans-serif" font-size="14" fill="#000000">{text}</text></svg>"##
            )
        };
        let (blank, written) = (png(&svg("")).unwrap(), png(&svg("loss")).unwrap());
        assert_eq!(&written[1..4], b"PNG");
        assert_ne!(blank, written, "the text is not there");
    }
}
