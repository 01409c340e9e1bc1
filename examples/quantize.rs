//! Quantizes one weight matrix by several schemes and shows what each costs: `cargo run --release --example quantize`

mod common;

use common::{Args, Done};
use ndarray::Array2;
use trimnet::prune::score;
use trimnet::quantize::{RangeMethod, Scheme, UniformQuantizer};
use trimnet::{Compressed, Compressor};

/// `[300, 784]`, as training leaves them: bell-shaped, rows of different strength, and a few outliers.
fn trained_like() -> Array2<f32> {
    let uniform = |seed| score::random::<f64, _>((300, 784), seed);
    let normal = ndarray::Zip::from(&uniform(1))
        .and(&uniform(2))
        .map_collect(|a, b| ((-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32);
    let strength = Array2::from_shape_fn((300, 1), |(i, _)| 0.02 + 0.08 * i as f32 / 300.0);
    let outliers = uniform(3).mapv(|u| if u < 1e-4 { 4.0 } else { 1.0 });
    normal * strength * outliers
}

fn main() -> Done {
    Args::parse(
        "Quantizes one weight matrix by several schemes and shows what each costs. It takes no options.",
        &[],
    )?;
    let weights = trained_like();
    println!("dense: {} weights, {} bytes", weights.len(), 4 * weights.len());
    println!(
        "{:>4}  {:<13}{:<15}{:>9}{:>11}{:>9}{:>9}",
        "bits", "scale per", "range", "SQNR dB", "max error", "clipped", "bytes"
    );
    let ranges = [
        ("min-max", RangeMethod::MinMax),
        ("99.5 %", RangeMethod::Percentile(99.5)),
        ("least squares", RangeMethod::LeastSquares),
    ];
    for bits in [8, 4, 3, 2] {
        let scheme = Scheme::symmetric(bits)?;
        let granularities = [
            ("tensor", scheme),
            ("channel", scheme.per_channel(0)),
            ("group of 56", scheme.per_group(1, 56)?),
        ];
        for (per, scheme) in granularities {
            for (range, method) in ranges {
                let quantized = UniformQuantizer::new(scheme).with_range(method)?.compress(weights.view())?;
                let report = quantized.report(weights.view())?;
                println!(
                    "{bits:>4}  {per:<13}{range:<15}{:>9.2}{:>11.5}{:>9}{:>9}",
                    report.sqnr_db,
                    report.max_error,
                    report.clipped,
                    quantized.size_bytes()
                );
            }
        }
    }
    Ok(())
}
