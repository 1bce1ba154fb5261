//! `shoal chat`: a conversation on the terminal.

use std::io::{BufRead, IsTerminal};
use std::time::Duration;

use clap::Args;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::attach::{Attached, attach, check_context, job, open, ready};
use super::options::{ClusterArgs, ModelArg, PlanOptions, SamplingArgs};
use crate::cli::HomeArgs;
use crate::config::Config;
use crate::driver::{Driver, Update};
use crate::exit::{Failure, Outcome};
use crate::model::Model;
use crate::session::{Conversation, Wanted, generate, prompt_tokens, seed};
use crate::show::Show;
use crate::{out, runtime};

const EXAMPLES: &str = "\
Examples:
  shoal chat model.gguf
  shoal chat model.gguf --system \"Answer in one sentence.\"
  printf 'Hello\\nHow are you?\\n' | shoal chat model.gguf --local-workers 2

While it runs: /help lists commands, /clear forgets the conversation, /bye ends it.";

/// Hold a conversation with a model.
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{}", crate::exit::HELP))]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// A message that tells the assistant how to behave
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) plan: PlanOptions,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) home: HomeArgs,
}

/// Lines that come within this time of each other were pasted, and are one message.
const PASTE: Duration = Duration::from_millis(30);

/// What is sent to the prompt length's estimate of the planner: a few turns of talk.
const TYPICAL_PROMPT: usize = 256;

pub(crate) fn run(args: &ChatArgs, config: &Config, verbose: u8) -> Outcome {
    let mut show = Show::new(verbose > 0, true);
    let model = open(&args.model.model, config, &mut show)?;
    let context = check_context(args.plan.context, &model)?;
    let seed = args.sampling.seed.unwrap_or_else(seed);
    args.sampling.params(model.spec.vocab, seed)?;
    let mut conversation = Conversation::new(&model, args.system.as_deref())?;
    let terminal = std::io::stdin().is_terminal();
    runtime::block_on(async {
        let reserve = args.plan.reserve(config);
        let Attached { local, mut driver } =
            attach(&args.cluster, reserve, config, model.folder(), verbose, &show).await?;
        let options = job(&args.plan, config, &model, &driver, local.as_ref(), TYPICAL_PROMPT)?;
        let serving = ready(&mut driver, &model, &options, &mut show).await?;
        let strategy = serving.planned.plan.strategy.name();
        show.warn(&format!(
            "{} on {} worker(s), {strategy}. /help lists commands.",
            model.spec.name,
            driver.connected().len()
        ));
        let mut lines = read_lines();
        let mut turn = 0;
        loop {
            if terminal {
                out::text("\n> ")?;
            }
            let Some(message) = message(&mut lines, &mut driver, terminal).await? else { break };
            match message.trim() {
                "" => continue,
                "/bye" | "/exit" | "/quit" => break,
                "/clear" => {
                    conversation.clear();
                    show.warn("The conversation is forgotten.");
                    continue;
                }
                "/help" | "/?" => {
                    show.warn("/clear  forget the conversation\n/bye    end (so does end of input)\n/help   this text");
                    continue;
                }
                _ => {}
            }
            conversation.user(message.trim_end_matches(['\r', '\n']));
            // Each turn draws anew, and the same seed still gives the same conversation.
            let sampling = SamplingArgs { seed: Some(seed.wrapping_add(turn)), ..args.sampling.clone() };
            turn += 1;
            match answer(&mut driver, &model, &conversation, &sampling, context).await {
                Ok(text) => conversation.assistant(&text),
                Err(Failure::Input(error)) if terminal => {
                    conversation.take_back();
                    show.warn(&format!("{error:#}\n/clear makes room."));
                }
                Err(failure) => return Err(failure),
            }
            out::line("")?;
        }
        driver.close().await;
        drop(local);
        Ok(())
    })
}

async fn answer(
    driver: &mut Driver,
    model: &Model,
    conversation: &Conversation,
    sampling: &SamplingArgs,
    context: u32,
) -> Outcome<String> {
    let prompt = prompt_tokens(model, &conversation.render()?, context)?;
    let wanted = Wanted {
        prompt,
        params: sampling.params(model.spec.vocab, 0)?,
        max_tokens: sampling.max_tokens,
        stops: &sampling.stop,
        ignore_eos: sampling.ignore_eos,
    };
    Ok(generate(driver, model, wanted, out::text).await?.text)
}

/// The next message: a line, and on a terminal those that were pasted with it. `None` at the end of the input.
async fn message(
    lines: &mut UnboundedReceiver<Line>,
    driver: &mut Driver,
    terminal: bool,
) -> Outcome<Option<String>> {
    let first = loop {
        tokio::select! {
            line = lines.recv() => break line,
            // A cluster that is lost while nobody types is told at once.
            update = driver.next() => lost(update?)?,
        }
    };
    let Some(first) = first else { return Ok(None) };
    let mut message = first?;
    if !terminal {
        return Ok(Some(message));
    }
    while let Ok(Some(line)) = tokio::time::timeout(PASTE, lines.recv()).await {
        message.push_str(&line?);
    }
    Ok(Some(message))
}

fn lost(update: Update) -> Outcome {
    match update {
        Update::Machine(shoal_cluster::coordinator::Action::Ended(failed)) => {
            Err(Failure::Lost(failed.to_string()))
        }
        _ => Ok(()),
    }
}

type Line = Outcome<String>;

/// Lines of standard input, line breaks kept, read by a thread of their own: a read cannot be cancelled, and must not
/// keep the program from ending.
fn read_lines() -> UnboundedReceiver<Line> {
    let (sender, lines) = unbounded_channel();
    std::thread::spawn(move || {
        loop {
            let mut line = String::new();
            let line = match std::io::stdin().lock().read_line(&mut line) {
                Ok(0) => return,
                Ok(_) => Ok(line),
                Err(error) => Err(Failure::input("read standard input", error)),
            };
            let end = line.is_err();
            if sender.send(line).is_err() || end {
                return;
            }
        }
    });
    lines
}
