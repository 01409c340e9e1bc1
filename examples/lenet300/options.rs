//! The command line, and what the presets mean.

use std::path::{Path, PathBuf};

use super::common::{command_line, number};
use lexopt::{Arg, ValueExt};

const HELP: &str = "\
Trains a network on MNIST and squeezes it into some kilobytes, reads the file again and measures its test error.

  --data DIR         the four IDX files of MNIST (default: the small digits that travel with the repository)
  --preset NAME      tiny: fewest bytes at 1.6 % error; best: lowest error below 6,000 bytes;
                     fair: LeNet-300-100 without teacher and without changed images (default: tiny)
  --budget-bytes N   another length of the file; several with commas, falling, make a file each
  --seed N           decides everything random (default: 1)
  --hidden A,B       widths of the hidden layers at the start
  --keep N           weights that pruning by size leaves before codes are weighed one by one
  --l1 X, --group X  prices of weights, and of whole neurons and pixels, while pruning
  --dropout P        share of pixels and hidden neurons that an image misses while the student prunes; half while it freezes
  --teacher FILE     the teacher: read, or trained and written there (default: OUT/teacher-SEED.trim)
  --epochs N         the student's passes over the training images
  --teacher-epochs N the teacher's
  --validate         measures on the last 5,000 training images, which nothing is trained on, and leaves the test alone
  --out DIR          where teacher, student and pictures are written (default: lenet300)
  --draw FILE        draws which pixels the network of a .trim file reads, and its weights, and does nothing else
  --front FILE       draws the results of earlier runs, their JSON lines, and does nothing else
  --pictures DIR     where pictures are written (default: OUT)
  --json             prints one object";

/// How a student becomes small.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub hidden: Vec<usize>,
    /// Weights that pruning by size leaves; the rest is up to the budget.
    pub keep: usize,
    /// The largest magnitude of a code.
    pub levels: i32,
    /// Bytes of the files, falling.
    pub budgets: Vec<usize>,
    pub epochs: usize,
    pub teacher_epochs: usize,
    /// Learns from a teacher, on changed images; else from the labels of the training images alone.
    pub teacher: bool,
    pub l1: f32,
    pub group: f32,
    /// Share of the pixels and hidden neurons that each image misses while pruning; half of it while freezing.
    pub dropout: f64,
}

/// What was asked for.
#[derive(Debug)]
pub struct Options {
    pub data: PathBuf,
    pub preset: String,
    pub recipe: Recipe,
    pub seed: u64,
    pub validate: bool,
    pub out: PathBuf,
    pub teacher: PathBuf,
    pub pictures: Option<PathBuf>,
    pub draw: Option<PathBuf>,
    pub front: Option<PathBuf>,
    pub json: bool,
}

fn preset(name: &str) -> Option<Recipe> {
    let tiny = Recipe {
        hidden: vec![100, 60],
        keep: 3850,
        levels: 3,
        budgets: vec![3000],
        epochs: 300,
        teacher_epochs: 60,
        teacher: true,
        l1: 3e-5,
        group: 1.5e-4,
        dropout: 0.0,
    };
    let large = Recipe { hidden: vec![300, 100], ..tiny.clone() };
    match name {
        "tiny" => Some(tiny),
        "best" => Some(Recipe { keep: 8200, budgets: vec![6000], epochs: 400, ..large }),
        "fair" => Some(Recipe {
            keep: 8800,
            budgets: vec![6000],
            epochs: 200,
            teacher: false,
            l1: 2e-5,
            group: 1e-4,
            dropout: 0.1,
            ..large
        }),
        _ => None,
    }
}

impl Recipe {
    /// Refuses what would be found out in the middle of a long run.
    fn check(&self) -> Result<(), lexopt::Error> {
        let refuse = |option: &str, allowed: &str| Err(format!("--{option}: allowed is {allowed}").into());
        if self.keep == 0 {
            return refuse("keep", "1 or more");
        }
        if self.hidden.contains(&0) {
            return refuse("hidden", "1 or more, separated by commas");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return refuse("dropout", "0 up to, but not including, 1");
        }
        for (option, penalty) in [("l1", self.l1), ("group", self.group)] {
            if !(penalty.is_finite() && penalty >= 0.0) {
                return refuse(option, "0 or more");
            }
        }
        Ok(())
    }
}

