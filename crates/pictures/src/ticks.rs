//! The marks of an axis: 1, 2 and 5 times powers of ten, as many as there is room for.

use crate::{Notation, axis::Span, text::width};

/// The size of labels.
pub(crate) const LABEL: f64 = 11.0;

/// Tenths of powers of ten, and of which powers: of each, of every second …
type Set = (&'static [i64], i32);

const SETS: [Set; 10] = [
    (&[10, 20, 50], 1),
    (&[10, 30], 1),
    (&[10], 1),
    (&[10], 2),
    (&[10], 3),
    (&[10], 5),
    (&[10], 10),
    (&[10], 20),
    (&[10], 50),
    (&[10], 100),
];
const FINER: [Set; 2] = [
    (&[10, 15, 20, 30, 40, 50, 60, 80], 1),
    (&[10, 15, 20, 30, 50, 70], 1),
];

/// Which way an axis goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Way {
    Across,
    Up,
}

/// A mark with its label; a share of the axis's length.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tick {
    pub(crate) share: f64,
    pub(crate) label: String,
}

/// All marks of an axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Ticks {
    pub(crate) labelled: Vec<Tick>,
    /// Those of a logarithmic axis that show how it goes on in between.
    pub(crate) others: Vec<f64>,
}

impl Span {
    /// The marks of an axis of so many pixels.
    pub(crate) fn ticks(&self, length: f64, way: Way) -> Ticks {
        if !self.log {
            return Ticks {
                labelled: self.even(length, way),
                others: Vec::new(),
            };
        }
        // Over a few powers of ten 1, 2 and 5 are enough; over less there would be one or two of them.
        let mut labelled = self.densest(&SETS, length, way);
        if labelled.len() < 4 {
            let finer = self.densest(&FINER, length, way);
            if finer.len() > labelled.len() {
                labelled = finer;
            }
        }
        if labelled.len() < 3 {
            let even = self.even(length, way);
            if even.len() > labelled.len() {
                labelled = even;
            }
        }
        let decades = (self.high / self.low).log10();
        let others = if decades < 6.0 {
            let all = self.multiples(&[10, 20, 30, 40, 50, 60, 70, 80, 90], 1);
            all.into_iter().map(|value| self.share(value)).collect()
        } else {
            Vec::new()
        };
        Ticks { labelled, others }
    }

    /// The densest of some sets whose labels do not touch; the first is the densest.
    fn densest(&self, sets: &[Set], length: f64, way: Way) -> Vec<Tick> {
        for (tenths, every) in sets {
            let ticks: Vec<Tick> = self
                .multiples(tenths, *every)
                .into_iter()
                .map(|value| self.tick(value, self.written(value)))
                .collect();
            if fits(&ticks, length, way) {
                return ticks;
            }
        }
        Vec::new()
    }

    /// So many tenths of powers of ten, of which every so manieth, as far as they are within.
    fn multiples(&self, tenths: &[i64], every: i32) -> Vec<f64> {
        let first = self.low.log10().floor() as i32;
        let last = self.high.log10().ceil() as i32;
        let powers = (first..=last).filter(|power| power.rem_euclid(every) == 0);
        powers
            .flat_map(|power| tenths.iter().map(move |&digits| decimal(digits, power - 1)))
            .filter(|value| self.contains(*value))
            .collect()
    }

    /// Multiples of 1, 2 or 5 times a power of ten, the densest whose labels do not touch.
    fn even(&self, length: f64, way: Way) -> Vec<Tick> {
        // Nearer than this they would tell no more.
        let nearest = match way {
            Way::Across => 50.0,
            Way::Up => 32.0,
        };
        let finest = (self.high - self.low) * nearest / length;
        let power = finest.log10().floor() as i32;
        let steps = (power..power + 12).flat_map(|power| [(1, power), (2, power), (5, power)]);
        for (mantissa, power) in steps {
            let step = decimal(mantissa, power);
            if step < finest || (self.notation == Notation::Whole && power < 0) {
                continue;
            }
            let first = (self.low / step - 1e-9).ceil() as i64;
            let last = (self.high / step + 1e-9).floor() as i64;
            let ticks: Vec<Tick> = (first..=last)
                .map(|times| {
                    let value = decimal(times.saturating_mul(mantissa), power);
                    let decimals = usize::try_from(-power).unwrap_or(0);
                    let label = if self.notation == Notation::Exponent
                        || decimals > 5
                        || value.abs() >= 1e7
                    {
                        format!("{value:e}")
                    } else {
                        format!("{value:.decimals$}")
                    };
                    self.tick(value, label)
                })
                .collect();
            if fits(&ticks, length, way) {
                return ticks;
            }
        }
        Vec::new()
    }

