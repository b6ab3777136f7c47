//! Few points of many.

use serde::{Serialize, Serializer};

/// Stretches that a curve is kept in. Each is drawn by two points at most, so that a
/// curve has 2002 in all; a screen has about as many columns.
const MOST: usize = 1000;

/// A value, and where in its run it stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    pub(crate) step: u64,
    pub(crate) tokens: Option<u64>,
    pub(crate) seconds: Option<f64>,
    pub(crate) value: f64,
}

impl Serialize for Point {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.step, self.tokens, self.seconds, self.value).serialize(serializer)
    }
}

/// A curve of any length in bounded memory: as many points in a row as the stride says
/// are one stretch, of which the lowest, the highest and the mean are kept. When there
/// are too many stretches, each two become one.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    stride: usize,
    stretches: Vec<Stretch>,
    ends: Option<(Point, Point)>,
}

#[derive(Clone, Debug)]
struct Stretch {
    low: Point,
    high: Point,
    last: Point,
    sum: f64,
    n: usize,
}

/// What is drawn of a curve.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Drawn {
    /// All points, or the lowest and the highest of each stretch, with the first and
    /// the last of all.
    pub(crate) points: Vec<Point>,
    /// The mean of each stretch, unless all points are there. What is smoothed is
    /// this: the lowest and the highest say nothing of what is between.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) means: Option<Vec<Point>>,
}

impl Default for Curve {
    fn default() -> Self {
        Self {
            stride: 1,
            stretches: Vec::new(),
            ends: None,
        }
    }
}

impl Curve {
    pub(crate) fn push(&mut self, point: Point) {
        self.ends = Some((self.ends.map_or(point, |(first, _)| first), point));
        if let Some(stretch) = self.stretches.last_mut()
            && stretch.n < self.stride
        {
            return stretch.join(&Stretch::of(point));
        }
        if self.stretches.len() == MOST {
            self.stretches = self
                .stretches
                .chunks(2)
                .map(|pair| {
                    let mut joined = pair[0].clone();
                    for other in &pair[1..] {
                        joined.join(other);
                    }
                    joined
                })
                .collect();
            self.stride *= 2;
        }
        self.stretches.push(Stretch::of(point));
    }

    pub(crate) fn last(&self) -> Option<Point> {
        self.ends.map(|(_, last)| last)
    }

    pub(crate) fn drawn(&self) -> Drawn {
        let mut points = Vec::with_capacity(2 * self.stretches.len() + 2);
        for Stretch { low, high, n, .. } in &self.stretches {
            if *n == 1 {
                points.push(*low);
            } else if low.step <= high.step {
                points.extend([*low, *high]);
            } else {
                points.extend([*high, *low]);
            }
        }
        if self.stride == 1 {
            return Drawn {
                points,
                means: None,
            };
        }
        if let Some((first, last)) = self.ends {
            if points.first() != Some(&first) {
                points.insert(0, first);
            }
            if points.last() != Some(&last) {
                points.push(last);
            }
        }
        let means = self.stretches.iter().map(Stretch::mean).collect();
        Drawn {
            points,
            means: Some(means),
        }
    }
}

impl Stretch {
    fn of(point: Point) -> Self {
        Self {
            low: point,
            high: point,
            last: point,
            sum: point.value,
            n: 1,
        }
    }

    /// Takes in what follows.
    fn join(&mut self, next: &Self) {
        if next.low.value < self.low.value {
            self.low = next.low;
        }
        if next.high.value > self.high.value {
            self.high = next.high;
        }
        self.last = next.last;
        self.sum += next.sum;
        self.n += next.n;
    }

    fn mean(&self) -> Point {
        Point {
            value: self.sum / self.n as f64,
            ..self.last
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(step: u64, value: f64) -> Point {
        Point {
            step,
            tokens: Some(10 * step),
            seconds: None,
            value,
        }
    }

    #[test]
    fn a_short_curve_is_kept_as_it_is() {
        let mut curve = Curve::default();
        let points: Vec<Point> = (0..1000).map(|step| point(step, step as f64)).collect();
        for point in &points {
            curve.push(*point);
        }
        assert_eq!(
            curve.drawn(),
            Drawn {
                points,
                means: None
            }
        );
    }

    #[test]
    fn the_ends_the_lowest_and_the_highest_of_a_million_points_stay() {
        let mut curve = Curve::default();
        for step in 0..1_000_000 {
            let value = match step {
                333_333 => -7.0,
                777_777 => 9.0,
                _ => f64::from(step as u32 % 2),
            };
            curve.push(point(step, value));
        }
        let Drawn { points, means } = curve.drawn();
        assert!(points.len() <= 2 * MOST + 2, "{}", points.len());
        for kept in [
            point(0, 0.0),
            point(333_333, -7.0),
            point(777_777, 9.0),
            point(999_999, 1.0),
        ] {
            assert!(points.contains(&kept), "{kept:?}");
        }
        assert!(points.is_sorted_by_key(|point| point.step));
        let means = means.unwrap();
        assert!((means[0].value - 0.5).abs() < 1e-9, "{:?}", means[0]);
    }

    #[test]
    fn a_point_is_four_numbers() {
        let text = serde_json::to_string(&point(2, 0.5)).unwrap();
        assert_eq!(text, "[2,20,null,0.5]");
    }
}
