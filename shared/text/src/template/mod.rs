//! Chat templates: the Jinja templates of model files, rendered as Hugging Face's `transformers` renders them.
//!
//! What lives here: [`ChatTemplate`], made from metadata or a source and rendered with messages and tools. minijinja
//! parses and runs; `rewrite` puts Python's rules for operators, slices and methods in (with `ops` and `methods`),
//! `repr` writes values as Python does, `filters` holds Jinja's filters where minijinja's differ, `clock` the time.
//!
//! Templates come from outside: size, depth, instructions, text made and time are limited, each by a named constant
//! in `engine` or `ops`. What a template may not do in HF's sandbox (changing its arguments, loading others) is an
//! error here too.
//!
//! Not the same as Jinja: integers end at 128 bits; there is no unary plus, no `varargs` and `kwargs` in macros, and
//! a macro's default cannot name an argument before it; nothing is HTML-escaped unless asked for; the filters
//! `pprint`, `random`, `urlencode`, `wordwrap`, `xmlattr` and the functions `cycler` and `lipsum` are missing; some
//! misuse that Jinja refuses (comparing a string with a number, an attribute that not all items have) goes through.

mod clock;
mod engine;
mod filters;
mod methods;
mod ops;
mod repr;
mod rewrite;

use minijinja::Value;
use serde_json::Value as Json;
use shoal_engine::gguf::{Metadata, Value as GgufValue};
use thiserror::Error;

/// What stands in for the template of a model that has none: the contents of all messages, joined by blank lines.
pub const PLAIN_TEMPLATE: &str = "{%- for message in messages -%}\
    {%- if message.content is string -%}{{ message.content }}\
    {%- else -%}{%- for part in message.content or [] -%}{{ part.text }}{%- endfor -%}{%- endif -%}\
    {%- if not loop.last -%}{{ '\\n\\n' }}{%- endif -%}\
    {%- endfor -%}";

/// The metadata key of a model's template; others stand under it by name.
const KEY: &str = "tokenizer.chat_template";

/// Why a template could not be read or rendered.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The source is no template.
    #[error("failed to read the chat template: {source}")]
    Syntax {
        /// Where and why.
        #[source]
        source: minijinja::Error,
    },
    /// The template wants something that HF's renderer does not have.
    #[error("failed to read the chat template: it uses {what}, which chat templates may not")]
    Unsupported {
        /// What.
        what: &'static str,
    },
    /// The template is beyond a limit.
    #[error("failed to read the chat template: it has more than {limit} {what}")]
    TooLarge {
        /// What is counted.
        what: &'static str,
        /// The greatest accepted.
        limit: usize,
    },
    /// The template called `raise_exception`: the messages do not suit it.
    #[error("failed to render the chat template: {message}")]
    Raised {
        /// What the template said.
        message: String,
    },
    /// Rendering failed.
    #[error("failed to render the chat template: {source}")]
    Render {
        /// Where and why.
        #[source]
        source: minijinja::Error,
    },
    /// A message is not an object, or the messages are not a list.
    #[error("failed to render the chat template: {what}")]
    Messages {
        /// What is wrong.
        what: &'static str,
    },
    /// The thread for rendering could not be started.
    #[error("failed to start a thread for the chat template: {source}")]
    Thread {
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The renderer panicked: a bug here, kept from the caller.
    #[error("failed to render the chat template: the renderer panicked")]
    Panicked,
}

/// What a template is rendered with.
#[derive(Debug, Clone, Copy, Default)]
pub struct RenderInput<'a> {
    /// A list of messages: objects with `role`, `content` and what else the template reads.
    pub messages: Option<&'a Json>,
    /// A list of tools as JSON schemas.
    pub tools: Option<&'a Json>,
    /// Whether to end with the opening of the assistant's turn.
    pub add_generation_prompt: bool,
    /// The text of BOS, if there is one.
    pub bos: Option<&'a str>,
    /// The text of EOS, if there is one.
    pub eos: Option<&'a str>,
    /// Further variables: an object. They win over those above.
    pub extra: Option<&'a Json>,
}

/// A chat template that parses.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
}

