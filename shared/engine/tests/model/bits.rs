//! Digests of whole models' results, held as constants: every processor must give these bits, or ranks on boards of
//! different kinds would disagree. The kernels alone are tests/kernels/bits.rs's. And of synthetic models' files: one
//! made on a board is the one made on a desk.

use shoal_core::model::Arch;
use shoal_core::model::shapes::{FileType, Shape};
use shoal_engine::synth;

use shoal_core::head::HeadRequest;
use shoal_core::message::HeadRow;

use crate::support::{Cluster, Layout, run};
use crate::tiny::Tiny;

/// Of a prompt's logits and of a step after it: unsplit, and split by heads on two uneven ranks with f16 partial sums. One
/// model of each architecture, way of stretching positions, and mixture of block types.
const MODELS: [(&str, u64, u64); 8] = [
    ("llama-f32", 0x0c95_b667_d4d4_dbbc, 0x2b43_0a95_59b3_eacb),
    ("llama-heads-6-3-bf16", 0xb9e8_19e6_23f0_339a, 0xddce_f7d0_4182_1c92),
    ("llama-q4_k_m", 0x5420_b3fd_f8dd_3505, 0x3cfe_06cc_9e40_daa3),
    ("llama-rope-llama3", 0x290f_0ca1_828b_a116, 0x2c12_08a2_3fc7_ef9f),
    ("llama-rope-yarn-attn", 0x5df9_8b8e_59a9_d2d4, 0x2af8_a9e4_f672_132b),
    ("qwen2-q5_0", 0xcc03_77f0_200a_f2f5, 0xb072_688b_b7d1_c149),
    ("qwen2-rope-scale-linear", 0x8029_023e_2c5c_03e3, 0x3d91_8d7b_16a6_b9cf),
    ("qwen3-q8_0", 0xb2f4_def7_2926_9b41, 0x9284_6c12_c672_d4fc),
];

#[test]
fn models_have_these_bits_everywhere() {
    let uneven = Layout::new(&[(1, &[(2, 1), (1, 2)])], &[1, 1]);
    let got = MODELS.map(|(name, _, _)| {
        let tiny = Tiny::named(name);
        let [whole, split] =
            [&Layout::single(), &uneven].map(|layout| digest(&tiny, &mut tiny.cluster(layout)));
        (name, whole, split)
    });
    assert_eq!(got, MODELS, "{got:#018x?}");
}

/// Of synthetic models' files.
const SYNTHETIC: [(&str, u64); 15] = [
    ("F32", 0xfd2a_94dd_3f1a_ebca),
    ("F16", 0xe277_a247_43f6_b0c0),
    ("BF16", 0x37bd_e86b_129f_0059),
    ("Q8_0", 0x2d34_f62e_ae87_3744),
    ("Q4_0", 0xb52e_fcab_d658_6f94),
    ("Q4_1", 0x99f5_da7a_67b6_1d47),
    ("Q5_0", 0xd9a7_f403_eaca_8684),
    ("Q5_1", 0xbcd5_1c24_6b35_93f1),
    ("Q2_K", 0xcba1_4d87_ce60_0756),
    ("Q3_K", 0xf9fa_d819_f4d5_0136),
    ("Q4_K", 0x1060_1e31_8f33_98c3),
    ("Q5_K", 0x3bde_97c9_3842_a3d9),
    ("Q6_K", 0x5f88_9758_d12d_44a5),
    ("Q4_K_M", 0x05fa_6337_71a0_243f),
    ("Q5_K_M", 0x9e48_f762_b41b_df5d),
];

#[test]
fn synthetic_models_have_these_bytes_everywhere() {
    let shape = Shape {
        name: "small",
        arch: Arch::Llama,
        n_layers: 1,
        d_model: 256,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 64,
        ffn: 512,
        vocab: 300,
        context: 64,
        rope_base: 10_000.0,
        norm_eps: 1e-5,
        tied: false,
    };
    let got = SYNTHETIC.map(|(name, _)| {
        let mut bytes = Vec::new();
        synth::write(&shape, FileType::from_name(name).unwrap(), 7, &mut bytes, |_, _| {}).unwrap();
        (name, fnv(&bytes))
    });
    assert_eq!(got, SYNTHETIC, "{got:#018x?}");
}

/// Of logits and of the head ranks' sums over tiles.
fn digest(tiny: &Tiny, cluster: &mut Cluster) -> u64 {
    let prompt = tiny.prompt();
    let mut bytes = Vec::new();
    let mut take = |logits: &[f32]| logits.iter().for_each(|l| bytes.extend(l.to_bits().to_le_bytes()));
    take(&cluster.prefill(0, &prompt, 512));
    let request = HeadRequest { want_tiles: true, ..HeadRequest::greedy() };
    let head = HeadRow { row: 0, request };
    let answers = cluster.step(&[run(0, prompt.len(), &prompt[..1])], &[head]).concat();
    take(&cluster.kept(0));
    answers.iter().flat_map(|a| &a.tiles).for_each(|sum| bytes.extend(sum.to_bits().to_le_bytes()));
    fnv(&bytes)
}

/// FNV-1a, 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    let step = |digest: u64, &byte: &u8| (digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}
