//! Filters and tests where minijinja's differ from Jinja's, and the functions of HF's renderer.

use minijinja::value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::clock;
use super::methods::{self, is_space};
use super::ops::{charge, check_items, check_widths};
use super::repr::{JsonStyle, json, pairs, to_str};

/// Registers filters, tests and functions.
pub(super) fn register(env: &mut Environment<'_>) {
    env.add_filter("tojson", tojson);
    env.add_filter("string", |value: &Value| to_str(value));
    env.add_filter("join", join);
    env.add_filter(
        "replace",
        |state: &mut State, value: &Value, old: &Value, new: &Value, count: Option<i64>| {
            methods::replace(state, &to_str(value), &to_str(old), &to_str(new), count.unwrap_or(-1))
        },
    );
    env.add_filter("trim", |value: &Value, chars: Option<&str>| {
        let strip = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
        to_str(value).trim_matches(strip).to_owned()
    });
    env.add_filter("upper", |value: &Value| to_str(value).to_uppercase());
    env.add_filter("lower", |value: &Value| to_str(value).to_lowercase());
    env.add_filter("capitalize", |state: &mut State, value: &Value| {
        methods::call(state, &Value::from(to_str(value)), "capitalize", &[])
    });
    env.add_filter("title", |value: &Value| title(&to_str(value)));
    env.add_filter("indent", indent);
    env.add_filter("center", |state: &mut State, value: &Value, width: Option<i64>| {
        methods::call(state, &Value::from(to_str(value)), "center", &[Value::from(width.unwrap_or(80))])
    });
    env.add_filter("length", length);
    env.add_filter("count", length);
    env.add_filter("wordcount", |value: &Value| {
        to_str(value)
            .split(|c: char| !(c.is_alphanumeric() || c == '_'))
            .filter(|word| !word.is_empty())
            .count()
    });
    env.add_filter("default", default);
    env.add_filter("d", default);
    env.add_filter("int", int);
    env.add_filter("float", float);
    env.add_filter("round", round);
    env.add_filter("first", |value: &Value| ends(value, false));
    env.add_filter("last", |value: &Value| ends(value, true));
    env.add_filter("list", |value: &Value| match value.as_str() {
        Some(text) => Ok(text.chars().map(|c| Value::from(c.to_string())).collect::<Value>()),
        None if value.is_none() => fail("none cannot be made a list"),
        None => value.try_iter().map(|items| items.collect::<Value>()),
    });
    env.add_filter("format", |state: &mut State, format: &Value, args: Rest<ValueOrKwargs>| {
        check_widths(&to_str(format))?;
        minijinja::filters::format(state, format, args)
    });
    env.add_filter("batch", batch);
    env.add_filter("slice", slices);
    env.add_filter("e", |value: &Value| escape(&to_str(value)));
    env.add_filter("escape", |value: &Value| escape(&to_str(value)));
    env.add_filter("truncate", truncate);
    env.add_filter("striptags", minijinja_contrib::filters::striptags);
    env.add_filter("filesizeformat", minijinja_contrib::filters::filesizeformat);
    env.add_filter("items", |state: &mut State, value: &Value| match value.kind() {
        ValueKind::Undefined => Ok(Value::from(Vec::<Value>::new())),
        ValueKind::Map => methods::call(state, value, "items", &[]),
        _ => fail("can only get item pairs from a mapping"),
    });

    env.add_test("iterable", |value: &Value| {
        let kind = value.kind();
        matches!(
            kind,
            ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable
        )
    });
    env.add_test("sequence", |value: &Value| {
        let kind = value.kind();
        matches!(kind, ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map)
    });
    env.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    env.add_test("boolean", |value: &Value| value.kind() == ValueKind::Bool);
    env.add_test("true", |value: &Value| value.kind() == ValueKind::Bool && value.is_true());
    env.add_test("false", |value: &Value| value.kind() == ValueKind::Bool && !value.is_true());

    env.add_test("callable", |value: &Value| {
        value.kind() == ValueKind::Plain
            || value.as_object().is_some_and(|object| object.type_name().contains("Macro"))
    });

    env.add_function("joiner", minijinja_contrib::globals::joiner);
    env.add_function("dict", dict);
    env.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, RAISED.to_owned() + &to_str(message)))
    });
    env.add_function("strftime_now", |format: &str| clock::format(&clock::now(), format));
}

