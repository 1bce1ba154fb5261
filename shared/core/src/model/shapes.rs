//! Shapes of well-known models, for `shoal synth`, for planning without a file, and for tests.
//!
//! The number formats of a file type follow llama.cpp's quantizer: see [`FileType::kind_of`].

use super::{Arch, LayerRole, ModelSpec, Role, RopeScaling, RopeSpec, TensorSpec};
use crate::quant::QuantType;

/// The dimensions of a model, without its weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// The name `--shape` takes.
    pub name: &'static str,
    pub arch: Arch,
    pub n_layers: u32,
    pub d_model: u32,
    pub n_heads: u32,
    pub n_kv_heads: u32,
    pub head_dim: u32,
    pub ffn: u32,
    pub vocab: u32,
    pub context: u32,
    pub rope_base: f32,
    pub norm_eps: f32,
    /// Whether the output head is the embedding table.
    pub tied: bool,
}

const fn llama(name: &'static str, layers: u32, d: u32, heads: u32, head_dim: u32, ffn: u32) -> Shape {
    Shape {
        name,
        arch: Arch::Llama,
        n_layers: layers,
        d_model: d,
        n_heads: heads,
        n_kv_heads: 8,
        head_dim,
        ffn,
        vocab: 128_256,
        context: 131_072,
        rope_base: 500_000.0,
        norm_eps: 1e-5,
        tied: false,
    }
}

const fn qwen(name: &'static str, arch: Arch, layers: u32, d: u32, heads: (u32, u32), ffn: u32) -> Shape {
    Shape {
        name,
        arch,
        n_layers: layers,
        d_model: d,
        n_heads: heads.0,
        n_kv_heads: heads.1,
        head_dim: 128,
        ffn,
        vocab: 151_936,
        context: 32_768,
        rope_base: 1_000_000.0,
        norm_eps: 1e-6,
        tied: false,
    }
}

/// Every shape `--shape` knows, small ones first.
pub const SHAPES: &[Shape] = &[
    // The embedded stories model.
    Shape {
        n_kv_heads: 4,
        vocab: 2_048,
        context: 512,
        rope_base: 10_000.0,
        tied: true,
        ..llama("stories", 6, 256, 8, 32, 768)
    },
    // The shape the measurements of peers call "small".
    Shape {
        n_kv_heads: 4,
        vocab: 32_000,
        context: 2_048,
        rope_base: 10_000.0,
        ..llama("small", 8, 512, 8, 64, 1_536)
    },
    Shape { head_dim: 64, tied: true, ..qwen("qwen2.5-0.5b", Arch::Qwen2, 24, 896, (14, 2), 4_864) },
    Shape { tied: true, ..qwen("qwen3-0.6b", Arch::Qwen3, 28, 1_024, (16, 8), 3_072) },
    Shape {
        n_kv_heads: 4,
        vocab: 32_000,
        context: 2_048,
        rope_base: 10_000.0,
        ..llama("tinyllama-1.1b", 22, 2_048, 32, 64, 5_632)
    },
    Shape { tied: true, ..llama("llama-3.2-1b", 16, 2_048, 32, 64, 8_192) },
    Shape { tied: true, ..qwen("qwen2.5-1.5b", Arch::Qwen2, 28, 1_536, (12, 2), 8_960) },
    Shape { tied: true, ..llama("llama-3.2-3b", 28, 3_072, 24, 128, 8_192) },
    Shape { tied: true, ..qwen("qwen3-4b", Arch::Qwen3, 36, 2_560, (32, 8), 9_728) },
    Shape { vocab: 152_064, ..qwen("qwen2.5-7b", Arch::Qwen2, 28, 3_584, (28, 4), 18_944) },
    Shape {
        vocab: 32_768,
        context: 32_768,
        rope_base: 1e6,
        ..llama("mistral-7b", 32, 4_096, 32, 128, 14_336)
    },
    llama("llama-3.1-8b", 32, 4_096, 32, 128, 14_336),
    qwen("qwen3-8b", Arch::Qwen3, 36, 4_096, (32, 8), 12_288),
    llama("llama-3.1-70b", 80, 8_192, 64, 128, 28_672),
];

/// A file's quantization as people name it: one format for most tensors, better ones for a few.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
    /// One format for all matrices.
    Uniform(QuantType),
    /// `Q4_K_M`, `Q5_K_M`: the given format, with Q6_K where it helps most.
    KMedium(QuantType),
}

