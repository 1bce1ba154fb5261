//! The shape of a model: what the planner prices, what a shard is cut from.

pub mod shapes;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::quant::QuantType;
use crate::units::Bytes;

/// A model family whose forward pass Shoal knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Arch {
    /// Llama 1 to 3, Mistral and their likes: rotation on neighbouring pairs.
    Llama,
    /// Qwen 2 and 2.5: biases on q, k and v; rotation on halves.
    Qwen2,
    /// Qwen 3: norms on each head of q and k; rotation on halves.
    Qwen3,
}

impl Arch {
    /// Families in the order the error for an unknown one lists them.
    pub const ALL: [Self; 3] = [Self::Llama, Self::Qwen2, Self::Qwen3];

    /// The value of `general.architecture`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How positions are stretched beyond the context a model was first trained with.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum RopeScaling {
    /// Positions as they are.
    None,
    /// Positions divided by `factor`.
    Linear { factor: f32 },
    /// YaRN (Peng et al. 2023, arXiv:2309.00071): interpolation blended per dimension.
    Yarn {
        factor: f32,
        /// Context of the first training.
        original_context: u32,
        /// Weight of extrapolation (1 for YaRN).
        ext_factor: f32,
        /// Multiplier of the attention temperature correction.
        attn_factor: f32,
        beta_fast: f32,
        beta_slow: f32,
    },
}

/// Rotary position embedding.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RopeSpec {
    /// Base of the frequencies.
    pub base: f32,
    /// Values of a head that are rotated (the first ones), even, at most the head size.
    pub dims: u32,
    /// Stretching of positions.
    pub scaling: RopeScaling,
}

/// One tensor's part in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Embedding table: vocabulary rows of `d_model`; also the output head when that is tied.
    TokenEmbedding,
    /// Norm before the output head: `d_model`.
    OutputNorm,
    /// Output head: vocabulary rows of `d_model`; absent when tied.
    Output,
    /// Per-frequency divisors of the rotation (Llama 3): half the rotated dimensions.
    RopeFactors,
    /// A tensor of a layer.
    Layer(u32, LayerRole),
}

/// A tensor within a layer. Matrices are `rows × cols`: a row makes one output value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LayerRole {
    /// Norm before attention: `d_model`.
    AttnNorm,
    /// `n_heads·head_dim × d_model`.
    Q,
    /// `n_kv_heads·head_dim × d_model`.
    K,
    /// `n_kv_heads·head_dim × d_model`.
    V,
    /// `n_heads·head_dim`.
    QBias,
    /// `n_kv_heads·head_dim`.
    KBias,
    /// `n_kv_heads·head_dim`.
    VBias,
    /// Norm of each query head: `head_dim`.
    QNorm,
    /// Norm of each key head: `head_dim`.
    KNorm,
    /// `d_model × n_heads·head_dim`.
    O,
    /// Norm before the feed-forward network: `d_model`.
    FfnNorm,
    /// `ffn × d_model`.
    Gate,
    /// `ffn × d_model`.
    Up,
    /// `d_model × ffn`.
    Down,
}

impl Role {
    /// The tensor's name in a GGUF file.
    pub fn tensor_name(self) -> String {
        let layer = |index: u32, name: &str| format!("blk.{index}.{name}");
        match self {
            Self::TokenEmbedding => "token_embd.weight".to_owned(),
            Self::OutputNorm => "output_norm.weight".to_owned(),
            Self::Output => "output.weight".to_owned(),
            Self::RopeFactors => "rope_freqs.weight".to_owned(),
            Self::Layer(index, role) => layer(
                index,
                match role {
                    LayerRole::AttnNorm => "attn_norm.weight",
                    LayerRole::Q => "attn_q.weight",
                    LayerRole::K => "attn_k.weight",
                    LayerRole::V => "attn_v.weight",
                    LayerRole::QBias => "attn_q.bias",
                    LayerRole::KBias => "attn_k.bias",
                    LayerRole::VBias => "attn_v.bias",
                    LayerRole::QNorm => "attn_q_norm.weight",
                    LayerRole::KNorm => "attn_k_norm.weight",
                    LayerRole::O => "attn_output.weight",
                    LayerRole::FfnNorm => "ffn_norm.weight",
                    LayerRole::Gate => "ffn_gate.weight",
                    LayerRole::Up => "ffn_up.weight",
                    LayerRole::Down => "ffn_down.weight",
                },
            ),
        }
    }
}

/// Where a tensor lies and what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// Its part in the model.
    pub role: Role,
    /// Its number format.
    pub kind: QuantType,
    /// Output values (1 for a vector).
    pub rows: u64,
    /// Input values; whole blocks of `kind`.
    pub cols: u64,
    /// First byte in the file.
    pub offset: u64,
}

