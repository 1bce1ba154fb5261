//! The weights of one node: exactly the slices its plan lists, read through a [`WeightSource`].
//!
//! Matrices stay in the file's quantized blocks; vectors (norms, biases, factors) become floats. A
//! column cut is read in bands of whole rows of which only the held blocks are kept, so a whole tensor
//! is never in memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use memmap2::{Mmap, MmapMut};
use shoal_core::QuantType;
use shoal_core::ids::NodeId;
use shoal_core::model::{LayerRole, ModelError, ModelSpec, Role, TensorSpec};
use shoal_core::plan::{Plan, Span};
use shoal_core::shard::{self, Cut, Slice};
use shoal_core::units::Bytes;
use thiserror::Error;

use super::source::WeightSource;
use crate::kernels::Matrix;
use crate::quant::dequantize_row;

/// Bytes of a band of rows of which a column cut keeps its part: large enough to read at the disk's
/// rate, small beside any model.
const BAND_BYTES: usize = 256 << 10;

/// Matrices from this size on have pages of their own, which go back to the system the moment the shard
/// is dropped. An allocator keeps large blocks that were freed once, so an idle worker would still hold
/// the last job's shard. Below it the waste of a part of a page would tell.
const PAGES_BYTES: usize = 128 << 10;

/// Why a shard could not be loaded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The plan does not name this node.
    #[error("failed to load the shard: the plan does not name node {0}")]
    Node(NodeId),
    /// The model's parts do not fit each other.
    #[error("failed to load the shard: {0}")]
    Model(#[from] ModelError),
    /// The source cannot give a tensor's bytes.
    #[error("failed to load tensor {name}: {source}")]
    Read {
        /// The tensor.
        name: String,
        /// What the source says.
        #[source]
        source: std::io::Error,
    },
    /// A tensor that does not fit this machine's memory or the plan.
    #[error("failed to load tensor {0}: its part of {1} does not fit in memory")]
    Memory(String, Bytes),
    /// The plan's slices lack a tensor that the forward pass needs.
    #[error("failed to load the shard: the plan lists no part of tensor {0}")]
    Missing(String),
}

/// A matrix in the file's blocks: `rows × cols`.
pub(super) struct Stored {
    kind: QuantType,
    rows: usize,
    cols: usize,
    storage: Storage,
}

enum Storage {
    /// Small ones.
    Owned(Vec<u8>),
    /// Pages of its own.
    Pages(MmapMut),
    Mapped(Arc<Mmap>, Range<usize>),
}

impl Storage {
    /// Zeros, or `None` where memory lacks.
    fn zeroed(len: usize) -> Option<Self> {
        if len >= PAGES_BYTES {
            return MmapMut::map_anon(len).ok().map(Self::Pages);
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).ok()?;
        bytes.resize(len, 0);
        Some(Self::Owned(bytes))
    }

    /// To be filled; a mapped file never is.
    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Pages(pages) => pages,
            Self::Mapped(..) => &mut [],
        }
    }
}

impl Stored {
    pub(super) fn matrix(&self) -> Matrix<'_> {
        Matrix::new(self.kind, self.rows, self.cols, self.bytes())
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// One row as floats: cols.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        dequantize_row(self.kind, self.matrix().row(row), out);
    }

    fn bytes(&self) -> &[u8] {
        match &self.storage {
            Storage::Owned(bytes) => bytes,
            Storage::Pages(pages) => pages,
            Storage::Mapped(map, range) => &map[range.clone()],
        }
    }

    fn owned_bytes(&self) -> usize {
        match &self.storage {
            Storage::Owned(bytes) => bytes.capacity(),
            Storage::Pages(pages) => pages.len(),
            Storage::Mapped(..) => 0,
        }
    }
}

/// A matrix of which only some columns are held.
pub(super) struct ColumnCut {
    /// `rows × held`.
    pub(super) stored: Stored,
    /// Held columns before the first used one: they are fed zeros.
    pub(super) before: usize,
}

/// One rank's part of a layer.
pub(super) struct LayerWeights {
    pub(super) attention: Option<AttentionWeights>,
    pub(super) ffn: Option<FfnWeights>,
}

/// Attention with nq query heads and nkv KV heads of this rank.
pub(super) struct AttentionWeights {
    /// `d_model`
    pub(super) norm: Vec<f32>,
    /// `nq·head_dim × d_model`
    pub(super) q: Stored,
    /// `nkv·head_dim × d_model`
    pub(super) k: Stored,
    /// `nkv·head_dim × d_model`
    pub(super) v: Stored,
    /// All heads' biases, and the parts of this rank are taken from them.
    pub(super) q_bias: Option<Vec<f32>>,
    pub(super) k_bias: Option<Vec<f32>>,
    pub(super) v_bias: Option<Vec<f32>>,
    /// `head_dim`
    pub(super) q_norm: Option<Vec<f32>>,
    /// `head_dim`
    pub(super) k_norm: Option<Vec<f32>>,
    /// `d_model × nq·head_dim`, with the blocks around it
    pub(super) o: ColumnCut,
}

