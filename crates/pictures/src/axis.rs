//! What an axis shows.

/// So much as this has the largest value to be of the smallest for an axis to be logarithmic.
const LOG_FROM: f64 = 4.0;
/// Beyond this, differences and ratios of values might not be finite.
const LARGEST: f64 = 1e150;

/// How values become places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Logarithmic if all values are above zero and the largest is more than four
    /// times the smallest, so that what happens at the small end is seen.
    Auto,
    /// Even.
    Linear,
    /// Logarithmic, unless a value is not above zero.
    Log,
}

/// How values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// 0.05
    Plain,
    /// Whole numbers alone.
    Whole,
    /// 5e-2
    Exponent,
}

/// An axis: what it shows, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// With its unit.
    pub name: String,
    /// How values become places.
    pub scale: Scale,
    /// How values are written.
    pub notation: Notation,
    /// What it shows whatever the values are.
    pub shows: Option<(f64, f64)>,
}

impl Axis {
    /// Of numbers that may reach over powers of ten.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            scale: Scale::Auto,
            notation: Notation::Plain,
            shows: None,
        }
    }

    /// Of times, sizes and shares.
    pub fn linear(name: impl Into<String>) -> Self {
        Self {
            scale: Scale::Linear,
            ..Self::new(name)
        }
    }

    /// Of counts, such as steps.
    pub fn whole(name: impl Into<String>) -> Self {
        Self {
            notation: Notation::Whole,
            ..Self::linear(name)
        }
    }

    /// Of what is tried by factors, such as learning rates.
    pub fn rate(name: impl Into<String>) -> Self {
        Self {
            scale: Scale::Log,
            notation: Notation::Exponent,
            ..Self::new(name)
        }
    }

    /// Shows a range in any case.
    #[must_use]
    pub fn showing(self, low: f64, high: f64) -> Self {
        Self {
            shows: Some((low, high)),
            ..self
        }
    }

    /// The range of some values with a margin on both sides, as a share of it; `None` if no value
    /// can be drawn.
    pub(crate) fn span(&self, values: impl Iterator<Item = f64>, margin: f64) -> Option<Span> {
        let mut values: Vec<f64> = values.filter(|value| drawable(*value)).collect();
        if values.is_empty() {
            return None;
        }
        values.extend(self.shows.iter().flat_map(|(low, high)| [*low, *high]));
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let can_be_log = low > 1.0 / LARGEST;
        let log = can_be_log
            && match self.scale {
                Scale::Auto => high > LOG_FROM * low,
                Scale::Linear => false,
                Scale::Log => true,
            };
        let (low, high) = match (log, low < high) {
            (true, true) => {
                let beyond = (high / low).powf(margin);
                (low / beyond, high * beyond)
            }
            (true, false) => (0.5 * low, 2.0 * high),
            (false, true) => {
                let beyond = margin * (high - low);
                (low - beyond, high + beyond)
            }
            (false, false) if self.notation == Notation::Whole => (low, high + 1.0),
            (false, false) => {
                let beyond = if low == 0.0 { 1.0 } else { 0.5 * low.abs() };
                (low - beyond, high + beyond)
            }
        };
        let notation = self.notation;
        Some(Span {
            log,
            low,
            high,
            notation,
        })
    }
}

/// Whether a value has a place on an axis.
pub(crate) fn drawable(value: f64) -> bool {
    value.abs() < LARGEST
}

/// What an axis reaches over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Span {
    pub(crate) log: bool,
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) notation: Notation,
}

impl Span {
    /// The same with a share of the axis left free at its higher end.
    pub(crate) fn with_room_above(self, share: f64) -> Self {
        let beyond = share / (1.0 - share);
        let high = if self.log {
            self.high * (self.high / self.low).powf(beyond)
        } else {
            self.high + beyond * (self.high - self.low)
        };
        Self { high, ..self }
    }

    /// How far a value is on the way from the lower end to the higher.
    pub(crate) fn share(&self, value: f64) -> f64 {
        if self.log {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_log(axis: &Axis, values: &[f64]) -> bool {
        axis.span(values.iter().copied(), 0.05).unwrap().log
    }

    #[test]
    fn an_axis_is_logarithmic_where_the_small_end_would_be_lost() {
        let axis = Axis::new("loss");
        assert!(is_log(&axis, &[5.1, 0.03]));
        assert!(is_log(&axis, &[4.1, 1.0]));
        assert!(!is_log(&axis, &[3.9, 1.0]), "within a factor of four");
        assert!(!is_log(&axis, &[5.0, 0.0]), "there is a zero");
        assert!(!is_log(&axis, &[5.0, -0.1]), "a value is below zero");
        assert!(!is_log(&Axis::linear("step"), &[1.0, 1000.0]));
        assert!(is_log(&Axis::rate("rate"), &[1e-3, 2e-3]));
    }

    #[test]
    fn one_value_has_a_range_around_it() {
        for (axis, value) in [
            (Axis::new("loss"), 2.0),
            (Axis::new("loss"), 0.0),
            (Axis::rate("rate"), 1e-3),
        ] {
            let span = axis.span([value].into_iter(), 0.05).unwrap();
            let share = span.share(value);
            assert!((share - 0.5).abs() < 1e-9, "{share} of {value}");
        }
    }

    #[test]
    fn what_is_left_free_above_is_above_all_values() {
        for values in [[0.0, 1.0], [1.0, 100.0]] {
            let span = Axis::new("loss").span(values.into_iter(), 0.0).unwrap();
            let highest = span.with_room_above(0.2).share(values[1]);
            assert!((highest - 0.8).abs() < 1e-9, "{highest} of {values:?}");
        }
    }

    #[test]
    fn what_is_no_number_is_not_drawn() {
        let none = [f64::NAN, f64::INFINITY, f64::MAX];
        assert_eq!(Axis::new("loss").span(none.into_iter(), 0.05), None);
    }
}
