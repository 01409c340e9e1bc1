//! The distillation loss: labels on one side, the teacher's softened opinion on the other.
//!
//! ```text
//! p = softmax(teacher / T)   q = softmax(student / T)
//! L = hard * CE(student, labels) + soft * T^2 * KL(p || q)
//! dL/dstudent = hard * (softmax(student) - onehot) / rows + soft * T * (q - p) / rows
//! ```
//!
//! `hard = alpha` and `soft = 1 - alpha` by default. The cross-entropy is at temperature 1. `KL` sums over the classes
//! and is divided by the rows only; `T^2` keeps its gradient of the same size for every temperature. Both are often
//! forgotten, and then the teacher hardly counts. Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network",
//! 2015.

use ndarray::{Array2, ArrayView2};

use crate::error::{Error, Result};
use crate::float::{Float, check_shape, elements, elements_mut};
use crate::kernel::{Isa, Work, with};
use crate::nn::loss::{LANES, check_labels, largest, padded, total_of};

/// Both terms of every row; results in the sums of the cross-entropy and of KL.
struct Rows<'a, F> {
    student: &'a [F],
    teacher: &'a [F],
    labels: Option<&'a [usize]>,
    dlogits: &'a mut [F],
    classes: usize,
    temperature: F,
    hard_gain: F,
    soft_gain: F,
}

impl<F: Float> Work for Rows<'_, F> {
    type Output = (f64, f64);

    /// Two passes over each row. The exponentials of the first are computed again in the second: cheaper than memory for
    /// three rows of them.
    #[inline(always)]
    fn run(self) -> (f64, f64) {
        let Self { student, teacher, labels, dlogits, classes, temperature: t, hard_gain, soft_gain } = self;
        let (mut hard, mut kl) = (0.0, 0.0);
        let rows = student.chunks_exact(classes).zip(teacher.chunks_exact(classes));
        for (row, ((z, y), d)) in rows.zip(dlogits.chunks_exact_mut(classes)).enumerate() {
            let (z_max, y_max) = (largest(z), largest(y));
            let (mut sums, mut sums_q, mut sums_p) =
                ([F::zero(); LANES], [F::zero(); LANES], [F::zero(); LANES]);
            for at in (0..classes).step_by(LANES) {
                let end = (at + LANES).min(classes);
                let (z, y) = (padded(&z[at..end]), padded(&y[at..end]));
                for i in 0..LANES {
                    sums[i] += (z[i] - z_max).exp_below();
                    sums_q[i] += ((z[i] - z_max) / t).exp_below();
                    sums_p[i] += ((y[i] - y_max) / t).exp_below();
                }
            }
            let (sum, sum_q, sum_p) = (total_of(sums), total_of(sums_q), total_of(sums_p));
            let logs = sum_q.ln() - sum_p.ln();
            let mut kls = [F::zero(); LANES];
            for at in (0..classes).step_by(LANES) {
                let end = (at + LANES).min(classes);
                let (z, y) = (padded(&z[at..end]), padded(&y[at..end]));
                let mut out = [F::zero(); LANES];
                for i in 0..LANES {
                    let (z_soft, y_soft) = ((z[i] - z_max) / t, (y[i] - y_max) / t);
                    let p = y_soft.exp_below() / sum_p;
                    let q = z_soft.exp_below() / sum_q;
                    // p log p -> 0 as p -> 0, where the product of 0 and an infinite logarithm would be NaN.
                    kls[i] += if p == F::zero() { F::zero() } else { p * ((y_soft - z_soft) + logs) };
                    out[i] = (q - p) * soft_gain + (z[i] - z_max).exp_below() / sum * hard_gain;
                }
                d[at..end].copy_from_slice(&out[..end - at]);
            }
            kl += total_of(kls).as_f64();
            if let Some(labels) = labels {
                let label = labels[row];
                hard += (sum.ln() - (z[label] - z_max)).as_f64();
                d[label] -= hard_gain;
            }
        }
        (hard, kl)
    }
}

