//! A network that is only asked, again and again: its weights are packed for the product once.

use ndarray::{Array2, ArrayView2};

use super::layer::Layer;
use super::mlp::Mlp;
use super::workspace::Workspace;
use crate::error::Result;
use crate::float::Float;
use crate::kernel::PackedReal;

/// A network and its packed weights, which cannot disagree while the network is borrowed.
#[derive(Clone, Debug)]
pub(crate) struct Frozen<'m, F: Float> {
    mlp: &'m Mlp<F>,
    layers: &'m [Layer<F>],
    /// One for each linear layer among `layers`.
    packed: Vec<Option<PackedReal<F>>>,
}

impl<'m, F: Float> Frozen<'m, F> {
    /// The network up to and including the layer at `last`, or all of it.
    ///
    /// # Errors
    /// [`Error::OutOfRange`](crate::Error::OutOfRange) if there is no such layer.
    pub(crate) fn new(mlp: &'m Mlp<F>, last: Option<usize>) -> Result<Self> {
        let layers = match last {
            Some(last) => {
                mlp.check_layer(last)?;
                &mlp.layers()[..=last]
            }
            None => mlp.layers(),
        };
        let pack = |layer: &Layer<F>| match layer {
            Layer::Linear(linear) => Some(linear.packed()),
            _ => None,
        };
        Ok(Self { mlp, layers, packed: layers.iter().map(pack).collect() })
    }

    /// Features that go in.
    pub(crate) fn inputs(&self) -> usize {
        self.mlp.inputs()
    }

    /// Features that come out.
    ///
    /// # Errors
    /// As [`Layer::outputs`].
    pub(crate) fn outputs(&self) -> Result<usize> {
        self.layers.iter().try_fold(self.mlp.inputs(), |width, layer| layer.outputs(width))
    }

    /// The bits of [`Mlp::predict_with`], or of [`Mlp::hidden`].
    ///
    /// # Errors
    /// As those.
    pub(crate) fn predict_with(
        &self,
        x: ArrayView2<'_, F>,
        workspace: &mut Workspace<F>,
    ) -> Result<Array2<F>> {
        self.mlp.infer(x, self.layers, &self.packed, workspace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array;
    use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

    #[test]
    fn gives_the_bits_of_the_network_for_any_number_of_rows_and_threads() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mlp =
            Mlp::builder(70).linear(130).relu().linear(90).tanh().linear(3).build::<f32>(&mut rng).unwrap();
        for rows in [0, 1, 3, 4, 150] {
            let x = Array::from_shape_fn((rows, 70), |(i, j)| ((i * 7 + j * 3) % 11) as f32 / 3.0 - 1.0);
            for threads in [1, 2] {
                let mut workspace = Workspace::with_threads(threads);
                let all = Frozen::new(&mlp, None).unwrap();
                assert_eq!(
                    all.predict_with(x.view(), &mut workspace).unwrap(),
                    mlp.predict(x.view()).unwrap()
                );
                let hidden = Frozen::new(&mlp, Some(2)).unwrap();
                let expected = mlp.hidden(x.view(), 2).unwrap();
                assert_eq!(hidden.predict_with(x.view(), &mut workspace).unwrap(), expected);
                assert_eq!((all.outputs().unwrap(), hidden.outputs().unwrap()), (3, 90));
            }
        }
        assert!(Frozen::new(&mlp, Some(5)).is_err());
    }
}
