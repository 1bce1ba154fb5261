//! From a GGUF file's metadata and tensor table to a [`ModelSpec`].
//!
//! Nothing is guessed: an unknown family, an unknown way to stretch positions and a tensor the forward
//! pass would not use are errors that name it, since a model that runs wrongly is worse than one that
//! does not run. Called by the coordinator; workers get the result with their plan.

use shoal_core::model::{Arch, LayerRole, ModelError, ModelSpec, Role, RopeScaling, RopeSpec, TensorSpec};
use thiserror::Error;

use crate::gguf::{Array, Gguf, Metadata, MetadataError, TensorInfo, Value};

/// The base of the rotation's frequencies where the file does not say.
const DEFAULT_ROPE_BASE: f32 = 10_000.0;

/// YaRN's borders between dimensions that are kept and stretched, in rotations over the first
/// training's context, where the file does not say (arXiv:2309.00071, section 3.2).
const YARN_BETAS: (f32, f32) = (32.0, 1.0);

/// Tensors that carry nothing: old converters wrote each layer's rotation frequencies, which follow
/// from the metadata.
const REDUNDANT_SUFFIX: &str = ".attn_rot_embd";

/// Why a file is not a model that can run here.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SpecError {
    /// Another family than those of [`Arch::ALL`].
    #[error("failed to read the model: architecture {0:?} is not supported (supported: {known})", known = names())]
    Architecture(String),
    /// A metadata entry is missing or of the wrong type.
    #[error("failed to read the model: {0}")]
    Metadata(#[from] MetadataError),
    /// A metadata entry holds something the forward pass does not know.
    #[error("failed to read the model: {key} is {value}, which is not supported")]
    Value {
        /// The key.
        key: String,
        /// What it holds.
        value: String,
    },
    /// A tensor that the forward pass would silently ignore.
    #[error("failed to read the model: the {arch} forward pass does not know tensor {name}")]
    UnknownTensor {
        /// The family.
        arch: Arch,
        /// The tensor.
        name: String,
    },
    /// The parts do not fit each other.
    #[error("failed to read the model: {0}")]
    Model(#[from] ModelError),
}

fn names() -> String {
    Arch::ALL.map(Arch::name).join(", ")
}

/// The model that `gguf` holds; `fallback_name` serves where the file has no `general.name`.
///
/// # Errors
/// See [`SpecError`].
pub fn spec(gguf: &Gguf, fallback_name: &str) -> Result<ModelSpec, SpecError> {
    let metadata = &gguf.metadata;
    let arch = metadata.require("general.architecture", Metadata::string)?;
    let arch = Arch::ALL.into_iter().find(|known| known.name() == arch);
    let arch = arch.ok_or_else(|| {
        let name = metadata.string("general.architecture").ok().flatten().unwrap_or_default();
        SpecError::Architecture(name.to_owned())
    })?;
    let keys = Keys { metadata, arch };

    let d_model = keys.number("embedding_length")?;
    let n_heads = keys.uniform("attention.head_count")?;
    let n_heads = n_heads.ok_or_else(|| keys.missing("attention.head_count"))?;
    let n_kv_heads = keys.uniform("attention.head_count_kv")?.unwrap_or(n_heads);
    let head_dim = head_dim(&keys, d_model, n_heads)?;
    let embedding = Role::TokenEmbedding.tensor_name();
    let vocab = gguf.tensor(&embedding).map(TensorInfo::rows).ok_or(ModelError::Missing(embedding))?;
    let n_layers = keys.number("block_count")?;
    let ffn = keys.uniform("feed_forward_length")?.ok_or_else(|| keys.missing("feed_forward_length"))?;
    refuse_scales(&keys)?;
    let context = keys.number("context_length")?;

    let spec = ModelSpec {
        name: name(metadata, fallback_name),
        arch,
        n_layers,
        d_model,
        n_heads,
        n_kv_heads,
        head_dim,
        ffn,
        vocab: u32::try_from(vocab).unwrap_or(u32::MAX),
        context,
        norm_eps: keys.require_float("attention.layer_norm_rms_epsilon")?,
        rope: rope(&keys, head_dim, context)?,
        tensors: tensors(gguf, arch)?,
    };
    spec.check()?;
    Ok(spec)
}

fn name(metadata: &Metadata, fallback: &str) -> String {
    let name = metadata.string("general.name").ok().flatten();
    name.filter(|name| !name.is_empty()).unwrap_or(fallback).to_owned()
}

/// Keys and values of a head have one size, which need not be `d_model / n_heads`.
fn head_dim(keys: &Keys<'_>, d_model: u32, n_heads: u32) -> Result<u32, SpecError> {
    let default = d_model.checked_div(n_heads).unwrap_or(0);
    let key = keys.optional("attention.key_length")?.unwrap_or(default);
    let value = keys.optional("attention.value_length")?.unwrap_or(default);
    if key != value {
        let value = format!("{value} while keys have {key}");
        return Err(keys.unsupported("attention.value_length", value));
    }
    Ok(key)
}

/// Factors of related families that this forward pass does not apply.
fn refuse_scales(keys: &Keys<'_>) -> Result<(), SpecError> {
    for (key, neutral) in [
        ("attention.scale", 0.0),
        ("logit_scale", 1.0),
        ("embedding_scale", 1.0),
        ("residual_scale", 1.0),
        ("attention.clamp_kqv", 0.0),
    ] {
        if let Some(value) = keys.float(key)?.filter(|&value| value != neutral) {
            return Err(keys.unsupported(key, value.to_string()));
        }
    }
    if let Some(experts) = keys.optional("expert_count")?.filter(|&count| count > 0) {
        return Err(keys.unsupported("expert_count", experts.to_string()));
    }
    Ok(())
}

fn rope(keys: &Keys<'_>, head_dim: u32, context: u32) -> Result<RopeSpec, SpecError> {
    let base = keys.float("rope.freq_base")?.unwrap_or(DEFAULT_ROPE_BASE);
    let dims = keys.optional("rope.dimension_count")?.unwrap_or(head_dim);
    // The older key names a linear stretching without its kind.
    let factor = match keys.float("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.float("rope.scale_linear")?,
    };
    // Zero stands for "not stretched" in files that always write the key.
    let factor = factor.filter(|&factor| factor != 0.0).unwrap_or(1.0);
    if !(factor.is_finite() && factor > 0.0) {
        return Err(keys.unsupported("rope.scaling.factor", factor.to_string()));
    }
    let kind = keys.metadata.string(&keys.key("rope.scaling.type"))?.unwrap_or("linear");
    let scaling = match kind {
        "none" => RopeScaling::None,
        "linear" if factor == 1.0 => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor },
        "yarn" => yarn(keys, factor, context)?,
        other => return Err(keys.unsupported("rope.scaling.type", format!("{other:?}"))),
    };
    Ok(RopeSpec { base, dims, scaling })
}

