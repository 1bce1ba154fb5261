//! The reader: bytes to [`Gguf`], with every length checked before it is believed.

use std::collections::HashMap;
use std::io::{ErrorKind, Read};

use shoal_core::QuantType;

use super::{
    Array, DEFAULT_ALIGNMENT, Gguf, GgufError, MAX_ALIGNMENT, MAX_ARRAY_DEPTH, MAX_ARRAY_ENTRIES, MAX_DIMS,
    MAX_KEYS, MAX_METADATA_BYTES, MAX_STRING_BYTES, MAX_TENSORS, Metadata, TensorInfo, Value,
};

/// Strings and arrays are read in pieces of this size, so that a source shorter than its claimed length costs no more.
const PIECE_BYTES: usize = 64 << 10;

pub(super) fn file(source: impl Read, file_len: u64) -> Result<Gguf, GgufError> {
    let mut input = Input { source, at: 0, len: file_len };
    let header = Header::read(&mut input)?;
    let metadata = header.metadata(&mut input)?;
    let alignment = alignment(&metadata)?;
    let mut tensors = Vec::new();
    let mut index = HashMap::new();
    for i in 0..header.tensors {
        let tensor = tensor(&mut input, i, alignment)?;
        if index.insert(tensor.name.clone(), tensors.len()).is_some() {
            return Err(GgufError::DuplicateTensor { name: tensor.name });
        }
        tensors.push(tensor);
    }
    let data_offset = input.at.next_multiple_of(alignment);
    place(&mut tensors, data_offset, file_len)?;
    Ok(Gguf { version: header.version, metadata, alignment, data_offset, tensors, index })
}

pub(super) fn metadata_only(source: impl Read, file_len: u64) -> Result<Metadata, GgufError> {
    let mut input = Input { source, at: 0, len: file_len };
    Header::read(&mut input)?.metadata(&mut input)
}

struct Header {
    version: u32,
    tensors: u64,
    keys: u64,
}

impl Header {
    fn read(input: &mut Input<impl Read>) -> Result<Self, GgufError> {
        let found: [u8; 4] = input.array("the magic")?;
        if &found != b"GGUF" {
            return Err(GgufError::Magic { found });
        }
        let version = input.u32("the version")?;
        match version {
            2 | 3 => {}
            _ if matches!(version.swap_bytes(), 1..=3) => {
                return Err(GgufError::BigEndian { version: version.swap_bytes() });
            }
            _ => return Err(GgufError::Version { version }),
        }
        let tensors = input.count("the number of tensors", MAX_TENSORS)?;
        let keys = input.count("the number of metadata keys", MAX_KEYS)?;
        Ok(Self { version, tensors, keys })
    }

    fn metadata(&self, input: &mut Input<impl Read>) -> Result<Metadata, GgufError> {
        let mut metadata = Metadata::new();
        for i in 0..self.keys {
            let key = input.name(&format!("metadata key {i}"))?;
            let kind = input.u32(&key)?;
            let value = value(input, &key, kind)?;
            if metadata.get(&key).is_some() {
                return Err(GgufError::DuplicateKey { key });
            }
            metadata.set(key, value);
        }
        Ok(metadata)
    }
}

fn alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    let found = metadata.u64("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if !found.is_power_of_two() || found > MAX_ALIGNMENT {
        return Err(GgufError::Alignment { found, limit: MAX_ALIGNMENT });
    }
    Ok(found)
}

fn value(input: &mut Input<impl Read>, key: &str, kind: u32) -> Result<Value, GgufError> {
    Ok(match kind {
        0 => Value::U8(u8::from_le_bytes(input.array(key)?)),
        1 => Value::I8(i8::from_le_bytes(input.array(key)?)),
        2 => Value::U16(u16::from_le_bytes(input.array(key)?)),
        3 => Value::I16(i16::from_le_bytes(input.array(key)?)),
        4 => Value::U32(u32::from_le_bytes(input.array(key)?)),
        5 => Value::I32(i32::from_le_bytes(input.array(key)?)),
        6 => Value::F32(f32::from_le_bytes(input.array(key)?)),
        7 => Value::Bool(boolean(input, key)?),
        8 => Value::String(input.text(key)?),
        9 => Value::Array(array(input, key, 1)?),
        10 => Value::U64(u64::from_le_bytes(input.array(key)?)),
        11 => Value::I64(i64::from_le_bytes(input.array(key)?)),
        12 => Value::F64(f64::from_le_bytes(input.array(key)?)),
        found => return Err(GgufError::ValueType { key: key.to_owned(), at: input.at - 4, found }),
    })
}

