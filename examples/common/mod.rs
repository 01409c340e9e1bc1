//! What the examples share: their command line, their data, a progress bar, a table.
#![allow(dead_code, reason = "each example uses its own part of this")]

use std::fmt::Display;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use lexopt::{Arg, Parser, ValueExt};
use trimnet::io::idx;
use trimnet::nn::{Callback, Dataset, Epoch, Mlp};
use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

/// What an example returns: any error ends it with its message.
pub type Done = Result<(), Failure>;

/// Any error, in its own words.
pub struct Failure(Box<dyn std::error::Error>);

impl<E: Into<Box<dyn std::error::Error>>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl std::fmt::Debug for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Display::fmt(&self.0, f)
    }
}

/// The command line.
#[derive(Debug)]
pub struct Args {
    /// A folder of IDX files.
    pub data: PathBuf,
    /// Decides everything random.
    pub seed: u64,
    /// Prints JSON instead of a table.
    pub json: bool,
    /// Where models are saved.
    pub out: PathBuf,
}

/// All options, with their values and what they are for.
const OPTIONS: [(&str, &str, &str); 4] = [
    ("data", "DIR", "images as IDX files (default: the digits that travel with the repository)"),
    ("seed", "N", "decides everything random (default: 1)"),
    ("json", "", "prints one object for each row instead of a table"),
    ("out", "DIR", "where models are saved (default: compressed)"),
];

/// The options of an example that only trains.
pub const TRAINING: [&str; 2] = ["data", "seed"];

impl Args {
    /// Reads the command line, of which only these `options` are taken; `--help` prints `about` and ends the program.
    pub fn parse(about: &str, options: &[&str]) -> Result<Self, lexopt::Error> {
        let digits = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/digits");
        let mut args = Self { data: digits, seed: 1, json: false, out: "compressed".into() };
        let mut parser = command_line();
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Long(option) if option != "help" && !options.contains(&option) => {
                    return Err(arg.unexpected());
                }
                Arg::Long("data") => args.data = parser.value()?.into(),
                Arg::Long("seed") => args.seed = number(&mut parser, "--seed")?,
                Arg::Long("json") => args.json = true,
                Arg::Long("out") => args.out = parser.value()?.into(),
                Arg::Long("help") | Arg::Short('h') => {
                    println!("{about}\n");
                    for (option, value, what) in OPTIONS.iter().filter(|(name, ..)| options.contains(name)) {
                        println!("  --{:<10} {what}", format!("{option} {value}"));
                    }
                    std::process::exit(0);
                }
                _ => return Err(arg.unexpected()),
            }
        }
        Ok(args)
    }

    /// A generator for this example's seed; `stream` tells several of them apart.
    pub fn rng(&self, stream: u64) -> Xoshiro256PlusPlus {
        Xoshiro256PlusPlus::seed_from_u64(self.seed.wrapping_mul(1000).wrapping_add(stream))
    }
}

/// The words of the command line. From here on the program ends quietly where `println!` would panic because nobody reads its
/// output any more (`| head`).
pub fn command_line() -> Parser {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload().downcast_ref::<String>().is_some_and(|message| message.contains("Broken pipe")) {
            std::process::exit(0);
        }
        usual(panic);
    }));
    Parser::from_env()
}

/// The value of an option, or an error that names it.
pub fn number<T: FromStr<Err: Display>>(parser: &mut Parser, option: &str) -> Result<T, lexopt::Error> {
    let value = parser.value()?.string()?;
    value.parse().map_err(|e| format!("{option} {value}: {e}").into())
}

/// Images to learn from and images held out for the test.
pub struct Data {
    pub train: Dataset<f32>,
    pub test: Dataset<f32>,
    pub classes: usize,
}

impl Data {
    /// Reads a folder. Without a test part of its own, a quarter is held out, always the same one.
    pub fn read(folder: &Path) -> trimnet::Result<Self> {
        let images = idx::read_folder(folder)?;
        let (train, test) = match images.test {
            Some(test) => (images.train, test),
            None => images.train.split_stratified(0.25, 0)?,
        };
        Ok(Self { train, test, classes: images.classes })
    }

    /// As many epochs as make about `steps` steps in batches of `batch`.
    pub fn epochs(&self, steps: usize, batch: usize) -> usize {
        (steps * batch).div_ceil(self.train.rows())
    }
}

/// A progress bar on the terminal's standard error, hidden when that is not a terminal.
pub struct Progress(ProgressBar);

impl Progress {
    pub fn new(what: &'static str, length: usize) -> Self {
        let bar = ProgressBar::new(length as u64).with_message(what);
        if let Ok(style) =
            ProgressStyle::with_template("{msg:24} {bar:30} {pos:>4}/{len}  {elapsed}, {eta} left")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    /// This many are done.
    pub fn at(&self, done: u64) {
        self.0.set_position(done);
    }
}

impl Callback<f32> for Progress {
    fn on_epoch(&mut self, _: &mut Mlp<f32>, epoch: &Epoch) -> trimnet::Result<ControlFlow<()>> {
        self.at(epoch.epoch as u64 + 1);
        Ok(ControlFlow::Continue(()))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Prints rows in columns: the first to the left, the others to the right.
pub fn print_table(header: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(header.get(column).map(|cell| cell.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let cells = cells.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        println!("{}", cells.collect::<Vec<_>>().join("  "));
    };
    line(header.to_vec());
    for row in rows {
        line(row.iter().map(String::as_str).collect());
    }
}

/// A share as a percentage.
pub fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}