fn yarn(keys: &Keys<'_>, factor: f32, context: u32) -> Result<RopeScaling, SpecError> {
    let or = |key: &str, default: f32| -> Result<f32, SpecError> {
        let value = keys.float(key)?.unwrap_or(default);
        if value.is_finite() { Ok(value) } else { Err(keys.unsupported(key, value.to_string())) }
    };
    let original = keys.optional("rope.scaling.original_context_length")?;
    // Both names are in use for the same figure, and either may be absent.
    let attn_factor = or("rope.scaling.attn_factor", 1.0)? * or("rope.scaling.yarn_attn_factor", 1.0)?;
    Ok(RopeScaling::Yarn {
        factor,
        original_context: original.filter(|&n| n > 0).unwrap_or(context),
        // A negative figure stands for "the default".
        ext_factor: Some(or("rope.scaling.yarn_ext_factor", 1.0)?).filter(|&ext| ext >= 0.0).unwrap_or(1.0),
        attn_factor,
        beta_fast: or("rope.scaling.yarn_beta_fast", YARN_BETAS.0)?,
        beta_slow: or("rope.scaling.yarn_beta_slow", YARN_BETAS.1)?,
    })
}

fn tensors(gguf: &Gguf, arch: Arch) -> Result<Vec<TensorSpec>, SpecError> {
    let known = gguf.tensors().iter().filter(|info| !info.name.ends_with(REDUNDANT_SUFFIX));
    let mut tensors = known
        .map(|info| {
            let role = role(&info.name, arch);
            let role = role.ok_or_else(|| SpecError::UnknownTensor { arch, name: info.name.clone() })?;
            let (rows, cols) = (info.rows(), info.row_len());
            Ok(TensorSpec { role, kind: info.kind, rows, cols, offset: info.offset })
        })
        .collect::<Result<Vec<_>, SpecError>>()?;
    tensors.sort_by_key(|tensor| tensor.role);
    Ok(tensors)
}