impl TensorSpec {
    /// Bytes of one row.
    pub fn row_bytes(&self) -> u64 {
        self.kind.row_bytes(self.cols).unwrap_or(0)
    }

    /// Bytes of the whole tensor.
    pub fn bytes(&self) -> Bytes {
        Bytes(self.rows.saturating_mul(self.row_bytes()))
    }
}

/// The shape of a model and the place of each of its tensors in the file.
///
/// Made by `shoal_engine::model::spec` from a GGUF file, and sent to workers with the plan. What comes
/// from outside is checked by [`ModelSpec::check`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// `general.name`, or the file's name.
    pub name: String,
    pub arch: Arch,
    pub n_layers: u32,
    /// Width of the hidden state.
    pub d_model: u32,
    /// Query heads.
    pub n_heads: u32,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: u32,
    /// Values of one head.
    pub head_dim: u32,
    /// Columns of the feed-forward network.
    pub ffn: u32,
    /// Rows of the embedding table.
    pub vocab: u32,
    /// Positions the model was trained for.
    pub context: u32,
    pub norm_eps: f32,
    pub rope: RopeSpec,
    /// Sorted by role, each role once.
    pub tensors: Vec<TensorSpec>,
}

/// A model whose parts do not fit each other.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ModelError {
    /// A count that is zero, too large, or does not divide what it must.
    #[error("{what} is {value}, which is not possible here: {why}")]
    Dimension { what: &'static str, value: u64, why: &'static str },
    /// A constant of the arithmetic that gives no numbers.
    #[error("{what} is {value}, which is not possible here: {why}")]
    Constant { what: &'static str, value: f32, why: &'static str },
    /// A tensor the forward pass needs.
    #[error("tensor {0} is missing")]
    Missing(String),
    /// A tensor that is listed twice, or one of a layer beyond the last.
    #[error("tensor {0} is listed twice or belongs to no layer")]
    Unexpected(String),
    /// A tensor of another shape than the metadata says.
    #[error("tensor {name} is {rows} × {cols}, but the metadata makes it {want_rows} × {want_cols}")]
    Shape { name: String, rows: u64, cols: u64, want_rows: u64, want_cols: u64 },
    /// A tensor whose rows are not whole blocks, or a norm or bias that is not F32.
    #[error("tensor {name} cannot be {kind}: {why}")]
    Kind { name: String, kind: QuantType, why: &'static str },
}

impl ModelSpec {
    /// Query heads that share one KV head.
    pub fn group_size(&self) -> u32 {
        self.n_heads / self.n_kv_heads.max(1)
    }

    /// Columns of the feed-forward network are cut on multiples of this: the largest block of any
    /// `ffn_down`, and at least 32.
    pub fn ffn_block(&self) -> u32 {
        let downs = self.tensors.iter().filter(|t| matches!(t.role, Role::Layer(_, LayerRole::Down)));
        downs.map(|t| t.kind.block_len() as u32).max().unwrap_or(0).max(32)
    }

    /// Tiles of [`limits::VOCAB_TILE`] rows in the output head; the last may be short.
    pub fn vocab_tiles(&self) -> u32 {
        self.vocab.div_ceil(limits::VOCAB_TILE)
    }

    /// The tensor with this part, if the model has it.
    pub fn tensor(&self, role: Role) -> Option<&TensorSpec> {
        let at = self.tensors.binary_search_by_key(&role, |t| t.role).ok()?;
        Some(&self.tensors[at])
    }

    /// The matrix of the output head: its own, or the embedding table when tied.
    pub fn output(&self) -> Option<&TensorSpec> {
        self.tensor(Role::Output).or_else(|| self.tensor(Role::TokenEmbedding))
    }

