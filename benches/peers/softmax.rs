//! `softmax_xent.ROWSxCLASSES`: mean cross-entropy of the softmax against labels, and its gradient by the logits.

use std::hint::black_box;

use ndarray::Array2;
use trimnet::Float;
use trimnet::kernel::Pool;
use trimnet::nn::loss::cross_entropy_on;

use super::case::{Call, Case, Context};
use super::{check, data};

const ROWS: usize = 1024;
const CLASSES: usize = 1000;

/// The cases of this family.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(format!("softmax_xent.{ROWS}x{CLASSES}"), prepare::<f32>).smoke(),
        Case::new(format!("softmax_xent.{ROWS}x{CLASSES}.f64"), prepare::<f64>),
    ]
}

fn prepare<F: Float>(context: &Context) -> Result<Call, String> {
    let pool = Pool::new(context.threads);
    let numbers = data::normal(ROWS * CLASSES, 1, 1.0);
    let labels: Vec<usize> =
        data::uniform(ROWS, 3).into_iter().map(|u| (u * CLASSES as f32) as usize).collect();

    let wide = data::widen(&numbers);
    let (mut loss, mut expected) = (0.0, Vec::with_capacity(ROWS * CLASSES));
    for (z, &label) in wide.chunks(CLASSES).zip(&labels) {
        let sum: f64 = z.iter().map(|z| z.exp()).sum();
        loss += (sum.ln() - z[label]) / ROWS as f64;
        let onehot = |j| if j == label { 1.0 } else { 0.0 };
        expected.extend(z.iter().enumerate().map(|(j, z)| (z.exp() / sum - onehot(j)) / ROWS as f64));
    }

    let logits = Array2::from_shape_fn((ROWS, CLASSES), |(i, j)| F::of(wide[i * CLASSES + j]));
    let mut dlogits = Array2::from_elem((ROWS, CLASSES), F::of(0.0));
    let first = cross_entropy_on(&pool, logits.view(), &labels, dlogits.view_mut());
    let first = first.map_err(|error| error.to_string())?;
    check::close("the loss", &[first.as_f64()], &[loss], 1e-5)?;
    check::close("dlogits", &dlogits.iter().map(|d| d.as_f64()).collect::<Vec<_>>(), &expected, 1e-5)?;
    Ok(Box::new(move || {
        let loss = cross_entropy_on(&pool, logits.view(), black_box(&labels), dlogits.view_mut());
        black_box((loss.is_ok(), &mut dlogits));
    }))
}
