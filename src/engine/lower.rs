//! From the trained network to blocks: batch norms folded, dropout gone, dead neurons cut out, activations joined to
//! the linear layer before them.

use ndarray::Axis;

use super::format::Format;
use super::recipe::{Block, Linear, Weights};
use super::weights::check_two_four;
use crate::error::Result;
use crate::float::{Float, check_finite};
use crate::nn::{self, Layer, Mlp};

/// Blocks of float weights that give the same as the network.
pub(super) fn lower<F: Float>(mlp: &Mlp<F>) -> Result<Vec<Block<F>>> {
    let (small, _) = mlp.fold_batch_norm()?.shrink_where(|linear, dead| !breaks_two_four(linear, dead))?;
    let mut blocks: Vec<Block<F>> = Vec::new();
    for layer in small.layers() {
        match (layer, blocks.last_mut()) {
            (Layer::Activation(activation), Some(Block::Linear(linear))) if linear.activation.is_none() => {
                linear.activation = Some(*activation);
            }
            _ => blocks.extend(plain(layer)),
        }
    }
    for linear in small.linears() {
        check_finite("weight", &linear.weight())?;
    }
    Ok(blocks)
}

/// Whether a layer that was pruned 2:4 would not be so any more, for a few dead inputs: the pattern is worth more than they cost.
///
/// Layers of few weights that happen to have the pattern, and many dead inputs, are cut.
fn breaks_two_four<F: Float>(linear: &nn::Linear<F>, dead: &[usize]) -> bool {
    let (weight, inputs) = (linear.weight(), linear.inputs());
    let nonzero = weight.iter().filter(|w| **w != F::zero()).count();
    if 8 * dead.len() > inputs || 4 * nonzero <= weight.len() {
        return false;
    }
    let holds = |columns: &[usize]| {
        let weight: Vec<F> = weight.select(Axis(1), columns).iter().copied().collect();
        check_two_four(&weight, columns.len()).is_ok()
    };
    let all: Vec<usize> = (0..inputs).collect();
    let kept: Vec<usize> = (0..inputs).filter(|input| !dead.contains(input)).collect();
    holds(&all) && !holds(&kept)
}

/// The block of one layer alone; none for what only training needs.
pub(super) fn plain<F: Float>(layer: &Layer<F>) -> Option<Block<F>> {
    match layer {
        Layer::Linear(linear) => Some(Block::Linear(Linear {
            inputs: linear.inputs(),
            outputs: linear.outputs(),
            format: Format::Dense,
            weights: Weights::Float {
                weight: linear.weight().iter().copied().collect(),
                bias: linear.bias().map(|bias| bias.to_vec()),
            },
            activation: None,
        })),
        Layer::BatchNorm(norm) => {
            let (scale, shift) = norm.scale_shift();
            Some(Block::Affine { scale: scale.to_vec(), shift: shift.to_vec() })
        }
        Layer::LayerNorm(norm) => Some(Block::LayerNorm(norm.clone())),
        Layer::Activation(activation) => Some(Block::Activation(*activation)),
        Layer::Dropout(_) | Layer::GaussianNoise(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Activation;
    use ndarray::Array2;
    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    #[test]
    fn what_only_training_needs_is_gone() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mlp = Mlp::builder(6).linear(5).batch_norm().relu().dropout(0.5).linear(4).tanh().linear(2);
        let blocks = lower(&mlp.build::<f32>(&mut rng).unwrap()).unwrap();
        let activations: Vec<_> = blocks
            .iter()
            .map(|block| match block {
                Block::Linear(linear) => linear.activation,
                _ => panic!("a block that is not linear"),
            })
            .collect();
        assert_eq!(activations, [Some(Activation::Relu), Some(Activation::Tanh), None]);
    }

    #[test]
    fn a_batch_norm_without_a_linear_neighbour_scales_and_shifts() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mlp = Mlp::builder(6).linear(5).relu().batch_norm().build::<f64>(&mut rng).unwrap();
        assert!(matches!(lower(&mlp).unwrap()[..], [Block::Linear(_), Block::Affine { .. }]));
    }

    #[test]
    fn a_dead_input_stays_where_the_layer_would_lose_its_pattern() {
        let first = Array2::from_shape_fn((16, 4), |(i, j)| 1.0 + ((i * 5 + j * 3) % 7) as f32);
        let patterns = [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]];
        // Nobody listens to neuron 2.
        let second = Array2::from_shape_fn((2, 16), |(i, j)| match (i, j) {
            (1, 0..4) => [1.0, 0.0, 0.0, 1.0][j],
            _ => patterns[i][j % 4],
        });
        let mlp = |second: &Array2<f32>| {
            let linear = |weight: &Array2<f32>| Layer::Linear(nn::Linear::new(weight.clone(), None).unwrap());
            let relu = Layer::Activation(Activation::Relu);
            Mlp::from_layers(4, vec![linear(&first), relu, linear(second)]).unwrap()
        };
        let widths = |second: &Array2<f32>| {
            let blocks = lower(&mlp(second)).unwrap();
            blocks
                .iter()
                .map(|block| match block {
                    Block::Linear(linear) => linear.outputs,
                    _ => 0,
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(widths(&second), [16, 2]);
        // Without the pattern it goes, and so do many.
        let mut other = second.clone();
        other[[0, 3]] = 1.0;
        assert_eq!(widths(&other), [15, 2]);
        let mut dead = second.clone();
        dead.slice_mut(ndarray::s![.., 4..7]).fill(0.0);
        assert_eq!(widths(&dead), [12, 2]);
    }
}
