//! The model as the coordinator knows it: its shape, its text, and the file that workers fetch chunks of.
//!
//! A file on disk and the embedded model look the same from here on. No weight is read here but to hash it and to
//! serve it; computing is the workers' business.

mod manifest;

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shoal_core::ModelSpec;
use shoal_engine::gguf::{Gguf, Metadata};
use shoal_text::Tokenizer;

use crate::exit::{Failure, Outcome};

pub(crate) use manifest::Manifest;

/// The model in the binary: a story teller of five million parameters (its README says where it comes from).
static EMBEDDED: &[u8] = include_bytes!("../../../shared/engine/tests/data/models/stories-Q8_0.gguf");

/// The embedded model's file name, under which workers know it.
const EMBEDDED_NAME: &str = "stories-Q8_0.gguf";

/// A model that can be run.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) spec: Arc<ModelSpec>,
    pub(crate) tokenizer: Tokenizer,
    /// For the chat template.
    pub(crate) metadata: Metadata,
    pub(crate) manifest: Manifest,
    /// Where the bytes are.
    pub(crate) bytes: ModelBytes,
}

/// A model file's bytes.
#[derive(Debug, Clone)]
pub(crate) enum ModelBytes {
    /// In the binary.
    Embedded(&'static [u8]),
    /// On disk.
    File(PathBuf),
}

/// What the header of the file at `path` says of the model: all that planning on paper needs.
///
/// # Errors
/// The file cannot be read or is not a model that can be run here.
pub(crate) fn header(path: &Path) -> Outcome<ModelSpec> {
    let what = || format!("open the model {}", path.display());
    let len = std::fs::metadata(path).map_err(|error| Failure::input(what(), error))?.len();
    let file = File::open(path).map_err(|error| Failure::input(what(), error))?;
    let gguf = Gguf::parse(BufReader::new(file), len).map_err(|error| Failure::input(what(), error))?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    shoal_engine::model::spec(&gguf, &stem).map_err(|error| Failure::input(what(), error))
}

impl Model {
    /// Opens the file at `path`; hashes are kept in `data_dir`, and `progress` hears of the bytes hashed, of all.
    ///
    /// # Errors
    /// The file cannot be read or is not a model that can be run here.
    pub(crate) fn open(path: &Path, data_dir: &Path, mut progress: impl FnMut(u64, u64)) -> Outcome<Self> {
        let what = || format!("open the model {}", path.display());
        let len = std::fs::metadata(path).map_err(|error| Failure::input(what(), error))?.len();
        let file = File::open(path).map_err(|error| Failure::input(what(), error))?;
        let gguf = Gguf::parse(BufReader::new(file), len).map_err(|error| Failure::input(what(), error))?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let read = Self::read(&gguf, &stem).map_err(|error| Failure::input(what(), error))?;
        let manifest = Manifest::of_file(path, data_dir, |done| progress(done, len));
        let manifest = manifest.map_err(|error| Failure::input(what(), error))?;
        Ok(read(manifest, ModelBytes::File(path.to_owned())))
    }

    /// The model in the binary.
    ///
    /// # Errors
    /// Only if the binary is damaged.
    pub(crate) fn embedded() -> Outcome<Self> {
        let what = "read the embedded model";
        let len = EMBEDDED.len() as u64;
        let gguf = Gguf::parse(EMBEDDED, len).map_err(|error| Failure::machine(what, error))?;
        let read = Self::read(&gguf, "stories").map_err(|error| Failure::machine(what, error))?;
        let manifest = Manifest::compute(EMBEDDED, len, EMBEDDED_NAME.to_owned(), |_| ());
        let manifest = manifest.map_err(|error| Failure::machine(what, error))?;
        Ok(read(manifest, ModelBytes::Embedded(EMBEDDED)))
    }

    /// What the header says; the manifest is the slow part and comes last.
    fn read(gguf: &Gguf, name: &str) -> anyhow::Result<impl FnOnce(Manifest, ModelBytes) -> Self> {
        let spec = shoal_engine::model::spec(gguf, name)?;
        let tokenizer = Tokenizer::from_gguf(&gguf.metadata)?;
        anyhow::ensure!(
            tokenizer.n_vocab() <= spec.vocab as usize,
            "the vocabulary has {} tokens, but the embedding table only {} rows",
            tokenizer.n_vocab(),
            spec.vocab
        );
        let metadata = gguf.metadata.clone();
        Ok(move |manifest, bytes| Self { spec: Arc::new(spec), tokenizer, metadata, manifest, bytes })
    }

    /// The folder that holds the file, for workers on this machine.
    pub(crate) fn folder(&self) -> Option<PathBuf> {
        match &self.bytes {
            ModelBytes::Embedded(_) => None,
            ModelBytes::File(path) => Some(path.canonicalize().ok()?.parent()?.to_owned()),
        }
    }
}

impl ModelBytes {
    /// Reads `len` bytes from `offset` on.
    ///
    /// # Errors
    /// They are not there, or cannot be read.
    pub(crate) fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        match self {
            Self::Embedded(bytes) => {
                let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
                let bytes = bytes.get(start..).and_then(|rest| rest.get(..len));
                Ok(bytes.ok_or(io::ErrorKind::UnexpectedEof)?.to_vec())
            }
            Self::File(path) => {
                use std::io::{Read, Seek, SeekFrom};
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(offset))?;
                let mut out = vec![0; len];
                file.read_exact(&mut out)?;
                Ok(out)
            }
        }
    }
}
