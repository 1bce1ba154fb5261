//! `shoal run`: one prompt, one answer.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use clap::Args;
use shoal_core::Bytes;

use super::attach::{Attached, attach, check_context, job, open, ready};
use super::options::{ClusterArgs, ModelArg, PlanOptions, SamplingArgs};
use crate::cli::HomeArgs;
use crate::config::Config;
use crate::exit::{Failure, Outcome};
use crate::model::Model;
use crate::session::{Conversation, RunReport, Wanted, generate, prompt_tokens, seed};
use crate::show::{Show, summary};
use crate::{out, runtime};

const EXAMPLES: &str = "\
Examples:
  shoal run model.gguf --prompt \"Once upon a time\"
  shoal run model.gguf --chat --prompt \"Why is the sky blue?\"
  shoal run model.gguf --local-workers 3 --strategy hybrid --json --prompt-file start.txt
  cat question.txt | shoal run model.gguf --prompt -";

/// Run one prompt over the cluster.
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{}", crate::exit::HELP))]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// The prompt, as it is; `-` reads it from standard input
    #[arg(short, long, value_name = "TEXT", required_unless_present = "prompt_file")]
    pub(crate) prompt: Option<String>,
    /// A file with the prompt
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub(crate) prompt_file: Option<PathBuf>,
    /// Treat the prompt as a message to an assistant: apply the model's chat template
    #[arg(long)]
    pub(crate) chat: bool,
    /// With --chat, a message that tells the assistant how to behave
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,
    /// Print one JSON object instead of the text
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) plan: PlanOptions,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) home: HomeArgs,
}

/// Longest prompt that is read: far above what any context holds, and no whole disk.
const PROMPT_BYTES: u64 = 64 << 20;

pub(crate) fn run(args: &RunArgs, config: &Config, verbose: u8) -> Outcome {
    let mut show = Show::new(verbose > 0, !args.json);
    let prompt = args.prompt_text()?;
    let model = open(&args.model.model, config, &mut show)?;
    let context = check_context(args.plan.context, &model)?;
    let seed = args.sampling.seed.unwrap_or_else(seed);
    let params = args.sampling.params(model.spec.vocab, seed)?;
    let tokens = args.tokens(&model, &prompt, context)?;
    runtime::block_on(async {
        let reserve = args.plan.reserve(config);
        let Attached { local, mut driver } =
            attach(&args.cluster, reserve, config, model.folder(), verbose, &show).await?;
        let options = job(&args.plan, config, &model, &driver, local.as_ref(), tokens.len())?;
        let serving = ready(&mut driver, &model, &options, &mut show).await?;
        let plan = &serving.planned.plan;
        let fetched: Bytes = serving.fetched.values().copied().sum();
        show.remark(&format!("loaded: {fetched} fetched and verified"));
        let wanted = Wanted {
            prompt: tokens,
            params,
            max_tokens: args.sampling.max_tokens,
            stops: &args.sampling.stop,
            ignore_eos: args.sampling.ignore_eos,
        };
        let before = driver.report(plan.nodes()).await?;
        let text = |piece: &str| if args.json { Ok(()) } else { out::text(piece) };
        let generated = generate(&mut driver, &model, wanted, text).await?;
        let after = driver.report(plan.nodes()).await?;
        let names = &serving.planned.names;
        let report = RunReport::new(&generated, plan, &model.spec, seed, names, &before, &after)
            .fetched(&serving.fetched)
            .emulated(driver.emulation(plan.nodes()), &before, &after);
        if let Some(emulation) = &report.emulation {
            show.warn(&emulation.line());
        }
        if args.json {
            out::json(&report)?;
        } else if std::io::stdout().is_terminal() {
            out::line("")?;
            show.warn(&format!("\n{}", summary(&report)));
        }
        driver.close().await;
        drop(local);
        Ok(())
    })
}

impl RunArgs {
    fn prompt_text(&self) -> Outcome<String> {
        let read = |what: &str, source: &mut dyn Read| {
            let mut bytes = Vec::new();
            let result = source.take(PROMPT_BYTES + 1).read_to_end(&mut bytes);
            result.map_err(|error| Failure::input(what, error))?;
            if bytes.len() as u64 > PROMPT_BYTES {
                return Err(Failure::input(what, anyhow::anyhow!("it is over {PROMPT_BYTES} bytes")));
            }
            String::from_utf8(bytes).map_err(|error| Failure::input(what, error.utf8_error()))
        };
        match (&self.prompt, &self.prompt_file) {
            (Some(prompt), _) if prompt == "-" => {
                read("read the prompt from standard input", &mut std::io::stdin().lock())
            }
            (Some(prompt), _) => Ok(prompt.clone()),
            (None, Some(path)) => {
                let what = format!("read the prompt from {}", path.display());
                let mut file = std::fs::File::open(path).map_err(|error| Failure::input(&what, error))?;
                read(&what, &mut file)
            }
            (None, None) => {
                Err(Failure::Usage("failed to find a prompt: give --prompt or --prompt-file".to_owned()))
            }
        }
    }

    fn tokens(&self, model: &Model, prompt: &str, context: u32) -> Outcome<Vec<u32>> {
        if !self.chat {
            return prompt_tokens(model, prompt, context);
        }
        let mut conversation = Conversation::new(model, self.system.as_deref())?;
        conversation.user(prompt);
        prompt_tokens(model, &conversation.render()?, context)
    }
}
