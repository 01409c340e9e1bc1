//! `prune.KIND.N`: from weights to the same weights with zeros, in a buffer that is kept; the input stays.

use std::hint::black_box;

use ndarray::{Array2, Ix2};
use trimnet::Float;
use trimnet::kernel::Pool;
use trimnet::prune::{MagnitudePruner, NmPruner, Pruner, Selection, StructuredPruner};

use super::case::{Call, Case, Context};
use super::data;

const N: usize = 4096;
const SPARSITY: f64 = 0.9;
const THRESHOLD: f64 = 0.02 * 1.644_853_6;

/// The cases of this family.
pub fn cases() -> Vec<Case> {
    let mut cases = typed::<f32>("");
    cases.extend(typed::<f64>(".f64"));
    cases
}

fn typed<F: Float>(suffix: &str) -> Vec<Case> {
    vec![
        Case::new(format!("prune.magnitude.{N}.s90{suffix}"), |context| {
            let pruner = MagnitudePruner::sparsity(SPARSITY).map_err(|e| e.to_string())?;
            prepare::<F>(context, pruner, |w, out| {
                let zeros = (SPARSITY * w.len() as f64).round() as usize;
                let largest = w.iter().zip(out).filter(|(_, out)| **out == F::zero()).map(|(w, _)| w.abs());
                let largest = largest.fold(F::zero(), |a, b| if b > a { b } else { a });
                let dropped = out.iter().filter(|out| **out == F::zero()).count();
                dropped == zeros && out.iter().all(|&out| out == F::zero() || out.abs() >= largest)
            })
        })
        .smoke(),
        Case::new(format!("prune.threshold.{N}{suffix}"), |context| {
            let pruner = MagnitudePruner::threshold(THRESHOLD).map_err(|e| e.to_string())?;
            prepare::<F>(context, pruner, |w, out| {
                w.iter().zip(out).all(|(w, out)| (w.abs() >= F::of(THRESHOLD)) == (*out != F::zero()))
            })
        }),
        Case::new(format!("prune.rows.{N}{suffix}"), |context| {
            let pruner = StructuredPruner::rows(Selection::sparsity(0.5).map_err(|e| e.to_string())?);
            prepare::<F>(context, pruner, |w, out| {
                let norm = |row: &[F]| row.iter().map(|w| w.as_f64() * w.as_f64()).sum::<f64>();
                let mut norms: Vec<f64> = w.chunks(N).map(norm).collect();
                norms.sort_by(f64::total_cmp);
                let rows = w.chunks(N).zip(out.chunks(N));
                let right = |(w, out): (&[F], &[F])| {
                    let kept = out.iter().any(|out| *out != F::zero());
                    (!kept || out == w) && kept == (norm(w) > norms[N / 2 - 1])
                };
                rows.filter(|&pair| !right(pair)).count() <= 2
            })
        }),
        Case::new(format!("prune.2of4.{N}{suffix}"), |context| {
            let pruner = NmPruner::keep(2, 4).map_err(|e| e.to_string())?;
            prepare::<F>(context, pruner, |w, out| {
                let fours = w.chunks(4).zip(out.chunks(4));
                fours.into_iter().all(|(w, out)| {
                    let mut sizes: Vec<f64> = w.iter().map(|w| w.abs().as_f64()).collect();
                    sizes.sort_by(f64::total_cmp);
                    let kept = || out.iter().filter(|out| **out != F::zero());
                    kept().count() == 2 && kept().all(|out| out.abs().as_f64() >= sizes[2])
                })
            })
        }),
    ]
}

fn prepare<F: Float>(
    context: &Context,
    pruner: impl Pruner<F, Ix2> + 'static,
    right: impl Fn(&[F], &[F]) -> bool,
) -> Result<Call, String> {
    let w: Vec<F> = data::normal(N * N, 1, 0.02).into_iter().map(|w| F::of(w.into())).collect();
    let w = Array2::from_shape_vec((N, N), w).map_err(|e| e.to_string())?;
    let (pool, mut out) = (Pool::new(context.threads), Array2::from_elem((N, N), F::one()));
    pruner.prune_into(w.view(), out.view_mut(), &pool).map_err(|e| e.to_string())?;
    let (flat, flat_out) = (w.as_slice().unwrap_or_default(), out.as_slice().unwrap_or_default());
    let survivors = flat.iter().zip(flat_out).all(|(w, out)| *out == F::zero() || out == w);
    if !(survivors && right(flat, flat_out)) {
        return Err("wrong zeros".to_string());
    }
    Ok(Box::new(move || {
        black_box(pruner.prune_into(black_box(w.view()), out.view_mut(), &pool).ok());
        black_box(&mut out);
    }))
}
