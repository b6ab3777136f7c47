//! Values as Jinja2 sees and prints them.
//!
//! Lists and maps that a template makes or is given are of our own types: they
//! print as Python writes them, and each knows how deep and how large it is.

use std::{collections::HashMap, fmt, sync::Arc};

use minijinja::{
    Error, ErrorKind, Value,
    value::{DynObject, Enumerator, Object, ObjectRepr, ValueKind},
};
use serde_json::Value as Json;

use super::bounds::{self, Bound};

/// Bytes that a value takes beside its text.
const OVERHEAD: u64 = 32;
/// Bytes that a value takes in a list.
const ITEM: u64 = 24;
/// Fields from which on a map is searched by hashes.
const FEW: usize = 16;

/// How deep and how large a value is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Measure {
    pub depth: u32,
    /// About its bytes in memory or as text, whichever is more; what is in it
    /// twice counts twice.
    pub size: u64,
}

impl Measure {
    pub(super) fn of(value: &Value) -> Self {
        if let Some(text) = value.as_str() {
            return Self {
                depth: 0,
                size: OVERHEAD + text.len() as u64,
            };
        }
        let Some(object) = value.as_object() else {
            return Self {
                depth: 0,
                size: OVERHEAD,
            };
        };
        if let Some(list) = object.downcast_ref::<List>() {
            return list.measure;
        }
        if let Some(dict) = object.downcast_ref::<Dict>() {
            return dict.measure;
        }
        if let Some(lazy) = object.downcast_ref::<Lazy>() {
            return lazy.measure;
        }
        // What the template writes out, and ranges: no deeper than its source.
        match object.repr() {
            ObjectRepr::Seq | ObjectRepr::Iterable if !is_live(object) => {
                let items = object.try_iter().into_iter().flatten();
                Self::around(items.map(|item| Self::of(&item)))
            }
            ObjectRepr::Map if !is_live(object) => {
                let pairs = object.try_iter_pairs().into_iter().flatten();
                Self::around(pairs.flat_map(|(key, value)| [Self::of(&key), Self::of(&value)]))
            }
            _ => Self {
                depth: 0,
                size: OVERHEAD,
            },
        }
    }

    fn around(inner: impl Iterator<Item = Self>) -> Self {
        let mut all = Self {
            depth: 1,
            size: OVERHEAD,
        };
        for Self { depth, size } in inner {
            all.depth = all.depth.max(depth + 1);
            all.size = all.size.saturating_add(size);
        }
        all
    }

    fn checked(self) -> Result<Self, Error> {
        if self.depth > bounds::DEPTH {
            return Err(bounds::reach(Bound::Depth));
        }
        bounds::size(self.size)?;
        Ok(self)
    }
}

/// Whether an object can come to hold itself: namespaces, macros, loops.
fn is_live(object: &DynObject) -> bool {
    let name = object.type_name();
    ["Namespace", "Macro", "Loop", "Closure"]
        .iter()
        .any(|live| name.ends_with(live))
}

pub(super) fn is_namespace(value: &Value) -> bool {
    let object = value.as_object();
    object.is_some_and(|object| object.type_name().ends_with("Namespace"))
}

/// Refuses what would let values hold each other without end.
pub(super) fn not_live(value: &Value) -> Result<(), Error> {
    match value.as_object() {
        Some(object) if is_live(object) => Err(wrong(
            "a namespace, a macro or a loop may not be put into another value",
        )),
        _ => Ok(()),
    }
}

