//! Metadata of a GGUF file: an ordered list of keys with typed values.
//!
//! The typed accessors tell a missing key (`Ok(None)`) from one of the wrong type (an error naming key and type).
//! What the keys mean is not known here: `model` and the text crate read theirs.

use std::collections::HashMap;

use thiserror::Error;

/// Why a metadata entry cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MetadataError {
    /// The key is absent.
    #[error("failed to read the metadata: key {key:?} is missing")]
    Missing {
        /// The key.
        key: String,
    },
    /// The value has another type, or does not fit.
    #[error("failed to read the metadata: key {key:?} holds {found}, expected {expected}")]
    Type {
        /// The key.
        key: String,
        /// What was expected.
        expected: &'static str,
        /// What is there.
        found: String,
    },
}

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "each variant is the GGUF type of its name")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

/// An array of values of one type.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "each variant is the GGUF type of its name")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
}

/// The metadata of a file, in file order, with unique keys.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl Metadata {
    /// Empty metadata.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The keys, in file order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.iter().map(|(key, _)| key.as_str())
    }

    /// Keys and values, in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&i| &self.entries[i].1)
    }

    /// Sets `key`, replacing a value that is there; returns the replaced value.
    pub fn set(&mut self, key: impl Into<String>, value: Value) -> Option<Value> {
        let key = key.into();
        if let Some(&i) = self.index.get(&key) {
            return Some(std::mem::replace(&mut self.entries[i].1, value));
        }
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        None
    }

    /// A key that must be there: `metadata.require("llama.block_count", Metadata::u32)?`.
    ///
    /// # Errors
    /// [`MetadataError::Missing`] when absent, otherwise what the accessor says.
    pub fn require<'a, T>(
        &'a self,
        key: &str,
        accessor: impl FnOnce(&'a Self, &str) -> Result<Option<T>, MetadataError>,
    ) -> Result<T, MetadataError> {
        accessor(self, key)?.ok_or_else(|| MetadataError::Missing { key: key.to_owned() })
    }

    /// A string.
    ///
    /// # Errors
    /// The key holds another type.
    pub fn string(&self, key: &str) -> Result<Option<&str>, MetadataError> {
        self.typed(key, "a string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// An integer of any width and sign that fits 32 unsigned bits.
    ///
    /// # Errors
    /// The key holds another type, or the integer does not fit.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, MetadataError> {
        self.typed(key, "an integer of 0 to 4294967295", |value| u32::try_from(value.integer()?).ok())
    }

    /// An integer of any width and sign that fits 64 unsigned bits.
    ///
    /// # Errors
    /// The key holds another type, or the integer is negative.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, MetadataError> {
        self.typed(key, "an integer of at least 0", |value| u64::try_from(value.integer()?).ok())
    }

    /// A floating point number; 64-bit ones are rounded.
    ///
    /// # Errors
    /// The key holds another type.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, MetadataError> {
        self.typed(key, "a number", |value| match value {
            Value::F32(number) => Some(*number),
            Value::F64(number) => Some(*number as f32),
            _ => None,
        })
    }

    /// A boolean.
    ///
    /// # Errors
    /// The key holds another type.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, MetadataError> {
        self.typed(key, "a boolean", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// An array of strings.
    ///
    /// # Errors
    /// The key holds another type.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, MetadataError> {
        self.typed(key, "an array of strings", |value| match value {
            Value::Array(Array::String(items)) => Some(items.as_slice()),
            _ => None,
        })
    }

    /// An array of 32-bit floating point numbers.
    ///
    /// # Errors
    /// The key holds another type.
    pub fn f32s(&self, key: &str) -> Result<Option<&[f32]>, MetadataError> {
        self.typed(key, "an array of 32-bit numbers", |value| match value {
            Value::Array(Array::F32(items)) => Some(items.as_slice()),
            _ => None,
        })
    }

    /// An array of integers of any width and sign that all fit 32 signed bits.
    ///
    /// # Errors
    /// The key holds another type, or an integer does not fit.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>, MetadataError> {
        self.typed(key, "an array of 32-bit signed integers", Value::integers)
    }

    /// An array of integers of any width and sign that all fit 32 unsigned bits.
    ///
    /// # Errors
    /// The key holds another type, or an integer does not fit.
    pub fn u32s(&self, key: &str) -> Result<Option<Vec<u32>>, MetadataError> {
        self.typed(key, "an array of 32-bit unsigned integers", Value::integers)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, MetadataError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(item) => Ok(Some(item)),
            None => Err(MetadataError::Type { key: key.to_owned(), expected, found: value.describe() }),
        }
    }
}

