//! Our side of the comparison with the Python peers: the same work on the same numbers, one JSON line per case.
//!
//! ```text
//! cargo bench --bench peers -- --json [--list] [--filter REGEX] [--threads N] [--seconds S]
//! cargo bench --bench peers -- --accuracy [--threads N]
//! ```
//!
//! With `--accuracy`: the test errors of the networks of `train.adam`, five seeds each, as JSON lines; about ten minutes.
//!
//! With `--json`: one line `{"case", "threads", "median_us", "min_us", "max_us", "reps"}` per case whose id holds a match of
//! the regular expression, or `{"case"}` alone with `--list`; without it, a table for people. A wrong result is no result: it
//! goes to the standard error, and its case has no line. Build for the plain target (no `target-cpu`): what a processor can
//! do is found at run time.
//!
//! # Adding a family
//!
//! 1. One file `benches/peers/FAMILY.rs` with `pub fn cases() -> Vec<Case>`; a line `pub mod FAMILY;` and a line in
//!    [`registry`] below.
//! 2. In it, one `Case::new(id, |context| ...)` per id of the contract. The closure runs only when the case is selected. It
//!    makes the inputs (`data::uniform`, `data::normal`: bit for bit those of the peers), packs the constants, allocates outputs
//!    and scratch, **runs the work once, checks the result against a slow reference** (`check::close`, or `check::equal`), and
//!    returns the call to time: `Ok(Box::new(move || ...))`.
//! 3. Whatever the call computes must end in a buffer that it hands to `std::hint::black_box`, and the time of a call is all that
//!    the contract puts in the clock, nothing less. `context.threads` is the number of threads to use.
//! 4. `.smoke()` marks a case that a debug build does in a second or so: `cargo test --benches` runs those once.

mod peers {
    pub mod case;
    pub mod check;
    pub mod data;
    pub mod engine;
    pub mod gemm;
    pub mod softmax;
    pub mod kmeans;
    pub mod layers;
    pub mod limits;
    pub mod memory;
    pub mod prune;
    pub mod quantize;
    pub mod sparse;
    pub mod train;
}

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Instant;

use peers::case::{Case, Context};
use regex::Regex;

#[global_allocator]
static MEMORY: peers::memory::Huge = peers::memory::Huge;

/// Every case, family by family in the order of the contract.
fn registry() -> Vec<Case> {
    let families = [
        peers::engine::cases(),
        peers::gemm::cases(),
        peers::sparse::cases(),
        peers::prune::cases(),
        peers::quantize::cases(),
        peers::layers::cases(),
        peers::softmax::cases(),
        peers::kmeans::cases(),
        peers::train::cases(),
        peers::limits::cases(),
    ];
    families.into_iter().flatten().collect()
}

struct Options {
    json: bool,
    list: bool,
    accuracy: bool,
    /// Run each case once, without a clock: what `cargo test --benches` wants.
    test: bool,
    filter: Option<Regex>,
    threads: usize,
    seconds: f64,
}

fn options() -> Result<Options, String> {
    use lexopt::prelude::*;
    let mut options = Options {
        json: false,
        list: false,
        accuracy: false,
        test: false,
        filter: None,
        threads: 1,
        seconds: 0.5,
    };
    let mut bench = false;
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next().map_err(|e| e.to_string())? {
        match argument {
            Long("json") => options.json = true,
            Long("list") => options.list = true,
            Long("accuracy") => options.accuracy = true,
            Long("test") => options.test = true,
            Long("bench") => bench = true,
            Long("filter") => {
                let text = arguments.value().and_then(|v| v.string()).map_err(|e| e.to_string())?;
                options.filter = Some(Regex::new(&text).map_err(|e| e.to_string())?);
            }
            Long("threads") => {
                options.threads = arguments.value().and_then(|v| v.parse()).map_err(|e| e.to_string())?
            }
            Long("seconds") => {
                options.seconds = arguments.value().and_then(|v| v.parse()).map_err(|e| e.to_string())?
            }
            other => return Err(other.unexpected().to_string()),
        }
    }
    if options.threads == 0 {
        return Err("--threads is 0, allowed is 1 and more".to_string());
    }
    if !(options.seconds >= 0.0 && options.seconds.is_finite()) {
        return Err(format!("--seconds is {}, allowed is 0 and more", options.seconds));
    }
    // `cargo bench` passes --bench, `cargo test --benches` does not.
    options.test |= !bench && !options.json && !options.list && !options.accuracy;
    Ok(options)
}

/// Seconds per call of each sample. A call shorter than a millisecond is repeated within one sample; samples are taken for
/// `seconds`, at least three, or one if a call takes seconds. The same rules as on the side of the peers.
fn time(call: &mut dyn FnMut(), seconds: f64) -> Vec<f64> {
    let mut sample = |calls: u32| {
        let begin = Instant::now();
        for _ in 0..calls {
            call();
        }
        begin.elapsed().as_secs_f64() / f64::from(calls)
    };
    let first = sample(1);
    if first >= 3.0 {
        return vec![first];
    }
    let once = if first < 0.3 { sample(1).min(sample(1)).min(sample(1)) } else { sample(1) };
    let calls = (1e-3 / once.max(1e-7)).clamp(1.0, 1000.0) as u32;
    let least = if once < 1.0 { 3 } else { 1 };
    let mut samples = Vec::new();
    let begin = Instant::now();
    while samples.len() < least || begin.elapsed().as_secs_f64() < seconds {
        samples.push(sample(calls));
    }
    samples
}

fn median(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { (sorted[half - 1] + sorted[half]) / 2.0 }
}

fn print(case: &Case, options: &Options, mut samples: Vec<f64>) {
    samples.sort_by(f64::total_cmp);
    let (median, min, max) = (median(&samples) * 1e6, samples[0] * 1e6, samples[samples.len() - 1] * 1e6);
    let (id, threads, reps) = (case.id(), options.threads, samples.len());
    if options.json {
        println!(
            r#"{{"case": "{id}", "threads": {threads}, "median_us": {median:.3}, "min_us": {min:.3}, "max_us": {max:.3}, "reps": {reps}}}"#
        );
    } else {
        println!("{id:<44} {threads:>2} threads {median:>12.1} us  ({min:.1} .. {max:.1}, {reps} samples)");
    }
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(message) => {
            eprintln!("peers: {message}");
            return ExitCode::from(2);
        }
    };
    let cases = registry();
    let ids: BTreeSet<&str> = cases.iter().map(Case::id).collect();
    if ids.len() != cases.len() {
        eprintln!("peers: an id stands twice in the registry");
        return ExitCode::FAILURE;
    }
    if options.accuracy {
        return match peers::train::accuracy(options.threads) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("peers: {why}");
                ExitCode::FAILURE
            }
        };
    }
    let mut status = ExitCode::SUCCESS;
    let context = Context { threads: options.threads };
    for case in &cases {
        let selected = match &options.filter {
            Some(filter) => filter.is_match(case.id()),
            None => !options.test || case.is_smoke(),
        };
        if !selected {
            continue;
        }
        if options.list {
            println!(r#"{{"case": "{}"}}"#, case.id());
            continue;
        }
        match case.prepare(&context) {
            Ok(mut call) if options.test => call(),
            Ok(mut call) => print(case, &options, time(&mut *call, options.seconds)),
            Err(why) => {
                eprintln!("{}: {why}", case.id());
                if options.test {
                    status = ExitCode::FAILURE;
                }
            }
        }
    }
    status
}
