//! Methods of Python's strings, dicts and lists.

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::ops::{charge, check_widths};
use super::repr::{pairs, to_str};

/// Names that belong to Python's values: calls and attributes of these names come here, whatever keys a dict has.
pub(super) const METHODS: &[&str] = &[
    // dict
    "items",
    "keys",
    "values",
    "get",
    "copy",
    "pop",
    "popitem",
    "update",
    "setdefault",
    "clear",
    "fromkeys",
    // list
    "append",
    "extend",
    "insert",
    "remove",
    "reverse",
    "sort",
    "count",
    "index",
    // str
    "capitalize",
    "casefold",
    "center",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];

/// Methods that change their value: the sandbox of HF's renderer forbids them.
const CHANGING: &[&str] = &[
    "pop",
    "popitem",
    "update",
    "setdefault",
    "clear",
    "append",
    "extend",
    "insert",
    "remove",
    "reverse",
    "sort",
];

const DICT: std::ops::Range<usize> = 0..11;

/// `value.name` without a call: a key of that name is hidden by a dict's method, as in Jinja.
pub(super) fn attribute(value: &Value, name: &str) -> Result<Value, Error> {
    if value.kind() == ValueKind::Map && is_dict(value) && METHODS[DICT].contains(&name) {
        return Ok(Value::from(format!("<built-in method {name} of dict object>")));
    }
    value.get_attr(name)
}

/// Whether a mapping is a plain dict rather than a namespace or the like.
fn is_dict(value: &Value) -> bool {
    let object = value.as_object();
    object.is_some_and(|object| {
        !object.type_name().contains("amespace") && !object.type_name().contains("Loop")
    })
}

/// `value.name(args)`.
///
/// # Errors
/// There is no such method, it is forbidden, or the arguments do not fit.
pub(super) fn call(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => match value.as_str() {
            Some(text) => string(state, value, text, name, args),
            None => Err(Error::from(ErrorKind::UnknownMethod)),
        },
        ValueKind::Map if is_dict(value) => dict(state, value, name, args),
        ValueKind::Seq | ValueKind::Iterable => list(value, name, args),
        ValueKind::Undefined => fail(format!("undefined has no method '{name}'")),
        _ => value.call_method(state, name, args),
    }
}

fn fail<T>(message: String) -> Result<T, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn forbidden<T>(name: &str) -> Result<T, Error> {
    fail(format!("the method '{name}' changes its value, which templates may not"))
}

fn dict(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match name {
        "items" => {
            let () = from_args(args)?;
            let pair = |(key, item)| Value::from_object(Tuple::new(vec![key, item]));
            Ok(pairs(value).into_iter().map(pair).collect())
        }
        "keys" => {
            let () = from_args(args)?;
            Ok(pairs(value).into_iter().map(|(key, _)| key).collect())
        }
        "values" => {
            let () = from_args(args)?;
            Ok(pairs(value).into_iter().map(|(_, item)| item).collect())
        }
        "get" => {
            let (key, default): (&Value, Option<&Value>) = from_args(args)?;
            let found = value.as_object().and_then(|map| map.get_value(key));
            Ok(found.or_else(|| default.cloned()).unwrap_or_else(|| Value::from(())))
        }
        "copy" => {
            let () = from_args(args)?;
            Ok(value.clone())
        }
        _ if CHANGING.contains(&name) => forbidden(name),
        _ => value.call_method(state, name, args),
    }
}

fn list(value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match name {
        "count" => {
            let (what,): (&Value,) = from_args(args)?;
            Ok(Value::from(value.try_iter()?.filter(|item| item == what).count()))
        }
        "index" => {
            let (what,): (&Value,) = from_args(args)?;
            match value.try_iter()?.position(|item| item == *what) {
                Some(at) => Ok(Value::from(at)),
                None => fail("the item is not in the list".to_owned()),
            }
        }
        "copy" => {
            let () = from_args(args)?;
            Ok(value.clone())
        }
        _ if CHANGING.contains(&name) => forbidden(name),
        _ => fail(format!("a list has no method '{name}'")),
    }
}

/// Python's white space: Unicode's and four separators.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

