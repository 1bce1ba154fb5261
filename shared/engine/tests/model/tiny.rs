//! Every feature and block type on tiny random models, against two independent programs
//! (tests/data/tiny/README.md says which, and how far they are from each other).
#![expect(clippy::print_stderr, reason = "differences and near ties are shown with --nocapture")]

use std::path::{Path, PathBuf};

use shoal_core::ModelSpec;
use shoal_engine::gguf::Gguf;
use shoal_engine::model::{self, FileSource};

use crate::support::{Cluster, Layout, argmax, assert_same_bits, floats, largest_difference, run, tokens};

/// Files in the folder: a model that is lost must not pass unseen.
const MODELS: usize = 29;

/// What the engine's logits may differ by. The differences named are the largest that the references have
/// among themselves over all models of the kind; each bound leaves room of a tenth to a factor of three.
struct Tolerance {
    /// From the definitions with the engine's own roundings. Float files: f32 arithmetic moves it by 0.0007.
    /// Quantized files: by 0.12, where it carries a value over a rounding border (see `CLOSE`).
    rounded: f32,
    /// From the definitions in 64 bits: the roundings move logits by 0.011, and by 0.43 in quantized files.
    exact: f32,
    /// From llama.cpp, which rounds elsewhere: F32 and F16 files 0.014, BF16 files 0.073 (it rounds activations
    /// to bf16), quantized files 0.47.
    llamacpp: f32,
}

/// A quantized file's logits are this close to the rounded reference where no value crosses a rounding border:
/// 20 of 24 prompts when the reference itself is computed in 32 bits.
const CLOSE: f32 = 0.002;
const CLOSE_SHARE: f64 = 0.7;

#[test]
fn logits_agree_with_the_references() {
    let (mut close, mut quantized) = (0, 0);
    for tiny in Tiny::all() {
        let tolerance = tiny.tolerance();
        let mut cluster = tiny.cluster(&Layout::single());
        for (case, seq) in tiny.cases().zip(0..) {
            let logits = cluster.prefill(seq, &tokens(&case["prompt"]), 512);
            let off = |reference: &str| {
                Some(&case[reference])
                    .filter(|list| !list.is_null())
                    .map(|list| largest_difference(&logits, &floats(list)))
            };
            let rounded = off("logits_rounded").unwrap();
            let exact = off("logits_f64").unwrap();
            let llamacpp = off("logits_llamacpp");
            eprintln!("{} prompt {seq}: rounded {rounded}, exact {exact}, llama.cpp {llamacpp:?}", tiny.name);
            assert!(rounded < tolerance.rounded, "{} prompt {seq}: {rounded} from the rounded", tiny.name);
            assert!(exact < tolerance.exact, "{} prompt {seq}: {exact} from the definition", tiny.name);
            let llamacpp = llamacpp.unwrap_or(0.0);
            assert!(llamacpp < tolerance.llamacpp, "{} prompt {seq}: {llamacpp} from llama.cpp", tiny.name);
            if tiny.is_quantized() {
                quantized += 1;
                close += usize::from(rounded < CLOSE);
            }
        }
    }
    eprintln!("{close} of {quantized} prompts of quantized files within {CLOSE}");
    assert!(f64::from(quantized) * CLOSE_SHARE < close as f64, "{close} of {quantized} within {CLOSE}");
}

#[test]
fn greedy_tokens_agree_with_the_references() {
    for tiny in Tiny::all() {
        let tolerance = tiny.tolerance();
        let mut cluster = tiny.cluster(&Layout::single());
        // Two logits that each move by the tolerance change places below twice of it.
        for (reference, near) in
            [("greedy_rounded", 2.0 * tolerance.rounded), ("greedy_llamacpp", 2.0 * tolerance.llamacpp)]
        {
            for (case, seq) in tiny.cases().zip(0..) {
                let prompt = tokens(&case["prompt"]);
                if !case[reference].is_null() {
                    tiny.assert_greedy(&mut cluster, seq, &prompt, &case[reference], near);
                }
            }
        }
    }
}

#[test]
fn layer_splits_and_chunks_equal_unsplit_bit_for_bit() {
    for tiny in Tiny::all().filter(|tiny| tiny.spec.n_layers > 1) {
        let (mut whole, mut split) =
            (tiny.cluster(&Layout::single()), tiny.cluster(&Layout::layers(&[1, 1])));
        for (case, seq) in tiny.cases().zip(0..) {
            let prompt = tokens(&case["prompt"]);
            let expected = whole.prefill(seq, &prompt, 512);
            assert_same_bits(&split.prefill(seq, &prompt, 7), &expected, &tiny.name);
        }
    }
}

