//! `shoal bench`: the strategies measured side by side.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use shoal_core::Bytes;
use shoal_core::plan::Strategy;

use super::attach::{Attached, attach, check_context, job, open};
use super::options::{ClusterArgs, ModelArg, ObjectiveArg, PlanOptions, StrategyArg, WireArg};
use crate::bench::{Field, FieldOptions, Report, Wanted, Work, run as measure, survey};
use crate::cli::HomeArgs;
use crate::config::Config;
use crate::exit::{Failure, Outcome};
use crate::show::Show;
use crate::{out, runtime};

const EXAMPLES: &str = "\
Examples:
  shoal bench model.gguf
  shoal bench model.gguf --local-workers 3 --threads 1 --rounds 3 --svg bench.svg
  shoal bench model.gguf --strategy head --strategy hybrid --streams 1,8 --prefill 0 --json
  shoal bench model.gguf --neighbours 12      is the chosen plan really the best?";

/// Measure the strategies side by side on the live cluster, beside what is predicted of them.
///
/// Strategies alternate within a round, and each round begins with another. Figures of one stream are taken of the plan
/// that is best for latency, those of several of the plan that is best for throughput, unless --objective asks for one.
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{}", crate::exit::HELP))]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// A strategy to measure; may be given several times, by default all five
    #[arg(long, value_enum, value_name = "STRATEGY")]
    strategy: Vec<StrategyArg>,
    /// Tokens each stream decodes
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    decode: u32,
    /// Prompt lengths; 0 for none. By default 32, 128 and 512, as far as the model's context goes
    #[arg(long, value_name = "N", value_delimiter = ',')]
    prefill: Option<Vec<u32>>,
    /// Numbers of streams at once
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,4,16",
          value_parser = clap::value_parser!(u32).range(1..))]
    streams: Vec<u32>,
    /// Rounds, of which medians are taken
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// One plan for all figures of a strategy, made for this
    #[arg(long, value_enum, value_name = "WHAT")]
    objective: Option<ObjectiveArg>,
    /// Have every strategy use all workers; by default those with which it is best
    #[arg(long)]
    all_devices: bool,
    /// Also measure N plans beside the chosen one: a layer, a head or columns moved, boards swapped, the output head
    /// elsewhere
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=64))]
    neighbours: u32,
    /// Whether each worker is measured with the whole model, for the efficiency; by default where it is quickly done
    #[arg(long, value_enum, value_name = "HOW")]
    alone: Option<AloneArg>,
    /// Prompts are drawn from this
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
    /// Write every figure to this file, as comma-separated values
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Draw charts into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// The same as an image of dots
    #[arg(long, value_name = "FILE")]
    png: Option<PathBuf>,
    #[command(flatten)]
    plan: BenchPlan,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    pub(crate) home: HomeArgs,
}

/// How the model is shared, whatever the strategy.
#[derive(Debug, Args)]
#[command(next_help_heading = "Plan")]
struct BenchPlan {
    /// Number format of partial sums between workers (hidden states between stages are f32)
    #[arg(long, value_enum, value_name = "FORMAT", env = "SHOAL_WIRE")]
    wire: Option<WireArg>,
    /// A worker to leave out, by node id or its first digits, or by name; may be given several times
    #[arg(long, value_name = "NODE")]
    exclude: Vec<String>,
    /// Positions of the KV cache; by default as many as the benchmark needs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// Measure workers and links anew, whatever is known of them from before
    #[arg(long)]
    refresh: bool,
    /// Memory every worker keeps free of what it offers, such as 200MB
    #[arg(long, value_name = "BYTES", env = "SHOAL_MEMORY_RESERVE")]
    memory_reserve: Option<Bytes>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AloneArg {
    /// Measure all that can hold the model
    Measured,
    /// Take the predictions
    Predicted,
}

pub(crate) fn run(args: &BenchArgs, config: &Config, verbose: u8) -> Outcome {
    let mut show = Show::new(verbose > 0, !args.json);
    let model = open(&args.model.model, config, &mut show)?;
    check_context(args.plan.context, &model)?;
    let work = Work::new(&args.wanted(), &model.spec)?;
    [&args.csv, &args.svg, &args.png].into_iter().flatten().try_for_each(|path| check_writable(path))?;
    let plan_options = args.plan.options();
    runtime::block_on(async {
        let reserve = plan_options.reserve(config);
        let Attached { local, mut driver } =
            attach(&args.cluster, reserve, config, model.folder(), verbose, &show).await?;
        let prompt = work.prefill.last().copied().unwrap_or(1);
        let mut options = job(&plan_options, config, &model, &driver, local.as_ref(), prompt as usize)?;
        options.context = work.context;
        let cluster = survey(&mut driver, &model, &options, &show).await?;
        let field = Field::new(cluster, &model.spec, &work, &args.field(config, &options.exclude))?;
        let results = measure(&mut driver, &model, &field, &work, &show).await?;
        let report = Report::new(&model.spec, &work, &field, &results, driver.connected());
        // What took so long is shown even if a file cannot be written, and written even if nobody reads.
        let written = args.write(&report);
        if args.json { out::json(&report) } else { out::line(&report.tables()) }?;
        written?;
        driver.close().await;
        drop(local);
        Ok(())
    })
}

/// Whether a file can be where it is to be written: said before hours of measuring, not after.
fn check_writable(path: &Path) -> Outcome {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let wrong = match (folder.is_dir(), path.is_dir()) {
        (true, false) => return Ok(()),
        (false, _) => format!("there is no folder {}", folder.display()),
        (true, true) => "it is a folder".to_owned(),
    };
    Err(Failure::machine(format!("write {}", path.display()), anyhow::anyhow!(wrong)))
}

impl BenchArgs {
    /// Writes the files asked for, all that can be; the first failure is told.
    fn write(&self, report: &Report<'_>) -> Outcome {
        let csv = self.csv.as_ref().map_or(Ok(()), |path| {
            std::fs::write(path, report.csv())
                .map_err(|error| Failure::machine(format!("write {}", path.display()), error))
        });
        let picture = (self.svg.is_some() || self.png.is_some()).then(|| report.picture());
        let svg = self.svg.as_ref().zip(picture.as_ref()).map_or(Ok(()), |(path, p)| p.save_svg(path));
        let png = self.png.as_ref().zip(picture.as_ref()).map_or(Ok(()), |(path, p)| p.save_png(path));
        csv.and(svg).and(png)
    }

    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            decode: self.decode,
            prefill: self.prefill.as_deref(),
            streams: &self.streams,
            rounds: self.rounds,
            context: self.plan.context,
            seed: self.seed,
        }
    }

    fn field(&self, config: &Config, exclude: &[shoal_core::NodeId]) -> FieldOptions {
        let asked: Vec<Strategy> = self.strategy.iter().map(|&strategy| strategy.into()).collect();
        let wanted = |strategy: &Strategy| asked.is_empty() || asked.contains(strategy);
        FieldOptions {
            strategies: Strategy::ALL.into_iter().filter(wanted).collect(),
            objective: self.objective.map(Into::into),
            all_devices: self.all_devices,
            wire: self.plan.options().wire(config),
            exclude: exclude.to_vec(),
            alone: self.alone.map(|alone| alone == AloneArg::Measured),
            neighbours: self.neighbours as usize,
        }
    }
}

impl BenchPlan {
    fn options(&self) -> PlanOptions {
        PlanOptions {
            wire: self.wire,
            exclude: self.exclude.clone(),
            context: self.context,
            memory_reserve: self.memory_reserve,
            refresh: self.refresh,
            ..PlanOptions::default()
        }
    }
}
