//! Compresses a checkpoint of any size, tensor by tensor, shard by shard.
//!
//! `cargo run --release --features mmap --example compress_checkpoint -- MODEL OUT --recipe recipe.json`

mod common;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use common::{command_line, number};
use indicatif::{ProgressBar, ProgressStyle};
use lexopt::Arg;
use trimnet::io::checkpoint::{
    Action, Checkpoint, CheckpointReport, Options, Plan, Progress, Recipe, compress_shard, merge,
};
use trimnet::kernel::Pool;

const HELP: &str = "\
Compresses a .safetensors checkpoint by a recipe.

usage: compress_checkpoint MODEL OUT --recipe FILE [options]

  MODEL           a .safetensors file, or a folder with model.safetensors(.index.json)
  OUT             a folder; a run that was killed goes on where it stopped
  --recipe FILE   {\"rules\": [{\"match\": \"*.mlp.*\", \"do\": {\"int4\": {\"group\": 32}}}, ..]}
                  do: \"keep\", {\"prune\": {\"sparsity\": S}}, {\"int8\": {}}, {\"int4\": {\"group\": G}}
  --max-shard N   bytes of a shard at most (5e9)
  --threads N     how many work (all cores)
  --plan          only print the plan, as JSON
  --shard K       only do shard K, counted from 0
  --merge         only do the last step: index, config and report
  --json          print the report as JSON

exit codes: 0 done, 1 failed, 2 wrong usage";

struct Args {
    model: PathBuf,
    out: PathBuf,
    recipe: PathBuf,
    options: Options,
    step: Step,
    json: bool,
}

enum Step {
    All,
    Plan,
    Shard(usize),
    Merge,
}

fn arguments() -> Result<Option<Args>, lexopt::Error> {
    let (mut places, mut recipe) = (Vec::new(), None);
    let (mut options, mut step, mut json) = (Options::default(), Step::All, false);
    let mut parser = command_line();
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("recipe") => recipe = Some(parser.value()?.into()),
            Arg::Long("max-shard") => {
                let bytes: f64 = number(&mut parser, "--max-shard")?;
                if bytes.is_nan() || bytes < 1.0 {
                    return Err(format!("--max-shard {bytes}: allowed is 1 or more").into());
                }
                options.max_shard_bytes = bytes as u64;
            }
            Arg::Long("threads") => {
                options.pool = Pool::new(number::<NonZeroUsize>(&mut parser, "--threads")?.get());
            }
            Arg::Long("plan") => step = Step::Plan,
            Arg::Long("shard") => step = Step::Shard(number(&mut parser, "--shard")?),
            Arg::Long("merge") => step = Step::Merge,
            Arg::Long("json") => json = true,
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            Arg::Value(place) => places.push(PathBuf::from(place)),
            _ => return Err(arg.unexpected()),
        }
    }
    let (Ok([model, out]), Some(recipe)) = (<[PathBuf; 2]>::try_from(places), recipe) else {
        return Err("MODEL, OUT and --recipe FILE are needed".into());
    };
    Ok(Some(Args { model, out, recipe, options, step, json }))
}

fn main() -> ExitCode {
    let args = match arguments() {
        Ok(Some(args)) => args,
        Ok(None) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    let file = args.recipe.display();
    let recipe = std::fs::read_to_string(&args.recipe).map_err(|error| format!("{file}: {error}"))?;
    let recipe = Recipe::from_json(&recipe).map_err(|error| format!("{file}: {error}"))?;
    let checkpoint = Checkpoint::open(&args.model)?;
    let plan = Plan::new(&checkpoint, &recipe, args.options.max_shard_bytes)?;
    if plan.shards().iter().flat_map(|shard| shard.jobs()).all(|job| job.action() == Action::Keep) {
        eprintln!(
            "warning: every tensor is kept as it is: no pattern of {file} matches one that it would change"
        );
    }
    let shards: Vec<usize> = match args.step {
        Step::Plan => {
            println!("{}", serde_json::to_string_pretty(&plan)?);
            return Ok(());
        }
        Step::All => (0..plan.shards().len()).collect(),
        Step::Shard(shard) => vec![shard],
        Step::Merge => Vec::new(),
    };
    let jobs: usize =
        shards.iter().filter_map(|&shard| plan.shards().get(shard)).map(|s| s.jobs().len()).sum();
    let bar = ProgressBar::new(jobs as u64);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} tensors  {elapsed}  {msg}")?);
    for shard in shards {
        let mut progress = |progress: Progress<'_>| match progress {
            Progress::Tensor(report) => {
                bar.inc(1);
                bar.set_message(report.tensor.clone());
            }
            Progress::Shard { report, found: true } => bar.inc(report.tensors.len() as u64),
            _ => {}
        };
        let report = compress_shard(&checkpoint, &plan, shard, &args.out, &args.options.pool, &mut progress)?;
        if let (Step::Shard(_), true) = (&args.step, args.json) {
            println!("{}", serde_json::to_string_pretty(&report)?);
        }
    }
    bar.finish_and_clear();
    if let Step::Shard(_) = args.step {
        return Ok(());
    }
    print(&merge(&checkpoint, &plan, &args.out)?, args.json)?;
    Ok(())
}

fn print(report: &CheckpointReport, json: bool) -> serde_json::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
        return Ok(());
    }
    for tensor in report.shards.iter().flat_map(|shard| &shard.tensors) {
        let quality = tensor.sqnr_db.map_or(String::new(), |db| format!("{db:6.1} dB"));
        let note = tensor.note.as_deref().unwrap_or_default();
        println!(
            "{:50} {:6} {:>12} -> {:>12} {quality} {note}",
            tensor.tensor,
            tensor.action.name(),
            tensor.bytes_before,
            tensor.bytes_after
        );
    }
    let ratio = report.bytes_before as f64 / report.bytes_after.max(1) as f64;
    println!("{} -> {} bytes, {ratio:.2} times smaller", report.bytes_before, report.bytes_after);
    Ok(())
}
