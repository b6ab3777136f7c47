//! `training.learning_rate`: a number, or one that is to be found.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, Visitor},
};

/// A learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// This one.
    Value(f64),
    /// One that is found before the first step, and stands in the run's own
    /// recipe from then on.
    Auto,
}

/// What is usual where nothing is known: PEFT's examples and most tools' default.
const USUAL: f64 = 2e-4;
/// A rate that is to be found.
const AUTO: &str = "auto";

impl Rate {
    /// The number, if it is one.
    pub fn value(self) -> Option<f64> {
        match self {
            Self::Value(value) => Some(value),
            Self::Auto => None,
        }
    }

    /// The number, or a usual one in the place of one that is to be found.
    pub fn or_usual(self) -> f64 {
        self.value().unwrap_or(USUAL)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => write!(f, "{value:e}"),
            Self::Auto => f.write_str(AUTO),
        }
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Value(value) => serializer.serialize_f64(*value),
            Self::Auto => serializer.serialize_str(AUTO),
        }
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RateVisitor;
        impl Visitor<'_> for RateVisitor {
            type Value = Rate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, or \"auto\"")
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Rate, E> {
                Ok(Rate::Value(value))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Rate, E> {
                Ok(Rate::Value(value as f64))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Rate, E> {
                Ok(Rate::Value(value as f64))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Rate, E> {
                match text {
                    AUTO => Ok(Rate::Auto),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }
        }
        deserializer.deserialize_any(RateVisitor)
    }
}