fn string(state: &mut State, value: &Value, text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            let strip = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
            Ok(Value::from(match name {
                "strip" => text.trim_matches(strip),
                "lstrip" => text.trim_start_matches(strip),
                _ => text.trim_end_matches(strip),
            }))
        }
        "split" | "rsplit" => split(text, name == "rsplit", args),
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(args)?;
            Ok(lines(text, keep.unwrap_or(false)).into_iter().map(Value::from).collect())
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let from_end = name == "rpartition";
            let cut = if from_end { text.rsplit_once(separator) } else { text.split_once(separator) };
            Ok(tuple(match cut {
                Some((left, right)) => [left, separator, right],
                None if from_end => ["", "", text],
                None => [text, "", ""],
            }))
        }
        "startswith" | "endswith" => {
            let (what, from, to): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
            let text = &*window(text, from, to);
            let fits =
                |part: &str| if name == "startswith" { text.starts_with(part) } else { text.ends_with(part) };
            match what.as_str() {
                Some(part) => Ok(Value::from(fits(part))),
                None if what.downcast_object_ref::<Tuple>().is_some() => {
                    Ok(Value::from(what.try_iter()?.any(|part| part.as_str().is_some_and(fits))))
                }
                None => fail(format!("{name} wants a string or a tuple of strings, not {}", what.kind())),
            }
        }
        "removeprefix" => {
            let (part,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_prefix(part).unwrap_or(text)))
        }
        "removesuffix" => {
            let (part,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_suffix(part).unwrap_or(text)))
        }
        "replace" => {
            let (old, new, count, kwargs): (&str, &str, Option<i64>, Kwargs) = from_args(args)?;
            let count = count.or(kwargs.get("count")?).unwrap_or(-1);
            kwargs.assert_all_used()?;
            replace(state, text, old, new, count)
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (what, from, to): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            let part = window(text, from, to);
            let before = from.map_or(0, |from| position(text, from));
            let at = if name.starts_with('r') { part.rfind(what) } else { part.find(what) };
            match at {
                Some(at) => Ok(Value::from(before + part[..at].chars().count())),
                None if name.ends_with("find") => Ok(Value::from(-1)),
                None => fail("substring not found".to_owned()),
            }
        }
        "count" => {
            let (what,): (&str,) = from_args(args)?;
            let empty = what.is_empty();
            Ok(Value::from(if empty { text.chars().count() + 1 } else { text.matches(what).count() }))
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            let mut out = String::new();
            for (i, item) in items.try_iter()?.enumerate() {
                let Some(item) = item.as_str() else {
                    return fail(format!("sequence item {i}: expected a string, found {}", item.kind()));
                };
                charge(state, text.len() + item.len())?;
                if i > 0 {
                    out.push_str(text);
                }
                out.push_str(item);
            }
            Ok(Value::from(out))
        }
        "title" => Ok(Value::from(title(text))),
        "capitalize" => {
            let mut chars = text.chars();
            let first = chars.next().map(|c| c.to_uppercase().collect::<String>()).unwrap_or_default();
            Ok(Value::from(first + &chars.as_str().to_lowercase()))
        }
        "casefold" => Ok(Value::from(text.to_lowercase())),
        "swapcase" => Ok(Value::from(text.chars().map(swapped).collect::<String>())),
        "format" => {
            check_widths(text)?;
            minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
        }
        "zfill" | "center" | "ljust" | "rjust" => pad(state, text, name, args),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// `text.replace(old, new, count)`; a negative count is for all.
pub(super) fn replace(
    state: &mut State,
    text: &str,
    old: &str,
    new: &str,
    count: i64,
) -> Result<Value, Error> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let found = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() };
    charge(state, text.len().saturating_add(found.min(count).saturating_mul(new.len())))?;
    Ok(Value::from(text.replacen(old, new, count)))
}

