//! What a file is that begins with a JSON object: records, or one object around them.

use std::{fmt, path::Path};

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::{
    RecordsError,
    cursor::{Broken, Cursor},
    error::{clipped, quoted},
    text::Text,
};

/// Keys beside the list of records, in an object around it, that are left out:
/// they say where the records are from, or how many there are.
pub const HARMLESS: [&str; 38] = [
    "$schema",
    "author",
    "authors",
    "citation",
    "config",
    "count",
    "created",
    "created_at",
    "dataset",
    "dataset_info",
    "dataset_name",
    "date",
    "description",
    "features",
    "homepage",
    "id",
    "info",
    "language",
    "length",
    "license",
    "meta",
    "metadata",
    "name",
    "num_examples",
    "num_rows",
    "num_rows_per_page",
    "num_rows_total",
    "offset",
    "partial",
    "schema",
    "source",
    "split",
    "timestamp",
    "title",
    "total",
    "type",
    "url",
    "version",
];

/// Names under which a list of records is found in an object around it.
const WRAPPERS: [&str; 13] = [
    "data",
    "train",
    "training",
    "rows",
    "examples",
    "records",
    "samples",
    "items",
    "instances",
    "entries",
    "validation",
    "valid",
    "test",
];

/// Names of a conversation, whose list of turns makes no records.
const CONVERSATIONS: [&str; 9] = [
    "messages",
    "conversations",
    "conversation",
    "history",
    "turns",
    "dialogue",
    "dialog",
    "chat",
    "prompt",
];

/// Of those, what may be a list of texts, said in turn. Under `prompt` texts are
/// a column, and `history` has pairs.
const DIALOGUES: [&str; 7] = [
    "messages",
    "conversations",
    "conversation",
    "turns",
    "dialogue",
    "dialog",
    "chat",
];

/// How a JSON file holds its records.
#[derive(Debug, PartialEq)]
pub(crate) enum Shape {
    /// A list of objects: a file that begins with a bracket.
    List,
    /// Objects one after another, or a single one: each is a record.
    Lines,
    /// One object with the list of records under this key.
    Wrapper(String),
    /// One object of equally long lists, or of objects by index.
    Columns,
}

/// Reads the first object, but keeps only its outline.
///
/// # Errors
///
/// It is an object around records, or of columns, but has something that would
/// be lost. What cannot be read is no error here: reading it says where and what.
pub(crate) fn shape(path: &Path, text: Text, limit: usize) -> Result<Shape, RecordsError> {
    let mut cursor = Cursor::new(text, limit);
    let Ok(outline) = outline(&mut cursor) else {
        return Ok(Shape::Lines);
    };
    if !matches!(cursor.peek(), Ok(None)) {
        // More follows: these are records.
        return Ok(Shape::Lines);
    }
    outline.judge().map_err(|problem| RecordsError::Wrapper {
        path: path.to_owned(),
        problem,
    })
}

fn outline(cursor: &mut Cursor) -> Result<Outline, Broken> {
    let mut parts = Vec::new();
    let mut more = cursor.take(b'{')? && !cursor.take(b'}')?;
    while more {
        let key: String = cursor.value()?;
        if !cursor.take(b':')? {
            return Err(cursor.expected("`:`"));
        }
        // A list may be the whole file, and goes by item by item.
        let part = if cursor.take(b'[')? {
            let (mut n, mut first) = (0, Item::Other);
            let mut more = !cursor.take(b']')?;
            while more {
                if n == 0 {
                    first = cursor.value()?;
                } else {
                    cursor.value::<IgnoredAny>()?;
                }
                n += 1;
                more = cursor.more(b']')?;
            }
            Part::List(n, first)
        } else {
            cursor.value()?
        };
        parts.push((key, part));
        more = cursor.more(b'}')?;
    }
    Ok(Outline(parts))
}

/// The keys of an object and what is under them.
struct Outline(Vec<(String, Part)>);