fn boolean(input: &mut Input<impl Read>, key: &str) -> Result<bool, GgufError> {
    let at = input.at;
    match input.array(key)? {
        [0] => Ok(false),
        [1] => Ok(true),
        [found] => Err(GgufError::Bool { key: key.to_owned(), at, found }),
    }
}

fn array(input: &mut Input<impl Read>, key: &str, depth: usize) -> Result<Array, GgufError> {
    let at = input.at;
    if depth > MAX_ARRAY_DEPTH {
        let what = format!("the array depth of metadata key {key:?}");
        return Err(GgufError::Limit { what, at, found: depth as u64, limit: MAX_ARRAY_DEPTH as u64 });
    }
    let kind = input.u32(key)?;
    let count = input.count(&format!("the array length of metadata key {key:?}"), MAX_ARRAY_ENTRIES)?;
    Ok(match kind {
        0 => Array::U8(input.numbers(key, count, u8::from_le_bytes)?),
        1 => Array::I8(input.numbers(key, count, i8::from_le_bytes)?),
        2 => Array::U16(input.numbers(key, count, u16::from_le_bytes)?),
        3 => Array::I16(input.numbers(key, count, i16::from_le_bytes)?),
        4 => Array::U32(input.numbers(key, count, u32::from_le_bytes)?),
        5 => Array::I32(input.numbers(key, count, i32::from_le_bytes)?),
        6 => Array::F32(input.numbers(key, count, f32::from_le_bytes)?),
        7 => Array::Bool(input.items(key, count, 1, boolean)?),
        8 => Array::String(input.items(key, count, 8, Input::text)?),
        9 => Array::Array(input.items(key, count, 12, |input, key| array(input, key, depth + 1))?),
        10 => Array::U64(input.numbers(key, count, u64::from_le_bytes)?),
        11 => Array::I64(input.numbers(key, count, i64::from_le_bytes)?),
        12 => Array::F64(input.numbers(key, count, f64::from_le_bytes)?),
        found => return Err(GgufError::ValueType { key: key.to_owned(), at, found }),
    })
}

/// One entry of the tensor table; `offset` is still relative to the data section.
fn tensor(input: &mut Input<impl Read>, i: u64, alignment: u64) -> Result<TensorInfo, GgufError> {
    let name = input.name(&format!("the name of tensor {i}"))?;
    let count = input.u32(&name)?;
    if count == 0 || count as usize > MAX_DIMS {
        let (what, at) = (format!("the number of dimensions of tensor {name:?}"), input.at - 4);
        return Err(GgufError::Limit { what, at, found: count.into(), limit: MAX_DIMS as u64 });
    }
    let dims = (0..count).map(|_| input.u64(&name)).collect::<Result<Vec<_>, _>>()?;
    let id = input.u32(&name)?;
    let offset = input.u64(&name)?;
    let kind = QuantType::from_ggml_id(id)
        .ok_or_else(|| GgufError::Quantization { name: name.clone(), kind: ggml_name(id) })?;
    if dims.contains(&0) {
        return Err(GgufError::Shape { name, dims });
    }
    let bytes = tensor_bytes(&name, &dims, kind)?;
    if !offset.is_multiple_of(alignment) {
        return Err(GgufError::Misaligned { name, offset, alignment });
    }
    Ok(TensorInfo { name, dims, kind, offset, bytes })
}

/// Bytes of a tensor of this shape, checked.
pub(super) fn tensor_bytes(name: &str, dims: &[u64], kind: QuantType) -> Result<u64, GgufError> {
    let block = kind.block_len();
    if !dims[0].is_multiple_of(block) {
        return Err(GgufError::Blocks { name: name.to_owned(), row: dims[0], block, kind: kind.name() });
    }
    let overflow = || GgufError::Overflow { name: name.to_owned(), dims: dims.to_vec() };
    let elements = dims.iter().try_fold(1u64, |all, &dim| all.checked_mul(dim)).ok_or_else(overflow)?;
    (elements / block).checked_mul(kind.block_bytes()).ok_or_else(overflow)
}

/// Makes offsets absolute; refuses tensors outside the file or on each other's bytes.
fn place(tensors: &mut [TensorInfo], data_offset: u64, file_len: u64) -> Result<(), GgufError> {
    for tensor in tensors.iter_mut() {
        let start = tensor.offset.checked_add(data_offset);
        match start.and_then(|start| start.checked_add(tensor.bytes)) {
            Some(end) if end <= file_len => tensor.offset += data_offset,
            _ => {
                let (name, bytes) = (tensor.name.clone(), tensor.bytes);
                return Err(GgufError::Outside {
                    name,
                    offset: start.unwrap_or(u64::MAX),
                    bytes,
                    len: file_len,
                });
            }
        }
    }
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.offset);
    for pair in order.windows(2) {
        if pair[0].offset + pair[0].bytes > pair[1].offset {
            return Err(GgufError::Overlap { name: pair[1].name.clone(), other: pair[0].name.clone() });
        }
    }
    Ok(())
}

