//! Running one request and showing its text.

use std::time::{Duration, Instant};

use shoal_cluster::coordinator::{Action, Event, FinishReason, Request};
use shoal_cluster::sampling::SamplingParams;
use shoal_core::SeqId;

use super::stops::Stops;
use crate::driver::{Driver, Update};
use crate::exit::{Failure, Outcome};
use crate::model::Model;

/// What is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Wanted<'a> {
    pub(crate) prompt: Vec<u32>,
    pub(crate) params: SamplingParams,
    /// Most tokens; the context bounds it as well.
    pub(crate) max_tokens: Option<u32>,
    pub(crate) stops: &'a [String],
    /// Go on after end-of-text.
    pub(crate) ignore_eos: bool,
}

/// What came.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Generated {
    /// Without the prompt and from a stop string on.
    pub(crate) text: String,
    /// Every generated token, an end-of-text token and those of a stop string included.
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt_tokens: usize,
    /// `stop` or `length`.
    pub(crate) finish_reason: &'static str,
    /// From the request to the first token.
    pub(crate) first: Duration,
    /// Between one token and the next.
    pub(crate) gaps: Vec<Duration>,
}

/// Runs the request on a cluster that is ready; `show` gets the text as it comes.
///
/// # Errors
/// The cluster was lost, or `show` failed (the request is then cancelled).
pub(crate) async fn generate(
    driver: &mut Driver,
    model: &Model,
    wanted: Wanted<'_>,
    mut show: impl FnMut(&str) -> Outcome,
) -> Outcome<Generated> {
    let seq = driver.next_seq();
    let prompt_tokens = wanted.prompt.len();
    let stop_tokens = if wanted.ignore_eos { Vec::new() } else { model.tokenizer.eog_ids().collect() };
    let mut text = Shown {
        stops: Stops::new(wanted.stops),
        decoder: model.tokenizer.stream(false),
        text: String::new(),
    };
    let started = Instant::now();
    driver.handle(Event::Submit(Box::new(Request {
        seq,
        tokens: wanted.prompt,
        max_new: wanted.max_tokens.unwrap_or(u32::MAX),
        params: wanted.params,
        stop_tokens,
    })));

    let mut tokens = Vec::new();
    let mut times = Vec::new();
    let finish_reason = loop {
        let Update::Machine(action) = driver.next().await? else { continue };
        match ours(action, seq)? {
            Some(Progress::Token(token)) => {
                tokens.push(token);
                times.push(started.elapsed());
                let shown = text.push(token, &mut show);
                if shown.is_err() || text.stops.stopped() {
                    driver.handle(Event::Cancel(seq));
                }
                shown?;
                if text.stops.stopped() {
                    break "stop";
                }
            }
            Some(Progress::Finished(reason)) => {
                text.finish(&mut show)?;
                break match reason {
                    FinishReason::Stop => "stop",
                    FinishReason::Length | FinishReason::Cancelled => "length",
                };
            }
            None => {}
        }
    };
    Ok(Generated {
        text: text.text,
        tokens,
        prompt_tokens,
        finish_reason,
        first: times.first().copied().unwrap_or_default(),
        gaps: times.windows(2).map(|pair| pair[1] - pair[0]).collect(),
    })
}

/// Text on its way from tokens to the screen.
struct Shown {
    stops: Stops,
    decoder: shoal_text::StreamDecoder,
    text: String,
}

impl Shown {
    fn push(&mut self, token: u32, show: &mut impl FnMut(&str) -> Outcome) -> Outcome {
        let piece = self.decoder.push(token);
        let piece = self.stops.push(&piece);
        self.put(&piece, show)
    }

    fn finish(&mut self, show: &mut impl FnMut(&str) -> Outcome) -> Outcome {
        let rest = self.decoder.finish();
        let mut rest = self.stops.push(&rest);
        rest.push_str(&self.stops.finish());
        self.put(&rest, show)
    }

    fn put(&mut self, piece: &str, show: &mut impl FnMut(&str) -> Outcome) -> Outcome {
        if piece.is_empty() {
            return Ok(());
        }
        self.text.push_str(piece);
        show(piece)
    }
}

enum Progress {
    Token(u32),
    Finished(FinishReason),
}

/// What an action means for this request.
fn ours(action: Action, own: SeqId) -> Outcome<Option<Progress>> {
    match action {
        Action::Emit { seq, token, .. } if seq == own => Ok(Some(Progress::Token(token))),
        Action::Finished { seq, reason } if seq == own => Ok(Some(Progress::Finished(reason))),
        Action::Ended(failed) => Err(Failure::Lost(format!("failed to finish the text: {failed}"))),
        Action::Refused { seq, reason } if seq == Some(own) => {
            Err(Failure::input("run the prompt", anyhow::anyhow!(reason)))
        }
        // The job's own end follows and says more, unless the job goes on.
        Action::Aborted { seq, reason } if seq == own => {
            tracing::debug!("request aborted: {reason}");
            Ok(None)
        }
        _ => Ok(None),
    }
}