/// `split` and `rsplit`.
fn split(text: &str, from_end: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator, limit, kwargs): (Option<&Value>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = separator.cloned().or(kwargs.get("sep")?);
    let limit = limit.or(kwargs.get("maxsplit")?).unwrap_or(-1);
    kwargs.assert_all_used()?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut parts: Vec<&str> = Vec::new();
    let mut rest = text;
    match separator.as_ref().filter(|separator| !separator.is_none()) {
        Some(separator) => {
            let Some(separator) = separator.as_str().filter(|text| !text.is_empty()) else {
                return fail("the separator must be a string that is not empty".to_owned());
            };
            while parts.len() < limit {
                let cut = if from_end { rest.rsplit_once(separator) } else { rest.split_once(separator) };
                let Some((left, right)) = cut else { break };
                parts.push(if from_end { right } else { left });
                rest = if from_end { left } else { right };
            }
            parts.push(rest);
        }
        None => {
            let trim = |rest| {
                if from_end {
                    str::trim_end_matches(rest, is_space)
                } else {
                    str::trim_start_matches(rest, is_space)
                }
            };
            rest = trim(rest);
            while parts.len() < limit {
                let at = if from_end { rest.rfind(is_space) } else { rest.find(is_space) };
                let Some(at) = at else { break };
                let (left, right) = rest.split_at(at);
                parts.push(if from_end { right.trim_start_matches(is_space) } else { left });
                rest = trim(if from_end { left } else { right });
            }
            if !rest.is_empty() {
                parts.push(rest);
            }
        }
    }
    if from_end {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// The lines of a text by the breaks that Python's `splitlines` knows, `\r\n` as one.
pub(super) fn lines(text: &str, keep: bool) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = text;
    let breaks = |c: char| matches!(c, '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    while let Some((at, mark)) = rest.char_indices().find(|(_, c)| breaks(*c)) {
        let length = if rest[at..].starts_with("\r\n") { 2 } else { mark.len_utf8() };
        out.push(&rest[..if keep { at + length } else { at }]);
        rest = &rest[at + length..];
    }
    if !rest.is_empty() {
        out.push(rest);
    }
    out
}

/// The characters from one index to another, as a slice takes them.
fn window(text: &str, from: Option<i64>, to: Option<i64>) -> String {
    if from.is_none() && to.is_none() {
        return text.to_owned();
    }
    let from = from.map_or(0, |from| position(text, from));
    let to = to.map_or(usize::MAX, |to| position(text, to));
    text.chars().take(to).skip(from).collect()
}

/// A character index, counted from the end where negative.
fn position(text: &str, index: i64) -> usize {
    let length = text.chars().count();
    let back = || length.saturating_sub(usize::try_from(index.unsigned_abs()).unwrap_or(usize::MAX));
    usize::try_from(index).unwrap_or_else(|_| back())
}

fn tuple<const N: usize>(parts: [&str; N]) -> Value {
    Value::from_object(Tuple::new(parts.into_iter().map(Value::from).collect()))
}

/// A capital after every character that is no letter.
fn title(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        inside = c.is_alphabetic();
    }
    out
}

fn swapped(c: char) -> char {
    let swapped = if c.is_uppercase() { c.to_lowercase().next() } else { c.to_uppercase().next() };
    swapped.unwrap_or(c)
}

/// `zfill`, `center`, `ljust`, `rjust`.
fn pad(state: &mut State, text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (i64, Option<char>) = from_args(args)?;
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(text.chars().count());
    let fill = fill.unwrap_or(if name == "zfill" { '0' } else { ' ' });
    charge(state, text.len().saturating_add(missing.saturating_mul(fill.len_utf8())))?;
    let width = missing + text.chars().count();
    let (left, right) = match name {
        "ljust" => (0, missing),
        // Python puts the odd one to the left when the width is odd.
        "center" => (missing / 2 + (missing & width & 1), missing - missing / 2 - (missing & width & 1)),
        _ => (missing, 0),
    };
    let fills = |count: usize| std::iter::repeat_n(fill, count).collect::<String>();
    let (sign, digits) = match text.chars().next() {
        Some(sign @ ('+' | '-')) if name == "zfill" => (sign.to_string(), &text[1..]),
        _ => (String::new(), text),
    };
    Ok(Value::from([&sign, &fills(left), digits, &fills(right)].concat()))
}

/// `str.join` of anything, for the filter.
pub(super) fn join(state: &mut State, items: &[Value], separator: &str) -> Result<Value, Error> {
    let mut out = String::new();
    for (i, item) in items.iter().enumerate() {
        let item = to_str(item);
        charge(state, separator.len() + item.len())?;
        if i > 0 {
            out.push_str(separator);
        }
        out.push_str(&item);
    }
    Ok(Value::from(out))
}
