//! `model.resize_embeddings`: `true`, a number, or a table.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, Visitor},
    ser::SerializeMap,
};

/// How many rows embedding and vocabulary projection are to have. A model that
/// has as many keeps its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResizeEmbeddings {
    /// As many as the model has.
    #[default]
    No,
    /// One for each token of the tokenizer.
    Tokens,
    /// So many, and one for each token.
    AtLeast(usize),
    /// One for each token, and on to the next multiple.
    ToMultipleOf(usize),
}

const MULTIPLE: &str = "pad_to_multiple_of";

impl ResizeEmbeddings {
    /// Whether the model is left as it is.
    pub fn is_no(&self) -> bool {
        *self == Self::No
    }

    /// The rows for a tokenizer of so many tokens, if the model may be resized.
    pub fn rows(self, n_tokens: usize) -> Option<usize> {
        match self {
            Self::No => None,
            Self::Tokens => Some(n_tokens),
            Self::AtLeast(rows) => Some(rows.max(n_tokens)),
            Self::ToMultipleOf(multiple) => Some(n_tokens.next_multiple_of(multiple.max(1))),
        }
    }
}

impl Serialize for ResizeEmbeddings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::No => serializer.serialize_bool(false),
            Self::Tokens => serializer.serialize_bool(true),
            Self::AtLeast(rows) => serializer.serialize_u64(*rows as u64),
            Self::ToMultipleOf(multiple) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry(MULTIPLE, multiple)?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for ResizeEmbeddings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Asked;
        impl<'de> Visitor<'de> for Asked {
            type Value = ResizeEmbeddings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, a number of rows, or { pad_to_multiple_of = 64 }")
            }

            fn visit_bool<E: Error>(self, whether: bool) -> Result<ResizeEmbeddings, E> {
                Ok(if whether {
                    ResizeEmbeddings::Tokens
                } else {
                    ResizeEmbeddings::No
                })
            }

            fn visit_u64<E: Error>(self, rows: u64) -> Result<ResizeEmbeddings, E> {
                // What no machine counts to is beyond the bound that is checked later.
                Ok(ResizeEmbeddings::AtLeast(
                    usize::try_from(rows).unwrap_or(usize::MAX),
                ))
            }

            fn visit_i64<E: Error>(self, rows: i64) -> Result<ResizeEmbeddings, E> {
                let rows = u64::try_from(rows)
                    .map_err(|_| E::custom(format!("{rows} is no number of rows")))?;
                self.visit_u64(rows)
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<ResizeEmbeddings, A::Error> {
                let mut found = None;
                while let Some(key) = map.next_key::<String>()? {
                    if key != MULTIPLE {
                        return Err(A::Error::unknown_field(&key, &[MULTIPLE]));
                    }
                    found = Some(map.next_value()?);
                }
                let multiple = found.ok_or_else(|| A::Error::missing_field(MULTIPLE))?;
                Ok(ResizeEmbeddings::ToMultipleOf(multiple))
            }
        }
        deserializer.deserialize_any(Asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Recipe;

    const MINIMAL: &str = "name = \"x\"\n[model]\npath = \"m\"\n[data]\ntrain = \"d\"\n";

    fn parsed(value: &str) -> Result<Recipe, String> {
        let overrides = [
            "training.max_steps=1".to_owned(),
            format!("model.resize_embeddings={value}"),
        ];
        Recipe::parse(MINIMAL, "recipe.toml", &overrides).map_err(|error| error.to_string())
    }

    #[test]
    fn each_form_is_read_and_written_again() {
        for (value, expected, rows) in [
            ("false", ResizeEmbeddings::No, None),
            ("true", ResizeEmbeddings::Tokens, Some(1027)),
            ("1000", ResizeEmbeddings::AtLeast(1000), Some(1027)),
            ("2000", ResizeEmbeddings::AtLeast(2000), Some(2000)),
            (
                "{ pad_to_multiple_of = 64 }",
                ResizeEmbeddings::ToMultipleOf(64),
                Some(1088),
            ),
        ] {
            let recipe = parsed(value).unwrap();
            assert_eq!(recipe.model.resize_embeddings, expected);
            assert_eq!(expected.rows(1027), rows);
            let text = recipe.to_toml().unwrap();
            let again = Recipe::parse(&text, "written", &[]).unwrap();
            assert_eq!(again, recipe, "{text}");
            assert_eq!(text.contains("resize_embeddings"), !expected.is_no());
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (value, part) in [
            ("0", "between 1 and"),
            ("-3", "no number of rows"),
            ("99999999", "between 1 and"),
            ("\"auto\"", "true, a number of rows, or"),
            ("{ pad_to_multiple_of = 0 }", "between 1 and"),
            ("{ multiple = 8 }", "pad_to_multiple_of"),
            ("{}", "pad_to_multiple_of"),
        ] {
            let error = parsed(value).unwrap_err();
            assert!(error.contains(part), "{value}: {error}");
        }
        let half = ["model.resize_embeddings=true", "model.dtype=bfloat16"].map(str::to_owned);
        let error = Recipe::parse(MINIMAL, "recipe.toml", &half).unwrap_err();
        assert!(error.to_string().contains("float32"), "{error}");
    }
}
