//! Python's operators, and the budget that every text made by a template is charged to.

use std::time::{Duration, Instant};

use minijinja::value::{Rest, Tuple, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::methods;
use super::repr::to_str;
use super::rewrite::names;

/// Bytes that one rendering may make, intermediate texts included: a template that grows a long prompt piece by
/// piece makes it many times over, one that doubles a text without end stops here.
const MAX_BYTES_MADE: usize = 256 << 20;
/// Time that one rendering may take. What takes seconds is no chat template.
const MAX_TIME: Duration = Duration::from_secs(10);
/// Items of a list made by an operator.
const MAX_ITEMS: usize = 1 << 20;
/// What a list item counts for in the budget.
const ITEM_BYTES: usize = 32;

/// What a rendering has used up.
#[derive(Debug)]
struct Budget {
    bytes: usize,
    start: Instant,
}

/// Charges `bytes` to the rendering.
pub(super) fn charge(state: &mut State, bytes: usize) -> Result<(), Error> {
    let budget = state.get_or_insert_extension_with(|| Budget { bytes: 0, start: Instant::now() });
    // Each step counts for a little, so that many cheap ones end too.
    budget.bytes = budget.bytes.saturating_add(bytes).saturating_add(1);
    if budget.bytes > MAX_BYTES_MADE {
        return fail(format!("the template makes more than {MAX_BYTES_MADE} bytes of text"));
    }
    if budget.start.elapsed() > MAX_TIME {
        return fail(format!("the template takes more than {MAX_TIME:?}"));
    }
    Ok(())
}

/// Charges a value that was made.
fn made(state: &mut State, value: Value) -> Result<Value, Error> {
    let bytes = match value.as_str() {
        Some(text) => text.len(),
        None => value.len().unwrap_or(0).saturating_mul(ITEM_BYTES),
    };
    charge(state, bytes)?;
    Ok(value)
}

/// Charges a value for being compared, which may read all of it.
fn compared(state: &mut State, value: Value) -> Result<Value, Error> {
    made(state, value)
}

/// Registers the operators.
pub(super) fn register(env: &mut Environment<'_>) {
    env.add_filter(names::ADD, add);
    env.add_filter(names::SUB, |left: &Value, right: &Value| arithmetic("-", left, right));
    env.add_filter(names::MUL, mul);
    env.add_filter(names::DIV, |left: &Value, right: &Value| arithmetic("/", left, right));
    env.add_filter(names::FLOOR_DIV, |left: &Value, right: &Value| arithmetic("//", left, right));
    env.add_filter(names::REM, rem);
    env.add_filter(names::POW, |left: &Value, right: &Value| arithmetic("**", left, right));
    env.add_filter(names::CONCAT, |state: &mut State, left: &Value, right: &Value| {
        let text = Value::from(to_str(left) + &to_str(right));
        made(state, text)
    });
    env.add_filter(names::IN, contains);
    env.add_filter(names::SLICE, slice);
    env.add_filter(names::MADE, |state: &mut State, value: Value| made(state, value));
    env.add_filter(
        names::METHOD,
        |state: &mut State, value: &Value, name: &str, args: Rest<ValueOrKwargs>| {
            let result = methods::call(state, value, name, &args.into_values())?;
            made(state, result)
        },
    );
    env.add_filter(names::COMPARED, compared);
    // Nothing is made, but the time is looked at.
    env.add_filter(names::READ, |state: &mut State, value: Value| charge(state, 0).map(|()| value));
    env.add_filter(names::ATTRIBUTE, methods::attribute);
    env.add_filter(names::ITERATED, |value: Value| match value.kind() {
        ValueKind::None | ValueKind::Bool | ValueKind::Number => {
            fail(format!("a value of type {} cannot be iterated over", value.kind()))
        }
        _ => Ok(value),
    });
}

fn fail<T>(message: String) -> Result<T, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn unsupported<T>(op: &str, left: &Value, right: &Value) -> Result<T, Error> {
    fail(format!("unsupported operand types for {op}: {} and {}", left.kind(), right.kind()))
}

/// A number; booleans are numbers.
#[derive(Clone, Copy)]
enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    fn of(value: &Value) -> Option<Self> {
        match value.kind() {
            ValueKind::Bool => Some(Self::Int(i128::from(value.is_true()))),
            ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok().map(Self::Int),
            ValueKind::Number => f64::try_from(value.clone()).ok().map(Self::Float),
            _ => None,
        }
    }

    fn float(self) -> f64 {
        match self {
            Self::Int(int) => int as f64,
            Self::Float(float) => float,
        }
    }
}

