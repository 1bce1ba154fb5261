//! `shoal synth`: a random-weight model of a real shape, for speed and memory on boards without a download.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::PathBuf;

use clap::Args;
use shoal_core::Bytes;
use shoal_core::model::shapes::{FileType, SHAPES, Shape};
use shoal_engine::synth;

use crate::exit::{Failure, Outcome};
use crate::out;

/// Bytes gathered before they are written: rows are small.
const WRITE_BUFFER_BYTES: usize = 1 << 20;

/// Arguments of `shoal synth`.
#[derive(Debug, Args)]
#[command(after_help = shapes_help())]
pub(crate) struct SynthArgs {
    /// The model whose shape it takes (see below)
    #[arg(long, value_name = "SHAPE", value_parser = shape)]
    shape: &'static Shape,
    /// Number format of the weights, such as Q4_0, Q4_K_M, Q8_0 or F16
    #[arg(long, value_name = "TYPE", default_value = "Q4_K_M", value_parser = file_type)]
    quant: FileTypeArg,
    /// The same seed writes the same file
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Layers, where the shape's own are too many to fit
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    layers: Option<u32>,
    /// Leave the weights out: the file has its length and takes no space, for workers that hold none (--dry)
    #[arg(long, conflicts_with = "seed")]
    hollow: bool,
    /// Write over a file that exists
    #[arg(long)]
    force: bool,
    /// File to write; by default SHAPE-TYPE.gguf in this folder
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// A file type with the name it was asked by.
#[derive(Debug, Clone)]
struct FileTypeArg {
    name: String,
    kind: FileType,
}

fn shape(name: &str) -> Result<&'static Shape, String> {
    let names = || SHAPES.iter().map(|shape| shape.name).collect::<Vec<_>>().join(", ");
    Shape::from_name(name).ok_or_else(|| format!("unknown shape; known are {}", names()))
}

fn file_type(name: &str) -> Result<FileTypeArg, String> {
    let kind =
        FileType::from_name(name).ok_or_else(|| format!("unknown type; known are {}", FileType::names()))?;
    Ok(FileTypeArg { name: name.to_ascii_uppercase(), kind })
}

fn shapes_help() -> String {
    let q4 = FileType::Uniform(shoal_core::QuantType::Q4_0);
    let line = |shape: &Shape| format!("  {:<16} {:>9} in Q4_0", shape.name, shape.spec(q4).total_bytes());
    format!("Shapes:\n{}", SHAPES.iter().map(line).collect::<Vec<_>>().join("\n"))
}

/// Writes the model.
///
/// # Errors
/// The file exists, or cannot be written.
pub(crate) fn run(args: SynthArgs) -> Outcome {
    let shape = Shape { n_layers: args.layers.unwrap_or(args.shape.n_layers), ..*args.shape };
    let path = args.output.unwrap_or_else(|| format!("{}-{}.gguf", shape.name, args.quant.name).into());
    let failed = |error: io::Error| Failure::machine(format!("write {}", path.display()), error);
    if path.exists() && !args.force {
        let path = path.display();
        return Err(Failure::Usage(format!("failed to write {path}: it exists (--force writes over it)")));
    }
    // Under another name until it is whole, so that a full disk or Ctrl-C leaves no half of a model.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(".".as_ref());
    let temporary = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    let seed = (!args.hollow).then_some(args.seed);
    let bytes = write(&shape, &args.quant, seed, temporary.as_file())
        .map_err(|error| Failure::machine(format!("write {}", path.display()), error))?;
    temporary.persist(&path).map_err(|error| failed(error.error))?;
    if args.json {
        let path = path.display().to_string();
        return out::json(&serde_json::json!({
            "path": path, "bytes": bytes, "shape": shape.name, "quant": args.quant.name, "seed": seed,
            "layers": shape.n_layers, "hollow": args.hollow,
        }));
    }
    let what = if args.hollow { "hollow, no weights" } else { "random weights" };
    out::line(&format!("{}: {}, {what}", path.display(), Bytes(bytes)))
}

/// Writes the model, hollow without a seed.
fn write(shape: &Shape, quant: &FileTypeArg, seed: Option<u64>, file: &File) -> anyhow::Result<u64> {
    let bar = indicatif::ProgressBar::new(0)
        .with_style(style())
        .with_message(format!("{} {}", shape.name, quant.name));
    let progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let bytes = if let Some(seed) = seed {
        let mut writer = BufWriter::with_capacity(WRITE_BUFFER_BYTES, file);
        let bytes = synth::write(shape, quant.kind, seed, &mut writer, progress)?;
        writer.flush()?;
        bytes
    } else {
        let mut writer = BufWriter::with_capacity(WRITE_BUFFER_BYTES, Holes(file));
        let bytes = synth::write_hollow(shape, quant.kind, &mut writer, progress)?;
        writer.flush()?;
        // What ends in a hole ends where the last byte was written.
        file.set_len(bytes)?;
        bytes
    };
    bar.finish_and_clear();
    Ok(bytes)
}

/// A file in which zeros are not written but skipped.
struct Holes<'a>(&'a File);

impl Write for Holes<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.iter().any(|&byte| byte != 0) {
            return self.0.write(bytes);
        }
        self.0.seek(SeekFrom::Current(bytes.len() as i64))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn style() -> indicatif::ProgressStyle {
    let template = "{msg} {wide_bar} {bytes}/{total_bytes}";
    indicatif::ProgressStyle::with_template(template)
        .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar())
}
