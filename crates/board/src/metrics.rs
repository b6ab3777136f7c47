//! What the lines of `metrics.jsonl` say.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::curve::{Curve, Drawn, Point};

/// The file, in a run directory.
pub(crate) const METRICS: &str = "metrics.jsonl";

/// How many curves a run may have; the rest of what a file names is left out.
const MOST_CURVES: usize = 64;

/// A logged step, or an evaluation.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Line {
    pub(crate) step: u64,
    #[serde(default)]
    pub(crate) loss: Number,
    #[serde(default)]
    pub(crate) validation_loss: Number,
    #[serde(default)]
    learning_rate: Number,
    #[serde(default)]
    grad_norm: Number,
    #[serde(default)]
    tokens_per_second: Number,
    #[serde(default)]
    peak_memory: Number,
    #[serde(default)]
    device_memory: Number,
    tokens: Option<u64>,
    pub(crate) seconds: Option<f64>,
    #[serde(default)]
    measures: BTreeMap<String, Number>,
    #[serde(default)]
    validation_measures: BTreeMap<String, Number>,
}

/// What stands under a key.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Number {
    /// The key is not there.
    #[default]
    Absent,
    /// JSON has no other word for what is not finite: `null`.
    NotFinite,
    Finite(f64),
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = Option::<f64>::deserialize(deserializer)?;
        Ok(match number.filter(|number| number.is_finite()) {
            Some(number) => Self::Finite(number),
            None => Self::NotFinite,
        })
    }
}

impl Number {
    pub(crate) fn finite(self) -> Option<f64> {
        match self {
            Self::Finite(number) => Some(number),
            _ => None,
        }
    }
}

impl Line {
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

/// What a run's lines come to: a curve for each key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    curves: BTreeMap<String, Curve>,
    /// Tokens and seconds of the last logged step.
    last: Option<(u64, u64, f64)>,
    /// Lines that are no metrics.
    n_broken: usize,
    /// Lines whose loss is not a finite number.
    n_not_finite: usize,
}

/// The points that lines have brought, by the name of their curve.
pub(crate) type Added = Vec<(String, Point)>;

/// All of a run's curves, as a page is given them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Curves {
    #[serde(rename = "curves")]
    by_name: BTreeMap<String, Drawn>,
    n_broken: usize,
    n_not_finite: usize,
}

impl Metrics {
    /// Takes in a line. Says which points it has brought; a line that is no metrics
    /// brings none, and is counted.
    pub(crate) fn add(&mut self, line: &[u8]) -> Added {
        let Some(line) = Line::parse(line) else {
            self.n_broken += usize::from(!line.is_empty());
            return Added::new();
        };
        let is_finite = |number: Number| number != Number::NotFinite;
        if !is_finite(line.loss) || !is_finite(line.validation_loss) {
            self.n_not_finite += 1;
        }
        let (tokens, seconds) = self.place(&line);
        let mut added = Added::new();
        let mut take = |name: String, number: Number| {
            let Some(value) = number.finite() else { return };
            if !self.curves.contains_key(&name) && self.curves.len() == MOST_CURVES {
                return;
            }
            let step = line.step;
            let point = Point {
                step,
                tokens,
                seconds,
                value,
            };
            self.curves.entry(name.clone()).or_default().push(point);
            added.push((name, point));
        };
        for (name, number) in [
            ("loss", line.loss),
            ("validation_loss", line.validation_loss),
            ("learning_rate", line.learning_rate),
            ("grad_norm", line.grad_norm),
            ("tokens_per_second", line.tokens_per_second),
            ("peak_memory", line.peak_memory),
            ("device_memory", line.device_memory),
        ] {
            take(name.to_owned(), number);
        }
        for (group, measures) in [
            ("measures", &line.measures),
            ("validation_measures", &line.validation_measures),
        ] {
            for (name, number) in measures {
                take(format!("{group}/{name}"), *number);
            }
        }
        added
    }