fn integer(value: i128) -> Value {
    i64::try_from(value).map_or_else(|_| Value::from(value), Value::from)
}

fn add(state: &mut State, left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (left.as_str(), right.as_str()) {
        charge(state, a.len() + b.len())?;
        return Ok(Value::from([a, b].concat()));
    }
    match (is_list(left), is_list(right)) {
        (Some(a), Some(b)) if a == b => {
            let length = left.len().unwrap_or(0) + right.len().unwrap_or(0);
            check_items(length)?;
            charge(state, length.saturating_mul(ITEM_BYTES))?;
            let items: Vec<Value> = left.try_iter()?.chain(right.try_iter()?).collect();
            Ok(if a { Value::from_object(Tuple::new(items)) } else { Value::from(items) })
        }
        _ => arithmetic("+", left, right),
    }
}

/// Whether a sequence is a tuple; `None` for what is no sequence.
fn is_list(value: &Value) -> Option<bool> {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
        .then(|| value.downcast_object_ref::<Tuple>().is_some())
}

pub(super) fn check_items(count: usize) -> Result<(), Error> {
    if count > MAX_ITEMS { fail(format!("a list of more than {MAX_ITEMS} items")) } else { Ok(()) }
}

fn mul(state: &mut State, left: &Value, right: &Value) -> Result<Value, Error> {
    let sequence = |value: &Value| value.as_str().is_some() || is_list(value).is_some();
    let (value, times) = match (sequence(left), sequence(right)) {
        (true, false) => (left, right),
        (false, true) => (right, left),
        _ => return arithmetic("*", left, right),
    };
    let Some(Number::Int(times)) = Number::of(times) else { return unsupported("*", left, right) };
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    if let Some(text) = value.as_str() {
        charge(state, text.len().saturating_mul(times))?;
        return Ok(Value::from(text.repeat(times)));
    }
    let items: Vec<Value> = value.try_iter()?.collect();
    let length = items.len().saturating_mul(times);
    check_items(length)?;
    charge(state, length.saturating_mul(ITEM_BYTES))?;
    let items: Vec<Value> = items.iter().cycle().take(length).cloned().collect();
    Ok(if is_list(value) == Some(true) { Value::from_object(Tuple::new(items)) } else { Value::from(items) })
}

/// Refuses a format whose fields are wider than any text: minijinja would make them.
pub(super) fn check_widths(format: &str) -> Result<(), Error> {
    /// Digits of a width or precision.
    const MAX_DIGITS: usize = 4;
    let digits = |run: &[u8]| run[0].is_ascii_digit() && run.len() > MAX_DIGITS;
    if format.as_bytes().chunk_by(|a, b| a.is_ascii_digit() == b.is_ascii_digit()).any(digits) {
        return fail("a format with a number of more than four digits".to_owned());
    }
    Ok(())
}

/// The remainder, or text formatted with `%`.
fn rem(state: &mut State, left: &Value, right: &Value) -> Result<Value, Error> {
    if left.as_str().is_none() {
        return arithmetic("%", left, right);
    }
    check_widths(&to_str(left))?;
    let mut args = vec![left.clone()];
    if is_list(right) == Some(true) {
        args.extend(right.try_iter()?);
    } else {
        args.push(right.clone());
    }
    let text = state.apply_filter("format", &args)?;
    made(state, text)
}

fn arithmetic(op: &str, left: &Value, right: &Value) -> Result<Value, Error> {
    let (Some(a), Some(b)) = (Number::of(left), Number::of(right)) else {
        return unsupported(op, left, right);
    };
    if matches!(op, "/" | "//" | "%") && b.float() == 0.0 {
        return fail("division by zero".to_owned());
    }
    if let (Number::Int(a), Number::Int(b)) = (a, b) {
        let result = match op {
            "+" => a.checked_add(b),
            "-" => a.checked_sub(b),
            "*" => a.checked_mul(b),
            // Towards minus infinity, the remainder with the sign of the divisor.
            "//" => a.checked_div_euclid(b).map(|q| if b < 0 && a.rem_euclid(b) != 0 { q - 1 } else { q }),
            "%" => a.checked_rem_euclid(b).map(|r| if b < 0 && r != 0 { r + b } else { r }),
            "**" if b >= 0 => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
            _ => return Ok(Value::from(floating(op, a as f64, b as f64))),
        };
        return match result {
            Some(result) => Ok(integer(result)),
            None => fail(format!("the result of {op} is too large")),
        };
    }
    Ok(Value::from(floating(op, a.float(), b.float())))
}

