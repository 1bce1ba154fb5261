//! From text to prompt tokens.

use std::time::{SystemTime, UNIX_EPOCH};

use shoal_cluster::sampling::SamplingParams;

use crate::commands::options::SamplingArgs;
use crate::exit::{Failure, Outcome};
use crate::model::Model;

impl SamplingArgs {
    /// The parameters for the cluster, checked; `seed` serves where none was given.
    ///
    /// # Errors
    /// A parameter out of its range.
    pub(crate) fn params(&self, vocab: u32, seed: u64) -> Outcome<SamplingParams> {
        let params = SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            seed: self.seed.unwrap_or(seed),
            ..SamplingParams::default()
        };
        params
            .check(vocab)
            .map_err(|error| Failure::Usage(format!("failed to use the sampling options: {error}")))?;
        Ok(params)
    }
}

/// A seed nobody chose. The time's nanoseconds will do: nothing secret hangs on it.
pub(crate) fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64
}

/// The tokens of a prompt. `raw` text gets what the vocabulary puts before a text (BOS) and holds no special tokens;
/// the text of a rendered template holds its own.
///
/// # Errors
/// No token at all, or no room left in the context for an answer.
pub(crate) fn prompt_tokens(model: &Model, text: &str, raw: bool, context: u32) -> Outcome<Vec<u32>> {
    let tokens = if raw {
        model.tokenizer.encode(text, true, false)
    } else {
        let mut tokens = model.tokenizer.encode(text, true, true);
        // A template that writes BOS itself must not get a second one.
        let bos = model.tokenizer.bos();
        if model.tokenizer.add_bos() && tokens.len() > 1 && Some(tokens[0]) == bos && Some(tokens[1]) == bos {
            tokens.remove(0);
        }
        tokens
    };
    if tokens.is_empty() {
        let error = anyhow::anyhow!("it is empty, and this model starts a text with no token of its own");
        return Err(Failure::input("use the prompt", error));
    }
    if tokens.len() >= context as usize {
        let error = anyhow::anyhow!(
            "it has {} tokens, and the context of {context} must also hold the answer{}",
            tokens.len(),
            if context < model.spec.context {
                format!(" (this model allows --context {})", model.spec.context)
            } else {
                String::new()
            }
        );
        return Err(Failure::input("use the prompt", error));
    }
    Ok(tokens)
}