    /// The tokens and seconds at a line. An evaluation's has none: it stands where the
    /// pace so far puts it.
    fn place(&mut self, line: &Line) -> (Option<u64>, Option<f64>) {
        if let (Some(tokens), Some(seconds)) = (line.tokens, line.seconds) {
            self.last = Some((line.step, tokens, seconds));
        }
        if line.tokens.is_some() || line.seconds.is_some() {
            return (line.tokens, line.seconds);
        }
        match self.last {
            _ if line.step == 0 => (Some(0), Some(0.0)),
            Some((step, tokens, seconds)) if step > 0 => {
                let share = line.step as f64 / step as f64;
                (
                    Some((tokens as f64 * share).round() as u64),
                    Some(seconds * share),
                )
            }
            _ => (None, None),
        }
    }

    /// The last value of a curve.
    pub(crate) fn last(&self, name: &str) -> Option<f64> {
        Some(self.curves.get(name)?.last()?.value)
    }

    pub(crate) fn drawn(&self) -> Curves {
        let curves = self.curves.iter();
        Curves {
            by_name: curves
                .map(|(name, curve)| (name.clone(), curve.drawn()))
                .collect(),
            n_broken: self.n_broken,
            n_not_finite: self.n_not_finite,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(lines: &[&str]) -> Metrics {
        let mut metrics = Metrics::default();
        for line in lines {
            metrics.add(line.as_bytes());
        }
        metrics
    }

    fn points(metrics: &Metrics, name: &str) -> Vec<Point> {
        metrics.drawn().by_name[name].points.clone()
    }

    const STEP: &str = r#"{"step":10,"loss":2.5,"learning_rate":0.1,"grad_norm":1.5,"tokens":100,"tokens_per_second":50.0,"seconds":2.0}"#;

    #[test]
    fn a_logged_step_is_a_point_of_each_of_its_curves() {
        let metrics = metrics(&[STEP]);
        let names: Vec<String> = metrics.drawn().by_name.into_keys().collect();
        assert_eq!(
            names,
            ["grad_norm", "learning_rate", "loss", "tokens_per_second"]
        );
    }

    #[test]
    fn an_evaluation_stands_where_the_pace_puts_it() {
        let metrics = metrics(&[STEP, r#"{"step":15,"validation_loss":2.0}"#]);
        let [point] = points(&metrics, "validation_loss")[..] else {
            panic!("not one point");
        };
        assert_eq!((point.tokens, point.seconds), (Some(150), Some(3.0)));
    }

    #[test]
    fn broken_lines_are_counted_and_the_others_stay() {
        let metrics = metrics(&[
            "{\"step\":",
            "",
            "[1]",
            "{\"step\":-1}",
            "{\"loss\":1}",
            "\u{fffd}",
            STEP,
        ]);
        assert_eq!(metrics.n_broken, 5);
        assert_eq!(points(&metrics, "loss").len(), 1);
    }

    #[test]
    fn a_loss_that_is_not_finite_is_counted_and_no_point() {
        let metrics = metrics(&[STEP, r#"{"step":20,"loss":null,"grad_norm":1.0}"#]);
        assert_eq!(metrics.n_not_finite, 1);
        assert_eq!(points(&metrics, "loss").len(), 1);
        assert_eq!(points(&metrics, "grad_norm").len(), 2);
    }

    #[test]
    fn measures_are_curves_up_to_a_bound() {
        let one = r#"{"step":1,"loss":1.0,"measures":{"rewards/margins":0.5},"validation_measures":{"a":1}}"#;
        let mut metrics = metrics(&[one]);
        assert_eq!(metrics.last("measures/rewards/margins"), Some(0.5));
        for index in 0..1000 {
            metrics.add(format!(r#"{{"step":2,"measures":{{"m{index}":1}}}}"#).as_bytes());
        }
        assert_eq!(metrics.curves.len(), MOST_CURVES);
    }
}
