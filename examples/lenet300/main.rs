//! MNIST in three kilobytes: from nothing to a file of a given length, and what it still knows.
//! `cargo run --release --example lenet300 -- --data DIR [--preset tiny|best|fair --seed N --budget-bytes N --json]`

mod augment;
#[path = "../common/mod.rs"]
mod common;
mod freeze;
mod options;
mod picture;
mod polish;
mod prune;
mod student;
mod teacher;

use std::path::Path;
use std::time::Instant;

use common::{Data, Done, percent, print_table};
use options::Options;
use picture::Point;
use student::Student;
use teacher::Pool;
use trimnet::io::trim::TrimReport;
use trimnet::nn::{Dataset, Mlp, evaluate};

/// Images held out of the training ones by `--validate`.
const VALIDATION: usize = 5000;

/// What others reached with LeNet-300-100 on MNIST: bytes, test error in percent.
const PUBLISHED: [(&str, u32, f64); 7] = [
    ("Deep Compression (Han 2016)", 27_000, 1.58),
    ("Dynamic network surgery (Guo 2016), weights alone", 19_000, 1.99),
    ("RigL+ (Evci 2020), weights in f32 and a mask", 16_100, 1.69),
    ("Soft weight sharing (Ullrich 2017)", 16_700, 1.94),
    ("Sparse variational dropout (Molchanov 2017)", 9400, 1.92),
    ("Bayesian compression (Louizos 2017)", 18_000, 1.8),
    ("Scalable model compression (Oktay 2020)", 8560, 1.9),
];

fn main() -> Done {
    let options = Options::parse()?;
    let pictures = options.pictures.as_deref().unwrap_or(&options.out);
    if let Some(front) = &options.front {
        return draw_front(front, pictures);
    }
    if let Some(file) = &options.draw {
        return draw(file, pictures);
    }
    let start = Instant::now();
    let data = Data::read(&options.data)?;
    std::fs::create_dir_all(&options.out)?;
    let (train, check) = if options.validate { hold_out(&data.train)? } else { (data.train, data.test) };
    let error =
        |mlp: &Mlp<f32>| Ok::<_, trimnet::Error>(1.0 - evaluate(mlp, &check)?.accuracy.unwrap_or(0.0));

    let (recipe, pixels) = (&options.recipe, train.features());
    let (pool, copies) = if recipe.teacher {
        let teacher =
            teacher::teacher(&train, data.classes, recipe.teacher_epochs, options.seed, &options.teacher)?;
        eprintln!("teacher: {} error, {:.0?}", percent(error(&teacher)?), start.elapsed());
        (teacher::pool(&train, &teacher, options.seed)?, teacher::COPIES)
    } else {
        (Pool { data: train, teacher: None }, 1)
    };
    let mut rows = Vec::new();
    let student = Student::new(recipe, pool, copies, data.classes, options.seed)?;
    let seen = |what: &str, mlp: &Mlp<f32>| {
        // A run that reports the test shows nothing of it before the student's file is written.
        let seen = match options.validate {
            true => format!("{} error, loss {:.4}", percent(error(mlp)?), evaluate(mlp, &check)?.loss),
            false => String::new(),
        };
        let bytes = mlp.to_bytes().len();
        eprintln!("{what}: {bytes} bytes, {} parameters {seen} {:.0?}", mlp.nonzero(), start.elapsed());
        Ok(())
    };
    student.run(seen, |budget, mlp| {
        // What counts is the file.
        let path = options.out.join(format!("{}-{budget}-{}.trim", options.preset, options.seed));
        mlp.save(&path)?;
        let bytes = std::fs::read(&path).map_err(|source| trimnet::Error::Io { path: path.clone(), source })?;
        let read = Mlp::<f32>::from_bytes(&bytes)?;
        let (error, seconds) = (100.0 * error(&read)?, start.elapsed().as_secs_f64());
        if options.json {
            let (Options { preset, seed, validate, .. }, widths, nonzero) = (&options, read.widths(), read.nonzero());
            println!(
                r#"{{"preset":"{preset}","seed":{seed},"budget":{budget},"bytes":{},"error_percent":{error:.2},"widths":{widths:?},"nonzero":{nonzero},"seconds":{seconds:.0},"validate":{validate}}}"#,
                bytes.len(),
            );
        } else {
            println!("{}: {:?}\n{}\n", path.display(), read.widths(), TrimReport::of_bytes(&bytes)?);
        }
        rows.push(vec![path.display().to_string(), bytes.len().to_string(), format!("{error:.2}")]);
        Ok(())
    })?;
    if !options.json {
        let mnist = pixels == 784;
        let published = PUBLISHED
            .iter()
            .map(|(who, bytes, error)| vec![(*who).to_owned(), bytes.to_string(), format!("{error:.2}")]);
        rows.extend(published.filter(|_| mnist));
        print_table(&["file", "bytes", "error %"], &rows);
    }
    Ok(())
}

/// The last images, and those before them.
fn hold_out(train: &Dataset<f32>) -> trimnet::Result<(Dataset<f32>, Dataset<f32>)> {
    let rows: Vec<usize> = (0..train.rows()).collect();
    let (rest, held) = rows.split_at(rows.len().saturating_sub(VALIDATION.min(rows.len() / 4)));
    Ok((train.select(rest)?, train.select(held)?))
}

/// Draws what a network reads and the values of its weights.
fn draw(file: &Path, folder: &Path) -> Done {
    let mlp = Mlp::<f32>::load(file)?;
    std::fs::create_dir_all(folder)?;
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    for (what, svg) in [("pixels", picture::pixels(&mlp)), ("weights", picture::weights(&mlp))] {
        let path = folder.join(format!("{name}-{what}.svg"));
        std::fs::write(&path, svg)?;
        println!("{}", path.display());
    }
    Ok(())
}

/// Draws the results of earlier runs beside the published ones.
fn draw_front(results: &Path, folder: &Path) -> Done {
    let mut points: Vec<Point> = PUBLISHED
        .iter()
        .map(|&(of, bytes, error)| Point { of: of.to_owned(), bytes: f64::from(bytes), error, ours: false })
        .collect();
    let runs = std::fs::read_to_string(results)
        .map_err(|source| trimnet::Error::Io { path: results.into(), source })?;
    for line in runs.lines().filter(|line| line.starts_with('{')) {
        let run: serde_json::Value = serde_json::from_str(line)?;
        let number = |key: &str| run[key].as_f64().ok_or_else(|| format!("no number '{key}' in {line}"));
        points.push(Point {
            of: run["preset"].as_str().unwrap_or("unnamed").to_owned(),
            bytes: number("bytes")?,
            error: number("error_percent")?,
            ours: true,
        });
    }
    if points.len() == PUBLISHED.len() {
        return Err(format!("no line of {} is the JSON of a run", results.display()).into());
    }
    std::fs::create_dir_all(folder)?;
    let path = folder.join("front.svg");
    std::fs::write(&path, picture::front(&points))?;
    println!("{} points in {}", points.len(), path.display());
    Ok(())
}