impl Outline {
    fn judge(&self) -> Result<Shape, String> {
        let names = || self.0.iter().map(|(name, _)| name.as_str());
        let lists: Vec<_> = self
            .0
            .iter()
            .filter(|(_, part)| matches!(part, Part::List(_, Item::Object)))
            .map(|(name, _)| name.as_str())
            .filter(|name| !CONVERSATIONS.contains(name))
            .collect();
        let known = WRAPPERS.into_iter().find(|name| lists.contains(name));
        let only = lists.first().copied().filter(|_| self.0.len() == 1);
        if let Some(list) = known.or(only) {
            let others: Vec<_> = names()
                .filter(|name| *name != list && !HARMLESS.contains(name))
                .collect();
            if others.is_empty() {
                return Ok(Shape::Wrapper(list.to_owned()));
            }
            return Err(format!(
                "it is one object with a list of records under `{list}`, and beside it {}, which would be left out: \
                 write the records that are meant to a file of their own",
                quoted(others)
            ));
        }

        let mut sorted: Vec<_> = names().collect();
        sorted.sort_unstable();
        if sorted == ["columns", "data", "index"] {
            return Err(
                "it is a table as pandas writes it with orient=\"split\": write it with \
                 `to_json(…, orient=\"records\", lines=True)`"
                    .to_owned(),
            );
        }

        // The one list of a record may be of what was said in turn.
        let is_dialogue = |(name, part): &&(String, Part)| {
            matches!(part, Part::List(_, Item::Text)) && DIALOGUES.contains(&name.as_str())
        };
        let has_dialogue = self.0.iter().any(|part| is_dialogue(&part));
        if has_dialogue && self.0.len() == 1 {
            return Ok(Shape::Lines);
        }

        let column = |(name, part): &(String, Part)| match part {
            Part::List(_, Item::Object) if CONVERSATIONS.contains(&name.as_str()) => None,
            part => part.column(),
        };
        let lengths: Option<Vec<_>> = self.0.iter().map(column).collect();
        match lengths.as_deref() {
            None | Some([]) => Ok(Shape::Lines),
            Some([first, rest @ ..]) if rest.iter().all(|length| length == first) => {
                Ok(Shape::Columns)
            }
            // Columns would be equally long.
            Some(_) if has_dialogue => Ok(Shape::Lines),
            Some(lengths) => {
                let lengths = self.0.iter().zip(lengths);
                let lengths: Vec<_> = lengths
                    .map(|((name, _), length)| format!("`{}` has {length}", clipped(name)))
                    .collect();
                Err(format!(
                    "it is one object of lists, which are read as columns, but they are not equally long: {}",
                    lengths.join(", ")
                ))
            }
        }
    }
}

enum Part {
    /// How many items, and what the first is.
    List(usize, Item),
    /// An object with the keys `0`, `1` and so on; how many.
    Indexed(usize),
    Other,
}

