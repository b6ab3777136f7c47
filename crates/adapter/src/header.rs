//! The header of a safetensors file, looked through before it is read: the
//! library takes the last of two tensors of one name, and makes what the header
//! claims before it is compared with the file.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// A JSON object of which no key is there twice: where one is, readers differ
/// in which of its values they take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UniqueMap<V>(pub BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Keys<V> {
            type Value = UniqueMap<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((key, value)) = entries.next_entry::<String, V>()? {
                    if map.contains_key(&key) {
                        return Err(A::Error::custom(format!("`{key}` is there twice")));
                    }
                    map.insert(key, value);
                }
                Ok(UniqueMap(map))
            }
        }
        deserializer.deserialize_map(Keys(PhantomData))
    }
}

/// What a header says of one tensor, of which only the number of dimensions
/// matters here. Of the file's own notes too, which have none.
struct About;

impl<'de> Deserialize<'de> for About {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = About;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<About, A::Error> {
                while let Some(field) = fields.next_key::<String>()? {
                    if field == "shape" {
                        fields.next_value::<Shape>()?;
                    } else {
                        fields.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(About)
            }

            // mlx writes this for notes that it has not got.
            fn visit_unit<E: Error>(self) -> Result<About, E> {
                Ok(About)
            }
        }
        deserializer.deserialize_any(Fields)
    }
}

struct Shape;

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sizes;
        impl<'de> Visitor<'de> for Sizes {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of sizes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sizes: A) -> Result<Shape, A::Error> {
                const MOST: usize = 16;
                let mut n = 0;
                while sizes.next_element::<IgnoredAny>()?.is_some() {
                    n += 1;
                    if n > MOST {
                        let reason = format!("a tensor has more than {MOST} dimensions");
                        return Err(A::Error::custom(reason));
                    }
                }
                Ok(Shape)
            }

            // A note of the file may have this name.
            fn visit_str<E: Error>(self, _: &str) -> Result<Shape, E> {
                Ok(Shape)
            }
        }
        deserializer.deserialize_any(Sizes)
    }
}

/// Refuses the bytes of a safetensors file whose header has a tensor twice, a
/// shape without end, or is larger than any model's. What else is wrong with
/// it, the library says.
///
/// # Errors
///
/// What is wrong, in words.
pub fn check_header(bytes: &[u8]) -> Result<(), String> {
    /// That of ten thousand tensors has one megabyte.
    const MOST: u64 = 32 << 20;
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Ok(());
    };
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length)
        .ok()
        .and_then(|length| rest.get(..length));
    let Some(header) = header else {
        return Ok(());
    };
    if length > MOST {
        return Err(format!(
            "its header has {length} bytes, but that of a model has at most {MOST}"
        ));
    }
    serde_json::from_slice::<UniqueMap<About>>(header)
        .map(drop)
        .map_err(|error| format!("its header is not in order: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(header: &str) -> Result<(), String> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        check_header(&bytes)
    }

    #[test]
    fn a_header_in_order_passes_and_the_rest_is_left_to_the_library() {
        let header = r#"{"__metadata__": {"shape": "Oxmere", "format": "pt"},
            "Zora": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}  "#;
        checked(header).unwrap();
        checked(r#"{"__metadata__": null}"#).unwrap();
        check_header(b"").unwrap();
        check_header(&[0xff; 20]).unwrap();
    }

    #[test]
    fn a_name_that_is_there_twice_is_refused() {
        let one = r#""Alder": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}"#;
        let message = checked(&format!("{{{one}, {one}}}")).unwrap_err();
        assert!(message.contains("`Alder` is there twice"), "{message}");
    }

    #[test]
    fn a_shape_without_end_is_refused() {
        let shape = vec!["1"; 1000].join(",");
        let message = checked(&format!(r#"{{"Jorun": {{"shape": [{shape}]}}}}"#)).unwrap_err();
        assert!(message.contains("16 dimensions"), "{message}");
    }
}
