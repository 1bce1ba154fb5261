//! `shoal tokenize`: text from standard input to token ids, as the model's own tokenizer makes them.

use std::io::{self, Read};
use std::path::PathBuf;

use clap::Args;
use shoal_engine::gguf::Gguf;
use shoal_text::Tokenizer;

use crate::exit::{Failure, Outcome};
use crate::out;

/// Most bytes of input: beyond any context, and small enough to hold a few times in memory.
const INPUT_BYTES: u64 = 256 << 20;

/// Arguments of `shoal tokenize`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  printf 'Once upon a time' | shoal tokenize model.gguf\n  \
                        shoal tokenize model.gguf --no-special --json < story.txt")]
pub(crate) struct TokenizeArgs {
    /// The model, or a GGUF file with a vocabulary alone
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Add no start or end token, and take the text of special tokens as plain text
    #[arg(long)]
    no_special: bool,
    /// Print one JSON object instead of ids
    #[arg(long)]
    json: bool,
}

/// Reads standard input byte for byte (a final line break counts) and prints its ids.
///
/// # Errors
/// The file has no usable tokenizer, or the input is not UTF-8.
pub(crate) fn run(args: TokenizeArgs) -> Outcome {
    let what = || format!("read {}", args.model.display());
    let metadata = Gguf::open_metadata(&args.model).map_err(|error| Failure::input(what(), error))?;
    let tokenizer = Tokenizer::from_gguf(&metadata).map_err(|error| Failure::input(what(), error))?;
    let text = input()?;
    let special = !args.no_special;
    // No text is no tokens, not even a start token: there is nothing to start.
    let ids = if text.is_empty() { Vec::new() } else { tokenizer.encode(&text, special, special) };
    if args.json {
        return out::json(&serde_json::json!({ "ids": ids }));
    }
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    if ids.is_empty() { Ok(()) } else { out::line(&ids.join(" ")) }
}

fn input() -> Outcome<String> {
    let mut bytes = Vec::new();
    let read = io::stdin().lock().take(INPUT_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| Failure::machine("read standard input", error))?;
    if bytes.len() as u64 > INPUT_BYTES {
        let error = anyhow::anyhow!("it is longer than {INPUT_BYTES} bytes");
        return Err(Failure::input("tokenize standard input", error));
    }
    String::from_utf8(bytes).map_err(|error| Failure::input("tokenize standard input", error.utf8_error()))
}
