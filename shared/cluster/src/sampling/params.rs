//! Sampling parameters as a user gives them.

use shoal_core::limits;

/// How the next token is drawn. Defaults are those of llama.cpp.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 takes the most likely token.
    pub temperature: f32,
    /// Keep this many candidates; 0 keeps all.
    pub top_k: u32,
    /// Keep the fewest candidates whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keep candidates at least this probable relative to the best one; 0 keeps all.
    pub min_p: f32,
    /// Divides positive logits of seen tokens, multiplies negative ones; 1 changes nothing.
    pub repeat_penalty: f32,
    /// Tokens back the penalties look; 0 switches them off, −1 looks at all.
    pub repeat_last_n: i32,
    /// Taken off a seen token's logit each time it was seen.
    pub frequency_penalty: f32,
    /// Taken off a seen token's logit once.
    pub presence_penalty: f32,
    /// Added to the logits of tokens; −∞ forbids one.
    pub logit_bias: Vec<(u32, f32)>,
    pub seed: u64,
    /// Which of several answers to one prompt this is: each draws its own numbers.
    pub choice: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            choice: 0,
        }
    }
}

/// Most biases of one request: they travel with every step; the scheduler keeps the step's message
/// within its limit.
pub const BIASES: usize = 1024;

/// Most penalised tokens of one request: the same reason. A window of −1 looks no further back.
pub const PENALTY_WINDOW: usize = 4096;

/// A parameter out of its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ParamsError {
    #[error("{name} is {value}; it must be {want}")]
    Range { name: &'static str, value: f64, want: &'static str },
    #[error("logit_bias names {0} tokens; the limit is {BIASES}")]
    Biases(usize),
    #[error("logit_bias names token {token}, but the vocabulary has {vocab}")]
    Token { token: u32, vocab: u32 },
}

impl SamplingParams {
    /// The most likely token each time.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks each parameter's range against a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// The first that is out of it, with what it must be.
    pub fn check(&self, vocab: u32) -> Result<(), ParamsError> {
        let within = |name, value: f32, least: f32, most: f32, want| {
            if value.is_finite() && (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(ParamsError::Range { name, value: value.into(), want })
            }
        };
        within("temperature", self.temperature, 0.0, 100.0, "from 0 to 100")?;
        within("top_p", self.top_p, 0.0, 1.0, "from 0 to 1")?;
        within("min_p", self.min_p, 0.0, 1.0, "from 0 to 1")?;
        let positive = "positive and at most 100";
        within("repeat_penalty", self.repeat_penalty, f32::MIN_POSITIVE, 100.0, positive)?;
        within("frequency_penalty", self.frequency_penalty, -100.0, 100.0, "from -100 to 100")?;
        within("presence_penalty", self.presence_penalty, -100.0, 100.0, "from -100 to 100")?;
        if self.repeat_last_n < -1 {
            let (name, value) = ("repeat_last_n", f64::from(self.repeat_last_n));
            return Err(ParamsError::Range { name, value, want: "-1 (all), 0 (off) or a number of tokens" });
        }
        if self.logit_bias.len() > BIASES {
            return Err(ParamsError::Biases(self.logit_bias.len()));
        }
        for &(token, bias) in &self.logit_bias {
            if token >= vocab {
                return Err(ParamsError::Token { token, vocab });
            }
            if bias.is_nan() || bias == f32::INFINITY {
                let want = "a number, or minus infinity to forbid the token";
                return Err(ParamsError::Range { name: "logit_bias", value: bias.into(), want });
            }
        }
        Ok(())
    }

    /// Whether the most likely token is taken without a draw.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// Candidates that the top-k filter keeps, when it is on and within what a head step may ask.
    pub(super) fn first_k(&self) -> u32 {
        if self.is_greedy() {
            1
        } else if self.top_k == 0 {
            UNTRUNCATED_FIRST
        } else {
            self.top_k.min(limits::HEAD_CANDIDATES)
        }
    }
}

/// Candidates asked for first when top-k is off: top-p and min-p seldom keep more.
const UNTRUNCATED_FIRST: u32 = 128;
