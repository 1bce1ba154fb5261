//! Templates written for this project against what Hugging Face's renderer makes of them, and hostile ones.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::{Value, json};
use shoal_engine::gguf::{Metadata, Value as GgufValue};
use shoal_text::{ChatTemplate, RenderInput, TemplateError};

fn golden() -> Value {
    serde_json::from_str(include_str!("data/templates.json")).unwrap()
}

fn render(source: &str, input: RenderInput<'_>) -> Result<String, TemplateError> {
    ChatTemplate::new(source)?.render(input)
}

#[test]
fn each_feature_of_the_dialect() {
    let golden = golden();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 600);
    let input = RenderInput {
        messages: Some(&golden["messages"]),
        add_generation_prompt: true,
        bos: Some("<s>"),
        eos: Some("</s>"),
        extra: Some(&golden["variables"]),
        ..RenderInput::default()
    };
    let mut failures = Vec::new();
    for case in cases {
        let text = render(case[0].as_str().unwrap(), input);
        if text.as_deref().ok() != case[1].as_str() {
            failures.push(format!("{}: {text:?}, expected {}", case[0], case[1]));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn whole_conversations() {
    let golden = golden();
    let template = ChatTemplate::new(golden["chat_template"].as_str().unwrap()).unwrap();
    for chat in golden["chats"].as_array().unwrap() {
        let input = RenderInput {
            messages: Some(&chat["messages"]),
            tools: Some(&chat["tools"]).filter(|tools| !tools.is_null()),
            add_generation_prompt: chat["add_generation_prompt"].as_bool().unwrap(),
            bos: Some("<s>"),
            eos: Some("</s>"),
            extra: Some(&chat["extra"]),
        };
        assert_eq!(template.render(input).ok().as_deref(), chat["text"].as_str());
    }
}

#[test]
fn refusals_are_told_apart() {
    let messages = json!([{"role": "robot", "content": ""}]);
    let input = RenderInput { messages: Some(&messages), ..RenderInput::default() };
    let error = render("{{ raise_exception('no ' ~ messages[0].role) }}", input).unwrap_err();
    assert!(matches!(&error, TemplateError::Raised { message } if message == "no robot"), "{error}");
    assert!(matches!(render("{% if %}", input), Err(TemplateError::Syntax { .. })));
    assert!(matches!(render("{% include 'x' %}", input), Err(TemplateError::Unsupported { .. })));
    assert!(matches!(render("x", RenderInput::default()), Err(TemplateError::Messages { .. })));
    let messages = json!([1]);
    let input = RenderInput { messages: Some(&messages), ..RenderInput::default() };
    assert!(matches!(render("x", input), Err(TemplateError::Messages { .. })));
}

#[test]
fn templates_of_a_model_file() {
    let mut metadata = Metadata::new();
    assert!(ChatTemplate::from_gguf(&metadata, None).unwrap().is_none());
    metadata.set("tokenizer.chat_template", GgufValue::String("a".to_owned()));
    metadata.set("tokenizer.chat_template.tool_use", GgufValue::String("b".to_owned()));
    assert_eq!(ChatTemplate::names(&metadata).collect::<Vec<_>>(), ["tool_use"]);
    let source = |name| ChatTemplate::from_gguf(&metadata, name).unwrap().map(|t| t.source().to_owned());
    assert_eq!(source(None).as_deref(), Some("a"));
    assert_eq!(source(Some("tool_use")).as_deref(), Some("b"));
    assert_eq!(source(Some("rag")), None);
}

#[test]
fn plain_template_joins_contents() {
    let messages = json!([
        {"role": "system", "content": "Be kind.\n"},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]},
        {"role": "assistant", "content": null},
    ]);
    let input =
        RenderInput { messages: Some(&messages), add_generation_prompt: true, ..RenderInput::default() };
    assert_eq!(ChatTemplate::plain().render(input).unwrap(), "Be kind.\n\n\nHi!\n\n");
}

#[test]
fn hostile_templates_end_with_an_error() {
    let doubling = |op: &str| {
        format!(
            "{{% set n = namespace(x='aaaaaaaa') %}}{{% for i in range(90) %}}{{% set n.x = n.x {op} n.x %}}{{% endfor %}}"
        )
    };
    let nested = |text: &str, times: usize, end: &str| {
        format!("{{{{ {}1{} }}}}", text.repeat(times), end.repeat(times))
    };
    let loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}";
    let ends = "{% endfor %}".repeat(3);
    for source in [
        doubling("~"),
        doubling("+"),
        doubling("*").replace("* n.x", "* 2"),
        "{{ 'a' * 10000000000 }}".to_owned(),
        "{{ [1] * 10000000000 }}".to_owned(),
        "{{ ('a' * 100000).replace('a', 'b' * 100000) }}".to_owned(),
        "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}".to_owned(),
        "{{ '%1000000000d' % 1 }}".to_owned(),
        "{{ '{:>1000000000}'.format(1) }}".to_owned(),
        "{{ [1] | batch(10000000000, 0) | list }}".to_owned(),
        "{{ 'a\nb' | indent(10000000000) }}".to_owned(),
        format!("{loops}{ends}"),
        format!(
            "{{% set x %}}{{% for i in range(99999) %}}{}{{% endfor %}}{{% endset %}}",
            "y".repeat(100_000)
        ),
        "{% set x = 'é' * 9999999 %}{% for i in range(9999) %}{{ x[9999998] }}{% endfor %}".to_owned(),
        "{% macro r() %}{{ r() }}{% endmacro %}{{ r() }}".to_owned(),
        nested("1 + ", 100_000, ""),
        nested("(", 3_000, ")"),
        nested("[", 2_000, "]"),
        "{% if a %}".repeat(3_000),
        format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(70_000)),
        "x".repeat(2 << 20),
    ] {
        let messages = json!([]);
        let result = render(&source, RenderInput { messages: Some(&messages), ..RenderInput::default() });
        assert!(result.is_err(), "{}", &source[..source.len().min(100)]);
        assert!(!matches!(result, Err(TemplateError::Panicked)), "{}", &source[..source.len().min(100)]);
    }
}
