//! Cutting blocks into frames, and putting frames together again. Pure.

use std::sync::Arc;

use shoal_core::frame::{FLAG_MORE, FLAGS_AT, FrameError, HEADER_BYTES, Header, Phase};
use shoal_core::limits::FRAME_BYTES;
use shoal_core::{Epoch, NodeId};

use super::pool::{Buffer, Pool};
use super::{ASSEMBLIES, Block, BlockKey};

/// What no node of this version sends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("{phase:?} frames do not belong on this stream")]
    Phase { phase: Phase },
    #[error("a frame of {len} bytes holds {rows} rows, which are not of one length")]
    Uneven { len: u32, rows: u32 },
    #[error("a piece of a row comes with {rows} rows in one frame")]
    Piece { rows: u32 },
    #[error("a block of at least {bytes} bytes; the plan's largest has {limit}")]
    Large { bytes: u64, limit: u64 },
    #[error("a frame starts at row {found} where row {wanted} comes next")]
    Order { found: u32, wanted: u32 },
    #[error("frames of one block differ in columns, format, rank, rows or row length")]
    Differs,
    #[error("more than {ASSEMBLIES} unfinished blocks at a time")]
    Many,
    #[error("the same block comes twice")]
    Twice,
    #[error("more than {} steps or bytes of an epoch that is not in force here", super::NEWER_STEPS)]
    Newer,
}

/// Appends the frames of these rows to `out`.
///
/// `payload` is `header.rows` rows of equal length; rows and payload were checked.
pub(super) fn cut(header: &Header, payload: &[u8], out: &mut Vec<u8>) {
    let row_bytes = payload.len() / header.rows.max(1) as usize;
    let mut frame = *header;
    let mut push = |frame: &Header, more: bool, bytes: &[u8]| {
        let mut head = frame.encode();
        if more {
            head[FLAGS_AT..FLAGS_AT + 2].copy_from_slice(&FLAG_MORE.to_le_bytes());
        }
        out.extend_from_slice(&head);
        out.extend_from_slice(bytes);
    };
    if row_bytes > FRAME_BYTES {
        for (row, bytes) in payload.chunks_exact(row_bytes).enumerate() {
            frame.first_row = header.first_row + row as u32;
            frame.rows = 1;
            let pieces = row_bytes.div_ceil(FRAME_BYTES);
            for (piece, bytes) in bytes.chunks(FRAME_BYTES).enumerate() {
                frame.len = bytes.len() as u32;
                push(&frame, piece + 1 < pieces, bytes);
            }
        }
        return;
    }
    let most = FRAME_BYTES.checked_div(row_bytes).map_or(header.rows, |rows| rows as u32);
    let mut rest = payload;
    let end = header.first_row + header.rows;
    while frame.first_row < end {
        frame.rows = most.min(end - frame.first_row);
        let (bytes, after) = rest.split_at(frame.rows as usize * row_bytes);
        frame.len = bytes.len() as u32;
        push(&frame, false, bytes);
        frame.first_row += frame.rows;
        rest = after;
    }
}

/// Bytes that [`cut`] will append.
pub(super) fn cut_bytes(rows: u32, payload: usize) -> usize {
    let row_bytes = payload / rows.max(1) as usize;
    let frames = if row_bytes > FRAME_BYTES {
        rows as usize * row_bytes.div_ceil(FRAME_BYTES)
    } else {
        let most = FRAME_BYTES.checked_div(row_bytes).map_or(rows as usize, |rows| rows);
        (rows as usize).div_ceil(most.max(1))
    };
    payload + frames * HEADER_BYTES
}

/// Reads a header off the stream, with its flag. Frames of probes come on streams of probes, and no others there.
pub(super) fn read_header(mut bytes: [u8; HEADER_BYTES], probe: bool) -> Result<(Header, bool), Violation> {
    let flags = u16::from_le_bytes([bytes[FLAGS_AT], bytes[FLAGS_AT + 1]]);
    let more = flags & FLAG_MORE != 0;
    bytes[FLAGS_AT..FLAGS_AT + 2].copy_from_slice(&(flags & !FLAG_MORE).to_le_bytes());
    let header = Header::decode(&bytes)?;
    if matches!(header.phase, Phase::Probe | Phase::ProbeEcho) != probe {
        return Err(Violation::Phase { phase: header.phase });
    }
    Ok((header, more))
}

/// The unfinished blocks of one stream.
#[derive(Debug)]
pub(super) struct Assemblies {
    from: NodeId,
    pool: Arc<Pool>,
    open: Vec<(BlockKey, Assembly)>,
}

/// Where a frame's payload goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Slot {
    at: usize,
    start: usize,
}

impl Assemblies {
    pub(super) fn new(from: NodeId, pool: Arc<Pool>) -> Self {
        Self { from, pool, open: Vec::new() }
    }

