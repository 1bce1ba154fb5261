//! Options that several commands share.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use shoal_core::frame::WireType;
use shoal_core::ids::NodeId;
use shoal_core::plan::{Strategy, Wire};
use shoal_core::units::Bytes;

use crate::config::Config;

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
    pub(crate) wait: WaitArgs,
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
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
#[derive(Debug, Clone, Args)]
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

/// Whether `text` names this node: its id, the first digits of it, or its name.
pub(crate) fn names_node(text: &str, node: NodeId, name: &str) -> bool {
    text == name || (text.len() >= 4 && node.to_string().starts_with(&text.to_ascii_lowercase()))
}
