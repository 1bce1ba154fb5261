//! Values as Python writes them: `str()`, `repr()` and `json.dumps()`.

use std::fmt::Write as _;
use std::sync::LazyLock;

use fancy_regex::Regex;
use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// Values nest at most this deep when written.
const MAX_DEPTH: usize = 256;

/// `str(value)`.
pub(super) fn to_str(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None => {
            let mut out = String::new();
            write(&mut out, value, 0);
            out
        }
    }
}

fn write(out: &mut String, value: &Value, depth: usize) {
    if depth > MAX_DEPTH {
        out.push_str("...");
        return;
    }
    match value.kind() {
        ValueKind::Undefined if depth == 0 => {}
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&float(f64::try_from(value.clone()).unwrap_or(0.0)))
        }
        ValueKind::String => quote(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            let tuple = value.downcast_object_ref::<Tuple>().is_some();
            out.push(if tuple { '(' } else { '[' });
            let mut count = 0;
            for item in value.try_iter().into_iter().flatten() {
                if count > 0 {
                    out.push_str(", ");
                }
                write(out, &item, depth + 1);
                count += 1;
            }
            if tuple && count == 1 {
                out.push(',');
            }
            out.push(if tuple { ')' } else { ']' });
        }
        ValueKind::Map => {
            out.push('{');
            for (i, (key, item)) in pairs(value).into_iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                write(out, &key, depth + 1);
                out.push_str(": ");
                write(out, &item, depth + 1);
            }
            out.push('}');
        }
        _ => {
            let _ = write!(out, "{value}");
        }
    }
}

/// Keys and values of a mapping, in order.
pub(super) fn pairs(value: &Value) -> Vec<(Value, Value)> {
    let object = value.as_object();
    object.and_then(|object| object.try_iter_pairs()).map(Iterator::collect).unwrap_or_default()
}

/// `repr()` of a float: the shortest digits that read back the same, in exponent form outside 1e-4 to 1e16.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = number.to_string();
    if plain.contains('.') { plain } else { plain + ".0" }
}

/// `repr()` of a string.
fn quote(out: &mut String, text: &str) {
    static UNPRINTABLE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"[\p{C}\p{Z}]").ok());
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for c in text.chars() {
        let hidden = || {
            let regex = UNPRINTABLE.as_ref();
            regex.is_some_and(|r| r.is_match(c.encode_utf8(&mut [0; 4])).unwrap_or(false))
        };
        let code = u32::from(c);
        let _ = match c {
            '\\' => out.write_str(r"\\"),
            '\n' => out.write_str(r"\n"),
            '\r' => out.write_str(r"\r"),
            '\t' => out.write_str(r"\t"),
            _ if c == mark => write!(out, "\\{c}"),
            ' '..='~' => out.write_char(c),
            _ if !hidden() => out.write_char(c),
            _ if code < 0x100 => write!(out, r"\x{code:02x}"),
            _ if code < 0x1_0000 => write!(out, r"\u{code:04x}"),
            _ => write!(out, r"\U{code:08x}"),
        };
    }
    out.push(mark);
}

/// How `json.dumps` lays out.
#[derive(Debug, Clone)]
pub(super) struct JsonStyle {
    /// What one level is indented by.
    pub(super) indent: Option<String>,
    /// Between items.
    pub(super) item: String,
    /// Between key and value.
    pub(super) key: String,
    /// Keys in order of their text.
    pub(super) sort: bool,
    /// Characters outside ASCII as `\uXXXX`.
    pub(super) ascii: bool,
}

/// `json.dumps(value)`.
///
/// # Errors
/// The value, or one in it, has no JSON form.
pub(super) fn json(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut out = String::new();
    write_json(&mut out, value, style, 0)?;
    Ok(out)
}

fn write_json(out: &mut String, value: &Value, style: &JsonStyle, depth: usize) -> Result<(), Error> {
    let fail = |what: String| Err(Error::new(ErrorKind::BadSerialization, what));
    if depth > MAX_DEPTH {
        return fail("nested too deeply for JSON".to_owned());
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&json_number(value)),
        ValueKind::String => json_string(out, value.as_str().unwrap_or_default(), style.ascii),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                separate(out, style, i, depth + 1);
                write_json(out, item, style, depth + 1)?;
            }
            close(out, style, items.is_empty(), depth);
            out.push(']');
        }
        ValueKind::Map => {
            let mut pairs = pairs(value);
            if style.sort {
                pairs.sort_by(|a, b| a.0.cmp(&b.0));
            }
            out.push('{');
            for (i, (key, item)) in pairs.iter().enumerate() {
                separate(out, style, i, depth + 1);
                let key = match key.kind() {
                    ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
                    ValueKind::None => "null".to_owned(),
                    ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_owned(),
                    ValueKind::Number => json_number(key),
                    kind => return fail(format!("keys must be strings or numbers, not {kind}")),
                };
                json_string(out, &key, style.ascii);
                out.push_str(&style.key);
                write_json(out, item, style, depth + 1)?;
            }
            close(out, style, pairs.is_empty(), depth);
            out.push('}');
        }
        kind => return fail(format!("object of type {kind} is not JSON serializable")),
    }
    Ok(())
}

fn separate(out: &mut String, style: &JsonStyle, index: usize, depth: usize) {
    if index > 0 {
        out.push_str(&style.item);
    }
    if let Some(indent) = &style.indent {
        out.push('\n');
        (0..depth).for_each(|_| out.push_str(indent));
    }
}

fn close(out: &mut String, style: &JsonStyle, empty: bool, depth: usize) {
    if let (Some(indent), false) = (&style.indent, empty) {
        out.push('\n');
        (0..depth).for_each(|_| out.push_str(indent));
    }
}

fn json_number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()).unwrap_or(f64::NAN) {
        number if number.is_nan() => "NaN".to_owned(),
        number if number.is_infinite() => if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        number => float(number),
    }
}

fn json_string(out: &mut String, text: &str, ascii: bool) {
    out.push('"');
    for c in text.chars() {
        let _ = match c {
            '"' => out.write_str("\\\""),
            '\\' => out.write_str("\\\\"),
            '\n' => out.write_str("\\n"),
            '\r' => out.write_str("\\r"),
            '\t' => out.write_str("\\t"),
            '\x08' => out.write_str("\\b"),
            '\x0c' => out.write_str("\\f"),
            c if c < ' ' || (ascii && c > '~') => {
                let mut units = [0; 2];
                c.encode_utf16(&mut units).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))
            }
            c => out.write_char(c),
        };
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_python_writes_them() {
        for (number, text) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e16, "1e+16"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (9_999_999_999_999_998.0, "9999999999999998.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(float(number), text);
        }
    }

    #[test]
    fn strings_are_quoted_as_python_does() {
        let quoted = |text: &str| {
            let mut out = String::new();
            quote(&mut out, text);
            out
        };
        assert_eq!(quoted("it's"), r#""it's""#);
        assert_eq!(quoted("it's \"x\""), r#"'it\'s "x"'"#);
        assert_eq!(quoted("\u{7f}\u{a0}é\u{200b}\n\\"), r"'\x7f\xa0é\u200b\n\\'");
    }
}