impl FileType {
    /// The file type of this name, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        match name.to_ascii_uppercase().as_str() {
            "Q4_K_M" => Some(Self::KMedium(QuantType::Q4_K)),
            "Q5_K_M" => Some(Self::KMedium(QuantType::Q5_K)),
            other => QuantType::from_name(other).map(Self::Uniform),
        }
    }

    /// The names, for an error message.
    pub fn names() -> String {
        let uniform = QuantType::ALL.iter().map(|kind| kind.name());
        uniform.chain(["Q4_K_M", "Q5_K_M"]).collect::<Vec<_>>().join(", ")
    }

    /// `general.file_type` of a GGUF file.
    pub fn ggml_file_type(self) -> u32 {
        match self {
            Self::KMedium(QuantType::Q5_K) => 17,
            Self::KMedium(_) => 15,
            Self::Uniform(kind) => match kind {
                QuantType::F32 => 0,
                QuantType::F16 => 1,
                QuantType::Q4_0 => 2,
                QuantType::Q4_1 => 3,
                QuantType::Q8_0 => 7,
                QuantType::Q5_0 => 8,
                QuantType::Q5_1 => 9,
                QuantType::Q2_K => 10,
                QuantType::Q3_K => 12,
                QuantType::Q4_K => 14,
                QuantType::Q5_K => 16,
                QuantType::Q6_K => 18,
                QuantType::BF16 => 32,
            },
        }
    }

    /// The format of a tensor: vectors stay F32; the output head (or a tied table) of a quantized
    /// file is Q6_K unless the file is Q8_0 or better; a `_M` file also has Q6_K in V and down of the
    /// first and last eighth of the layers and every third between. Rows that are not whole blocks of
    /// 256 fall back to Q8_0.
    pub fn kind_of(self, shape: &Shape, role: Role, cols: u64) -> QuantType {
        let (Self::Uniform(base) | Self::KMedium(base)) = self;
        let is_head = role == Role::Output || (shape.tied && role == Role::TokenEmbedding);
        let wide = matches!(base, QuantType::F32 | QuantType::F16 | QuantType::BF16 | QuantType::Q8_0);
        let more_bits = |layer: u32| {
            let (n, eighth) = (shape.n_layers, shape.n_layers / 8);
            layer < eighth || layer >= 7 * n / 8 || (layer - eighth) % 3 == 2
        };
        let kind = match role {
            _ if is_head && !wide => QuantType::Q6_K,
            Role::Layer(layer, LayerRole::V | LayerRole::Down)
                if matches!(self, Self::KMedium(_)) && more_bits(layer) =>
            {
                QuantType::Q6_K
            }
            _ => base,
        };
        if cols.is_multiple_of(kind.block_len()) { kind } else { QuantType::Q8_0 }
    }
}

impl Shape {
    /// The shape of this name.
    pub fn from_name(name: &str) -> Option<&'static Self> {
        SHAPES.iter().find(|shape| shape.name.eq_ignore_ascii_case(name))
    }

    /// The model of this shape in a file of this type. Offsets are those of a file whose data starts
    /// at byte 0, tensors in role order, aligned to 32.
    pub fn spec(&self, file: FileType) -> ModelSpec {
        let rope = RopeSpec { base: self.rope_base, dims: self.head_dim, scaling: RopeScaling::None };
        let mut spec = ModelSpec {
            name: self.name.to_owned(),
            arch: self.arch,
            n_layers: self.n_layers,
            d_model: self.d_model,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            ffn: self.ffn,
            vocab: self.vocab,
            context: self.context,
            norm_eps: self.norm_eps,
            rope,
            tensors: Vec::new(),
        };
        let mut roles = spec.required_roles();
        roles.extend((!self.tied).then_some(Role::Output));
        roles.sort_unstable();
        let mut offset = 0;
        for role in roles {
            let (rows, cols) = spec.shape_of(role);
            let kind = if rows == 1 { QuantType::F32 } else { file.kind_of(self, role, cols) };
            let tensor = TensorSpec { role, kind, rows, cols, offset };
            offset = (offset + tensor.bytes().0).next_multiple_of(32);
            spec.tensors.push(tensor);
        }
        spec
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_a_model() {
        for shape in SHAPES {
            for kind in QuantType::ALL {
                shape
                    .spec(FileType::Uniform(kind))
                    .check()
                    .unwrap_or_else(|e| panic!("{} {kind}: {e}", shape.name));
            }
        }
    }

    #[test]
    fn the_mixed_file_type_is_the_one_of_the_stories_file() {
        // The stories file holds five Q6_K tensors: the table, and V and down of two layers.
        let spec = Shape::from_name("stories").unwrap().spec(FileType::from_name("q4_k_m").unwrap());
        let six: Vec<Role> =
            spec.tensors.iter().filter(|t| t.kind == QuantType::Q6_K).map(|t| t.role).collect();
        let of = |layer| [Role::Layer(layer, LayerRole::V), Role::Layer(layer, LayerRole::Down)];
        assert_eq!(six, [&[Role::TokenEmbedding][..], &of(2), &of(5)].concat());
    }

    #[test]
    fn a_real_shape_has_its_known_size() {
        // 1B in Q4_0 is 0.763 GB of weights (published with the peers' figures).
        let spec = Shape::from_name("llama-3.2-1b").unwrap().spec(FileType::from_name("Q4_0").unwrap());
        let gigabytes = spec.total_bytes().0 as f64 / 1e9;
        assert!((0.755..0.775).contains(&gigabytes), "{gigabytes}");
    }
}
