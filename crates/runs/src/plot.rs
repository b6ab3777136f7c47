//! The pictures of a run.

use olora_pictures::{
    Axis, BLUE, Curves, Figure, GREEN, Line, Marker, ORANGE, Style, Table, VERMILLION, smoothed,
};
use serde_json::Value;

/// The weight of what was before in a smoothed curve: `TensorBoard`'s own.
const SMOOTHING: f64 = 0.6;
/// Of fewer points than these there is no smoothed curve. They are means of many steps each, and a
/// smoothed one would lag behind them by steps in which the loss falls to a half.
const SMOOTHED_FROM: usize = 50;
/// What is smoothed and what is not, beneath a title.
const SMOOTHED: &str =
    "strong: exponential moving average as TensorBoard's, weight 0.6; pale: as logged";
const UNIT: &str = "nats per trained token";

type Points = Vec<(f64, f64)>;

/// A picture, and a table of what it shows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Picture {
    /// Of its files, without their ends.
    pub(crate) name: &'static str,
    pub(crate) figure: Figure,
    pub(crate) table: Table,
}

/// All pictures that there is something to show in.
pub(crate) fn pictures(metrics: &[Value]) -> Vec<Picture> {
    [loss(metrics), rewards(metrics), accuracy(metrics)]
        .into_iter()
        .filter(|picture| !picture.figure.is_empty())
        .collect()
}

/// What a key says by step.
fn by_step(metrics: &[Value], group: Option<&str>, key: &str) -> Points {
    let value = |line: &Value| match group {
        None => line[key].as_f64(),
        Some(group) => line[group][key].as_f64(),
    };
    metrics
        .iter()
        .filter_map(|line| Some((line["step"].as_f64()?, value(line)?)))
        .collect()
}

/// Lines under way, with the columns of the table.
#[derive(Default)]
struct Lines {
    lines: Vec<Line>,
    columns: Vec<(String, Points)>,
}

impl Lines {
    /// What is measured with each step: as logged, pale, and smoothed.
    fn add_training(&mut self, name: &str, style: Style, unit: &str, points: Points) {
        if points.len() < SMOOTHED_FROM {
            let line = Line::new(name, style, points.clone());
            self.lines.push(line);
            self.columns.push((format!("{name} ({unit})"), points));
            return;
        }
        let smooth = smoothed(&points, SMOOTHING);
        self.lines
            .push(Line::nameless(style.paler(), points.clone()));
        let named = format!("{name}, smoothed {SMOOTHING}");
        let line = Line::new(named, style.unmarked(), smooth.clone());
        self.lines.push(line);
        self.columns.push((format!("{name} ({unit})"), points));
        let named = format!("{name} smoothed {SMOOTHING} ({unit})");
        self.columns.push((named, smooth));
    }

    /// What is measured now and then, on data that is held out.
    fn add_validation(&mut self, name: &str, unit: &str, points: Points) {
        let style = Style::plain(VERMILLION).marked(Marker::Circle);
        self.lines.push(Line::new(name, style, points.clone()));
        self.columns.push((format!("{name} ({unit})"), points));
    }

    fn picture(self, name: &'static str, title: &str, y: Axis) -> Picture {
        let columns: Vec<(String, &[(f64, f64)])> = self
            .columns
            .iter()
            .map(|(name, points)| (name.clone(), points.as_slice()))
            .collect();
        let table = Table::by_x("step", &columns);
        let is_smoothed = self.lines.iter().any(|line| line.name.is_none());
        let figure = Figure::single(Curves {
            title: title.to_owned(),
            note: if is_smoothed { SMOOTHED } else { "" }.to_owned(),
            x: Axis::whole("step").showing(0.0, 0.0),
            y,
            lines: self.lines,
        });
        Picture {
            name,
            figure,
            table,
        }
    }
}

fn training_style() -> Style {
    Style::plain(BLUE).marked(Marker::Square)
}

/// Training and validation loss over steps.
fn loss(metrics: &[Value]) -> Picture {
    let is_other = metrics.iter().any(|line| line.get("measures").is_some());
    let (title, unit, axis) = if is_other {
        (
            "Loss of the objective",
            "objective",
            "loss of the objective".to_owned(),
        )
    } else {
        ("Loss per trained token", UNIT, format!("loss, {UNIT}"))
    };
    let mut lines = Lines::default();
    let training = by_step(metrics, None, "loss");
    lines.add_training("training", training_style(), unit, training);
    let validation = by_step(metrics, None, "validation_loss");
    lines.add_validation("validation", unit, validation);
    lines.picture("loss", title, Axis::new(axis))
}