/// Marks an error as one that the template raised itself.
pub(super) const RAISED: &str = "raised by the template: ";

fn fail<T>(message: &str) -> Result<T, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(state: &mut State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    /// Spaces of one level; more is no layout.
    const MAX_INDENT: i64 = 64;
    let args = args.into_values();
    let (ascii, indent, separators, sort, kwargs): (
        Option<&Value>,
        Option<&Value>,
        Option<&Value>,
        Option<&Value>,
        Kwargs,
    ) = from_args(&args)?;
    let option = |given: Option<&Value>, name: &str| -> Result<Option<Value>, Error> {
        let value = given.cloned().or(kwargs.get::<Option<Value>>(name)?);
        Ok(value.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let ascii = option(ascii, "ensure_ascii")?;
    let indent = option(indent, "indent")?;
    let separators = option(separators, "separators")?;
    let sort = option(sort, "sort_keys")?;
    kwargs.assert_all_used()?;
    let indent = match &indent {
        None => None,
        Some(indent) => Some(match (indent.as_str(), indent.as_i64()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(width)) if width <= MAX_INDENT => " ".repeat(usize::try_from(width).unwrap_or(0)),
            (None, Some(_)) => return fail("the indent is too large"),
            (None, None) => return fail("the indent must be a number or a string"),
        }),
    };
    let (item, key) = match &separators {
        Some(pair) => (to_str(&pair.get_item_by_index(0)?), to_str(&pair.get_item_by_index(1)?)),
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
    };
    let style = JsonStyle {
        indent,
        item,
        key,
        sort: sort.is_some_and(|sort| sort.is_true()),
        ascii: ascii.is_some_and(|ascii| ascii.is_true()),
    };
    let text = json(value, &style)?;
    charge(state, text.len())?;
    Ok(Value::from(text))
}

fn join(state: &mut State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let (separator, attribute, kwargs): (Option<&Value>, Option<&Value>, Kwargs) = from_args(&args)?;
    let separator = separator.cloned().or(kwargs.get("d")?).map(|text| to_str(&text)).unwrap_or_default();
    let attribute = attribute.cloned().or(kwargs.get("attribute")?);
    kwargs.assert_all_used()?;
    let mut items: Vec<Value> = match value.as_str() {
        Some(text) => text.chars().map(|c| Value::from(c.to_string())).collect(),
        None => value.try_iter()?.collect(),
    };
    if let Some(attribute) = attribute {
        items = items.iter().map(|item| item.get_item(&attribute)).collect::<Result<_, _>>()?;
    }
    methods::join(state, &items, &separator)
}

/// Words begin after white space, hyphens and opening brackets.
fn title(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        inside = !(is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<'));
    }
    out
}

/// `indent(width=4, first=False, blank=False)`; the width may be a string.
fn indent(state: &mut State, value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let (width, first, blank, kwargs): (Option<&Value>, Option<bool>, Option<bool>, Kwargs) =
        from_args(&args)?;
    let width = width.cloned().or(kwargs.get("width")?).unwrap_or_else(|| Value::from(4));
    let first = first.or(kwargs.get("first")?).unwrap_or(false);
    let blank = blank.or(kwargs.get("blank")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let text = to_str(value) + "\n";
    let lines = methods::lines(&text, false);
    let pad = match width.as_str() {
        Some(pad) => pad.to_owned(),
        None => {
            let width = usize::try_from(width.as_i64().unwrap_or(0)).unwrap_or(0);
            charge(state, width.saturating_mul(lines.len()))?;
            " ".repeat(width)
        }
    };
    charge(state, text.len().saturating_add(pad.len().saturating_mul(lines.len())))?;
    let mut out = String::new();
    for (i, line) in lines.into_iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if if i == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&pad);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

/// `dict(mapping or pairs, **more)`.
fn dict(args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let (from, kwargs): (Option<&Value>, Kwargs) = from_args(&args)?;
    let mut items = Vec::new();
    match from {
        Some(from) if from.kind() == ValueKind::Map => items.extend(pairs(from)),
        Some(from) => {
            for pair in from.try_iter()? {
                items.push((pair.get_item_by_index(0)?, pair.get_item_by_index(1)?));
            }
        }
        None => {}
    }
    for name in kwargs.args() {
        items.push((Value::from(name), kwargs.get(name)?));
    }
    Ok(Value::from_pairs(items))
}

/// `truncate(length=255, killwords=False, end='...', leeway=5)`.
fn truncate(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    type Args<'a> = (Option<usize>, Option<bool>, Option<String>, Option<usize>, Kwargs);
    let (length, cut_words, end, leeway, kwargs): Args<'_> = from_args(&args)?;
    let length = length.or(kwargs.get("length")?).unwrap_or(255);
    let cut_words = cut_words.or(kwargs.get("killwords")?).unwrap_or(false);
    let end = end.or(kwargs.get("end")?).unwrap_or_else(|| "...".to_owned());
    let leeway = leeway.or(kwargs.get("leeway")?).unwrap_or(5);
    kwargs.assert_all_used()?;
    let text = to_str(value);
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(Value::from(text));
    }
    let start: String = text.chars().take(length.saturating_sub(end.chars().count())).collect();
    let start =
        if cut_words { &start } else { start.rsplit_once(' ').map_or(start.as_str(), |(words, _)| words) };
    Ok(Value::from([start, &end].concat()))
}

/// `batch(linecount, fill_with=None)`: rows of that many items, the last one filled up.
fn batch(value: &Value, count: usize, fill: Option<Value>) -> Result<Value, Error> {
    check_items(count)?;
    if count == 0 {
        return fail("rows of no items");
    }
    let items: Vec<Value> = value.try_iter()?.collect();
    let mut rows: Vec<Vec<Value>> = items.chunks(count).map(<[Value]>::to_vec).collect();
    if let (Some(fill), Some(last)) = (fill.filter(|fill| !fill.is_none()), rows.last_mut()) {
        last.resize(count, fill);
    }
    Ok(rows.into_iter().map(Value::from).collect())
}

/// `slice(slices, fill_with=None)`: that many columns, the first ones longer by one where it does not come out even.
fn slices(value: &Value, count: usize, fill: Option<Value>) -> Result<Value, Error> {
    check_items(count)?;
    if count == 0 {
        return fail("no columns");
    }
    let mut rest: Vec<Value> = value.try_iter()?.collect();
    let (each, longer) = (rest.len() / count, rest.len() % count);
    let mut columns = Vec::with_capacity(count);
    for i in 0..count {
        let tail = rest.split_off(each + usize::from(i < longer));
        let mut column = std::mem::replace(&mut rest, tail);
        if i >= longer && longer > 0 {
            column.extend(fill.clone().filter(|fill| !fill.is_none()));
        }
        columns.push(Value::from(column));
    }
    Ok(Value::from(columns))
}

fn escape(text: &str) -> String {
    let replaced = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    replaced.replace('\'', "&#39;").replace('"', "&#34;")
}

fn length(value: &Value) -> Result<usize, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(0),
        kind => match value.len() {
            Some(length) => Ok(length),
            None => fail(&format!("a value of type {kind} has no length")),
        },
    }
}

