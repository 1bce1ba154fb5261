//! A weight matrix as the file has it, wherever its bytes are.

use shoal_core::QuantType;

/// A view of a weight matrix `[rows, cols]`: each row's blocks, row after row.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    kind: QuantType,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    bytes: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// A matrix of exactly these bytes.
    ///
    /// # Panics
    /// When rows are not whole blocks or the bytes are not those of the shape: whoever loads weights checks them.
    #[must_use]
    pub fn new(kind: QuantType, rows: usize, cols: usize, bytes: &'a [u8]) -> Self {
        let row_bytes = kind.row_bytes(cols as u64).and_then(|bytes| usize::try_from(bytes).ok());
        let Some(row_bytes) = row_bytes else { panic!("rows of {cols} are not whole blocks of {kind}") };
        let fits = row_bytes.checked_mul(rows) == Some(bytes.len());
        assert!(fits, "{rows} x {cols} of {kind} are not {} bytes", bytes.len());
        Self { kind, rows, cols, row_bytes, bytes }
    }

    /// The number format.
    #[must_use]
    pub fn kind(&self) -> QuantType {
        self.kind
    }

    /// Output values.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input values.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of row `row`.
    ///
    /// # Panics
    /// When there is no such row.
    #[must_use]
    #[inline]
    pub fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.row_bytes..][..self.row_bytes]
    }
}