/// How much the labels and the teacher weigh: two free weights, or `alpha` and `1 - alpha`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct KdWeights {
    /// Factor of the cross-entropy with the labels.
    pub hard: f64,
    /// Factor of the `T^2 * KL` term with the teacher.
    pub soft: f64,
}

impl KdWeights {
    /// `alpha` for the labels and `1 - alpha` for the teacher.
    pub fn alpha(alpha: f64) -> Self {
        Self { hard: alpha, soft: 1.0 - alpha }
    }

    /// Both weights not negative, and finite in the element type.
    pub(super) fn check<F: Float>(self) -> Result<()> {
        check_weight::<F>("hard weight", self.hard)?;
        check_weight::<F>("soft weight", self.soft)
    }
}

/// Refuses a weight of a term that is negative, or not finite in the element type.
pub(super) fn check_weight<F: Float>(name: &'static str, value: f64) -> Result<()> {
    if value >= 0.0 && F::of(value).is_finite() {
        return Ok(());
    }
    Err(Error::OutOfRange { name, value, range: "0 <= weight, finite in the element type" })
}

/// What the sum of the soft term over rows and classes is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Reduction {
    /// By the number of rows, as the paper means it.
    #[default]
    BatchMean,
    /// By rows times classes. **This makes the soft term `classes` times too small** (as PyTorch's `KLDivLoss` with its
    /// default reduction); it is here to repeat results that were made so. [`KdLoss::warning`] says it in words, and the
    /// trainer keeps them in its history.
    Mean,
}

/// The distillation loss with its settings.
///
/// The formula has `T^2`: it must be a normal number, neither 0 nor infinite, in the element type. For `f32` that
/// allows temperatures from 1.1e-19 to 1.8e19, for `f64` from 1.5e-154 to 1.3e154.
///
/// ```
/// use ndarray::array;
/// use trimnet::distill::KdLoss;
/// let student = array![[1.0, 2.0, 3.0], [0.5, -1.0, 0.25]];
/// let teacher = array![[2.0, 1.0, 0.0], [1.0, 0.0, -1.0]];
/// let terms = KdLoss::new(4.0, 0.5)?.evaluate(student.view(), teacher.view(), &[2, 0])?;
/// assert!((terms.loss - 0.709167762_f64).abs() < 1e-9);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Raw"))]
pub struct KdLoss {
    temperature: f64,
    weights: KdWeights,
    reduction: Reduction,
}

/// A [`KdLoss`] evaluated: its value, its parts, its gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct KdTerms<F> {
    /// The weighted sum of both terms.
    pub loss: F,
    /// The cross-entropy with the labels, unweighted.
    pub hard: F,
    /// `T^2 * KL`, unweighted.
    pub soft: F,
    /// Gradient of `loss` by the student's logits `[rows, classes]`.
    pub dlogits: Array2<F>,
}

