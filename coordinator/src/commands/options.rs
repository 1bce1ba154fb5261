//! Options that several commands share.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use shoal_cluster::cost::Objective;
use shoal_cluster::planner::{Options, Pin};
use shoal_core::frame::WireType;
use shoal_core::ids::NodeId;
use shoal_core::plan::{Span, Strategy, Wire};
use shoal_core::units::Bytes;

use super::emulate::EmulateArgs;
use crate::config::Config;
use crate::exit::{Failure, Outcome};

/// How the next token is chosen, and when to stop.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Randomness: 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.8, allow_negative_numbers = true)]
    pub(crate) temperature: f32,
    /// Choose among the K likeliest tokens only; 0 for all
    #[arg(long, value_name = "K", default_value_t = 40)]
    pub(crate) top_k: u32,
    /// Choose among the likeliest tokens whose probabilities add up to P; 1 for all
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    pub(crate) top_p: f32,
    /// Drop tokens less likely than P times the likeliest; 0 drops none
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    pub(crate) min_p: f32,
    /// Divide the logits of tokens seen lately; 1 changes nothing
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    pub(crate) repeat_penalty: f32,
    /// How many of the last tokens the penalties look at; 0 for none, -1 for all
    #[arg(long, value_name = "N", default_value_t = 64, allow_negative_numbers = true)]
    pub(crate) repeat_last_n: i32,
    /// Lower a token's logit by this for each time it was seen lately
    #[arg(long, value_name = "F", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) frequency_penalty: f32,
    /// Lower a token's logit by this if it was seen lately
    #[arg(long, value_name = "F", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) presence_penalty: f32,
    /// The same seed gives the same text; by default a new one each time
    #[arg(long, value_name = "SEED")]
    pub(crate) seed: Option<u64>,
    /// Tokens to generate at most; by default until the model ends or the context is full
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: Option<u32>,
    /// Stop before this text is printed; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Go on when the model says it has finished
    #[arg(long)]
    pub(crate) ignore_eos: bool,
}

/// The cluster a command works with: workers that joined, or ones it starts itself.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// Start N workers on this machine for this command alone, instead of using those that joined
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) local_workers: Option<u32>,
    /// Kernel threads of each local worker
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
    #[command(flatten)]
    pub(crate) emulate: EmulateArgs,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
}

impl ClusterArgs {
    /// Whether anything is said of a live cluster, other than by the environment.
    pub(crate) fn is_given(&self) -> bool {
        let emulate = &self.emulate;
        let played = !emulate.emulate.is_empty() || emulate.emulate_cluster.is_some();
        self.local_workers.is_some() || self.threads.is_some() || self.wait.wait.is_some() || played
    }
}

/// How long workers are waited for.
#[derive(Debug, Clone, Copy, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct WaitArgs {
    /// Seconds to wait for workers; by default until no new one has appeared for a moment
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) wait: Option<Duration>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("not a number of seconds: {text:?}"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// How workers are found.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ReachArgs {
    /// Where workers reach this coordinator; by default any address and port 7745, or a free one if that is taken
    #[arg(long, value_name = "IP:PORT", env = "SHOAL_LISTEN")]
    pub(crate) listen: Option<SocketAddr>,
    /// A worker to dial where multicast does not work; may be given several times
    #[arg(long, value_name = "IP:PORT", env = "SHOAL_ADDRESS", value_delimiter = ',')]
    pub(crate) address: Vec<SocketAddr>,
    /// Neither advertise nor look for workers over mDNS
    #[arg(long, env = "SHOAL_NO_MDNS", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) no_mdns: bool,
}

