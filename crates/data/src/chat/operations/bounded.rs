//! Filters of minijinja's own that take no more work than their arguments are
//! large, and give values of ours.

use minijinja::{
    Environment, Error, State, Value,
    value::{Rest, ValueKind},
};

use super::super::{
    bounds::{self, make, read, spend},
    values::{Lazy, Measure, items, made_list, owned},
};

/// A filter of minijinja's that takes no more work than its arguments are large,
/// and gives a value of ours.
pub(super) fn bounded(
    environment: &mut Environment<'_>,
    name: &'static str,
    filter: Value,
    is_lazy: bool,
) {
    environment.add_filter(
        name,
        move |state: &State<'_, '_>, arguments: Rest<Value>| {
            bound_arguments(name, &arguments)?;
            let given = arguments.first();
            // As in Jinja2, these look whether there is anything first.
            let looks = ["select", "reject", "selectattr", "rejectattr", "map"].contains(&name);
            if looks && given.is_some_and(|value| !value.is_true()) {
                return Ok(Lazy::generator(Vec::new()));
            }
            if is_lazy {
                let mut taken = arguments.to_vec();
                taken[0] = made_list(items(&taken[0])?)?;
                let found = filter.call(state, &taken)?;
                let mut found = found.try_iter()?.map(|item| owned(&item));
                return Ok(Lazy::generator(found.by_ref().collect::<Result<_, _>>()?));
            }
            let found = filter.call(state, &arguments)?;
            if found.as_str().is_some() {
                let is_safe = given.is_some_and(Value::is_safe);
                if is_safe && !found.is_safe() {
                    return Ok(Value::from_safe_string(found.to_string()));
                }
                return Ok(found);
            }
            owned(&found)
        },
    );
}

/// The numbers among arguments, those with names too.
fn numbers(arguments: &[Value]) -> Vec<u64> {
    let mut found = Vec::new();
    let mut add = |value: &Value| {
        if value.kind() == ValueKind::Number {
            let number = value.as_i64().map_or(u64::MAX, i64::unsigned_abs);
            found.push(number);
        }
    };
    for argument in arguments.iter().skip(1) {
        add(argument);
        if argument.is_kwargs() {
            let names = argument.try_iter().into_iter().flatten();
            for name in names {
                add(&argument.get_item(&name).unwrap_or_default());
            }
        }
    }
    found
}

/// Spends what a filter takes, before it takes it.
fn bound_arguments(name: &str, arguments: &[Value]) -> Result<(), Error> {
    spend(bounds::FILTER)?;
    let sizes: u64 = arguments.iter().map(|value| Measure::of(value).size).sum();
    let first = arguments.first();
    let number = numbers(arguments).into_iter().max().unwrap_or(0);
    let n_items = first.and_then(Value::len).unwrap_or(1) as u64;
    let cost = match name {
        "indent" => {
            bounds::width(number)?;
            let lines = first.and_then(Value::as_str).unwrap_or_default();
            let lines = 1 + lines.bytes().filter(|c| *c == b'\n').count() as u64;
            let by = arguments.get(1).map_or(0, |by| Measure::of(by).size);
            sizes + lines * (number.max(4) + by)
        }
        "batch" | "slice" => {
            bounds::width(number)?;
            sizes + number * 64
        }
        "format" => {
            let format = first.and_then(Value::as_str).unwrap_or_default();
            return bound_format(format, &arguments[1..]);
        }
        // Each item is compared with others, or with the arguments.
        "sort" | "unique" | "groupby" | "dictsort" | "min" | "max" => {
            read(sizes.saturating_mul(8))?;
            n_items * 64
        }
        "select" | "reject" | "selectattr" | "rejectattr" | "map" => {
            let others = arguments.iter().skip(1);
            let others: u64 = others.map(|value| Measure::of(value).size).sum();
            read(sizes.saturating_add(n_items.saturating_mul(others)))?;
            n_items * 24
        }
        // Letter by letter.
        "title" => sizes.saturating_mul(4),
        _ => sizes,
    };
    make(cost)
}

/// `'%5s' % …` and `'{:5}'.format(…)`: widths are small, and each place holds no
/// more than all arguments together.
pub(super) fn bound_format(format: &str, arguments: &[Value]) -> Result<(), Error> {
    spend(bounds::FORMAT)?;
    let mut digits = 0_u64;
    let mut places = 0_u64;
    for c in format.chars() {
        if let Some(digit) = c.to_digit(10) {
            digits = digits.saturating_mul(10).saturating_add(u64::from(digit));
        } else {
            digits = 0;
        }
        bounds::width(digits)?;
        places += u64::from(matches!(c, '%' | '{'));
    }
    // A width or a precision may be an argument.
    let widest = arguments
        .iter()
        .filter(|value| value.kind() == ValueKind::Number);
    let widest = widest
        .map(|value| value.as_i64().map_or(0, i64::unsigned_abs))
        .max();
    if format.contains('*') {
        bounds::width(widest.unwrap_or(0))?;
    }
    let sizes: u64 = arguments.iter().map(|value| Measure::of(value).size).sum();
    let widths = format.chars().any(|c| c.is_ascii_digit() || c == '*');
    let wide = if widths { bounds::WIDTH } else { 0 };
    make((format.len() as u64).saturating_add(places.saturating_mul(sizes + wide)))
}