impl KdLoss {
    /// `alpha * CE + (1 - alpha) * T^2 * KL`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `temperature` is positive with a normal square in `f64` and `0 <= alpha <= 1`.
    pub fn new(temperature: f64, alpha: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&alpha) {
            return Err(Error::OutOfRange { name: "alpha", value: alpha, range: "0 <= alpha <= 1" });
        }
        Self { temperature, weights: KdWeights::alpha(alpha), reduction: Reduction::BatchMean }.checked()
    }

    /// Two free weights in place of `alpha`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless both are finite and not negative.
    pub fn with_weights(self, weights: KdWeights) -> Result<Self> {
        Self { weights, ..self }.checked()
    }

    /// Another divisor of the soft term.
    pub fn with_reduction(self, reduction: Reduction) -> Self {
        Self { reduction, ..self }
    }

    /// The temperature.
    pub fn temperature(&self) -> f64 {
        self.temperature
    }

    /// The weights of both terms.
    pub fn weights(&self) -> KdWeights {
        self.weights
    }

    /// What the soft term is divided by.
    pub fn reduction(&self) -> Reduction {
        self.reduction
    }

    /// What is wrong with these settings for a network of `classes` outputs, in words.
    pub fn warning(&self, classes: usize) -> Option<String> {
        match self.reduction {
            Reduction::BatchMean => None,
            Reduction::Mean => Some(format!(
                "Reduction::Mean divides the soft term by the classes too: it is {classes} times smaller than the \
                 batch mean"
            )),
        }
    }

    /// The loss of the student's logits against labels and the teacher's logits, both `[rows, classes]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the two differ in shape or the labels in number, [`Error::Empty`] without rows or classes,
    /// [`Error::Label`] for a label out of range, [`Error::OutOfRange`] for settings out of the range of the element type.
    pub fn evaluate<F: Float>(
        &self,
        student: ArrayView2<'_, F>,
        teacher: ArrayView2<'_, F>,
        labels: &[usize],
    ) -> Result<KdTerms<F>> {
        let mut dlogits = Array2::zeros(student.raw_dim());
        let (hard, soft) = self.evaluate_into(student, teacher, labels, &mut dlogits)?;
        let (hard_gain, soft_gain) = (F::of(self.weights.hard), F::of(self.weights.soft));
        Ok(KdTerms { loss: hard * hard_gain + soft * soft_gain, hard, soft, dlogits })
    }

    /// As [`evaluate`](Self::evaluate): the hard and the soft term without their weights, and the gradient of the weighted
    /// sum written to `dlogits`.
    pub(super) fn evaluate_into<F: Float>(
        &self,
        student: ArrayView2<'_, F>,
        teacher: ArrayView2<'_, F>,
        labels: &[usize],
        dlogits: &mut Array2<F>,
    ) -> Result<(F, F)> {
        self.check::<F>()?;
        check_shape("teacher logits", teacher.shape(), student.shape())?;
        check_labels(student, labels)?;
        Ok(self.rows(student, teacher, Some(labels), self.weights, dlogits))
    }

    /// The soft term alone, `T^2 * KL(teacher || student)` without its weight, and its gradient by the student's logits:
    /// what there is to learn from rows without labels.
    ///
    /// # Errors
    /// [`Error::Shape`] if the two differ in shape, [`Error::Empty`] without rows or classes, [`Error::OutOfRange`] for
    /// settings out of the range of the element type.
    pub fn soft<F: Float>(
        &self,
        student: ArrayView2<'_, F>,
        teacher: ArrayView2<'_, F>,
    ) -> Result<(F, Array2<F>)> {
        self.check::<F>()?;
        check_shape("teacher logits", teacher.shape(), student.shape())?;
        if student.is_empty() {
            return Err(Error::Empty { what: "logits" });
        }
        let mut dlogits = Array2::zeros(student.raw_dim());
        let weights = KdWeights { hard: 0.0, soft: 1.0 };
        let (_, soft) = self.rows(student, teacher, None, weights, &mut dlogits);
        Ok((soft, dlogits))
    }

    /// Both terms, and the gradient of their sum with these weights; everything fits.
    fn rows<F: Float>(
        &self,
        student: ArrayView2<'_, F>,
        teacher: ArrayView2<'_, F>,
        labels: Option<&[usize]>,
        weights: KdWeights,
        dlogits: &mut Array2<F>,
    ) -> (F, F) {
        let rows = student.nrows() as f64;
        let divisor = match self.reduction {
            Reduction::BatchMean => rows,
            Reduction::Mean => student.len() as f64,
        };
        let (student, teacher) = (student.as_standard_layout(), teacher.as_standard_layout());
        let work = Rows {
            student: elements(&student),
            teacher: elements(&teacher),
            labels,
            dlogits: elements_mut(dlogits),
            classes: student.ncols(),
            temperature: F::of(self.temperature),
            hard_gain: F::of(weights.hard / rows),
            soft_gain: F::of(weights.soft * self.temperature / divisor),
        };
        let (hard, kl) = with(Isa::best(), work);
        (F::of(hard / rows), F::of(self.temperature * self.temperature * kl / divisor))
    }

    /// Refuses settings out of the range of the element type.
    pub(super) fn check<F: Float>(&self) -> Result<()> {
        let t = self.temperature;
        if !(t > 0.0 && F::of(t * t).is_normal()) {
            let range = "0 < temperature, its square normal in the element type";
            return Err(Error::OutOfRange { name: "temperature", value: t, range });
        }
        self.weights.check::<F>()?;
        check_weight::<F>("soft weight times temperature", self.weights.soft * t)
    }

    /// In the widest type: the element type is known when there are logits.
    fn checked(self) -> Result<Self> {
        self.check::<f64>()?;
        Ok(self)
    }
}

