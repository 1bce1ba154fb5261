//! The writer: metadata and tensors to a GGUF version 3 file, tensor data streamed.

use std::io::Write;

use shoal_core::QuantType;

use super::{
    Array, DEFAULT_ALIGNMENT, GgufError, MAX_ALIGNMENT, MAX_DIMS, Metadata, TensorInfo, Value, read,
};

/// Describes a file, then writes it in one pass.
///
/// ```
/// # use shoal_engine::gguf::{GgufWriter, Gguf, Value};
/// # use shoal_core::QuantType;
/// let mut writer = GgufWriter::new();
/// writer.metadata.set("general.architecture", Value::String("llama".into()));
/// writer.tensor("norm.weight", &[2], QuantType::F32)?;
/// let mut file = Vec::new();
/// writer.write(&mut file, |_info, data| data.write_all(&[0; 8]))?;
/// assert_eq!(Gguf::parse(file.as_slice(), file.len() as u64)?.tensors()[0].bytes, 8);
/// # Ok::<(), shoal_engine::gguf::GgufError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct GgufWriter {
    /// Written in its order. `general.alignment` is respected.
    pub metadata: Metadata,
    tensors: Vec<TensorInfo>,
}

impl GgufWriter {
    /// A file without keys or tensors.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor; `dims` are fastest first.
    ///
    /// # Errors
    /// The shape is unusable, rows are no whole number of blocks, or the name is taken.
    pub fn tensor(&mut self, name: &str, dims: &[u64], kind: QuantType) -> Result<(), GgufError> {
        if dims.is_empty() || dims.len() > MAX_DIMS || dims.contains(&0) {
            return Err(GgufError::Shape { name: name.to_owned(), dims: dims.to_vec() });
        }
        if self.tensors.iter().any(|tensor| tensor.name == name) {
            return Err(GgufError::DuplicateTensor { name: name.to_owned() });
        }
        let bytes = read::tensor_bytes(name, dims, kind)?;
        self.tensors.push(TensorInfo { name: name.to_owned(), dims: dims.to_vec(), kind, offset: 0, bytes });
        Ok(())
    }

    /// Writes the file. `data` is called once for each tensor, in order, and writes exactly `info.bytes` bytes
    /// (`info.offset` is where they land in the file). Returns the file's length.
    ///
    /// # Errors
    /// Writing failed, the alignment is unusable, or `data` wrote another number of bytes.
    pub fn write(
        &self,
        out: impl Write,
        mut data: impl FnMut(&TensorInfo, &mut dyn Write) -> std::io::Result<()>,
    ) -> Result<u64, GgufError> {
        let alignment = self.metadata.u64("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
            return Err(GgufError::Alignment { found: alignment, limit: MAX_ALIGNMENT });
        }
        let mut out = Counted { out, written: 0 };
        let head = self.head(alignment);
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| GgufError::Write { what, source }
        };
        out.write_all(&head).map_err(failed("the header"))?;
        out.pad(alignment).map_err(failed("the header"))?;
        for tensor in &self.tensors {
            let start = out.written;
            let info = TensorInfo { offset: start, ..tensor.clone() };
            data(&info, &mut out).map_err(failed(&tensor.name))?;
            let written = out.written - start;
            if written != tensor.bytes {
                let name = tensor.name.clone();
                return Err(GgufError::WrittenLength { name, written, expected: tensor.bytes });
            }
            out.pad(alignment).map_err(failed(&tensor.name))?;
        }
        out.flush().map_err(failed("the end of the file"))?;
        Ok(out.written)
    }

    fn head(&self, alignment: u64) -> Vec<u8> {
        let mut head = Vec::new();
        head.extend_from_slice(b"GGUF");
        head.extend_from_slice(&3u32.to_le_bytes());
        head.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        head.extend_from_slice(&(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in self.metadata.iter() {
            put_string(&mut head, key);
            put_value(&mut head, value);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            put_string(&mut head, &tensor.name);
            head.extend_from_slice(&(tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| head.extend_from_slice(&dim.to_le_bytes()));
            head.extend_from_slice(&tensor.kind.ggml_id().to_le_bytes());
            head.extend_from_slice(&offset.to_le_bytes());
            offset = (offset + tensor.bytes).next_multiple_of(alignment);
        }
        head
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

macro_rules! put_scalar {
    ($out:expr, $id:expr, $number:expr) => {{
        $out.extend_from_slice(&($id as u32).to_le_bytes());
        $out.extend_from_slice(&$number.to_le_bytes());
    }};
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(n) => put_scalar!(out, 0, n),
        Value::I8(n) => put_scalar!(out, 1, n),
        Value::U16(n) => put_scalar!(out, 2, n),
        Value::I16(n) => put_scalar!(out, 3, n),
        Value::U32(n) => put_scalar!(out, 4, n),
        Value::I32(n) => put_scalar!(out, 5, n),
        Value::F32(n) => put_scalar!(out, 6, n),
        Value::Bool(flag) => put_scalar!(out, 7, u8::from(*flag)),
        Value::String(text) => {
            out.extend_from_slice(&8u32.to_le_bytes());
            put_string(out, text);
        }
        Value::Array(array) => {
            out.extend_from_slice(&9u32.to_le_bytes());
            put_array(out, array);
        }
        Value::U64(n) => put_scalar!(out, 10, n),
        Value::I64(n) => put_scalar!(out, 11, n),
        Value::F64(n) => put_scalar!(out, 12, n),
    }
}

macro_rules! put_numbers {
    ($out:expr, $id:expr, $items:expr) => {{
        put_array_head($out, $id, $items.len());
        $items.iter().for_each(|item| $out.extend_from_slice(&item.to_le_bytes()));
    }};
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    match array {
        Array::U8(items) => put_numbers!(out, 0, items),
        Array::I8(items) => put_numbers!(out, 1, items),
        Array::U16(items) => put_numbers!(out, 2, items),
        Array::I16(items) => put_numbers!(out, 3, items),
        Array::U32(items) => put_numbers!(out, 4, items),
        Array::I32(items) => put_numbers!(out, 5, items),
        Array::F32(items) => put_numbers!(out, 6, items),
        Array::Bool(items) => {
            put_array_head(out, 7, items.len());
            out.extend(items.iter().map(|&flag| u8::from(flag)));
        }
        Array::String(items) => {
            put_array_head(out, 8, items.len());
            items.iter().for_each(|text| put_string(out, text));
        }
        Array::Array(items) => {
            put_array_head(out, 9, items.len());
            items.iter().for_each(|inner| put_array(out, inner));
        }
        Array::U64(items) => put_numbers!(out, 10, items),
        Array::I64(items) => put_numbers!(out, 11, items),
        Array::F64(items) => put_numbers!(out, 12, items),
    }
}

fn put_array_head(out: &mut Vec<u8>, kind: u32, len: usize) {
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&(len as u64).to_le_bytes());
}

/// A writer that knows how far it is.
struct Counted<W> {
    out: W,
    written: u64,
}

impl<W: Write> Counted<W> {
    fn pad(&mut self, alignment: u64) -> std::io::Result<()> {
        let missing = self.written.next_multiple_of(alignment) - self.written;
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), missing), self)?;
        Ok(())
    }
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