    /// Whether the output head is the embedding table.
    pub fn tied(&self) -> bool {
        self.tensor(Role::Output).is_none()
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> Bytes {
        self.tensors.iter().map(TensorSpec::bytes).sum()
    }

    /// The part's shape as the metadata gives it: `(rows, cols)`.
    pub fn shape_of(&self, role: Role) -> (u64, u64) {
        let (d, ffn, vocab) = (u64::from(self.d_model), u64::from(self.ffn), u64::from(self.vocab));
        let head = u64::from(self.head_dim);
        let (q, kv) = (u64::from(self.n_heads) * head, u64::from(self.n_kv_heads) * head);
        match role {
            Role::TokenEmbedding | Role::Output => (vocab, d),
            Role::OutputNorm => (1, d),
            Role::RopeFactors => (1, u64::from(self.rope.dims) / 2),
            Role::Layer(_, layer) => match layer {
                LayerRole::AttnNorm | LayerRole::FfnNorm => (1, d),
                LayerRole::Q => (q, d),
                LayerRole::K | LayerRole::V => (kv, d),
                LayerRole::QBias => (1, q),
                LayerRole::KBias | LayerRole::VBias => (1, kv),
                LayerRole::QNorm | LayerRole::KNorm => (1, head),
                LayerRole::O => (d, q),
                LayerRole::Gate | LayerRole::Up => (ffn, d),
                LayerRole::Down => (d, ffn),
            },
        }
    }

    /// The parts that a model of this family must have.
    pub fn required_roles(&self) -> Vec<Role> {
        use LayerRole::{AttnNorm, Down, FfnNorm, Gate, K, KBias, KNorm, O, Q, QBias, QNorm, Up, V, VBias};
        let mut roles = vec![Role::TokenEmbedding, Role::OutputNorm];
        for layer in 0..self.n_layers {
            let common = [AttnNorm, Q, K, V, O, FfnNorm, Gate, Up, Down];
            let own: &[LayerRole] = match self.arch {
                Arch::Llama => &[],
                Arch::Qwen2 => &[QBias, KBias, VBias],
                Arch::Qwen3 => &[QNorm, KNorm],
            };
            roles.extend(common.iter().chain(own).map(|&role| Role::Layer(layer, role)));
        }
        roles
    }

    /// Checks that counts are possible, that each needed tensor is there once, and that shapes and
    /// formats fit.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn check(&self) -> Result<(), ModelError> {
        self.check_dimensions()?;
        for pair in self.tensors.windows(2) {
            if pair[0].role >= pair[1].role {
                return Err(ModelError::Unexpected(pair[1].role.tensor_name()));
            }
        }
        if let Some(role) = self.required_roles().into_iter().find(|&role| self.tensor(role).is_none()) {
            return Err(ModelError::Missing(role.tensor_name()));
        }
        self.tensors.iter().try_for_each(|tensor| self.check_tensor(tensor))
    }

    fn check_dimensions(&self) -> Result<(), ModelError> {
        let counts = [
            ("the number of layers", self.n_layers, limits::LAYERS),
            ("the hidden width", self.d_model, limits::MODEL_DIMENSION),
            ("the number of heads", self.n_heads, limits::MODEL_DIMENSION),
            ("the number of KV heads", self.n_kv_heads, limits::MODEL_DIMENSION),
            ("the head size", self.head_dim, limits::MODEL_DIMENSION),
            ("the feed-forward width", self.ffn, limits::MODEL_DIMENSION),
            ("the vocabulary size", self.vocab, 1 << 24),
            ("the context length", self.context, 1 << 28),
        ];
        for (what, value, most) in counts {
            if value == 0 || value > most {
                return Err(ModelError::Dimension {
                    what,
                    value: value.into(),
                    why: "zero or beyond the limit",
                });
            }
        }
        let fail = |what, value: u32, why| Err(ModelError::Dimension { what, value: value.into(), why });
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return fail("the number of KV heads", self.n_kv_heads, "it must divide the number of heads");
        }
        if u64::from(self.n_heads) * u64::from(self.head_dim) > u64::from(limits::MODEL_DIMENSION) {
            return fail("the head size", self.head_dim, "heads × head size is beyond the limit");
        }
        if self.rope.dims == 0 || !self.rope.dims.is_multiple_of(2) || self.rope.dims > self.head_dim {
            return fail("the rotated part of a head", self.rope.dims, "it must be even and within the head");
        }
        let constant = |what, value, why| Err(ModelError::Constant { what, value, why });
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return constant("the norm's epsilon", self.norm_eps, "it must be finite and not negative");
        }
        if !(self.rope.base.is_finite() && self.rope.base > 0.0) {
            return constant("the rotation's base", self.rope.base, "it must be finite and positive");
        }
        Ok(())
    }

    fn check_tensor(&self, tensor: &TensorSpec) -> Result<(), ModelError> {
        let name = || tensor.role.tensor_name();
        if matches!(tensor.role, Role::Layer(layer, _) if layer >= self.n_layers) {
            return Err(ModelError::Unexpected(name()));
        }
        let (want_rows, want_cols) = self.shape_of(tensor.role);
        if (tensor.rows, tensor.cols) != (want_rows, want_cols) {
            let (rows, cols) = (tensor.rows, tensor.cols);
            return Err(ModelError::Shape { name: name(), rows, cols, want_rows, want_cols });
        }
        if tensor.kind.row_bytes(tensor.cols).is_none() {
            let why = "its rows are not whole blocks of that format";
            return Err(ModelError::Kind { name: name(), kind: tensor.kind, why });
        }
        if want_rows == 1 && !matches!(tensor.kind, QuantType::F32 | QuantType::F16 | QuantType::BF16) {
            let why = "norms, biases and factors must be floats";
            return Err(ModelError::Kind { name: name(), kind: tensor.kind, why });
        }
        if tensor.offset.checked_add(tensor.bytes().0).is_none() {
            return Err(ModelError::Unexpected(name()));
        }
        Ok(())
    }
}
