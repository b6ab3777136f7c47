//! TensorBoard's messages, as far as they are written: `event.proto`,
//! `summary.proto`, `tensor.proto` and `tensor_shape.proto` of its
//! `compat/proto`.

use prost::{Message, Oneof};

/// The version of the format: with it, a start of a session takes back what was
/// written of later steps.
const VERSION: &str = "brain.Event:2";
/// `SessionLog.START`.
const START: i32 = 1;
/// `DT_STRING`.
const STRING: i32 = 7;
/// `DATA_CLASS_TENSOR`.
const TENSOR: i32 = 2;
/// The plugin that shows texts.
const TEXT: &str = "text";

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    pub(crate) wall_time: f64,
    #[prost(int64, tag = "2")]
    pub(crate) step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    pub(crate) what: Option<What>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(message, optional, tag = "9")]
    metadata: Option<Metadata>,
    #[prost(oneof = "Content", tags = "2, 8")]
    content: Option<Content>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum Content {
    /// What `EventAccumulator` gives back as a scalar. The newer form, a tensor
    /// of the plugin `scalars`, it has among tensors.
    #[prost(float, tag = "2")]
    SimpleValue(f32),
    #[prost(message, tag = "8")]
    Tensor(Tensor),
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Metadata {
    #[prost(message, optional, tag = "1")]
    plugin_data: Option<PluginData>,
    #[prost(int32, tag = "4")]
    data_class: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PluginData {
    #[prost(string, tag = "1")]
    plugin_name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Tensor {
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    strings: Vec<Vec<u8>>,
}

/// Without dimensions: a single value.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Shape {}

impl What {
    /// What a file begins with.
    pub(crate) fn version() -> Self {
        Self::FileVersion(VERSION.to_owned())
    }

    /// The start of a session, which takes back the event's step and later ones.
    pub(crate) fn start() -> Self {
        Self::SessionLog(SessionLog { status: START })
    }

    pub(crate) fn scalars(values: &[(String, f64)]) -> Self {
        let values = values.iter().map(|(tag, value)| Value {
            tag: tag.clone(),
            metadata: None,
            content: Some(Content::SimpleValue(*value as f32)),
        });
        Self::Summary(Summary {
            value: values.collect(),
        })
    }

    pub(crate) fn text(tag: &str, text: &str) -> Self {
        let metadata = Metadata {
            plugin_data: Some(PluginData {
                plugin_name: TEXT.to_owned(),
            }),
            data_class: TENSOR,
        };
        let tensor = Tensor {
            dtype: STRING,
            shape: Some(Shape {}),
            strings: vec![text.as_bytes().to_vec()],
        };
        Self::Summary(Summary {
            value: vec![Value {
                tag: tag.to_owned(),
                metadata: Some(metadata),
                content: Some(Content::Tensor(tensor)),
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::tensorboard::record::framed;

    /// Made by `fixtures/make_tensorboard.py`, with TensorBoard's own writer.
    #[test]
    fn bytes_are_those_of_tensorboards_own_writer() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tensorboard/events");
        let events = [
            (0, What::version()),
            (6, What::start()),
            (
                7,
                What::scalars(&[("train/loss".to_owned(), 1.625), ("zero".to_owned(), 0.0)]),
            ),
            (
                1 << 40,
                What::text("samples/1", "Zora läuft.\n\n    in Oxmere"),
            ),
        ];
        let mut bytes = Vec::new();
        for (number, (step, what)) in events.into_iter().enumerate() {
            let event = Event {
                wall_time: 1_700_000_000.25 + number as f64,
                step,
                what: Some(what),
            };
            bytes.extend(framed(&event.encode_to_vec()));
        }
        assert_eq!(bytes, fs::read(path).unwrap());
    }
}