/// Feed-forward network with nf columns of this rank.
pub(super) struct FfnWeights {
    /// `d_model`
    pub(super) norm: Vec<f32>,
    /// `nf × d_model`
    pub(super) gate: Stored,
    /// `nf × d_model`
    pub(super) up: Stored,
    /// `d_model × nf`
    pub(super) down: ColumnCut,
}

/// The output head's rows of this node.
pub(super) struct HeadWeights {
    /// `d_model`
    pub(super) norm: Vec<f32>,
    /// `head rows × d_model`
    pub(super) output: Stored,
}

/// Everything a node holds of the model.
pub(super) struct Weights {
    /// `vocab × d_model`, in the first stage.
    pub(super) table: Option<Stored>,
    pub(super) rope_factors: Option<Vec<f32>>,
    pub(super) layers: Vec<LayerWeights>,
    pub(super) head: Option<HeadWeights>,
    /// As allocated.
    pub(super) weight_bytes: Bytes,
    pub(super) mapped_bytes: Bytes,
}

/// Reads `node`'s slices. `progress` hears the bytes in place, of all.
pub(super) fn load(
    spec: &ModelSpec,
    plan: &Plan,
    node: NodeId,
    source: &dyn WeightSource,
    progress: &mut dyn FnMut(Bytes, Bytes),
) -> Result<Weights, LoadError> {
    let slices = shard::slices(plan, spec, node);
    let total = slices.iter().map(Slice::bytes).sum();
    let mut done = Bytes(0);
    let mut parts = Parts::default();
    progress(done, total);
    for slice in slices {
        parts.take(slice, source)?;
        done += slice.bytes();
        progress(done, total);
    }
    parts.assemble(plan, spec, node)
}

/// Tensors that were read and await their place.
#[derive(Default)]
struct Parts {
    table: Option<Stored>,
    vectors: BTreeMap<Role, Vec<f32>>,
    matrices: BTreeMap<Role, Stored>,
    columns: BTreeMap<Role, ColumnCut>,
    weight_bytes: Bytes,
    mapped_bytes: Bytes,
}

impl Parts {
    fn take(&mut self, slice: Slice<'_>, source: &dyn WeightSource) -> Result<(), LoadError> {
        let role = slice.tensor.role;
        match slice.cut {
            Cut::Whole => {
                let vector = read_vector(slice.tensor, source)?;
                self.weight_bytes += Bytes((vector.capacity() * size_of::<f32>()) as u64);
                self.vectors.insert(role, vector);
            }
            Cut::Mapped => {
                let table = map_table(slice.tensor, source)?;
                self.mapped_bytes += Bytes(table.bytes().len() as u64);
                self.table = Some(table);
            }
            Cut::Rows(rows) => {
                let matrix = read_rows(slice, rows, source)?;
                self.weight_bytes += Bytes(matrix.owned_bytes() as u64);
                self.matrices.insert(role, matrix);
            }
            Cut::Cols { held, used } => {
                let matrix = read_columns(slice, held, source)?;
                self.weight_bytes += Bytes(matrix.owned_bytes() as u64);
                let before = (used.first - held.first) as usize;
                self.columns.insert(role, ColumnCut { stored: matrix, before });
            }
        }
        Ok(())
    }

    fn assemble(mut self, plan: &Plan, spec: &ModelSpec, node: NodeId) -> Result<Weights, LoadError> {
        let mut layers = Vec::new();
        if let (Some(place), Some(share)) = (plan.place(node), plan.share(node)) {
            for layer in plan.stages[place.stage].layers.iter() {
                let attention = (!share.q_heads.is_empty()).then(|| self.attention(layer)).transpose()?;
                let ffn = (!share.ffn.is_empty()).then(|| self.ffn(layer)).transpose()?;
                layers.push(LayerWeights { attention, ffn });
            }
        }
        let head = plan.head_share(node).filter(|(_, rows)| !rows.is_empty());
        let output = if spec.tied() { Role::TokenEmbedding } else { Role::Output };
        let head = head.map(|_| {
            Ok::<_, LoadError>(HeadWeights {
                norm: self.vector(Role::OutputNorm)?,
                output: self.whole(output)?,
            })
        });
        Ok(Weights {
            head: head.transpose()?,
            rope_factors: self.vectors.remove(&Role::RopeFactors),
            table: self.table,
            layers,
            weight_bytes: self.weight_bytes,
            mapped_bytes: self.mapped_bytes,
        })
    }