    fn tick(&self, value: f64, label: String) -> Tick {
        Tick {
            share: self.share(value),
            label,
        }
    }

    fn contains(&self, value: f64) -> bool {
        let share = self.share(value);
        (-1e-9..=1.0 + 1e-9).contains(&share)
    }

    fn written(&self, value: f64) -> String {
        let short = (1e-4..1e6).contains(&value);
        if short && self.notation != Notation::Exponent {
            value.to_string()
        } else {
            format!("{value:e}")
        }
    }
}

/// A number as its digits are read, without what a product would add to the last.
fn decimal(digits: i64, power: i32) -> f64 {
    format!("{digits}e{power}").parse().unwrap_or_default()
}

/// Whether no label touches the one before it.
fn fits(ticks: &[Tick], length: f64, way: Way) -> bool {
    let extent = |tick: &Tick| match way {
        Way::Across => width(&tick.label, LABEL) + 10.0,
        Way::Up => 1.6 * LABEL,
    };
    ticks.windows(2).all(|pair| {
        let apart = (pair[1].share - pair[0].share) * length;
        apart >= 0.5 * (extent(&pair[0]) + extent(&pair[1]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Axis;

    fn labels(axis: &Axis, low: f64, high: f64, length: f64, way: Way) -> Vec<String> {
        let span = axis.span([low, high].into_iter(), 0.0).unwrap();
        let ticks = span.ticks(length, way).labelled;
        ticks.into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn logarithmic_axes_are_marked_at_1_2_and_5() {
        let loss = Axis::new("loss");
        assert_eq!(
            labels(&loss, 0.03, 3.0, 300.0, Way::Up),
            ["0.05", "0.1", "0.2", "0.5", "1", "2"]
        );
        let rate = Axis::rate("rate");
        assert_eq!(
            labels(&rate, 5e-4, 1e-2, 400.0, Way::Across),
            ["5e-4", "1e-3", "2e-3", "5e-3", "1e-2"]
        );
    }

    #[test]
    fn many_powers_of_ten_are_marked_sparsely() {
        let loss = Axis::new("loss");
        assert_eq!(
            labels(&loss, 1e-9, 1.0, 120.0, Way::Up),
            ["1e-8", "1e-6", "0.0001", "0.01", "1"]
        );
    }

    #[test]
    fn less_than_a_power_of_ten_has_marks_at_both_ends() {
        let loss = Axis::new("loss");
        assert_eq!(
            labels(&loss, 0.6, 3.1, 380.0, Way::Up),
            ["0.6", "0.8", "1", "1.5", "2", "3"]
        );
    }

    #[test]
    fn a_logarithmic_axis_over_little_is_marked_evenly() {
        let rate = Axis {
            notation: Notation::Plain,
            ..Axis::rate("loss")
        };
        assert_eq!(
            labels(&rate, 0.11, 0.15, 200.0, Way::Up),
            ["0.11", "0.12", "0.13", "0.14", "0.15"]
        );
    }

    #[test]
    fn even_axes_are_marked_at_round_numbers() {
        let step = Axis::whole("step");
        assert_eq!(
            labels(&step, 0.0, 168.0, 400.0, Way::Across),
            ["0", "50", "100", "150"]
        );
        assert_eq!(
            labels(&step, 0.0, 3.0, 700.0, Way::Across),
            ["0", "1", "2", "3"],
            "there are no halves of a step"
        );
        assert_eq!(
            labels(&Axis::linear("reward"), -0.1, 0.1, 200.0, Way::Up),
            ["-0.10", "-0.05", "0.00", "0.05", "0.10"]
        );
    }

    #[test]
    fn labels_never_touch() {
        for high in [1.0, 7.0, 168.0, 5e3, 1.23e5, 9.9e6, 4e9] {
            for length in [60.0, 300.0, 700.0] {
                for axis in [Axis::whole("step"), Axis::linear("time"), Axis::new("loss")] {
                    for way in [Way::Across, Way::Up] {
                        let span = axis.span([0.01, high].into_iter(), 0.0).unwrap();
                        let ticks = span.ticks(length, way).labelled;
                        assert!(fits(&ticks, length, way), "{high} over {length}: {ticks:?}");
                    }
                }
            }
        }
    }
}
