//! Prunes one weight matrix by several rules and shows what each leaves: `cargo run --release --example prune`

mod common;

use common::{Args, Done};
use ndarray::{Array2, Ix2};
use trimnet::Compressed;
use trimnet::prune::{MagnitudePruner, NmPruner, Pruner, Scope, Selection, StructuredPruner, score};

type Rule = Box<dyn Pruner<f32, Ix2>>;

/// `[300, 784]`, as training leaves them: most weights are small, and inputs differ in how much they are used.
fn trained_like() -> Array2<f32> {
    let (a, b) = (score::random::<f64, _>((300, 784), 1), score::random::<f64, _>((300, 784), 2));
    let normal = ndarray::Zip::from(&a)
        .and(&b)
        .map_collect(|a, b| ((-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos()) as f32);
    let used = Array2::from_shape_fn((1, 784), |(_, j)| 0.1 * (-((j as f32 - 392.0) / 200.0).powi(2)).exp());
    normal * used
}

fn main() -> Done {
    Args::parse(
        "Prunes one weight matrix by several rules and shows what each leaves. It takes no options.",
        &[],
    )?;
    let weights = trained_like();
    let dense_bytes = 4 * weights.len();
    println!("dense: {} weights, {dense_bytes} bytes", weights.len());
    println!("lost: share of the sum of squares\n");
    println!("{:<28}{:>9}{:>9}{:>10}{:>9}", "rule", "zeros", "kept", "bytes", "lost");

    let at = |sparsity| Selection::sparsity(sparsity);
    let rules: [(&str, Rule); 9] = [
        ("magnitude, 50 %", Box::new(MagnitudePruner::sparsity(0.5)?)),
        ("magnitude, 90 %", Box::new(MagnitudePruner::sparsity(0.9)?)),
        ("magnitude, 99 %", Box::new(MagnitudePruner::sparsity(0.99)?)),
        ("magnitude per row, 90 %", Box::new(MagnitudePruner::new(at(0.9)?.with_scope(Scope::PerRow)))),
        ("magnitude below 0.05", Box::new(MagnitudePruner::threshold(0.05)?)),
        ("2 of every 4", Box::new(NmPruner::keep(2, 4)?)),
        ("blocks of 16 x 1, 90 %", Box::new(StructuredPruner::blocks(16, 1, at(0.9)?)?)),
        ("rows, 50 %", Box::new(StructuredPruner::rows(at(0.5)?))),
        ("columns, 50 %", Box::new(StructuredPruner::columns(at(0.5)?))),
    ];
    for (name, pruner) in rules {
        let sparse = pruner.compress(weights.view())?;
        // The share of the weights' energy that is lost.
        let lost = (&weights - sparse.decompress()?).mapv(|e| e * e).sum() / weights.mapv(|w| w * w).sum();
        println!(
            "{name:<28}{:>8.2}%{:>9}{:>10}{:>8.2}%",
            100.0 * sparse.sparsity(),
            sparse.nnz(),
            sparse.size_bytes(),
            100.0 * lost
        );
    }
    Ok(())
}
