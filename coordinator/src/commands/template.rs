//! `shoal template`: messages rendered by a chat template, as the model would see them.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;
use shoal_engine::gguf::{Gguf, Metadata};
use shoal_text::{ChatTemplate, RenderInput};

use crate::exit::{Failure, Outcome};
use crate::out;

/// The name of the template that models keep for conversations with tools, where they have two.
const TOOL_TEMPLATE: &str = "tool_use";

/// Arguments of `shoal template`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  shoal template model.gguf --messages messages.json --add-generation-prompt\n  \
                        shoal template chatml.jinja --messages messages.json --tools tools.json --bos '<s>'"
)]
pub(crate) struct TemplateArgs {
    /// A model (a vocabulary alone is enough), or a file with a Jinja template
    #[arg(value_name = "MODEL|FILE.jinja")]
    source: PathBuf,
    /// The conversation: a JSON list of objects with `role` and `content`
    #[arg(long, value_name = "FILE.json")]
    messages: PathBuf,
    /// Tools the model may call: a JSON list of schemas
    #[arg(long, value_name = "FILE.json")]
    tools: Option<PathBuf>,
    /// End with the opening of the assistant's turn
    #[arg(long)]
    add_generation_prompt: bool,
    /// Further variables of the template: a JSON object, such as '{"enable_thinking": false}'
    #[arg(long, value_name = "JSON")]
    kwargs: Option<String>,
    /// Text of the start token; by default the model's
    #[arg(long, value_name = "TEXT")]
    bos: Option<String>,
    /// Text of the end token; by default the model's
    #[arg(long, value_name = "TEXT")]
    eos: Option<String>,
    /// Print one JSON object instead of the text
    #[arg(long)]
    json: bool,
}

/// Prints what the template makes of the messages, exactly: no line break is added.
///
/// # Errors
/// A file is not what it should be, or the template refuses the messages.
pub(crate) fn run(args: TemplateArgs) -> Outcome {
    let messages = json(&args.messages)?;
    let tools = args.tools.as_deref().map(json).transpose()?;
    let kwargs = args.kwargs.as_deref().map(object).transpose()?;
    let Source { template, bos, eos } = source(&args.source, tools.is_some())?;
    let (bos, eos) = (args.bos.or(bos), args.eos.or(eos));
    let input = RenderInput {
        messages: Some(&messages),
        tools: tools.as_ref(),
        add_generation_prompt: args.add_generation_prompt,
        bos: bos.as_deref(),
        eos: eos.as_deref(),
        extra: kwargs.as_ref(),
    };
    let text = template.render(input).map_err(|error| Failure::Input(error.into()))?;
    if args.json { out::json(&serde_json::json!({ "text": text })) } else { out::text(&text) }
}

/// A template with the texts it may ask for.
struct Source {
    template: ChatTemplate,
    bos: Option<String>,
    eos: Option<String>,
}

fn source(path: &Path, has_tools: bool) -> Outcome<Source> {
    let failed = |error: anyhow::Error| Failure::input(format!("read {}", path.display()), error);
    let bytes = fs::File::open(path).and_then(|file| {
        let mut magic = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(file, 4), &mut magic)?;
        Ok(magic)
    });
    if bytes.map_err(|error| failed(error.into()))? != b"GGUF" {
        let text = fs::read_to_string(path).map_err(|error| failed(error.into()))?;
        let template = ChatTemplate::new(text).map_err(|error| failed(error.into()))?;
        return Ok(Source { template, bos: None, eos: None });
    }
    let metadata = Gguf::open_metadata(path).map_err(|error| failed(error.into()))?;
    let find = |name| ChatTemplate::from_gguf(&metadata, name).map_err(|error| failed(error.into()));
    let for_tools = if has_tools { find(Some(TOOL_TEMPLATE))? } else { None };
    let template = match for_tools {
        Some(template) => Some(template),
        None => find(None)?,
    };
    let template = template.unwrap_or_else(|| {
        out::note("warning: the model has no chat template; contents are joined by blank lines");
        ChatTemplate::plain()
    });
    let text = |key| token_text(&metadata, key);
    Ok(Source {
        template,
        bos: text("tokenizer.ggml.bos_token_id"),
        eos: text("tokenizer.ggml.eos_token_id"),
    })
}

/// The text of the token whose id stands under `key`.
fn token_text(metadata: &Metadata, key: &str) -> Option<String> {
    let id = metadata.u32(key).ok()??;
    metadata.strings("tokenizer.ggml.tokens").ok()??.get(id as usize).cloned()
}

fn json(path: &Path) -> Outcome<Value> {
    let failed = |error: anyhow::Error| Failure::input(format!("read {}", path.display()), error);
    let bytes = fs::read(path).map_err(|error| failed(error.into()))?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
}

fn object(text: &str) -> Outcome<Value> {
    let value: Value = serde_json::from_str(text)
        .map_err(|error| Failure::Usage(format!("failed to read --kwargs: {error}")))?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(Failure::Usage("failed to read --kwargs: not an object".into()))
    }
}
