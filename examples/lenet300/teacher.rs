//! The teacher, and the images that it has looked at: the student never runs it.

use std::path::Path;

use trimnet::Result;
use trimnet::ndarray::{Array2, ArrayView2, Axis, concatenate};
use trimnet::nn::{Adam, CrossEntropy, Dataset, LearningRate, Mlp, Trainer};
use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

use crate::augment::Affine;
use crate::common::Progress;

/// How the teacher sees the images: anew in each epoch.
const WILD: Affine = Affine { shift: 2.0, rotation: 0.2, scale: 0.12, shear: 0.15, elastic: 0.0 };

/// How the student sees all but one copy of them.
const MILD: Affine = Affine { shift: 1.5, rotation: 0.15, scale: 0.1, shear: 0.12, elastic: 0.0 };

/// Copies in the pool: fewer are learnt by heart, more are too much for a tiny student.
pub const COPIES: usize = 3;

/// Images to learn from, and what is said about them.
pub struct Pool {
    pub data: Dataset<f32>,
    /// Logits of the teacher `[rows, classes]`, if there is one.
    pub teacher: Option<Array2<f32>>,
}

/// Reads the teacher from `path`, or trains it and saves it there.
pub fn teacher(
    train: &Dataset<f32>,
    classes: usize,
    epochs: usize,
    seed: u64,
    path: &Path,
) -> Result<Mlp<f32>> {
    if path.exists() {
        return Mlp::load(path);
    }
    let mut mlp = Mlp::builder(train.features())
        .dropout(0.1)
        .linear(1200)
        .relu()
        .dropout(0.5)
        .linear(1200)
        .relu()
        .dropout(0.5)
        .linear(classes)
        .build(&mut Xoshiro256PlusPlus::seed_from_u64(seed))?;
    let rate = LearningRate::cosine(1e-3, 1e-5, epochs as f64)?;
    let (bar, mut adam) = (Progress::new("teacher", epochs), Adam::new());
    for epoch in 0..epochs {
        let stream = (seed << 20) + epoch as u64;
        let labels = train.labels().unwrap_or_default().to_vec();
        let data = Dataset::classification(WILD.apply(train.inputs(), stream), labels)?;
        let trainer = Trainer::new(1, 250)?.with_seed(stream);
        let trainer = trainer.with_learning_rate(LearningRate::constant(rate.at(epoch as f64 + 0.5))?);
        trainer.fit(&mut mlp, &mut CrossEntropy, &data, None, &mut adam, &mut [])?;
        bar.at(epoch as u64 + 1);
    }
    mlp.save(path)?;
    Ok(mlp)
}

/// The training images, changed copies of them, and the teacher's logits of all.
pub fn pool(train: &Dataset<f32>, teacher: &Mlp<f32>, seed: u64) -> Result<Pool> {
    let changed: Vec<_> =
        (1..COPIES as u64).map(|copy| MILD.apply(train.inputs(), (seed << 20) + (copy << 32))).collect();
    let views: Vec<ArrayView2<'_, f32>> =
        std::iter::once(train.inputs()).chain(changed.iter().map(|c| c.view())).collect();
    let images = concatenate(Axis(0), &views).map_err(|_| trimnet::Error::Empty { what: "images" })?;
    let mut logits = Array2::zeros((images.nrows(), teacher.outputs()));
    for (images, mut logits) in
        images.axis_chunks_iter(Axis(0), 4000).zip(logits.axis_chunks_iter_mut(Axis(0), 4000))
    {
        logits.assign(&teacher.predict(images)?);
    }
    let labels = train.labels().unwrap_or_default().repeat(COPIES);
    Ok(Pool { data: Dataset::classification(images, labels)?, teacher: Some(logits) })
}