impl ChatTemplate {
    /// Checks a template.
    ///
    /// # Errors
    /// It does not parse, or is beyond a limit.
    pub fn new(source: impl Into<String>) -> Result<Self, TemplateError> {
        let source = source.into();
        engine::run(&source, None)?;
        Ok(Self { source })
    }

    /// The template of a model file; `Ok(None)` when it has none. With `name`, the one of that name (`tool_use`).
    ///
    /// # Errors
    /// It does not parse, or is beyond a limit.
    pub fn from_gguf(metadata: &Metadata, name: Option<&str>) -> Result<Option<Self>, TemplateError> {
        let key = name.map_or_else(|| KEY.to_owned(), |name| format!("{KEY}.{name}"));
        match metadata.get(&key) {
            Some(GgufValue::String(source)) => Self::new(source.clone()).map(Some),
            _ => Ok(None),
        }
    }

    /// The names of further templates in a model file.
    pub fn names(metadata: &Metadata) -> impl Iterator<Item = &str> {
        let name = |key| str::strip_prefix(str::strip_prefix(key, KEY)?, ".");
        metadata.keys().filter_map(name)
    }

    /// The template for models without one, [`PLAIN_TEMPLATE`].
    #[must_use]
    pub fn plain() -> Self {
        Self { source: PLAIN_TEMPLATE.to_owned() }
    }

    /// The source.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt for a conversation.
    ///
    /// # Errors
    /// [`TemplateError::Raised`] when the template refuses the messages, otherwise what went wrong.
    pub fn render(&self, input: RenderInput<'_>) -> Result<String, TemplateError> {
        engine::run(&self.source, Some(context(input)?))
    }
}

/// The variables of a template.
fn context(input: RenderInput<'_>) -> Result<Value, TemplateError> {
    let mut variables: Vec<(String, Value)> = Vec::new();
    let mut set = |name: &str, value: Value| {
        variables.retain(|(other, _)| other != name);
        variables.push((name.to_owned(), value));
    };
    let none = || Value::from(());
    set("messages", from_json(&messages(input.messages)?));
    set("tools", input.tools.map_or_else(none, from_json));
    set("documents", none());
    set("add_generation_prompt", Value::from(input.add_generation_prompt));
    for (name, text) in [("bos_token", input.bos), ("eos_token", input.eos)] {
        if let Some(text) = text {
            set(name, Value::from(text));
        }
    }
    match input.extra {
        None | Some(Json::Null) => {}
        Some(Json::Object(extra)) => {
            extra.iter().for_each(|(name, value)| set(name, from_json(value)));
        }
        Some(_) => return Err(TemplateError::Messages { what: "the further variables are not an object" }),
    }
    Ok(Value::from_pairs(variables))
}

/// The messages, with a reasoning field under each name that templates read it by.
fn messages(messages: Option<&Json>) -> Result<Json, TemplateError> {
    const NAMES: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
    let Some(Json::Array(messages)) = messages else {
        return Err(TemplateError::Messages { what: "the messages are not a list" });
    };
    let message = |message: &Json| {
        let Json::Object(fields) = message else {
            return Err(TemplateError::Messages { what: "a message is not an object" });
        };
        let reasoning = NAMES.iter().find_map(|name| fields.get(*name).filter(|value| !value.is_null()));
        let Some(reasoning) = reasoning else { return Ok(message.clone()) };
        let mut copy = serde_json::Map::new();
        copy.insert("thinking".to_owned(), reasoning.clone());
        copy.extend(fields.iter().map(|(name, value)| (name.clone(), value.clone())));
        copy.insert("reasoning_content".to_owned(), reasoning.clone());
        Ok(Json::Object(copy))
    };
    messages.iter().map(message).collect::<Result<Vec<_>, _>>().map(Json::Array)
}

/// A JSON value as a template sees it; keys stay in order.
fn from_json(value: &Json) -> Value {
    match value {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::String(text) => Value::from(text.as_str()),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => Value::from(int),
            (None, Some(int)) => Value::from(int),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::Array(items) => items.iter().map(from_json).collect(),
        Json::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(key, value)| (key.as_str(), from_json(value))))
        }
    }
}