/// How the model is shared among the workers.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Plan")]
pub(crate) struct PlanOptions {
    /// How to share the model; by default the strategy with the best prediction
    #[arg(long, value_enum, value_name = "STRATEGY")]
    pub(crate) strategy: Option<StrategyArg>,
    /// Number format of partial sums between workers (hidden states between stages are f32)
    #[arg(long, value_enum, value_name = "FORMAT", env = "SHOAL_WIRE")]
    pub(crate) wire: Option<WireArg>,
    /// A worker to leave out, by node id or its first digits, or by name; may be given several times
    #[arg(long, value_name = "NODE")]
    pub(crate) exclude: Vec<String>,
    /// Positions of the KV cache: prompt and answer must fit; by default 4096, or what the model was trained for if less
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) context: Option<u32>,
    /// What to make best; by default the time of one stream, or the rate of several
    #[arg(long, value_enum, value_name = "OBJECTIVE")]
    pub(crate) objective: Option<ObjectiveArg>,
    /// What a worker must hold: NODE=layers:A-B (its stage runs these layers and no other) or NODE=heads:A-B (these query
    /// heads of each of its layers). Counted from 0, both ends included, as plans are shown; may be given several times
    #[arg(long, value_name = "NODE=WHAT", value_parser = pin)]
    pub(crate) pin: Vec<PinArg>,
    /// Measure workers and links anew, whatever is known of them from before
    #[arg(long)]
    pub(crate) refresh: bool,
    /// Memory every worker keeps free of what it offers, such as 200MB
    #[arg(long, value_name = "BYTES", env = "SHOAL_MEMORY_RESERVE")]
    pub(crate) memory_reserve: Option<Bytes>,
}

impl PlanOptions {
    /// Number formats on the wire: the argument's, else the file's, else the default.
    pub(crate) fn wire(&self, config: &Config) -> Wire {
        let sum = self.wire.map(WireType::from).or(config.file.wire);
        sum.map_or_else(Wire::default, |sum| Wire { sum, ..Wire::default() })
    }

    /// What the planner is told for a cluster on paper, whose nodes have these names.
    ///
    /// # Errors
    /// As [`PlanOptions::excluded`] and [`PlanOptions::pins`].
    pub(crate) fn on_paper(&self, config: &Config, names: &BTreeMap<NodeId, String>) -> Outcome<Options> {
        Ok(Options {
            strategy: self.strategy.map(Into::into),
            wire: self.wire(config),
            exclude: self.excluded(names)?,
            pins: self.pins(names)?,
            reserve: self.reserve(config),
            ..Options::default()
        })
    }

    /// The nodes to leave out.
    ///
    /// # Errors
    /// An `--exclude` names none of these nodes, or several.
    pub(crate) fn excluded(&self, names: &BTreeMap<NodeId, String>) -> Outcome<Vec<NodeId>> {
        self.exclude.iter().map(|text| find("--exclude", text, names)).collect()
    }

    /// What nodes must hold.
    ///
    /// # Errors
    /// A `--pin` names none of these nodes, or several.
    pub(crate) fn pins(&self, names: &BTreeMap<NodeId, String>) -> Outcome<Vec<Pin>> {
        self.pin.iter().map(|pin| Ok(pin.of(find("--pin", &pin.node, names)?))).collect()
    }

    /// What every worker keeps free.
    pub(crate) fn reserve(&self, config: &Config) -> Bytes {
        self.memory_reserve.or(config.file.memory_reserve).unwrap_or_default()
    }
}

/// The five strategies, as the command line names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StrategyArg {
    /// One worker has all
    Single,
    /// Equal numbers of layers
    StaticLayer,
    /// Layers by measured speed and memory
    AdaptiveLayer,
    /// Heads and columns of every layer over all workers
    Head,
    /// Stages of groups, whichever mixture is best
    Hybrid,
}

impl From<StrategyArg> for Strategy {
    fn from(arg: StrategyArg) -> Self {
        match arg {
            StrategyArg::Single => Self::Single,
            StrategyArg::StaticLayer => Self::StaticLayer,
            StrategyArg::AdaptiveLayer => Self::AdaptiveLayer,
            StrategyArg::Head => Self::Head,
            StrategyArg::Hybrid => Self::Hybrid,
        }
    }
}

/// What is made best, as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ObjectiveArg {
    /// Time between two tokens of one stream
    Latency,
    /// Tokens per second over all streams
    Throughput,
    /// Joules per token over all streams
    Energy,
}

impl From<ObjectiveArg> for Objective {
    fn from(arg: ObjectiveArg) -> Self {
        match arg {
            ObjectiveArg::Latency => Self::Latency,
            ObjectiveArg::Throughput => Self::Throughput,
            ObjectiveArg::Energy => Self::Energy,
        }
    }
}