    /// Forgets unfinished blocks of epochs before this one.
    pub(super) fn drop_before(&mut self, epoch: Epoch) {
        self.open.retain(|(key, _)| key.epoch >= epoch);
    }

    /// Takes a frame in and makes room for its payload, after all checks.
    pub(super) fn begin(&mut self, header: &Header, more: bool, limit: u64) -> Result<Slot, Violation> {
        let key = BlockKey::of(header, self.from);
        let at = match self.open.iter().position(|(other, _)| *other == key) {
            Some(at) => at,
            None if self.open.len() >= ASSEMBLIES => return Err(Violation::Many),
            None => {
                let bytes = Assembly::check_first(header, more, limit)?;
                let assembly = Assembly::new(header, self.pool.get(bytes));
                self.open.push((key, assembly));
                self.open.len() - 1
            }
        };
        let start = self.open[at].1.extend(header, more, limit)?;
        Ok(Slot { at, start })
    }

    /// The payload's place.
    pub(super) fn payload(&mut self, slot: &Slot) -> &mut [u8] {
        &mut self.open[slot.at].1.bytes[slot.start..]
    }

    /// The block, if the frame finished it.
    pub(super) fn finish(&mut self, slot: &Slot) -> Option<(BlockKey, Block)> {
        if !self.open[slot.at].1.is_whole() {
            return None;
        }
        let (key, Assembly { mut first, bytes, .. }) = self.open.swap_remove(slot.at);
        first.rows = first.block_rows;
        first.len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Some((key, Block { header: first, bytes }))
    }
}

#[derive(Debug)]
struct Assembly {
    first: Header,
    /// Of a whole row, once one is there.
    row_bytes: Option<usize>,
    rows_done: u32,
    /// Bytes of the row that goes on in the next frame.
    piece: usize,
    bytes: Buffer,
}

impl Assembly {
    fn new(header: &Header, bytes: Buffer) -> Self {
        Self { first: *header, row_bytes: None, rows_done: 0, piece: 0, bytes }
    }

    /// What the first frame says of the whole block: the bytes to allocate.
    fn check_first(header: &Header, more: bool, limit: u64) -> Result<usize, Violation> {
        // A row that goes on has at least this piece, and the rest of it is checked as it comes.
        let row_bytes = if more { u64::from(header.len) } else { u64::from(header.len / header.rows) };
        let bytes = row_bytes.saturating_mul(u64::from(header.block_rows));
        if bytes > limit {
            return Err(Violation::Large { bytes, limit });
        }
        usize::try_from(bytes).map_err(|_| Violation::Large { bytes, limit })
    }

    fn extend(&mut self, header: &Header, more: bool, limit: u64) -> Result<usize, Violation> {
        let Header { rows, len, first_row, .. } = *header;
        let same = |a: &Header| (a.first_col, a.cols, a.dtype, a.rank, a.block_rows);
        if same(header) != same(&self.first) {
            return Err(Violation::Differs);
        }
        if first_row != self.rows_done {
            return Err(Violation::Order { found: first_row, wanted: self.rows_done });
        }
        let start = self.bytes.len();
        let length = len as usize;
        let total = start as u64 + u64::from(len);
        if total > limit {
            return Err(Violation::Large { bytes: total, limit });
        }
        if (more || self.piece > 0) && rows != 1 {
            return Err(Violation::Piece { rows });
        }
        if more {
            // Pieces but the last are full, so a block cannot be made of endless empty ones.
            if length != FRAME_BYTES {
                return Err(Violation::Uneven { len, rows });
            }
            self.piece += length;
        } else {
            if !length.is_multiple_of(rows as usize) {
                return Err(Violation::Uneven { len, rows });
            }
            let row_bytes = self.piece + length / rows as usize;
            if *self.row_bytes.get_or_insert(row_bytes) != row_bytes {
                return Err(Violation::Differs);
            }
            self.piece = 0;
            self.rows_done += rows;
        }
        self.bytes.resize(start + length, 0);
        Ok(start)
    }