#[test]
fn head_splits_agree_with_the_references() {
    // Shares that end inside quantization blocks, and more ranks than KV heads or FFN blocks.
    let uneven: Layout = Layout::new(&[(1, &[(2, 1), (1, 2)])], &[1, 1]);
    let three = Layout::new(&[(1, &[(1, 1), (1, 1), (1, 1)])], &[1, 1, 0]);
    for tiny in Tiny::all() {
        let tolerance = tiny.tolerance();
        for layout in [&uneven, &three] {
            let mut cluster = tiny.cluster(layout);
            for (case, seq) in tiny.cases().zip(0..) {
                let logits = cluster.prefill(seq, &tokens(&case["prompt"]), 512);
                // The same distance as unsplit: partial sums in f16 are one more rounding among many.
                let exact = largest_difference(&logits, &floats(&case["logits_f64"]));
                eprintln!("{} prompt {seq} on {} ranks: exact {exact}", tiny.name, cluster.shards.len());
                assert!(exact < tolerance.exact, "{} prompt {seq}: {exact} from the definition", tiny.name);
            }
        }
    }
}

/// A tiny model and what the references say of it.
pub(crate) struct Tiny {
    name: String,
    spec: ModelSpec,
    source: FileSource,
    reference: serde_json::Value,
}

impl Tiny {
    /// All of the folder, in the order of their names.
    fn all() -> impl Iterator<Item = Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<PathBuf> =
            files.filter(|path| path.extension().is_some_and(|e| e == "gguf")).collect();
        files.sort();
        assert_eq!(files.len(), MODELS);
        files.into_iter().map(|path| Self::open(&path))
    }

    /// The one of this name.
    pub(crate) fn named(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny");
        Self::open(&folder.join(name).with_extension("gguf"))
    }

    /// The first prompt of its references.
    pub(crate) fn prompt(&self) -> Vec<u32> {
        tokens(&self.reference["cases"][0]["prompt"])
    }

    fn open(path: &Path) -> Self {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let reference = std::fs::read(path.with_extension("json")).unwrap();
        let spec = model::spec(&Gguf::open(path).unwrap(), &name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let reference = serde_json::from_slice(&reference).unwrap();
        Self { name, spec, source: FileSource::open(path).unwrap(), reference }
    }

    pub(crate) fn cluster(&self, layout: &Layout) -> Cluster {
        Cluster::of(&self.spec, layout.plan(&self.spec), &self.source, 2)
    }

    fn cases(&self) -> impl Iterator<Item = &serde_json::Value> {
        self.reference["cases"].as_array().unwrap().iter()
    }

    fn has_type(&self, types: &[&str]) -> bool {
        let own = self.reference["types"].as_array().unwrap();
        own.iter().any(|kind| types.contains(&kind.as_str().unwrap()))
    }

    fn is_quantized(&self) -> bool {
        let own = self.reference["types"].as_array().unwrap();
        own.iter().any(|kind| kind.as_str().unwrap().starts_with('Q'))
    }

    fn tolerance(&self) -> Tolerance {
        if self.is_quantized() {
            Tolerance { rounded: 0.2, exact: 0.5, llamacpp: 0.6 }
        } else {
            let llamacpp = if self.has_type(&["BF16"]) { 0.1 } else { 0.02 };
            Tolerance { rounded: 0.002, exact: 0.02, llamacpp }
        }
    }

    /// Follows the reference's tokens; wherever the best token is another one, the reference's margin must be
    /// under `near` and both must be its top two.
    fn assert_greedy(
        &self,
        cluster: &mut Cluster,
        seq: u64,
        prompt: &[u32],
        reference: &serde_json::Value,
        near: f32,
    ) {
        let (best, second) = (tokens(&reference["tokens"]), tokens(&reference["seconds"]));
        let margins = floats(&reference["margins"]);
        assert!(!best.is_empty() && best.len() == margins.len());
        let mut logits = cluster.prefill(seq, prompt, 512);
        for (step, &token) in best.iter().enumerate() {
            let own = argmax(&logits);
            let tie = own == second[step] && margins[step] < near;
            let name = &self.name;
            assert!(
                own == token || tie,
                "{name} prompt {seq} step {step}: {own}, not {token} ({})",
                margins[step]
            );
            if own != token {
                eprintln!("{name} prompt {seq} step {step}: a near tie ({})", margins[step]);
            }
            logits = cluster.logits(&[run(seq, prompt.len() + step, &[token])]).remove(0);
        }
        cluster.release(seq);
    }
}
