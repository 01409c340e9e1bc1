//! From the trained network to blocks: batch norms folded, dropout gone, dead neurons cut out, activations joined to
//! the linear layer before them.

use super::format::Format;
use super::recipe::{Block, Linear, Weights};
use crate::error::Result;
use crate::float::{Float, check_finite};
use crate::nn::{Layer, Mlp};

/// Blocks of float weights that give the same as the network.
pub(super) fn lower<F: Float>(mlp: &Mlp<F>) -> Result<Vec<Block<F>>> {
    let (small, _) = mlp.fold_batch_norm()?.shrink()?;
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
}