    fn is_whole(&self) -> bool {
        self.rows_done == self.first.block_rows && self.piece == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shoal_core::StepId;
    use shoal_core::frame::WireType;

    fn header(rows: u32) -> Header {
        Header {
            epoch: Epoch::default(),
            step: StepId(3),
            stage: 0,
            rank: 1,
            layer: 2,
            phase: Phase::Hop,
            dtype: WireType::F32,
            first_row: 0,
            rows,
            first_col: 0,
            cols: 64,
            len: 0,
            block_rows: rows,
        }
    }

    fn put_together(mut stream: &[u8], limit: u64) -> Result<Vec<Block>, Violation> {
        let mut assemblies = Assemblies::new(NodeId::default(), Arc::default());
        let mut blocks = Vec::new();
        while let Some((head, rest)) = stream.split_first_chunk::<HEADER_BYTES>() {
            let (header, more) = read_header(*head, false)?;
            let slot = assemblies.begin(&header, more, limit)?;
            let Some((payload, rest)) = rest.split_at_checked(header.len as usize) else { break };
            assemblies.payload(&slot).copy_from_slice(payload);
            blocks.extend(assemblies.finish(&slot).map(|(_, block)| block));
            stream = rest;
        }
        Ok(blocks)
    }

    #[test]
    fn a_block_over_the_plans_largest_is_refused_before_it_is_allocated() {
        let claim = |len: u32, rows: u32, more| {
            let header = Header { len, block_rows: rows, ..header(1) };
            Assemblies::new(NodeId::default(), Arc::default()).begin(&header, more, 1 << 20)
        };
        assert!(matches!(claim(64, u32::MAX, false), Err(Violation::Large { .. })));
        assert!(matches!(claim(FRAME_BYTES as u32, 17, true), Err(Violation::Large { .. })));
        assert!(matches!(claim(0, u32::MAX, true), Err(Violation::Uneven { .. })));
        assert!(claim(FRAME_BYTES as u32, 16, false).is_ok());
        // A row that goes on and on.
        let mut assemblies = Assemblies::new(NodeId::default(), Arc::default());
        let piece = Header { len: FRAME_BYTES as u32, ..header(1) };
        let grown: Vec<_> = (0..17).map(|_| assemblies.begin(&piece, true, 1 << 20).is_ok()).collect();
        assert_eq!(grown.iter().filter(|ok| **ok).count(), 16);
        assert!(!grown[16]);
    }

    #[test]
    fn unfinished_blocks_are_counted() {
        let mut assemblies = Assemblies::new(NodeId::default(), Arc::default());
        for step in 0..=ASSEMBLIES as u64 {
            let frame = Header { step: StepId(step), block_rows: 2, len: 4, ..header(1) };
            let begun = assemblies.begin(&frame, false, 100);
            assert_eq!(begun.err(), (step == ASSEMBLIES as u64).then_some(Violation::Many));
        }
        assemblies.drop_before(Epoch { term: shoal_core::Term(1), counter: 0 });
        assert!(assemblies.open.is_empty());
    }

    proptest! {
        #[test]
        fn what_is_cut_comes_together(rows in 1..40_u32, row_bytes in prop_oneof![0..300_usize, 60_000..200_000_usize], split in 0..40_u32) {
            let rows = if row_bytes > 300 { rows.min(5) } else { rows };
            let payload: Vec<u8> = (0..rows as usize * row_bytes).map(|at| (at * 31 % 251) as u8).collect();
            let split = split.min(rows);
            let mut stream = Vec::new();
            let mut expected = 0;
            for (first, end) in [(0, split), (split, rows)] {
                if first < end {
                    let part = &payload[first as usize * row_bytes..end as usize * row_bytes];
                    cut(&Header { first_row: first, rows: end - first, ..header(rows) }, part, &mut stream);
                    expected += cut_bytes(end - first, part.len());
                }
            }
            prop_assert_eq!(stream.len(), expected);
            let blocks = put_together(&stream, payload.len() as u64).unwrap();
            prop_assert_eq!(blocks.len(), 1);
            prop_assert_eq!(blocks[0].bytes(), payload.as_slice());
            prop_assert_eq!(blocks[0].header().rows, rows);
            if !payload.is_empty() {
                prop_assert!(put_together(&stream, payload.len() as u64 - 1).is_err());
            }
        }

        #[test]
        fn no_stream_of_headers_makes_the_reader_panic_or_grow(
            fields in proptest::collection::vec((0..3_u64, 0..8_u32, 0..4_u32, 0..6_u32, 0..200_u32, any::<bool>()), 1..60)
        ) {
            let mut assemblies = Assemblies::new(NodeId::default(), Arc::default());
            for (step, block_rows, first_row, rows, len, more) in fields {
                let len = if len == 199 { FRAME_BYTES as u32 } else { len };
                let frame = Header { step: StepId(step), block_rows, first_row, rows, len, ..header(1) };
                let mut bytes = frame.encode();
                bytes[FLAGS_AT] = u8::from(more);
                let Ok((header, more)) = read_header(bytes, false) else { continue };
                if let Ok(slot) = assemblies.begin(&header, more, 100_000) {
                    prop_assert_eq!(assemblies.payload(&slot).len(), header.len as usize);
                    assemblies.finish(&slot);
                } else {
                    // The connection would be closed here.
                    assemblies = Assemblies::new(NodeId::default(), Arc::default());
                }
                prop_assert!(assemblies.open.iter().all(|(_, open)| open.bytes.len() <= 100_000));
            }
        }

        #[test]
        fn no_64_bytes_make_the_header_reader_panic(bytes in proptest::collection::vec(any::<u8>(), HEADER_BYTES)) {
            let mut head = header(1).encode();
            let _ = read_header(bytes.clone().try_into().unwrap(), false);
            head[8..].copy_from_slice(&bytes[8..]);
            let _ = read_header(head, true);
        }
    }
}
