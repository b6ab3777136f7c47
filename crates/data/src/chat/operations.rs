//! What templates do with values: operators, filters, tests and methods, as
//! Jinja2 has them, each within the bounds of a rendering.

mod bounded;
mod operators;
mod sequences;
mod texts;

use minijinja::{
    Environment, Error, Output, State, Value, filters, functions,
    value::{Kwargs, Rest, ValueKind},
};

use super::{
    bounds::{self, make, read, spend},
    values::{Lazy, Measure, is_namespace, items, made_list, not_live, owned},
};
use bounded::bounded;
use operators::{add, concat, mul};
use sequences::{each, end, length, pairs, slice, within};
use texts::{int, join, method, replaced, shown};

/// Makes an environment do as Jinja2 does, and no more than it may.
#[allow(clippy::too_many_lines, reason = "a list of names")]
pub(super) fn as_in_jinja2(environment: &mut Environment<'_>) {
    environment.set_fuel(Some(bounds::FUEL));
    environment.set_recursion_limit(bounds::RECURSION);
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out: &mut Output<'_>, _: &State<'_, '_>, value: &Value| {
        if value.is_undefined() {
            return spend(1);
        }
        let text = shown(value)?;
        make(text.len() as u64)?;
        out.write_str(&text).map_err(Error::from)
    });

    // What the source's operators become.
    environment.add_filter("olora_add", add);
    environment.add_filter("olora_concat", concat);
    environment.add_filter("olora_mul", mul);
    environment.add_filter("olora_in", within);
    environment.add_filter("olora_slice", slice);
    environment.add_filter("olora_each", each);
    environment.add_filter("olora_seen", |value: Value| {
        read(Measure::of(&value).size)?;
        Ok::<_, Error>(value)
    });
    // What is gone through item by item.
    environment.add_filter("olora_copied", |value: Value| {
        copied(&value)?;
        Ok::<_, Error>(value)
    });
    environment.add_filter("olora_at", |value: Value| {
        // Character by character.
        read(8 * value.as_str().map_or(0, |text| text.len() as u64))?;
        Ok::<_, Error>(value)
    });
    environment.add_filter("olora_owned", |value: Value| owned(&value));
    environment.add_filter("olora_kept", |value: Value| {
        if !is_namespace(&value) {
            not_live(&value)?;
        }
        Ok::<_, Error>(value)
    });
    environment.add_function("olora_step", |n_bytes: u64| {
        spend(bounds::MACRO)?;
        make(n_bytes)?;
        Ok::<_, Error>(Value::from(()))
    });

    environment.add_filter("string", |value: &Value| {
        if value.is_undefined() {
            return Ok(String::new());
        }
        let text = shown(value)?;
        make(text.len() as u64)?;
        Ok::<_, Error>(text)
    });
    environment.add_filter("join", join);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("int", int);
    environment.add_filter("items", |value: &Value| {
        Ok::<_, Error>(Lazy::generator(pairs(value)?))
    });
    environment.add_filter("first", |value: &Value| end(value, true));
    environment.add_filter("last", |value: &Value| end(value, false));
    environment.add_filter(
        "replace",
        |value: Value, from: Value, to: Value, count: Option<i64>| {
            replaced(&shown(&value)?, &shown(&from)?, &shown(&to)?, count)
        },
    );
    environment.add_filter("list", |value: &Value| made_list(items(value)?));
    environment.add_filter("reverse", |value: &Value| {
        if let Some(text) = value.as_str() {
            make(text.len() as u64)?;
            return Ok::<_, Error>(Value::from(text.chars().rev().collect::<String>()));
        }
        let mut items = items(value)?;
        items.reverse();
        Ok(Lazy::generator(items))
    });
    for (name, filter) in [
        ("lower", Value::from_function(filters::lower)),
        ("upper", Value::from_function(filters::upper)),
        ("title", Value::from_function(filters::title)),
        ("capitalize", Value::from_function(filters::capitalize)),
        ("trim", Value::from_function(filters::trim)),
        ("dictsort", Value::from_function(filters::dictsort)),
        ("min", Value::from_function(filters::min)),
        ("max", Value::from_function(filters::max)),
        ("sort", Value::from_function(filters::sort)),
        ("sum", Value::from_function(filters::sum)),
        ("indent", Value::from_function(filters::indent)),
        ("groupby", Value::from_function(filters::groupby)),
        ("format", Value::from_function(filters::format)),
        ("escape", Value::from_function(filters::escape)),
        ("e", Value::from_function(filters::escape)),
        ("float", Value::from_function(filters::float)),
    ] {
        bounded(environment, name, filter, false);
    }
    for (name, filter) in [
        ("batch", Value::from_function(filters::batch)),
        ("slice", Value::from_function(filters::slice)),
        ("select", Value::from_function(filters::select)),
        ("reject", Value::from_function(filters::reject)),
        ("selectattr", Value::from_function(filters::selectattr)),
        ("rejectattr", Value::from_function(filters::rejectattr)),
        ("map", Value::from_function(filters::map)),
        ("unique", Value::from_function(filters::unique)),
    ] {
        bounded(environment, name, filter, true);
    }
    // Jinja2 has none of these.
    for name in ["split", "lines", "bool", "chain", "zip"] {
        environment.remove_filter(name);
    }
    environment.remove_filter("pprint");
    environment.remove_global("debug");
    environment.add_filter("attr", |value: &Value, key: &Value| {
        read(Measure::of(key).size)?;
        filters::attr(value, key)
    });
    environment.add_function("dict", |value: Option<Value>, others: Kwargs| {
        if let Some(value) = &value {
            copied(value)?;
        }
        functions::dict(value, others)
    });
    environment.add_function("namespace", |arguments: Rest<Value>| {
        for argument in arguments.iter() {
            copied(argument)?;
            not_live(argument)?;
            if argument.kind() == ValueKind::Map {
                for key in argument.try_iter()? {
                    not_live(&argument.get_item(&key)?)?;
                }
            }
        }
        functions::namespace(arguments.first().cloned())
    });
    environment.add_test("iterable", |value: &Value| {
        value.is_undefined()
            || (!value.is_none() && value.try_iter().is_ok())
            || value.kind() == ValueKind::String
    });
    environment.add_test("sequence", |value: &Value| match value.kind() {
        ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map => true,
        ValueKind::Iterable => !Lazy::is(value) && value.len().is_some(),
        _ => false,
    });
}

/// Spends what it takes to go through all items of a value.
fn copied(value: &Value) -> Result<(), Error> {
    read(8 * Measure::of(value).size)
}