fn default(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let (other, falsy, kwargs): (Option<&Value>, Option<bool>, Kwargs) = from_args(&args)?;
    let other = other.cloned().or(kwargs.get("default_value")?).unwrap_or_else(|| Value::from(""));
    let falsy = falsy.or(kwargs.get("boolean")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    Ok(if value.is_undefined() || (falsy && !value.is_true()) { other } else { value.clone() })
}

fn int(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let (default, base, kwargs): (Option<&Value>, Option<u32>, Kwargs) = from_args(&args)?;
    let default = default.cloned().or(kwargs.get("default")?).unwrap_or_else(|| Value::from(0));
    let base = base.or(kwargs.get("base")?).unwrap_or(10);
    kwargs.assert_all_used()?;
    if let Some(text) = value.as_str() {
        let text = text.trim().replace('_', "");
        let digits = match base {
            16 => text.trim_start_matches("0x").trim_start_matches("0X"),
            8 => text.trim_start_matches("0o").trim_start_matches("0O"),
            2 => text.trim_start_matches("0b").trim_start_matches("0B"),
            3..=36 => &text,
            _ => return Ok(default),
        };
        let whole = i128::from_str_radix(digits, base).ok();
        let truncated =
            || text.parse::<f64>().ok().filter(|number| number.is_finite()).map(|number| number as i128);
        let number = whole.or_else(truncated);
        return Ok(number.map_or(default, |n| i64::try_from(n).map_or_else(|_| Value::from(n), Value::from)));
    }
    Ok(truncated(value).unwrap_or(default))
}

/// A number without its fraction.
fn truncated(value: &Value) -> Option<Value> {
    match value.kind() {
        ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Some(value.clone()),
        ValueKind::Number => {
            let number = f64::try_from(value.clone()).ok().filter(|number| number.is_finite());
            number.map(|number| Value::from(number as i64))
        }
        _ => None,
    }
}

fn float(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let (default, kwargs): (Option<&Value>, Kwargs) = from_args(&args)?;
    let default = default.cloned().or(kwargs.get("default")?).unwrap_or_else(|| Value::from(0.0));
    kwargs.assert_all_used()?;
    if let Some(text) = value.as_str() {
        return Ok(text.trim().replace('_', "").parse::<f64>().map_or(default, Value::from));
    }
    Ok(match value.kind() {
        ValueKind::Bool => Value::from(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).map_or(default, Value::from),
        _ => default,
    })
}

/// `round(precision=0, method='common')`: halves go to the even digit, as Python's `round` does.
fn round(value: &Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let (precision, method, kwargs): (Option<i32>, Option<String>, Kwargs) = from_args(&args)?;
    let precision = precision.or(kwargs.get("precision")?).unwrap_or(0);
    let method = method.or(kwargs.get("method")?).unwrap_or_else(|| "common".to_owned());
    kwargs.assert_all_used()?;
    let whole = (value.is_integer() || value.kind() == ValueKind::Bool) && method == "common";
    if whole && precision >= 0 {
        return Ok(truncated(value).unwrap_or_else(|| Value::from(0)));
    }
    let Ok(number) = f64::try_from(value.clone()) else { return fail("only numbers can be rounded") };
    let scale = 10f64.powi(precision.clamp(-300, 300));
    Ok(Value::from(match method.as_str() {
        "ceil" => (number * scale).ceil() / scale,
        "floor" => (number * scale).floor() / scale,
        // Rust's formatting rounds the exact binary value, halves to even.
        "common" if (0..=300).contains(&precision) => {
            let digits = usize::try_from(precision).unwrap_or(0);
            format!("{number:.digits$}").parse().unwrap_or(number)
        }
        "common" => (number * scale).round_ties_even() / scale,
        _ => return fail("the method must be common, ceil or floor"),
    }))
}

/// `first` and `last`: undefined when there is none.
fn ends(value: &Value, last: bool) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        let c = if last { text.chars().next_back() } else { text.chars().next() };
        return Ok(c.map_or(Value::UNDEFINED, |c| Value::from(c.to_string())));
    }
    let mut items = value.try_iter()?;
    Ok(if last { items.last() } else { items.next() }.unwrap_or(Value::UNDEFINED))
}
