//! How good an engine is on a data set.

use ndarray::{Array2, ArrayView2};

use super::element::Element;
use super::format::{Batch, BatchMut};
use super::network::Engine;
use crate::error::Result;
use crate::float::check_shape;
use crate::nn::objective::Tally;
use crate::nn::{Dataset, Evaluation};

/// Rows that are predicted at once.
const CHUNK: usize = 1024;

impl<F: Element> Engine<F> {
    /// Loss and accuracy, as [`nn::evaluate`](crate::nn::evaluate) tells them of a network. Codes at the ends are made of the
    /// numbers, and back to numbers.
    ///
    /// ```
    /// use trimnet::engine::{Config, Engine, Format};
    /// use trimnet::ndarray::array;
    /// use trimnet::nn::{Dataset, Layer, Linear, Mlp};
    ///
    /// // The class is the larger of two numbers.
    /// let linear = Linear::new(array![[1.0f32, 0.0], [0.0, 1.0]], None)?;
    /// let mlp = Mlp::from_layers(2, vec![Layer::Linear(linear)])?;
    /// let data = Dataset::classification(array![[0.2f32, 0.9], [0.8, 0.1]], vec![1, 0])?;
    ///
    /// let engine = Engine::build(&mlp, &Config::new(Format::Int8).with_calibration(data.inputs()))?;
    /// assert_eq!(engine.evaluate(&data)?.accuracy, Some(1.0));
    /// # Ok::<(), trimnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if inputs or outputs do not fit; [`Error::Label`](crate::Error::Label) for a label
    /// without an output.
    pub fn evaluate(&self, data: &Dataset<F>) -> Result<Evaluation> {
        let mut batches = data.batches(CHUNK)?;
        let mut tally = Tally::default();
        while let Some(batch) = batches.next_batch() {
            tally.add(self.numbers(batch.inputs)?.view(), batch.targets)?;
        }
        Ok(tally.evaluation())
    }

    /// The outputs of rows as numbers, whether the engine takes and gives numbers or codes.
    pub(crate) fn numbers(&self, x: ArrayView2<'_, F>) -> Result<Array2<F>> {
        if self.entry().is_none() && self.exit().is_none() {
            return self.predict(x);
        }
        check_shape("input", x.shape(), &[x.nrows(), self.inputs()])?;
        let x: Vec<F> = x.iter().copied().collect();
        let (rows, outputs) = (x.len() / self.inputs(), self.outputs());
        let codes = self.encode(&x);
        let x = if self.entry().is_some() { Batch::Codes(&codes) } else { Batch::Float(&x) };
        let mut out = Array2::zeros((rows, outputs));
        let numbers = out.as_slice_mut().unwrap_or_default();
        let mut workspace = self.workspace(rows);
        if self.exit().is_some() {
            let mut found = vec![0; numbers.len()];
            self.run(x, BatchMut::Codes(&mut found), &mut workspace)?;
            numbers.copy_from_slice(&self.decode(&found));
        } else {
            self.run(x, BatchMut::Float(numbers), &mut workspace)?;
        }
        Ok(out)
    }
}
