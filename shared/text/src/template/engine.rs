//! Parsing and running: minijinja with its unstable interface, within limits.

use minijinja::machinery::{CodeGenerator, Token, make_string_output, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, State, UndefinedBehavior, Value, machinery};

use super::repr::to_str;
use super::{TemplateError, filters, ops, rewrite};

/// Bytes of a template: the largest of known models are under 100 kB.
const MAX_SOURCE: usize = 1 << 20;
/// Tags in a template. Branches nest in the parser, so their number bounds its depth.
const MAX_TAGS: usize = 1 << 13;
/// Words and signs within one tag: operators nest in the parser too.
const MAX_TOKENS: usize = 1 << 12;
/// Stack for a template at these limits; only what is used is touched.
const STACK_BYTES: usize = 256 << 20;
/// Instructions that one rendering may run: a thousand messages with tools take some hundred thousand.
const MAX_INSTRUCTIONS: u64 = 20_000_000;
/// Depth of macros that call each other.
const MAX_CALLS: usize = 200;

/// Parses `source`, and renders it if there is a `context`, on a thread with enough stack for the limits.
pub(super) fn run(source: &str, context: Option<Value>) -> Result<String, TemplateError> {
    if source.len() > MAX_SOURCE {
        return Err(TemplateError::TooLarge { what: "bytes", limit: MAX_SOURCE });
    }
    let work = || render(source, context);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("template".to_owned()).stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, work).map_err(|source| TemplateError::Thread { source })?;
        thread.join().unwrap_or(Err(TemplateError::Panicked))
    })
}

fn render(source: &str, context: Option<Value>) -> Result<String, TemplateError> {
    let source = plain_source(source);
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(|source| TemplateError::Syntax { source })?;
    check_size(&source, &syntax)?;
    let env = environment();
    let tree = parse(&source, NAME, syntax).map_err(|source| TemplateError::Syntax { source })?;
    let tree = rewrite::template(&tree).map_err(|what| TemplateError::Unsupported { what: what.0 })?;
    let mut generator = CodeGenerator::new(NAME, &source);
    generator.compile_stmt(&tree);
    let (instructions, blocks) = generator.finish();
    let Some(context) = context else { return Ok(String::new()) };
    let mut text = String::new();
    let result = {
        let mut output = make_string_output(&mut text);
        machinery::eval(&env, &instructions, context, &blocks, &mut output, AutoEscape::None).map(|_| ())
    };
    result.map_err(failed)?;
    Ok(text)
}

/// What a template is called in messages.
const NAME: &str = "chat template";

fn environment<'a>() -> Environment<'a> {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_fuel(Some(MAX_INSTRUCTIONS));
    env.set_recursion_limit(MAX_CALLS);
    env.set_debug(false);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_formatter(|output, state: &mut State, value: &Value| {
        let text = match value.as_str() {
            Some(text) => std::borrow::Cow::Borrowed(text),
            None => std::borrow::Cow::Owned(to_str(value)),
        };
        ops::charge(state, text.len())?;
        output.write_str(&text).map_err(Error::from)
    });
    ops::register(&mut env);
    filters::register(&mut env);
    env
}

/// Tells an error of the template's own from others.
fn failed(source: Error) -> TemplateError {
    let mut error: Option<&(dyn std::error::Error + 'static)> = Some(&source);
    while let Some(current) = error {
        let detail = current.downcast_ref::<Error>().and_then(Error::detail);
        if let Some(message) = detail.and_then(|detail| detail.strip_prefix(filters::RAISED)) {
            return TemplateError::Raised { message: message.to_owned() };
        }
        error = current.source();
    }
    TemplateError::Render { source }
}

/// Refuses what would nest too deeply.
fn check_size(source: &str, syntax: &SyntaxConfig) -> Result<(), TemplateError> {
    let (mut tags, mut tokens) = (0, 0);
    for token in tokenize(source, false, syntax.clone()) {
        match token {
            Ok((Token::BlockStart | Token::VariableStart, _)) => {
                tags += 1;
                tokens = 0;
            }
            Ok(_) => tokens += 1,
            // The parser will say what is wrong.
            Err(_) => return Ok(()),
        }
        if tags > MAX_TAGS {
            return Err(TemplateError::TooLarge { what: "tags", limit: MAX_TAGS });
        }
        if tokens > MAX_TOKENS {
            return Err(TemplateError::TooLarge { what: "words in a tag", limit: MAX_TOKENS });
        }
    }
    Ok(())
}

/// The source as Jinja's lexer takes it: every line break is `\n`; `{% generation %}`, which marks what the model
/// wrote, is to the text a scope of its own and nothing else; and the line break after `{% raw %}` stays (minijinja
/// drops one, so there are two).
fn plain_source(source: &str) -> String {
    const TAGS: [(&str, &str); 3] = [("generation", "with"), ("endgeneration", "endwith"), ("raw", "raw")];
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        rest = tag;
        let name = tag.trim_start_matches(['-', '+']).trim_start();
        let lead = &tag[..tag.len() - name.len()];
        for (word, scope) in TAGS {
            let Some(after) = name.strip_prefix(word) else { continue };
            let end = after.trim_start();
            if word == "raw" {
                if let Some(body) = end.strip_prefix("%}").filter(|body| body.starts_with('\n')) {
                    out.push_str(&tag[..tag.len() - body.len()]);
                    out.push('\n');
                    rest = body;
                }
            } else if end.trim_start_matches(['-', '+']).starts_with("%}") {
                out.push_str(lead);
                out.push_str(scope);
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}