/// The part that a tensor of this name has in this family's forward pass.
fn role(name: &str, arch: Arch) -> Option<Role> {
    let global = [Role::TokenEmbedding, Role::OutputNorm, Role::Output, Role::RopeFactors];
    if let Some(role) = global.into_iter().find(|role| role.tensor_name() == name) {
        return Some(role).filter(|&role| role != Role::RopeFactors || arch == Arch::Llama);
    }
    let (layer, _) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer = layer.parse().ok()?;
    let role = LAYER_ROLES.into_iter().find(|&role| Role::Layer(layer, role).tensor_name() == name)?;
    let head_norm = matches!(role, LayerRole::QNorm | LayerRole::KNorm);
    (!head_norm || arch == Arch::Qwen3).then_some(Role::Layer(layer, role))
}

const LAYER_ROLES: [LayerRole; 14] = [
    LayerRole::AttnNorm,
    LayerRole::Q,
    LayerRole::K,
    LayerRole::V,
    LayerRole::QBias,
    LayerRole::KBias,
    LayerRole::VBias,
    LayerRole::QNorm,
    LayerRole::KNorm,
    LayerRole::O,
    LayerRole::FfnNorm,
    LayerRole::Gate,
    LayerRole::Up,
    LayerRole::Down,
];

/// The family's own keys.
struct Keys<'a> {
    metadata: &'a Metadata,
    arch: Arch,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    fn missing(&self, name: &str) -> SpecError {
        MetadataError::Missing { key: self.key(name) }.into()
    }

    fn unsupported(&self, name: &str, value: String) -> SpecError {
        SpecError::Value { key: self.key(name), value }
    }

    fn number(&self, name: &str) -> Result<u32, SpecError> {
        Ok(self.metadata.require(&self.key(name), Metadata::u32)?)
    }

    fn optional(&self, name: &str) -> Result<Option<u32>, SpecError> {
        Ok(self.metadata.u32(&self.key(name))?)
    }

    fn float(&self, name: &str) -> Result<Option<f32>, SpecError> {
        Ok(self.metadata.f32(&self.key(name))?)
    }

    fn require_float(&self, name: &str) -> Result<f32, SpecError> {
        Ok(self.metadata.require(&self.key(name), Metadata::f32)?)
    }

    /// A number, or one number for each layer that must all be equal.
    fn uniform(&self, name: &str) -> Result<Option<u32>, SpecError> {
        let key = self.key(name);
        let Some(Value::Array(array)) = self.metadata.get(&key) else { return self.optional(name) };
        let numbers = self.metadata.u32s(&key)?.unwrap_or_default();
        match numbers.first() {
            Some(&first) if numbers.iter().all(|&n| n == first) => Ok(Some(first)),
            _ => Err(self.unsupported(name, describe(array))),
        }
    }
}

fn describe(array: &Array) -> String {
    format!("an array of {} values that are not all equal", array.len())
}
