//! The picture of a run.

use plotters::prelude::*;
use serde_json::Value;

use crate::RunError;

const SIZE: (u32, u32) = (800, 480);
const TRAIN: RGBColor = RGBColor(0x4c, 0x78, 0xa8);
const VALIDATION: RGBColor = RGBColor(0xe4, 0x57, 0x56);

/// Training and validation loss over steps, as SVG; `None` while there is
/// neither: `plotters` looks for ticks for ever where no range is given.
pub(crate) fn loss_curves(metrics: &[Value]) -> Result<Option<String>, RunError> {
    let series = |key: &str| -> Vec<(f64, f64)> {
        metrics
            .iter()
            .filter_map(|line| Some((line["step"].as_f64()?, line[key].as_f64()?)))
            .collect()
    };
    let (train, validation) = (series("loss"), series("validation_loss"));
    if train.is_empty() && validation.is_empty() {
        return Ok(None);
    }
    let mut svg = String::new();
    draw(&mut svg, &train, &validation)
        .map_err(|error| RunError::burn(&format!("drawing loss.svg: {error}")))?;
    Ok(Some(svg))
}

fn draw(
    svg: &mut String,
    train: &[(f64, f64)],
    validation: &[(f64, f64)],
) -> Result<(), Box<dyn std::error::Error>> {
    let all = || train.iter().chain(validation);
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
        .caption("Loss per trained token (nats)", ("sans-serif", 20))
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..last, (low - margin)..(high + margin))?;
    chart
        .configure_mesh()
        .x_desc("step")
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|loss| format!("{loss:.2}"))
        .light_line_style(WHITE)
        .draw()?;
    for (name, points, color) in [
        ("training", train, TRAIN),
        ("validation", validation, VALIDATION),
    ] {
        if points.is_empty() {
            continue;
        }
        chart
            .draw_series(LineSeries::new(
                points.iter().copied(),
                color.stroke_width(2),
            ))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
    }
    chart.draw_series(
        validation
            .iter()
            .map(|&point| Circle::new(point, 3, VALIDATION.filled())),
    )?;
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
    fn one_point_is_drawn() {
        let svg = loss_curves(&[json!({"step": 1, "loss": 2.0})]).unwrap();
        assert!(svg.unwrap().contains("<svg"));
    }
}
