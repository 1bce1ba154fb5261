//! A conversation: who said what, and the text that the model's template makes of it.

use serde::Serialize;
use shoal_text::{ChatTemplate, RenderInput};

use crate::exit::{Failure, Outcome};
use crate::model::Model;
use crate::out;

/// One message, as templates know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Message {
    role: &'static str,
    content: String,
}

/// Messages so far, and how this model wants them written.
#[derive(Debug)]
pub(crate) struct Conversation {
    template: ChatTemplate,
    bos: Option<String>,
    eos: Option<String>,
    system: Option<Message>,
    messages: Vec<Message>,
}

impl Conversation {
    /// An empty conversation with this model. One without a template gets the plain one, and a warning.
    ///
    /// # Errors
    /// The model's template cannot be read.
    pub(crate) fn new(model: &Model, system: Option<&str>) -> Outcome<Self> {
        let template = ChatTemplate::from_gguf(&model.metadata, None);
        let template = template.map_err(|error| Failure::input("use the model for a conversation", error))?;
        let template = template.unwrap_or_else(|| {
            out::note(
                "warning: this model has no chat template; messages are joined by blank lines, \
                 and it was hardly trained for conversations",
            );
            ChatTemplate::plain()
        });
        let text = |id: Option<u32>| id.and_then(|id| model.tokenizer.token_text(id)).map(str::to_owned);
        let system = system.map(|content| Message { role: "system", content: content.to_owned() });
        let (bos, eos) = (text(model.tokenizer.bos()), text(model.tokenizer.eos()));
        Ok(Self { template, bos, eos, system, messages: Vec::new() })
    }

    /// The user says something.
    pub(crate) fn user(&mut self, content: &str) {
        self.messages.push(Message { role: "user", content: content.to_owned() });
    }

    /// The assistant says something.
    pub(crate) fn assistant(&mut self, content: &str) {
        self.messages.push(Message { role: "assistant", content: content.to_owned() });
    }

    /// The last message was not said.
    pub(crate) fn take_back(&mut self) {
        self.messages.pop();
    }

    /// Nothing was said yet.
    pub(crate) fn clear(&mut self) {
        self.messages.clear();
    }

    /// The prompt after which the assistant speaks.
    ///
    /// # Errors
    /// The template refuses these messages.
    pub(crate) fn render(&self) -> Outcome<String> {
        let what = "apply the chat template";
        let all: Vec<&Message> = self.system.iter().chain(&self.messages).collect();
        let messages = serde_json::to_value(all).map_err(|error| Failure::machine(what, error))?;
        let input = RenderInput {
            messages: Some(&messages),
            add_generation_prompt: true,
            bos: self.bos.as_deref(),
            eos: self.eos.as_deref(),
            ..RenderInput::default()
        };
        self.template.render(input).map_err(|error| Failure::input(what, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_without_a_template_gets_messages_joined_by_blank_lines() {
        let model = Model::embedded().unwrap();
        let mut conversation = Conversation::new(&model, Some("Be brief.")).unwrap();
        conversation.user("Hello");
        conversation.assistant("Hi");
        conversation.user("Bye");
        assert_eq!(conversation.render().unwrap(), "Be brief.\n\nHello\n\nHi\n\nBye");
        conversation.take_back();
        conversation.clear();
        assert_eq!(conversation.render().unwrap(), "Be brief.");
    }
}
