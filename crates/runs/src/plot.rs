//! The pictures of a run.

use plotters::prelude::*;
use serde_json::Value;

use crate::RunError;

const SIZE: (u32, u32) = (800, 480);
const TRAIN: RGBColor = RGBColor(0x4c, 0x78, 0xa8);
const VALIDATION: RGBColor = RGBColor(0xe4, 0x57, 0x56);

const CHOSEN: RGBColor = RGBColor(0x54, 0xa2, 0x4b);
const REJECTED: RGBColor = RGBColor(0xf5, 0x85, 0x18);

/// A line of a picture.
struct Series {
    name: &'static str,
    color: RGBColor,
    points: Vec<(f64, f64)>,
    /// Whether there are few points, each with a dot.
    dotted: bool,
}

impl Series {
    fn new(name: &'static str, color: RGBColor, points: Vec<(f64, f64)>) -> Self {
        Self {
            name,
            color,
            points,
            dotted: name.starts_with("validation"),
        }
    }
}

/// What a key says by step.
fn by_step(metrics: &[Value], group: Option<&str>, key: &str) -> Vec<(f64, f64)> {
    let value = |line: &Value| match group {
        None => line[key].as_f64(),
        Some(group) => line[group][key].as_f64(),
    };
    metrics
        .iter()
        .filter_map(|line| Some((line["step"].as_f64()?, value(line)?)))
        .collect()
}

/// Training and validation loss over steps, as SVG; `None` while there is
/// neither.
pub(crate) fn loss_curves(metrics: &[Value]) -> Result<Option<String>, RunError> {
    let series = [
        Series::new("training", TRAIN, by_step(metrics, None, "loss")),
        Series::new(
            "validation",
            VALIDATION,
            by_step(metrics, None, "validation_loss"),
        ),
    ];
    let is_other = |line: &Value| line.get("measures").is_some();
    let caption = if metrics.iter().any(is_other) {
        "Loss of the objective"
    } else {
        "Loss per trained token (nats)"
    };
    picture("loss.svg", caption, &series)
}

/// Rewards of chosen and rejected answers over steps, and their difference.
pub(crate) fn rewards(metrics: &[Value]) -> Result<Option<String>, RunError> {
    let training = |key: &str| by_step(metrics, Some("measures"), key);
    let series = [
        Series::new("chosen", CHOSEN, training("rewards/chosen")),
        Series::new("rejected", REJECTED, training("rewards/rejected")),
        Series::new("margin", TRAIN, training("rewards/margins")),
        Series::new(
            "validation margin",
            VALIDATION,
            by_step(metrics, Some("validation_measures"), "rewards/margins"),
        ),
    ];
    picture("rewards.svg", "Rewards", &series)
}

/// The share of pairs whose chosen answer has the higher reward, over steps.
pub(crate) fn accuracy(metrics: &[Value]) -> Result<Option<String>, RunError> {
    const KEY: &str = "rewards/accuracies";
    let series = [
        Series::new("training", TRAIN, by_step(metrics, Some("measures"), KEY)),
        Series::new(
            "validation",
            VALIDATION,
            by_step(metrics, Some("validation_measures"), KEY),
        ),
    ];
    picture(
        "accuracy.svg",
        "Pairs whose chosen answer has the higher reward",
        &series,
    )
}

/// `None` where there is nothing to draw: `plotters` looks for ticks for ever
/// where no range is given.
fn picture(name: &str, caption: &str, series: &[Series]) -> Result<Option<String>, RunError> {
    if series.iter().all(|series| series.points.is_empty()) {
        return Ok(None);
    }
    let mut svg = String::new();
    draw(&mut svg, caption, series)
        .map_err(|error| RunError::burn(&format!("drawing {name}: {error}")))?;
    Ok(Some(svg))
}

fn draw(
    svg: &mut String,
    caption: &str,
    series: &[Series],
) -> Result<(), Box<dyn std::error::Error>> {
    let all = || series.iter().flat_map(|series| &series.points);
    let last = all().map(|point| point.0).fold(1.0, f64::max);
    let low = all().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let high = all().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = if low < high {
        (low, high)
    } else {
        (low.min(0.0), low.max(1.0))
    };
    let margin = 0.05 * (high - low);

    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .caption(caption, ("sans-serif", 20))
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..last, (low - margin)..(high + margin))?;
    chart
        .configure_mesh()
        .x_desc("step")
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|value| format!("{value:.2}"))
        .light_line_style(WHITE)
        .draw()?;
    for Series {
        name,
        color,
        points,
        ..
    } in series
    {
        let color = *color;
        if points.is_empty() {
            continue;
        }
        chart
            .draw_series(LineSeries::new(
                points.iter().copied(),
                color.stroke_width(2),
            ))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
    }
    for series in series.iter().filter(|series| series.dotted) {
        let points = series.points.iter();
        chart.draw_series(points.map(|&point| Circle::new(point, 3, series.color.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As of a run that was interrupted before it logged anything.
    #[test]
    fn nothing_is_drawn_of_nothing() {
        assert_eq!(loss_curves(&[]).unwrap(), None);
        assert_eq!(loss_curves(&[json!({"step": 3})]).unwrap(), None);
    }

    #[test]
    fn rewards_are_drawn_where_there_are_any() {
        let supervised = [json!({"step": 1, "loss": 2.0})];
        assert_eq!(rewards(&supervised).unwrap(), None);
        assert_eq!(accuracy(&supervised).unwrap(), None);
        let of = json!({"rewards/margins": 0.5, "rewards/accuracies": 1.0});
        let compared = [json!({"step": 1, "loss": 2.0, "measures": of})];
        let svg = |picture: Option<String>| picture.unwrap().contains("<svg");
        assert!(svg(rewards(&compared).unwrap()) && svg(accuracy(&compared).unwrap()));
        let loss = loss_curves(&compared).unwrap().unwrap();
        assert!(loss.contains("Loss of the objective"));
    }

    #[test]
    fn one_point_is_drawn() {
        let svg = loss_curves(&[json!({"step": 1, "loss": 2.0})]).unwrap();
        assert!(svg.unwrap().contains("<svg"));
    }
}