/// Rewards of chosen and rejected answers over steps, and their difference.
fn rewards(metrics: &[Value]) -> Picture {
    const UNIT: &str = "beta times nats";
    let mut lines = Lines::default();
    let chosen = Style::plain(GREEN).dashed("8 3").marked(Marker::Triangle);
    let rejected = Style::plain(ORANGE)
        .dashed("3 2")
        .marked(Marker::TriangleDown);
    for (name, style, key) in [
        ("chosen", chosen, "rewards/chosen"),
        ("rejected", rejected, "rewards/rejected"),
        ("margin", training_style(), "rewards/margins"),
    ] {
        let points = by_step(metrics, Some("measures"), key);
        lines.add_training(name, style, UNIT, points);
    }
    let margin = by_step(metrics, Some("validation_measures"), "rewards/margins");
    lines.add_validation("validation margin", UNIT, margin);
    let axis = Axis::linear("reward, beta times nats");
    lines.picture("rewards", "Rewards", axis)
}

/// The share of pairs whose chosen answer has the higher reward, over steps.
fn accuracy(metrics: &[Value]) -> Picture {
    const KEY: &str = "rewards/accuracies";
    const UNIT: &str = "share of pairs";
    let mut lines = Lines::default();
    let training = by_step(metrics, Some("measures"), KEY);
    lines.add_training("training", training_style(), UNIT, training);
    let validation = by_step(metrics, Some("validation_measures"), KEY);
    lines.add_validation("validation", UNIT, validation);
    let title = "Pairs whose chosen answer has the higher reward";
    let axis = Axis::linear("share of pairs").showing(0.0, 1.0);
    lines.picture("accuracy", title, axis)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(metrics: &[Value]) -> Vec<&'static str> {
        pictures(metrics)
            .iter()
            .map(|picture| picture.name)
            .collect()
    }

    fn svg(picture: &Picture) -> String {
        picture.figure.svg().unwrap()
    }

    /// As of a run that was interrupted before it logged anything.
    #[test]
    fn nothing_is_drawn_of_nothing() {
        assert_eq!(pictures(&[]), []);
        assert_eq!(pictures(&[json!({"step": 3})]), []);
    }

    #[test]
    fn rewards_are_drawn_where_there_are_any() {
        let supervised = [json!({"step": 1, "loss": 2.0})];
        assert_eq!(names(&supervised), ["loss"]);
        let of = json!({"rewards/margins": 0.5, "rewards/accuracies": 1.0});
        let compared = [json!({"step": 1, "loss": 2.0, "measures": of})];
        assert_eq!(names(&compared), ["loss", "rewards", "accuracy"]);
        assert!(svg(&loss(&compared)).contains("Loss of the objective"));
    }

    #[test]
    fn one_point_is_drawn() {
        let picture = loss(&[json!({"step": 1, "loss": 2.0})]);
        assert!(svg(&picture).contains("<svg"));
    }

    #[test]
    fn what_is_smoothed_is_said_to_be() {
        let lines = |n: u32| -> Vec<Value> {
            let line = |step: u32| json!({"step": step, "loss": 3.0 / f64::from(step)});
            (1..=n).map(line).collect()
        };
        let said = "training, smoothed 0.6";
        assert!(svg(&loss(&lines(60))).contains(said));
        let few = svg(&loss(&lines(20)));
        assert!(!few.contains("smoothed") && few.contains("training"));
    }

    /// What is logged and what is evaluated at one step are two lines of the metrics.
    #[test]
    fn the_table_has_what_the_picture_shows() {
        let metrics = [
            json!({"step": 0, "validation_loss": 3.5}),
            json!({"step": 2, "loss": 0.1 + 0.2}),
            json!({"step": 2, "validation_loss": 2.5}),
        ];
        assert_eq!(
            loss(&metrics).table.csv(),
            "step,training (nats per trained token),validation (nats per trained token)\n0,,3.5\n\
             2,0.30000000000000004,2.5\n"
        );
    }
}