impl Value {
    /// The value as an integer, whatever its width; `None` for what is no integer.
    #[must_use]
    pub fn integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(n) => n.into(),
            Self::I8(n) => n.into(),
            Self::U16(n) => n.into(),
            Self::I16(n) => n.into(),
            Self::U32(n) => n.into(),
            Self::I32(n) => n.into(),
            Self::U64(n) => n.into(),
            Self::I64(n) => n.into(),
            _ => return None,
        })
    }

    fn integers<T>(&self) -> Option<Vec<T>>
    where
        T: TryFrom<u8> + TryFrom<i8> + TryFrom<u16> + TryFrom<i16>,
        T: TryFrom<u32> + TryFrom<i32> + TryFrom<u64> + TryFrom<i64>,
    {
        fn each<S: Copy, T: TryFrom<S>>(items: &[S]) -> Option<Vec<T>> {
            items.iter().map(|&item| T::try_from(item).ok()).collect()
        }
        let Self::Array(array) = self else { return None };
        match array {
            Array::U8(items) => each(items),
            Array::I8(items) => each(items),
            Array::U16(items) => each(items),
            Array::I16(items) => each(items),
            Array::U32(items) => each(items),
            Array::I32(items) => each(items),
            Array::U64(items) => each(items),
            Array::I64(items) => each(items),
            _ => None,
        }
    }

    /// A few words for messages: the type, with the value where it is a scalar.
    fn describe(&self) -> String {
        match self {
            Self::F32(n) => format!("the number {n}"),
            Self::F64(n) => format!("the number {n}"),
            Self::Bool(flag) => format!("the boolean {flag}"),
            Self::String(_) => "a string".to_owned(),
            Self::Array(array) => format!("an array of {} {}", array.len(), array.element_name()),
            _ => self.integer().map_or_else(String::new, |n| format!("the integer {n}")),
        }
    }
}

impl Array {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::U8(items) => items.len(),
            Self::I8(items) => items.len(),
            Self::U16(items) => items.len(),
            Self::I16(items) => items.len(),
            Self::U32(items) => items.len(),
            Self::I32(items) => items.len(),
            Self::U64(items) => items.len(),
            Self::I64(items) => items.len(),
            Self::F32(items) => items.len(),
            Self::F64(items) => items.len(),
            Self::Bool(items) => items.len(),
            Self::String(items) => items.len(),
            Self::Array(items) => items.len(),
        }
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn element_name(&self) -> &'static str {
        match self {
            Self::F32(_) | Self::F64(_) => "numbers",
            Self::Bool(_) => "booleans",
            Self::String(_) => "strings",
            Self::Array(_) => "arrays",
            _ => "integers",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accessors_tell_missing_from_mistyped() {
        let mut metadata = Metadata::new();
        metadata.set("count", Value::I8(-1));
        metadata.set("wide", Value::U64(7));
        metadata.set("types", Value::Array(Array::U16(vec![1, 2])));
        assert_eq!(metadata.u32("absent"), Ok(None));
        assert_eq!(metadata.u32("wide"), Ok(Some(7)));
        assert_eq!(metadata.i32s("types"), Ok(Some(vec![1, 2])));
        assert!(metadata.u32("count").unwrap_err().to_string().contains("\"count\" holds the integer -1"));
        assert!(metadata.strings("types").is_err());
        assert_eq!(
            metadata.require("absent", Metadata::string),
            Err(MetadataError::Missing { key: "absent".into() })
        );
        assert_eq!(metadata.keys().collect::<Vec<_>>(), ["count", "wide", "types"]);
    }

    #[test]
    fn set_replaces_in_place() {
        let mut metadata = Metadata::new();
        metadata.set("a", Value::U8(1));
        metadata.set("b", Value::U8(2));
        assert_eq!(metadata.set("a", Value::U8(3)), Some(Value::U8(1)));
        assert_eq!(metadata.iter().collect::<Vec<_>>(), [("a", &Value::U8(3)), ("b", &Value::U8(2))]);
    }
}