/// What ggml calls a number that the engine does not read.
fn ggml_name(id: u32) -> String {
    let name = match id {
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("number {id}"),
    };
    format!("{name} (number {id})")
}

/// The bytes of the file, with the position for messages and the length to hold counts against.
struct Input<R> {
    source: R,
    at: u64,
    len: u64,
}

impl<R: Read> Input<R> {
    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.fill(what, &mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn count(&mut self, what: &str, limit: u64) -> Result<u64, GgufError> {
        let at = self.at;
        let found = self.u64(what)?;
        if found > limit {
            return Err(GgufError::Limit { what: what.to_owned(), at, found, limit });
        }
        Ok(found)
    }

    /// A key or tensor name: these must be UTF-8.
    fn name(&mut self, what: &str) -> Result<String, GgufError> {
        let at = self.at;
        String::from_utf8(self.string(what)?).map_err(|_| GgufError::Utf8 { what: what.to_owned(), at })
    }

    /// A string value: files with a cut description exist, so what is not UTF-8 is replaced (U+FFFD), not refused.
    fn text(&mut self, what: &str) -> Result<String, GgufError> {
        let bytes = self.string(what)?;
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    fn string(&mut self, what: &str) -> Result<Vec<u8>, GgufError> {
        let at = self.at;
        let len = self.u64(what)?;
        if len > MAX_STRING_BYTES {
            let what = format!("the string length of {what}");
            return Err(GgufError::Limit { what, at, found: len, limit: MAX_STRING_BYTES });
        }
        self.check(what, at, len)?;
        let mut bytes = Vec::new();
        self.pieces(what, len as usize, |piece| bytes.extend_from_slice(piece))?;
        bytes.shrink_to_fit();
        Ok(bytes)
    }

    fn numbers<const N: usize, T>(
        &mut self,
        what: &str,
        count: u64,
        decode: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, GgufError> {
        self.check(what, self.at, count * N as u64)?;
        let mut items = Vec::new();
        self.pieces(what, count as usize * N, |piece| {
            items.extend(piece.as_chunks::<N>().0.iter().map(|&bytes| decode(bytes)));
        })?;
        Ok(items)
    }

    fn items<T>(
        &mut self,
        what: &str,
        count: u64,
        least_bytes: u64,
        mut read: impl FnMut(&mut Self, &str) -> Result<T, GgufError>,
    ) -> Result<Vec<T>, GgufError> {
        self.check(what, self.at, count * least_bytes)?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(read(self, what)?);
        }
        items.shrink_to_fit();
        Ok(items)
    }

    /// Hands out the next `len` bytes in pieces of [`PIECE_BYTES`], a multiple of every number's size.
    fn pieces(&mut self, what: &str, len: usize, mut take: impl FnMut(&[u8])) -> Result<(), GgufError> {
        let mut buffer = vec![0; len.min(PIECE_BYTES)];
        let mut left = len;
        while left > 0 {
            let piece = &mut buffer[..left.min(PIECE_BYTES)];
            self.fill(what, piece)?;
            take(piece);
            left -= piece.len();
        }
        Ok(())
    }

    fn fill(&mut self, what: &str, bytes: &mut [u8]) -> Result<(), GgufError> {
        self.check(what, self.at, bytes.len() as u64)?;
        self.source.read_exact(bytes).map_err(|source| match source.kind() {
            ErrorKind::UnexpectedEof => self.truncated(what, self.at),
            _ => GgufError::Read { what: what.to_owned(), at: self.at, source },
        })?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Whether `bytes` more bytes fit the file and the limit on metadata.
    fn check(&self, what: &str, item_at: u64, bytes: u64) -> Result<(), GgufError> {
        let end = self.at.saturating_add(bytes);
        if end > self.len {
            return Err(self.truncated(what, item_at));
        }
        if end > MAX_METADATA_BYTES {
            let what = format!("the bytes before the tensor data, at {what}");
            return Err(GgufError::Limit { what, at: item_at, found: end, limit: MAX_METADATA_BYTES });
        }
        Ok(())
    }

    fn truncated(&self, what: &str, at: u64) -> GgufError {
        GgufError::Truncated { what: what.to_owned(), at, len: self.len }
    }
}
