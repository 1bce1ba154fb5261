//! What every trial is measured with: how many tokens, prompts and streams.

use shoal_cluster::cost::{Objective, Workload};
use shoal_core::ModelSpec;
use shoal_core::limits::{PAGE_POSITIONS, SEQUENCES};

use crate::exit::{Failure, Outcome};

/// Prompt of a sequence of which only the decoding counts: one token, so that every step of it is a decode step.
pub(super) const DECODE_PROMPT: u32 = 1;

/// Prompt lengths where none are asked for; those that the context has no room for are left out.
const PREFILL: [u32; 3] = [32, 128, 512];

/// The work of a benchmark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Work {
    /// Tokens decoded by each stream.
    pub(crate) decode: u32,
    /// Prompt lengths, rising.
    pub(crate) prefill: Vec<u32>,
    /// Numbers of streams, rising.
    pub(crate) streams: Vec<u32>,
    pub(crate) rounds: u32,
    /// Positions of the KV cache.
    pub(crate) context: u32,
    /// Prompts are drawn from it.
    pub(crate) seed: u64,
}

/// What the command line says of the work; lists may be in any order, and a prompt of no tokens means none.
#[derive(Debug, Clone)]
pub(crate) struct Wanted<'a> {
    pub(crate) decode: u32,
    pub(crate) prefill: Option<&'a [u32]>,
    pub(crate) streams: &'a [u32],
    pub(crate) rounds: u32,
    pub(crate) context: Option<u32>,
    pub(crate) seed: u64,
}

impl Work {
    /// The work for this model.
    ///
    /// # Errors
    /// More positions than the context or the model has, or more streams than a cluster has.
    pub(crate) fn new(wanted: &Wanted<'_>, spec: &ModelSpec) -> Outcome<Self> {
        let most = wanted.context.unwrap_or(spec.context).min(spec.context);
        let asked = wanted.prefill.is_some();
        let mut prefill = wanted.prefill.unwrap_or(&PREFILL).to_vec();
        prefill.retain(|&tokens| tokens > 0 && (asked || tokens < most));
        let mut streams = wanted.streams.to_vec();
        streams.retain(|&streams| streams > 0);
        for list in [&mut prefill, &mut streams] {
            list.sort_unstable();
            list.dedup();
        }
        if let Some(&streams) = streams.last().filter(|&&streams| streams as usize > SEQUENCES) {
            return Err(Failure::Usage(format!(
                "--streams {streams} is more than the {SEQUENCES} a cluster has"
            )));
        }
        let decoding = u64::from(DECODE_PROMPT) + u64::from(wanted.decode) + 1;
        let prompting = prefill.last().map_or(0, |&tokens| u64::from(tokens) + 1);
        let need = decoding.max(prompting);
        if need > u64::from(most) {
            return Err(Failure::Usage(format!(
                "--decode {} and --prefill {} need {need} positions, but the context has {most}",
                wanted.decode,
                prefill.last().copied().unwrap_or_default()
            )));
        }
        let pages = (need as u32).next_multiple_of(PAGE_POSITIONS).min(most);
        let context = wanted.context.map_or(pages, |_| most);
        let Wanted { decode, rounds, seed, .. } = *wanted;
        Ok(Self { decode, prefill, streams, rounds, context, seed })
    }

    /// Most streams at once.
    pub(crate) fn most_streams(&self) -> u32 {
        self.streams.last().copied().unwrap_or(1)
    }

    /// What a plan for this objective is made for; `all`: it serves all figures, not its own alone.
    pub(super) fn planned_for(&self, objective: Objective, all: bool) -> Workload {
        let streams = if objective == Objective::Latency && !all { 1 } else { self.most_streams() };
        Workload { objective: Some(objective), ..self.decoding(streams) }
    }

    /// What decoding so many streams is priced as.
    pub(super) fn decoding(&self, streams: u32) -> Workload {
        Workload {
            context: self.context,
            streams,
            prompt_len: DECODE_PROMPT,
            decode_len: self.decode,
            objective: None,
        }
    }

    /// Random tokens, the same for the same seed, sequence and vocabulary.
    pub(super) fn prompt(&self, sequence: u32, tokens: u32, vocab: u32) -> Vec<u32> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes()).update(&sequence.to_le_bytes());
        let mut bytes = vec![0; tokens as usize * 4];
        hasher.finalize_xof().fill(&mut bytes);
        let number = |four: &[u8]| four.iter().rev().fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte));
        bytes.chunks_exact(4).map(|four| number(four) % vocab.max(1)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;

    fn wanted(prefill: Option<&'static [u32]>) -> Wanted<'static> {
        Wanted { decode: 16, prefill, streams: &[4, 1, 4], rounds: 1, context: None, seed: 7 }
    }

    #[test]
    fn lists_rise_and_the_context_holds_what_is_needed() {
        let spec = Model::embedded().unwrap().spec;
        let work = Work::new(&wanted(Some(&[40, 0, 8])), &spec).unwrap();
        assert_eq!((work.prefill.as_slice(), work.streams.as_slice()), (&[8, 40][..], &[1, 4][..]));
        assert_eq!(work.context, 64, "41 positions in whole pages");
        let work = Work::new(&wanted(Some(&[0])), &spec).unwrap();
        assert!(work.prefill.is_empty());
        let default = Work::new(&wanted(None), &spec).unwrap();
        assert!(default.prefill.iter().all(|&tokens| tokens < spec.context));
        let error = Work::new(&wanted(Some(&[1_000_000])), &spec).unwrap_err();
        assert!(error.to_string().contains("1000001 positions"), "{error}");
        let many = Wanted { streams: &[300], ..wanted(None) };
        assert!(Work::new(&many, &spec).unwrap_err().to_string().contains("256"));
    }

    #[test]
    fn prompts_are_drawn_from_the_seed() {
        let spec = Model::embedded().unwrap().spec;
        let work = Work::new(&wanted(None), &spec).unwrap();
        let prompt = work.prompt(1, 100, 50);
        assert_eq!(prompt.len(), 100);
        assert!(prompt.iter().all(|&token| token < 50));
        assert_eq!(prompt, work.prompt(1, 100, 50));
        assert_ne!(prompt, work.prompt(2, 100, 50));
        assert_ne!(prompt, Work { seed: 8, ..work }.prompt(1, 100, 50));
    }
}