/// The wire form of [`KdLoss`], checked on the way in.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct Raw {
    temperature: f64,
    weights: KdWeights,
    reduction: Reduction,
}

#[cfg(feature = "serde")]
impl TryFrom<Raw> for KdLoss {
    type Error = Error;

    fn try_from(Raw { temperature, weights, reduction }: Raw) -> Result<Self> {
        Self { temperature, weights, reduction }.checked()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;
    use ndarray::array;

    fn golden() -> (Array2<f64>, Array2<f64>, [usize; 2]) {
        (array![[1.0, 2.0, 3.0], [0.5, -1.0, 0.25]], array![[2.0, 1.0, 0.0], [1.0, 0.0, -1.0]], [2, 0])
    }

    #[test]
    fn has_the_values_of_pytorch() {
        let (student, teacher, labels) = golden();
        for (t, soft, loss, mean) in [
            (1.0, 0.700868860, 0.625863968, 0.233622953),
            (2.0, 0.820270912, 0.685564994, 0.273423637),
            (4.0, 0.867476448, 0.709167762, 0.289158816),
        ] {
            let kd = KdLoss::new(t, 0.5).unwrap();
            let terms = kd.evaluate(student.view(), teacher.view(), &labels).unwrap();
            assert_abs_diff_eq!(terms.hard, 0.550859075, epsilon = 1e-9);
            assert_abs_diff_eq!(terms.soft, soft, epsilon = 1e-9);
            assert_abs_diff_eq!(terms.loss, loss, epsilon = 1e-9);
            let (soft, _) = kd.with_reduction(Reduction::Mean).soft(student.view(), teacher.view()).unwrap();
            assert_abs_diff_eq!(soft, mean, epsilon = 1e-9);
        }
    }

    #[test]
    fn the_gradient_matches_finite_differences() {
        let (student, teacher, labels) = golden();
        for reduction in [Reduction::BatchMean, Reduction::Mean] {
            let kd = KdLoss::new(3.0, 0.5).unwrap().with_weights(KdWeights { hard: 0.3, soft: 2.0 }).unwrap();
            let kd = kd.with_reduction(reduction);
            let dlogits = kd.evaluate(student.view(), teacher.view(), &labels).unwrap().dlogits;
            for (index, &d) in dlogits.indexed_iter() {
                let at = |shift: f64| {
                    let mut student = student.clone();
                    student[index] += shift;
                    kd.evaluate(student.view(), teacher.view(), &labels).unwrap().loss
                };
                assert_abs_diff_eq!(d, (at(1e-5) - at(-1e-5)) / 2e-5, epsilon = 1e-9);
            }
        }
    }

    #[test]
    fn a_student_that_equals_its_teacher_has_nothing_to_learn() {
        let (student, ..) = golden();
        let (soft, dsoft) = KdLoss::new(2.0, 0.0).unwrap().soft(student.view(), student.view()).unwrap();
        assert_eq!(soft, 0.0);
        assert!(dsoft.iter().all(|&d| d == 0.0));
    }

    #[test]
    fn a_teacher_of_extreme_confidence_stays_finite() {
        let kd = KdLoss::new(0.01, 0.5).unwrap();
        let (soft, dsoft) = kd.soft(array![[0.0_f32, 1.0]].view(), array![[1e4, -1e4]].view()).unwrap();
        assert!(soft.is_finite() && dsoft.iter().all(|d| d.is_finite()));
    }

    #[test]
    fn warns_of_the_mean_over_classes() {
        let kd = KdLoss::new(2.0, 0.5).unwrap();
        assert_eq!(kd.warning(10), None);
        assert!(kd.with_reduction(Reduction::Mean).warning(10).unwrap().contains("10 times smaller"));
    }

    #[test]
    fn refuses_settings_and_shapes_that_do_not_fit() {
        for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(
                KdLoss::new(temperature, 0.5),
                Err(Error::OutOfRange { name: "temperature", .. })
            ));
        }
        for alpha in [-0.1, 1.1, f64::NAN] {
            assert!(matches!(KdLoss::new(1.0, alpha), Err(Error::OutOfRange { name: "alpha", .. })));
        }
        let kd = KdLoss::new(1.0, 0.5).unwrap();
        assert!(kd.with_weights(KdWeights { hard: -1.0, soft: 1.0 }).is_err());
        let (student, teacher, _) = golden();
        assert!(matches!(kd.evaluate(student.view(), teacher.view(), &[3, 0]), Err(Error::Label { .. })));
        assert!(matches!(kd.soft(student.view(), array![[1.0]].view()), Err(Error::Shape { .. })));
        let empty = Array2::<f32>::zeros((0, 3));
        assert!(matches!(kd.soft(empty.view(), empty.view()), Err(Error::Empty { .. })));
    }

    #[test]
    fn refuses_settings_out_of_the_range_of_the_element_type() {
        let (student, teacher, labels) = golden();
        let (narrow, narrow_teacher) = (student.mapv(|x| x as f32), teacher.mapv(|x| x as f32));
        let weighted =
            |hard, soft| KdLoss::new(2.0, 0.5).unwrap().with_weights(KdWeights { hard, soft }).unwrap();
        let mut refused: Vec<_> =
            [1e-46, 1e-40, 1e-20, 1e20, 1e39].iter().map(|&t| KdLoss::new(t, 0.5).unwrap()).collect();
        refused.extend([weighted(1e39, 0.0), weighted(0.0, 1e39), weighted(0.0, 3e38)]);
        for kd in refused {
            let terms = kd.evaluate(narrow.view(), narrow_teacher.view(), &labels);
            assert!(matches!(terms, Err(Error::OutOfRange { .. })), "{kd:?}");
            assert!(matches!(kd.soft(narrow.view(), narrow_teacher.view()), Err(Error::OutOfRange { .. })));
            assert!(kd.evaluate(student.view(), teacher.view(), &labels).unwrap().loss.is_finite());
        }
        for t in [1.1e-19, 1.8e19] {
            let terms = KdLoss::new(t, 0.5).unwrap().evaluate(narrow.view(), narrow_teacher.view(), &labels);
            let terms = terms.unwrap();
            assert!(terms.loss.is_finite() && terms.dlogits.iter().all(|d| d.is_finite()), "{t}: {terms:?}");
        }
        for t in [1e-160, 1e160] {
            assert!(matches!(KdLoss::new(t, 0.5), Err(Error::OutOfRange { name: "temperature", .. })));
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn stored_settings_are_checked_when_they_are_read() {
        let kd = KdLoss::new(2.5, 0.5).unwrap();
        let text = serde_json::to_string(&kd).unwrap();
        assert_eq!(serde_json::from_str::<KdLoss>(&text).unwrap(), kd);
        assert!(serde_json::from_str::<KdLoss>(&text.replace("2.5", "-2.5")).is_err());
    }
}