/// What a worker must hold, as the command line says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PinArg {
    /// Node id, its first digits, or name.
    pub(crate) node: String,
    what: PinWhat,
    span: Span,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PinWhat {
    Layers,
    Heads,
}

impl PinArg {
    /// The pin, for this node.
    pub(crate) const fn of(&self, node: NodeId) -> Pin {
        let span = self.span;
        match self.what {
            PinWhat::Layers => Pin::Layers { node, span },
            PinWhat::Heads => Pin::QHeads { node, span },
        }
    }
}

fn pin(text: &str) -> Result<PinArg, String> {
    let wrong = || "expected NODE=layers:A-B or NODE=heads:A-B, such as kitchen-pi=layers:0-11".to_owned();
    let (node, rest) = text.rsplit_once('=').ok_or_else(wrong)?;
    let (what, range) = rest.split_once(':').ok_or_else(wrong)?;
    let what = match what {
        "layers" => PinWhat::Layers,
        "heads" => PinWhat::Heads,
        _ => return Err(wrong()),
    };
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number < u32::MAX).ok_or_else(wrong);
    let (first, last) = (number(first)?, number(last)?);
    if node.is_empty() {
        return Err(wrong());
    }
    if last < first {
        return Err(format!("the range {range} ends before it begins"));
    }
    Ok(PinArg { node: node.to_owned(), what, span: Span::new(first, last + 1) })
}

/// Number formats on the wire, as the command line names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WireArg {
    /// As computed: no loss, most bytes
    F32,
    /// Half precision
    F16,
    /// Eight bits
    Q8,
}

impl From<WireArg> for WireType {
    fn from(arg: WireArg) -> Self {
        match arg {
            WireArg::F32 => Self::F32,
            WireArg::F16 => Self::F16,
            WireArg::Q8 => Self::Q8,
        }
    }
}

/// A model file.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArg {
    /// The model: a GGUF file
    #[arg(value_name = "MODEL")]
    pub(crate) model: PathBuf,
}

/// The one node that `text` names.
pub(super) fn find(option: &str, text: &str, names: &BTreeMap<NodeId, String>) -> Outcome<NodeId> {
    // A whole name goes before the first digits of an id.
    let exact = |(_, name): &(&NodeId, &String)| *name == text;
    let begins = |(node, name): &(&NodeId, &String)| names_node(text, **node, name);
    let mut found: Vec<_> = names.iter().filter(exact).collect();
    if found.is_empty() {
        found = names.iter().filter(begins).collect();
    }
    match found[..] {
        [(node, _)] => Ok(*node),
        [] => {
            let known = names.values().take(NAMES_SHOWN).cloned().collect::<Vec<_>>().join(", ");
            Err(Failure::Usage(format!("{option} {text} names no worker that is here; there are {known}")))
        }
        _ => Err(Failure::Usage(format!("{option} {text} names several workers"))),
    }
}

/// Names listed in a message about one that nobody has.
const NAMES_SHOWN: usize = 20;

/// Whether `text` names this node: its id, the first digits of it, or its name.
pub(crate) fn names_node(text: &str, node: NodeId, name: &str) -> bool {
    text == name || (text.len() >= 4 && node.to_string().starts_with(&text.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_count_as_people_do() {
        let node = NodeId([7; 16]);
        let of = |text| pin(text).map(|arg| (arg.node.clone(), arg.of(node)));
        let span = Span::new(0, 12);
        assert_eq!(of("kitchen=layers:0-11"), Ok(("kitchen".to_owned(), Pin::Layers { node, span })));
        let span = Span::new(5, 6);
        assert_eq!(of("a=b=heads:5"), Ok(("a=b".to_owned(), Pin::QHeads { node, span })));
        for bad in [
            "kitchen",
            "kitchen=0-11",
            "=layers:0-1",
            "a=rows:0-1",
            "a=layers:3-1",
            "a=layers:-1-2",
            "a=layers:",
        ] {
            assert!(pin(bad).is_err(), "{bad}");
        }
    }
}
