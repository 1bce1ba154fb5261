//! The data frame: one piece of a block of activations on its way from one rank to another.
//!
//! A block is `rows × cols` values of one exchange (a hop between stages, a partial sum, a reduced
//! sum). It is encoded row by row (`shoal_engine::wire`) and cut by rows, or by columns where one row
//! is too long, into frames of at most [`limits::FRAME_BYTES`] payload. The header is 64 bytes, all
//! integers little-endian:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `SHOL` |
//! | 4 | 2 | version |
//! | 6 | 2 | flags: [`FLAG_MORE`], which the transport sets and takes off; otherwise 0 |
//! | 8 | 8 | term |
//! | 16 | 4 | epoch counter |
//! | 20 | 2 | stage that receives |
//! | 22 | 2 | rank that sends, in its own stage |
//! | 24 | 8 | step |
//! | 32 | 4 | layer |
//! | 36 | 1 | phase |
//! | 37 | 1 | number format |
//! | 38 | 2 | zero |
//! | 40 | 4 | first row |
//! | 44 | 4 | rows |
//! | 48 | 4 | first column |
//! | 52 | 4 | columns |
//! | 56 | 4 | payload bytes |
//! | 60 | 4 | rows of the whole block |
//!
//! A frame that decoded is well formed in itself; whether it belongs to the plan in force is the
//! receiver's to judge ([`crate::plan::Plan`]).

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, StepId, Term};
use crate::limits;

/// Bytes of an encoded header.
pub const HEADER_BYTES: usize = 64;

/// Version of the data plane.
pub const FRAME_VERSION: u16 = 1;

/// Flag of a frame whose one row goes on in the sender's next frame of the block: a row longer than
/// [`limits::FRAME_BYTES`] travels in pieces. The transport that cuts rows sets it and takes it off again, so
/// [`Header`] does not know it.
pub const FLAG_MORE: u16 = 1;

/// Where the flags are in an encoded header.
pub const FLAGS_AT: usize = 6;

const MAGIC: [u8; 4] = *b"SHOL";

/// Number format of activations on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WireType {
    /// As computed.
    F32,
    /// Half precision, with one power-of-two scale a row.
    F16,
    /// Eight bits in blocks of 32.
    Q8,
}

impl WireType {
    /// The names `--wire` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
        }
    }

    const fn code(self) -> u8 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8 => 2,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::F32, Self::F16, Self::Q8].into_iter().find(|kind| kind.code() == code)
    }
}

/// What a block of activations is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Hidden states after `layer`, for the next stage; all rows of the step.
    Hop,
    /// Hidden states after the last layer, for a head rank: only the rows that need logits.
    Head,
    /// One rank's partial sum of the attention output.
    AttnPartial,
    /// The reduced attention output, or a slice of it (all-gather, star).
    AttnSum,
    /// One rank's partial sum of the feed-forward output.
    FfnPartial,
    /// The reduced feed-forward output, or a slice of it.
    FfnSum,
    /// A probe of the link: the receiver returns it. No step, no plan.
    Probe,
    /// The answer to a probe.
    ProbeEcho,
}

impl Phase {
    const ALL: [Self; 8] = [
        Self::Hop,
        Self::Head,
        Self::AttnPartial,
        Self::AttnSum,
        Self::FfnPartial,
        Self::FfnSum,
        Self::Probe,
        Self::ProbeEcho,
    ];

    fn code(self) -> u8 {
        self as u8
    }
}

/// Which of a link's two streams a frame uses. Decode goes before prefill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Class {
    /// Steps with few rows, where latency is what counts.
    Decode,
    /// Steps with prompt chunks.
    Prefill,
}

/// The header of a data frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub epoch: Epoch,
    pub step: StepId,
    /// Stage of the receiver.
    pub stage: u16,
    /// Rank of the sender within its own stage.
    pub rank: u16,
    pub layer: u32,
    pub phase: Phase,
    pub dtype: WireType,
    pub first_row: u32,
    pub rows: u32,
    pub first_col: u32,
    pub cols: u32,
    /// Bytes that follow.
    pub len: u32,
    /// Rows of the whole block, so that a receiver knows when it is complete.
    pub block_rows: u32,
}

/// Bytes that are not a data frame of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("the frame's magic is {0:02x?}, not SHOL")]
    Magic([u8; 4]),
    #[error("the frame's version is {0}; this node speaks {FRAME_VERSION}")]
    Version(u16),
    #[error("the frame carries unknown flags {0:#06x}")]
    Flags(u16),
    #[error("the frame names the unknown phase {0}")]
    Phase(u8),
    #[error("the frame names the unknown number format {0}")]
    Dtype(u8),
    #[error("the frame's payload of {0} bytes is over the limit of {max}", max = limits::FRAME_BYTES)]
    Length(u32),
    #[error("the frame covers rows {first_row} + {rows} of a block of {block_rows}")]
    Rows { first_row: u32, rows: u32, block_rows: u32 },
    #[error("the frame's column range overflows")]
    Cols,
}