    fn attention(&mut self, layer: u32) -> Result<AttentionWeights, LoadError> {
        let role = |role| Role::Layer(layer, role);
        Ok(AttentionWeights {
            norm: self.vector(role(LayerRole::AttnNorm))?,
            q: self.whole(role(LayerRole::Q))?,
            k: self.whole(role(LayerRole::K))?,
            v: self.whole(role(LayerRole::V))?,
            q_bias: self.vectors.remove(&role(LayerRole::QBias)),
            k_bias: self.vectors.remove(&role(LayerRole::KBias)),
            v_bias: self.vectors.remove(&role(LayerRole::VBias)),
            q_norm: self.vectors.remove(&role(LayerRole::QNorm)),
            k_norm: self.vectors.remove(&role(LayerRole::KNorm)),
            o: self.column_cut(role(LayerRole::O))?,
        })
    }

    fn ffn(&mut self, layer: u32) -> Result<FfnWeights, LoadError> {
        let role = |role| Role::Layer(layer, role);
        Ok(FfnWeights {
            norm: self.vector(role(LayerRole::FfnNorm))?,
            gate: self.whole(role(LayerRole::Gate))?,
            up: self.whole(role(LayerRole::Up))?,
            down: self.column_cut(role(LayerRole::Down))?,
        })
    }

    fn vector(&mut self, role: Role) -> Result<Vec<f32>, LoadError> {
        self.vectors.remove(&role).ok_or_else(|| LoadError::Missing(role.tensor_name()))
    }

    fn whole(&mut self, role: Role) -> Result<Stored, LoadError> {
        self.matrices.remove(&role).ok_or_else(|| LoadError::Missing(role.tensor_name()))
    }

    fn column_cut(&mut self, role: Role) -> Result<ColumnCut, LoadError> {
        self.columns.remove(&role).ok_or_else(|| LoadError::Missing(role.tensor_name()))
    }
}

fn read_vector(tensor: &TensorSpec, source: &dyn WeightSource) -> Result<Vec<f32>, LoadError> {
    let mut stored = read(tensor, tensor.offset, tensor.bytes(), source)?;
    let mut values = vec![0.0; tensor.cols as usize];
    dequantize_row(tensor.kind, stored.bytes_mut(), &mut values);
    Ok(values)
}

fn map_table(tensor: &TensorSpec, source: &dyn WeightSource) -> Result<Stored, LoadError> {
    let range = tensor.offset as usize..(tensor.offset + tensor.bytes().0) as usize;
    let storage = match source.map() {
        Some(map) if map.len() >= range.end => Storage::Mapped(map, range),
        Some(_) => return Err(read_error(tensor)(std::io::ErrorKind::UnexpectedEof.into())),
        None => read(tensor, tensor.offset, tensor.bytes(), source)?,
    };
    Ok(Stored { kind: tensor.kind, rows: tensor.rows as usize, cols: tensor.cols as usize, storage })
}

fn read_rows(slice: Slice<'_>, rows: Span, source: &dyn WeightSource) -> Result<Stored, LoadError> {
    let tensor = slice.tensor;
    let storage = read(tensor, slice.file_range().start, slice.bytes(), source)?;
    let (rows, cols) = (rows.len() as usize, tensor.cols as usize);
    Ok(Stored { kind: tensor.kind, rows, cols, storage })
}

fn read_columns(slice: Slice<'_>, held: Span, source: &dyn WeightSource) -> Result<Stored, LoadError> {
    let tensor = slice.tensor;
    let width = |cols: u32| tensor.kind.row_bytes(u64::from(cols)).unwrap_or(0) as usize;
    let (row, first, end) = (tensor.row_bytes() as usize, width(held.first), width(held.end));
    let rows = tensor.rows as usize;
    let mut storage = zeroed(tensor, slice.bytes())?;
    let rows_per_band = (BAND_BYTES / row.max(1)).clamp(1, rows.max(1));
    let mut band = vec![0; rows_per_band * row];
    let mut kept = storage.bytes_mut().chunks_exact_mut((end - first).max(1));
    for start in (0..rows).step_by(rows_per_band) {
        let band = &mut band[..rows_per_band.min(rows - start) * row];
        source.read_range(tensor.offset + (start * row) as u64, band).map_err(read_error(tensor))?;
        for (row, kept) in band.chunks_exact(row).zip(&mut kept) {
            kept.copy_from_slice(&row[first..end]);
        }
    }
    Ok(Stored { kind: tensor.kind, rows, cols: held.len() as usize, storage })
}

fn read(
    tensor: &TensorSpec,
    offset: u64,
    len: Bytes,
    source: &dyn WeightSource,
) -> Result<Storage, LoadError> {
    let mut storage = zeroed(tensor, len)?;
    source.read_range(offset, storage.bytes_mut()).map_err(read_error(tensor))?;
    Ok(storage)
}

/// Room for exactly `len` bytes.
fn zeroed(tensor: &TensorSpec, len: Bytes) -> Result<Storage, LoadError> {
    let room = usize::try_from(len.0).ok().and_then(Storage::zeroed);
    room.ok_or_else(|| LoadError::Memory(tensor.role.tensor_name(), len))
}

fn read_error(tensor: &TensorSpec) -> impl FnOnce(std::io::Error) -> LoadError + '_ {
    |source| LoadError::Read { name: tensor.role.tensor_name(), source }
}