pub(super) fn wrong(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// A value that a template is given.
pub(super) fn value(json: &Json) -> Value {
    fn made(json: &Json, depth: u32) -> Result<Value, Error> {
        if depth > bounds::DEPTH {
            return Err(bounds::reach(Bound::Depth));
        }
        match json {
            Json::Array(items) => {
                let items = items.iter().map(|item| made(item, depth + 1));
                Ok(Value::from_object(List::new(
                    items.collect::<Result<_, _>>()?,
                )))
            }
            Json::Object(fields) => {
                let fields = fields
                    .iter()
                    .map(|(key, of)| Ok((Value::from(key.as_str()), made(of, depth + 1)?)));
                Ok(Value::from_object(Dict::new(
                    fields.collect::<Result<_, Error>>()?,
                )))
            }
            other => Ok(Value::from_serialize(other)),
        }
    }
    // An error becomes that of the template which looks at the value.
    made(json, 1).unwrap_or_else(Value::from)
}

/// A list of values, however large.
pub(super) fn list(items: Vec<Value>) -> Value {
    Value::from_object(List::new(items))
}

/// A list that a template makes.
pub(super) fn made_list(items: Vec<Value>) -> Result<Value, Error> {
    for item in &items {
        not_live(item)?;
    }
    let list = List::new(items);
    list.measure.checked()?;
    bounds::make(OVERHEAD + ITEM * list.items.len() as u64)?;
    Ok(Value::from_object(list))
}

/// A value as one of ours, which knows its size.
pub(super) fn owned(value: &Value) -> Result<Value, Error> {
    let Some(object) = value.as_object() else {
        return Ok(value.clone());
    };
    not_live(value)?;
    if is_own(object) {
        return Ok(value.clone());
    }
    match object.repr() {
        ObjectRepr::Seq | ObjectRepr::Iterable => {
            let mut items = Vec::new();
            for item in object.try_iter().into_iter().flatten() {
                bounds::make(OVERHEAD)?;
                items.push(owned(&item)?);
            }
            made_list(items)
        }
        ObjectRepr::Map if !value.is_kwargs() => {
            let mut fields = Vec::new();
            for (key, of) in object.try_iter_pairs().into_iter().flatten() {
                fields.push((owned(&key)?, owned(&of)?));
            }
            bounds::make(2 * OVERHEAD * fields.len() as u64)?;
            let dict = Dict::new(fields);
            dict.measure.checked()?;
            Ok(Value::from_object(dict))
        }
        _ => Ok(value.clone()),
    }
}

fn is_own(object: &DynObject) -> bool {
    object.is::<List>() || object.is::<Dict>() || object.is::<Lazy>()
}

/// The items of what can be gone through, as Python's `iter`.
pub(super) fn items(value: &Value) -> Result<Vec<Value>, Error> {
    let found: Vec<Value> = match value.kind() {
        ValueKind::Undefined => Vec::new(),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            bounds::make(OVERHEAD * text.len() as u64)?;
            text.chars().map(Value::from).collect()
        }
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map if !is_namespace(value) => {
            value.try_iter()?.collect()
        }
        kind => {
            return Err(wrong(format!(
                "a value of type {kind} cannot be gone through"
            )));
        }
    };
    bounds::read(2 * OVERHEAD * found.len() as u64)?;
    Ok(found)
}

#[derive(Debug)]
struct List {
    items: Vec<Value>,
    measure: Measure,
}

impl List {
    fn new(items: Vec<Value>) -> Self {
        let measure = Measure::around(items.iter().map(Measure::of));
        Self { items, measure }
    }
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.items.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.items.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_list(f, &self.items)
    }
}

#[derive(Debug)]
struct Dict {
    fields: Vec<(Value, Value)>,
    /// Of many fields, where each is.
    places: Option<HashMap<Value, usize>>,
    measure: Measure,
}

impl Dict {
    fn new(fields: Vec<(Value, Value)>) -> Self {
        let parts = fields.iter();
        let parts = parts.flat_map(|(key, value)| [Measure::of(key), Measure::of(value)]);
        let measure = Measure::around(parts);
        let places = (fields.len() > FEW).then(|| {
            let keys = fields.iter().enumerate();
            keys.map(|(at, (key, _))| (key.clone(), at)).collect()
        });
        Self {
            fields,
            places,
            measure,
        }
    }
}

impl Object for Dict {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let found = match &self.places {
            Some(places) => self.fields.get(*places.get(key)?),
            None => self.fields.iter().find(|(known, _)| known == key),
        };
        found.map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.fields.iter().map(|(key, _)| key.clone()).collect())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_dict(f, self.fields.iter().cloned())
    }
}

/// What Python makes item by item: no list, and no JSON.
#[derive(Debug)]
pub(super) struct Lazy {
    items: Vec<Value>,
    /// Python's name, if it has a length: else it is a generator.
    view: Option<&'static str>,
    measure: Measure,
}

impl Lazy {
    pub(super) fn generator(items: Vec<Value>) -> Value {
        Self::made(items, None)
    }

