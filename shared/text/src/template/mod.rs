//! Chat templates (being written).
#[derive(Debug)]
pub struct ChatTemplate;
#[derive(Debug)]
pub struct RenderInput;
#[derive(Debug)]
pub struct TemplateError;
pub const PLAIN_TEMPLATE: &str = "";