fn floating(op: &str, a: f64, b: f64) -> f64 {
    match op {
        "+" => a + b,
        "-" => a - b,
        "*" => a * b,
        "/" => a / b,
        "//" => (a / b).floor(),
        "%" => {
            let rest = a % b;
            if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
        }
        _ => a.powf(b),
    }
}

/// `left in right`, as the arguments of a filter.
fn contains(state: &mut State, item: &Value, container: &Value) -> Result<bool, Error> {
    if let Some(text) = container.as_str() {
        let Some(part) = item.as_str() else {
            return fail(format!("'in <string>' requires a string as left operand, not {}", item.kind()));
        };
        charge(state, text.len() / 16)?;
        return Ok(text.contains(part));
    }
    match container.kind() {
        ValueKind::Undefined => Ok(false),
        ValueKind::Map => Ok(container.as_object().is_some_and(|map| map.get_value(item).is_some())),
        ValueKind::Seq | ValueKind::Iterable => {
            charge(state, container.len().unwrap_or(0))?;
            Ok(container.try_iter()?.any(|other| other == *item))
        }
        kind => fail(format!("a value of type {kind} holds nothing")),
    }
}

fn slice(
    state: &mut State,
    value: &Value,
    start: &Value,
    stop: &Value,
    step: &Value,
) -> Result<Value, Error> {
    let bound = |value: &Value| match Number::of(value) {
        _ if value.is_none() => Ok(None),
        Some(Number::Int(int)) => Ok(Some(int)),
        _ => fail(format!("slice indices must be integers, not {}", value.kind())),
    };
    let (start, stop, step) = (bound(start)?, bound(stop)?, bound(step)?.unwrap_or(1));
    if step == 0 {
        return fail("slice step cannot be zero".to_owned());
    }
    if let Some(text) = value.as_str() {
        charge(state, text.len())?;
        let items: Vec<char> = text.chars().collect();
        return Ok(Value::from(sliced(&items, start, stop, step).into_iter().collect::<String>()));
    }
    let Some(tuple) = is_list(value) else {
        return fail(format!("a value of type {} cannot be sliced", value.kind()));
    };
    let items: Vec<Value> = value.try_iter()?.collect();
    charge(state, items.len().saturating_mul(ITEM_BYTES))?;
    let items = sliced(&items, start, stop, step);
    Ok(if tuple { Value::from_object(Tuple::new(items)) } else { Value::from(items) })
}

fn sliced<T: Clone>(items: &[T], start: Option<i128>, stop: Option<i128>, step: i128) -> Vec<T> {
    let length = items.len() as i128;
    let (low, high) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let place = |index: Option<i128>, missing: i128| match index {
        None => missing,
        Some(index) if index < 0 => index.saturating_add(length).clamp(low, high),
        Some(index) => index.clamp(low, high),
    };
    let (from, to) = if step > 0 { (low, high) } else { (high, low) };
    let (mut at, end) = (place(start, from), place(stop, to));
    let mut out = Vec::new();
    while if step > 0 { at < end } else { at > end } {
        out.extend(usize::try_from(at).ok().and_then(|at| items.get(at)).cloned());
        at = at.saturating_add(step);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn division_rounds_down() {
        let result =
            |op: &str, a: i64, b: i64| arithmetic(op, &Value::from(a), &Value::from(b)).unwrap().to_string();
        assert_eq!(
            [result("//", 7, 2), result("//", -7, 2), result("//", 7, -2), result("//", -7, -2)],
            ["3", "-4", "-4", "3"]
        );
        assert_eq!(
            [result("%", 7, 3), result("%", -7, 3), result("%", 7, -3), result("%", -7, -3)],
            ["1", "2", "-2", "-1"]
        );
        assert_eq!(result("/", 4, 2), "2.0");
        assert!(arithmetic("/", &Value::from(1), &Value::from(0)).is_err());
    }

    #[test]
    fn slices_as_python_cuts_them() {
        let items = [0, 1, 2, 3, 4];
        assert_eq!(sliced(&items, None, None, -1), [4, 3, 2, 1, 0]);
        assert_eq!(sliced(&items, Some(1), Some(-1), 2), [1, 3]);
        assert_eq!(sliced(&items, Some(-2), None, 1), [3, 4]);
        assert_eq!(sliced(&items, Some(9), Some(0), -2), [4, 2]);
        assert!(sliced(&items, Some(3), Some(1), 1).is_empty());
    }
}
