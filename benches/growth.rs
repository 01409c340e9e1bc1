//! How time grows: per element from 10^4 to 10^8 numbers, per epoch with rows and with parameters.
//!
//! ```text
//! cargo bench --bench growth               writes docs/growth-elements.svg and docs/growth-training.svg
//! cargo bench --bench growth -- --test     small sizes, once, nothing written: what `cargo test --benches` runs
//! ```
//!
//! A flat line is linear growth. Numbers that fit the caches are cheaper than those that do not, so a line may step up once,
//! where its data leave the last cache; the table printed beside the plots tells the largest time over the smallest on either
//! side of that step.

#[path = "growth/plot.rs"]
mod plot;

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use ndarray::{Array1, Array2};
use plot::{Line, Plot};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use trimnet::kernel::{Isa, Pool};
use trimnet::nn::{Adam, CrossEntropy, Dataset, Mlp, Trainer};
use trimnet::normalize::BatchNorm;
use trimnet::prune::{MagnitudePruner, Pruner};
use trimnet::quantize::{QuantParams, Scheme};
use trimnet::regularize::{Dropout, DropoutCache};

/// Errors end the bench with their message.
type Done<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// From so many bytes of input and output on, the data of a call lie in memory, whatever the processor.
const MEMORY: f64 = 64e6;

fn main() -> Done {
    let test =
        !std::env::args().any(|argument| argument == "--bench") || std::env::args().any(|a| a == "--test");
    let elements = elements(test)?;
    let (rows, widths) = (by_rows(test)?, by_parameters(test)?);
    if test {
        return Ok(());
    }
    for line in elements.iter().chain([&rows, &widths]) {
        println!("{}", line.summary());
    }
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let about = about();
    let plot = Plot { title: "time per number, one thread", x: "numbers", y: "ns per number", about: &about };
    std::fs::write(docs.join("growth-elements.svg"), plot.svg(&elements))?;
    let plot = Plot {
        title: "time of an epoch",
        x: "rows, or parameters",
        y: "ns per row, or per 1,000 rows and parameter",
        about: &about,
    };
    std::fs::write(docs.join("growth-training.svg"), plot.svg(&[rows, widths]))?;
    Ok(())
}

/// What was run, where, and when.
fn about() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let machine = name.map_or("unknown processor", |(_, name)| name);
    let date = std::process::Command::new("date").arg("+%F").output();
    let date =
        date.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string()).unwrap_or_default();
    format!("cargo bench --bench growth; {machine}, {}, {date}", Isa::best())
}

/// The shortest of several calls, in nanoseconds; small work is repeated within one.
fn shortest(test: bool, mut call: impl FnMut() -> trimnet::Result<()>) -> trimnet::Result<f64> {
    let mut time = |calls: u32| -> trimnet::Result<f64> {
        let begin = Instant::now();
        for _ in 0..calls {
            call()?;
        }
        Ok(begin.elapsed().as_secs_f64() * 1e9 / f64::from(calls))
    };
    let first = time(1)?;
    if test {
        return Ok(first);
    }
    let calls = (1e6 / first).clamp(1.0, 1000.0) as u32;
    let samples = if first > 5e7 { 5 } else { 15 };
    (0..samples).try_fold(first, |least, _| Ok(time(calls)?.min(least)))
}

fn elements(test: bool) -> Done<Vec<Line>> {
    const COLUMNS: usize = 100;
    let pool = Pool::single();
    let sizes: &[usize] =
        if test { &[10_000] } else { &[10_000, 100_000, 1_000_000, 10_000_000, 100_000_000] };
    let names = [
        "threshold prune",
        "quantize to i8",
        "dequantize",
        "fake quantize",
        "batch norm, inference",
        "dropout",
    ];
    // Bytes that a call reads and writes for each number.
    let mut lines: Vec<Line> = names
        .iter()
        .zip([8.0, 5.0, 5.0, 8.0, 8.0, 8.0])
        .map(|(name, bytes)| Line::new(name, MEMORY / bytes))
        .collect();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    for &n in sizes {
        let x = Array2::from_shape_simple_fn((n / COLUMNS, COLUMNS), || rng.random::<f32>() - 0.5);
        let mut y = Array2::ones(x.raw_dim());
        let mut codes = Array2::<i8>::ones(x.raw_dim());
        let pruner = MagnitudePruner::threshold(0.25)?;
        let (scheme, params) =
            (Scheme::int8_symmetric_127(), [QuantParams { scale: 0.004_f32, zero_point: 0 }]);
        let norm = BatchNorm::from_parts(
            Array1::from_elem(COLUMNS, 1.5),
            Array1::zeros(COLUMNS),
            Array1::zeros(COLUMNS),
            Array1::ones(COLUMNS),
            1e-5,
        )?;
        let (dropout, mut cache) = (Dropout::new(0.5)?, DropoutCache::default());
        let times = [
            shortest(test, || pruner.prune_into(x.view(), y.view_mut(), &pool).map(drop))?,
            shortest(test, || scheme.quantize_into(&params, x.view(), codes.view_mut(), &pool))?,
            shortest(test, || scheme.dequantize_into(&params, codes.view(), y.view_mut(), &pool))?,
            shortest(test, || scheme.fake_quantize_into(&params, x.view(), y.view_mut(), &pool))?,
            shortest(test, || norm.normalize_into(x.view(), y.view_mut(), &pool))?,
            shortest(test, || dropout.perturb_into(x.view(), y.view_mut(), &mut cache, &mut rng, &pool))?,
        ];
        black_box((&y, &codes));
        lines.iter_mut().zip(times).for_each(|(line, time)| line.add(n as f64, time / n as f64));
    }
    Ok(lines)
}

/// Nanoseconds of an epoch over `rows` rows through 100-`width`-`width`-10, and its parameters.
fn epoch(test: bool, rows: usize, width: usize) -> Done<(f64, usize)> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let inputs = Array2::from_shape_simple_fn((rows, 100), || rng.random::<f32>() - 0.5);
    let data = Dataset::classification(inputs, (0..rows).map(|row| row % 10).collect())?;
    let mut mlp =
        Mlp::builder(100).linear(width).relu().linear(width).relu().linear(10).build::<f32>(&mut rng)?;
    let (trainer, mut adam) = (Trainer::new(1, 128)?.with_threads(1), Adam::new());
    let parameters = mlp.parameters();
    let time = shortest(test, || {
        trainer.fit(&mut mlp, &mut CrossEntropy, &data, None, &mut adam, &mut []).map(drop)
    })?;
    Ok((time, parameters))
}

fn by_rows(test: bool) -> Done<Line> {
    let mut line = Line::new("100-128-128-10, by rows: ns per row", f64::INFINITY);
    let sizes: &[usize] = if test { &[256] } else { &[1_280, 5_120, 20_480, 81_920] };
    for &rows in sizes {
        line.add(rows as f64, epoch(test, rows, 128)?.0 / rows as f64);
    }
    Ok(line)
}

fn by_parameters(test: bool) -> Done<Line> {
    const ROWS: usize = 5_120;
    let mut line = Line::new("5,120 rows, by parameters: ns per 1,000 rows and parameter", f64::INFINITY);
    let widths: &[usize] = if test { &[16] } else { &[64, 128, 256, 512, 1024] };
    for &width in widths {
        let rows = if test { 256 } else { ROWS };
        let (time, parameters) = epoch(test, rows, width)?;
        line.add(parameters as f64, time * 1000.0 / (rows * parameters) as f64);
    }
    Ok(line)
}