    /// Keys, values or items of a map.
    pub(super) fn view(items: Vec<Value>, name: &'static str) -> Value {
        Self::made(items, Some(name))
    }

    fn made(items: Vec<Value>, view: Option<&'static str>) -> Value {
        let measure = Measure::around(items.iter().map(Measure::of));
        Value::from_object(Self {
            items,
            view,
            measure,
        })
    }

    pub(super) fn is_generator(value: &Value) -> bool {
        let lazy = value.downcast_object_ref::<Self>();
        lazy.is_some_and(|lazy| lazy.view.is_none())
    }

    pub(super) fn is(value: &Value) -> bool {
        value.downcast_object_ref::<Self>().is_some()
    }
}

impl Object for Lazy {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items.clone())
    }

    fn is_true(self: &Arc<Self>) -> bool {
        self.view.is_none() || !self.items.is_empty()
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(name) = self.view else {
            return f.write_str("<generator object>");
        };
        f.write_str(name)?;
        f.write_str("(")?;
        write_list(f, &self.items)?;
        f.write_str(")")
    }
}

fn write_list(f: &mut fmt::Formatter<'_>, items: &[Value]) -> fmt::Result {
    f.write_str("[")?;
    for (i, item) in items.iter().enumerate() {
        f.write_str(if i == 0 { "" } else { ", " })?;
        f.write_str(&repr(item))?;
    }
    f.write_str("]")
}

fn write_dict(
    f: &mut fmt::Formatter<'_>,
    fields: impl Iterator<Item = (Value, Value)>,
) -> fmt::Result {
    f.write_str("{")?;
    for (i, (key, value)) in fields.enumerate() {
        f.write_str(if i == 0 { "" } else { ", " })?;
        write!(f, "{}: {}", repr(&key), repr(&value))?;
    }
    f.write_str("}")
}

/// Python's `repr`.
fn repr(value: &Value) -> String {
    struct Shown<'a>(&'a Value);
    impl fmt::Display for Shown<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let Self(value) = self;
            match value.kind() {
                ValueKind::String => write_text(f, value.as_str().unwrap_or_default()),
                ValueKind::Number => f.write_str(&number(value)),
                _ if Lazy::is(value) => write!(f, "{value}"),
                ValueKind::Seq | ValueKind::Iterable => {
                    let items: Vec<_> = value.try_iter().map_err(|_| fmt::Error)?.collect();
                    write_list(f, &items)
                }
                ValueKind::Map => {
                    let keys = value.try_iter().map_err(|_| fmt::Error)?;
                    let fields = keys.map(|key| {
                        let of = value.get_item(&key).unwrap_or_default();
                        (key, of)
                    });
                    write_dict(f, fields)
                }
                _ => write!(f, "{value}"),
            }
        }
    }
    Shown(value).to_string()
}

/// A text in quotes: single ones, unless it has some and no double ones.
fn write_text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    write!(f, "{quote}")?;
    for c in text.chars() {
        match c {
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            c if c == quote => write!(f, "\\{c}")?,
            c if (c as u32) < 0x20 || (0x7f..0xa1).contains(&(c as u32)) || c == '\u{ad}' => {
                write!(f, "\\x{:02x}", c as u32)?;
            }
            c if ('\u{2028}'..='\u{202e}').contains(&c)
                || ('\u{200b}'..='\u{200f}').contains(&c)
                || c == '\u{feff}' =>
            {
                write!(f, "\\u{:04x}", c as u32)?;
            }
            c => write!(f, "{c}")?,
        }
    }
    write!(f, "{quote}")
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => python_float(float),
        _ => value.to_string(),
    }
}

/// Python's `repr` of a float: with an exponent, it has a sign and two digits.
pub(super) fn python_float(float: f64) -> String {
    let text = format!("{float:?}");
    let Some((digits, exponent)) = text.split_once('e') else {
        return text;
    };
    let digits = digits.strip_suffix(".0").unwrap_or(digits);
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    format!("{digits}e{sign}{exponent:0>2}")
}

/// Python's `str`.
pub(super) fn text(value: &Value) -> String {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map | ValueKind::Number => repr(value),
        _ => value.to_string(),
    }
}