impl Header {
    /// The 64 bytes of this header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&MAGIC);
        put(&FRAME_VERSION.to_le_bytes());
        put(&[0; 2]);
        put(&self.epoch.term.0.to_le_bytes());
        put(&self.epoch.counter.to_le_bytes());
        put(&self.stage.to_le_bytes());
        put(&self.rank.to_le_bytes());
        put(&self.step.0.to_le_bytes());
        put(&self.layer.to_le_bytes());
        put(&[self.phase.code(), self.dtype.code(), 0, 0]);
        for field in [self.first_row, self.rows, self.first_col, self.cols, self.len, self.block_rows] {
            put(&field.to_le_bytes());
        }
        out
    }

    /// Reads a header and checks all that can be checked without the plan.
    ///
    /// # Errors
    /// What is wrong with it; the connection it came on cannot be trusted to be in step any more.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let magic = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if magic != MAGIC {
            return Err(FrameError::Magic(magic));
        }
        let version = u16_at(bytes, 4);
        if version != FRAME_VERSION {
            return Err(FrameError::Version(version));
        }
        let flags = u16_at(bytes, 6) | u16_at(bytes, 38);
        if flags != 0 {
            return Err(FrameError::Flags(flags));
        }
        let phase = Phase::ALL.into_iter().find(|phase| phase.code() == bytes[36]);
        let header = Self {
            epoch: Epoch { term: Term(u64_at(bytes, 8)), counter: u32_at(bytes, 16) },
            stage: u16_at(bytes, 20),
            rank: u16_at(bytes, 22),
            step: StepId(u64_at(bytes, 24)),
            layer: u32_at(bytes, 32),
            phase: phase.ok_or(FrameError::Phase(bytes[36]))?,
            dtype: WireType::from_code(bytes[37]).ok_or(FrameError::Dtype(bytes[37]))?,
            first_row: u32_at(bytes, 40),
            rows: u32_at(bytes, 44),
            first_col: u32_at(bytes, 48),
            cols: u32_at(bytes, 52),
            len: u32_at(bytes, 56),
            block_rows: u32_at(bytes, 60),
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), FrameError> {
        if self.len as usize > limits::FRAME_BYTES {
            return Err(FrameError::Length(self.len));
        }
        let Self { first_row, rows, block_rows, .. } = *self;
        if rows == 0 || first_row.checked_add(rows).is_none_or(|end| end > block_rows) {
            return Err(FrameError::Rows { first_row, rows, block_rows });
        }
        if self.first_col.checked_add(self.cols).is_none() {
            return Err(FrameError::Cols);
        }
        Ok(())
    }
}

fn u16_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            epoch: Epoch { term: Term(7), counter: 3 },
            step: StepId(1 << 40),
            stage: 1,
            rank: 2,
            layer: 5,
            phase: Phase::AttnPartial,
            dtype: WireType::F16,
            first_row: 4,
            rows: 4,
            first_col: 0,
            cols: 256,
            len: 2056,
            block_rows: 8,
        }
    }

    #[test]
    fn a_header_reads_back() {
        for phase in Phase::ALL {
            let header = Header { phase, ..header() };
            assert_eq!(Header::decode(&header.encode()), Ok(header));
        }
    }

    #[test]
    fn each_wrong_field_is_named() {
        let with = |at: usize, byte: u8| {
            let mut bytes = header().encode();
            bytes[at] = byte;
            Header::decode(&bytes).unwrap_err()
        };
        assert!(matches!(with(0, b'X'), FrameError::Magic(_)));
        assert_eq!(with(4, 9), FrameError::Version(9));
        assert_eq!(with(6, 1), FrameError::Flags(1));
        assert_eq!(with(36, 99), FrameError::Phase(99));
        assert_eq!(with(37, 99), FrameError::Dtype(99));
        assert!(matches!(with(59, 1), FrameError::Length(_)));
        assert!(matches!(with(60, 7), FrameError::Rows { .. }));
        assert!(matches!(with(44, 0), FrameError::Rows { .. }));
    }

    #[test]
    fn no_64_bytes_make_the_reader_panic() {
        // A linear congruence covers all byte values in all places, with a right magic every other time.
        let mut state = 1_u64;
        for round in 0..20_000 {
            let mut bytes = [0; HEADER_BYTES];
            for byte in &mut bytes {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *byte = (state >> 56) as u8;
            }
            if round % 2 == 0 {
                bytes[..8].copy_from_slice(&header().encode()[..8]);
                bytes[36..40].copy_from_slice(&[2, 1, 0, 0]);
            }
            if let Ok(header) = Header::decode(&bytes) {
                assert_eq!(header.encode(), bytes);
            }
        }
    }
}
