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

/// The tokens of a prompt: BOS where the vocabulary asks for one and the text does not begin with it, then the text with
/// the special tokens it names. Nothing is put behind it: the model goes on where the prompt ends.
///
/// # Errors
/// No token at all, or no room left in the context for an answer.
pub(crate) fn prompt_tokens(model: &Model, text: &str, context: u32) -> Outcome<Vec<u32>> {
    let mut tokens = model.tokenizer.encode(text, false, true);
    // A template often writes BOS itself.
    let bos = model.tokenizer.bos().filter(|_| model.tokenizer.add_bos());
    if let Some(bos) = bos.filter(|&bos| tokens.first() != Some(&bos)) {
        tokens.insert(0, bos);
    }
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