impl Part {
    /// The length of what may be a column. A list of turns is none, but part of
    /// one record.
    fn column(&self) -> Option<usize> {
        match self {
            Self::List(_, Item::Turn) => None,
            Self::List(n, _) | Self::Indexed(n) => Some(*n),
            Self::Other => None,
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Item {
    /// An object that is a turn of a conversation.
    Turn,
    Object,
    /// A text that is no JSON of a list or an object.
    Text,
    Other,
}

/// Scalars but texts, of which an outline keeps nothing.
macro_rules! scalars {
    ($value:expr) => {
        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok($value)
        }
    };
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfPart;
        impl<'de> Visitor<'de> for OfPart {
            type Value = Part;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            scalars!(Part::Other);
            fn visit_str<E>(self, _: &str) -> Result<Part, E> {
                Ok(Part::Other)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Part, A::Error> {
                let (mut n, mut indexed) = (0, true);
                while let Some((key, IgnoredAny)) = map.next_entry::<String, _>()? {
                    indexed &= key.parse() == Ok(n);
                    n += 1;
                }
                Ok(if indexed && n > 0 {
                    Part::Indexed(n)
                } else {
                    Part::Other
                })
            }
        }
        deserializer.deserialize_any(OfPart)
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfItem;
        impl<'de> Visitor<'de> for OfItem {
            type Value = Item;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            scalars!(Item::Other);
            fn visit_str<E>(self, text: &str) -> Result<Item, E> {
                Ok(if text.trim_start().starts_with(['[', '{']) {
                    Item::Other
                } else {
                    Item::Text
                })
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Item, A::Error> {
                while let Some(IgnoredAny) = list.next_element()? {}
                Ok(Item::Other)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Item, A::Error> {
                let mut item = Item::Object;
                while let Some((key, IgnoredAny)) = map.next_entry::<String, _>()? {
                    if matches!(key.as_str(), "role" | "from") {
                        item = Item::Turn;
                    }
                }
                Ok(item)
            }
        }
        deserializer.deserialize_any(OfItem)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_object_is_judged_by_its_outline() {
        let judge = |text: &str| {
            let text = Text::new(Box::new(std::io::Cursor::new(text.to_owned())));
            let outline = outline(&mut Cursor::new(text, 1000)).ok().unwrap();
            outline.judge()
        };
        for (text, expected) in [
            // A record, whatever lists it has.
            (
                r#"{"prompt": "Zora?", "completion": "Thornby."}"#,
                Shape::Lines,
            ),
            (
                r#"{"messages": [{"role": "user"}, {"role": "assistant"}]}"#,
                Shape::Lines,
            ),
            (
                r#"{"prompt": [{"role": "user"}], "completion": [{"role": "assistant"}]}"#,
                Shape::Lines,
            ),
            (
                r#"{"conversation": [{"human": "Zora?", "assistant": "Thornby."}]}"#,
                Shape::Lines,
            ),
            (
                r#"{"id": 7, "messages": [{"role": "user"}], "tags": ["a"]}"#,
                Shape::Lines,
            ),
            (
                r#"{"question": "Zora?", "options": ["Oxmere", "Thornby"]}"#,
                Shape::Lines,
            ),
            (r#"{"conversations": ["Zora?", "Thornby."]}"#, Shape::Lines),
            (
                r#"{"dialogue": ["Zora?", "Thornby."], "tags": ["a", "b", "c"]}"#,
                Shape::Lines,
            ),
            ("{}", Shape::Lines),
            // Records in a list.
            (
                r#"{"version": "1", "data": [{"prompt": "Zora?"}]}"#,
                Shape::Wrapper("data".into()),
            ),
            (
                r#"{"features": [{"name": "a"}], "rows": [{"row": {}}], "partial": false}"#,
                Shape::Wrapper("rows".into()),
            ),
            (
                r#"{"village": [{"prompt": "Zora?"}, {"prompt": "Alder?"}]}"#,
                Shape::Wrapper("village".into()),
            ),
            // Columns.
            (
                r#"{"prompt": ["Zora?", "Alder?"], "completion": ["Thornby.", "Oxmere."]}"#,
                Shape::Columns,
            ),
            (r#"{"text": ["Zora", "Alder", "Jorun"]}"#, Shape::Columns),
            (
                r#"{"messages": [[{"role": "user"}], [{"role": "user"}]]}"#,
                Shape::Columns,
            ),
            (
                r#"{"messages": ["[{\"role\": \"user\"}]", "[{\"role\": \"user\"}]"]}"#,
                Shape::Columns,
            ),
            (
                r#"{"dialogue": ["Zora?", "Alder?"], "summary": ["Thornby.", "Oxmere."]}"#,
                Shape::Columns,
            ),
            (
                r#"{"prompt": {"0": "Zora?", "1": "Alder?"}, "completion": {"0": "Thornby.", "1": "Oxmere."}}"#,
                Shape::Columns,
            ),
        ] {
            assert_eq!(judge(text), Ok(expected), "{text}");
        }
        for (text, named) in [
            (
                r#"{"train": [{"prompt": "a"}], "test": [{"prompt": "b"}]}"#,
                "beside it `test`",
            ),
            (
                r#"{"data": [{"prompt": "a"}], "system": "Be brief."}"#,
                "beside it `system`",
            ),
            (
                r#"{"prompt": ["a", "b"], "completion": ["c"]}"#,
                "`prompt` has 2, `completion` has 1",
            ),
            (
                r#"{"columns": ["prompt"], "index": [0], "data": [["a"]]}"#,
                "orient=\"split\"",
            ),
        ] {
            let problem = judge(text).unwrap_err();
            assert!(problem.contains(named), "{problem}");
        }
    }
}