fn numbers(list: &str) -> Result<Vec<usize>, lexopt::Error> {
    list.split(',').map(str::parse).collect::<Result<_, _>>().map_err(|e| format!("{list}: {e}").into())
}

impl Options {
    /// Reads the command line; `--help` ends the program.
    pub fn parse() -> Result<Self, lexopt::Error> {
        let (mut data, mut out) =
            (Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/digits"), "lenet300".into());
        let (mut name, mut seed, mut validate, mut json) = ("tiny".to_owned(), 1, false, false);
        let (mut budgets, mut epochs, mut teacher_epochs) = (None, None, None);
        let (mut hidden, mut keep, mut l1, mut group, mut dropout) = (None, None, None, None, None);
        let mut teacher = None;
        let (mut pictures, mut draw, mut front) = (None, None, None);
        let mut parser = command_line();
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Long("data") => data = parser.value()?.into(),
                Arg::Long("preset") => name = parser.value()?.string()?,
                Arg::Long("budget-bytes") => budgets = Some(numbers(&parser.value()?.string()?)?),
                Arg::Long("hidden") => hidden = Some(numbers(&parser.value()?.string()?)?),
                Arg::Long("keep") => keep = Some(number(&mut parser, "--keep")?),
                Arg::Long("l1") => l1 = Some(number(&mut parser, "--l1")?),
                Arg::Long("group") => group = Some(number(&mut parser, "--group")?),
                Arg::Long("dropout") => dropout = Some(number(&mut parser, "--dropout")?),
                Arg::Long("seed") => seed = number(&mut parser, "--seed")?,
                Arg::Long("epochs") => epochs = Some(number(&mut parser, "--epochs")?),
                Arg::Long("teacher-epochs") => {
                    teacher_epochs = Some(number(&mut parser, "--teacher-epochs")?)
                }
                Arg::Long("validate") => validate = true,
                Arg::Long("out") => out = parser.value()?.into(),
                Arg::Long("teacher") => teacher = Some(PathBuf::from(parser.value()?)),
                Arg::Long("pictures") => pictures = Some(parser.value()?.into()),
                Arg::Long("draw") => draw = Some(parser.value()?.into()),
                Arg::Long("front") => front = Some(parser.value()?.into()),
                Arg::Long("json") => json = true,
                Arg::Long("help") | Arg::Short('h') => {
                    println!("{HELP}");
                    std::process::exit(0);
                }
                _ => return Err(arg.unexpected()),
            }
        }
        let mut recipe =
            preset(&name).ok_or_else(|| format!("no preset '{name}': there are tiny, best and fair"))?;
        if let Some(budgets) = budgets {
            let most = budgets.first().copied().unwrap_or_default();
            if most == 0 || !budgets.is_sorted_by(|a, b| a >= b) {
                return Err("budgets must be above 0 and fall from one to the next".into());
            }
            recipe.keep = recipe.keep * most / recipe.budgets[0];
            recipe.budgets = budgets;
        }
        recipe.keep = keep.unwrap_or(recipe.keep);
        recipe.hidden = hidden.unwrap_or(recipe.hidden);
        recipe.dropout = dropout.unwrap_or(recipe.dropout);
        recipe.l1 = l1.unwrap_or(recipe.l1);
        recipe.group = group.unwrap_or(recipe.group);
        recipe.epochs = epochs.unwrap_or(recipe.epochs);
        recipe.teacher_epochs = teacher_epochs.unwrap_or(recipe.teacher_epochs);
        recipe.check()?;
        let out: PathBuf = out;
        let teacher = teacher.unwrap_or_else(|| {
            out.join(format!("teacher-{seed}{}.trim", if validate { "-validate" } else { "" }))
        });
        Ok(Self { data, preset: name, recipe, seed, validate, out, teacher, pictures, draw, front, json })
    }
}
