//! What one step of trained compression established, the next ones keep: over random sequences of pruning, clustering,
//! quantizing, fine-tuning, averaging and shrinking, masked stays zero, shared stays shared, and shrinking changes no output.

use ndarray::Array2;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use trimnet::Mask;
use trimnet::nn::{
    Adam, AnnealedPenalty, Callback, CrossEntropy, Dataset, GradualPruning, LearningRate, Mlp, Momentum,
    Optimizer, Sgd, SharedGradient, StraightThrough, Trainer, WeightAverage, WeightSharing,
};
use trimnet::prune::Schedule;
use trimnet::quantize::{Granularity, PaletteQuantizer, Scheme, UniformQuantizer};
use trimnet::regularize::{Groups, Penalty};

const STEPS: u64 = 6;

#[derive(Clone, Copy, Debug)]
enum Act {
    /// One score of four, per layer or not, with regrowth or not.
    Prune {
        sparsity: f64,
        score: u8,
        per_layer: bool,
    },
    Cluster {
        entries: usize,
        sum: bool,
        rows: bool,
    },
    Quantize {
        bits: u8,
    },
    FineTune {
        group: bool,
    },
    Average {
        exponential: bool,
    },
    Shrink,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        (0.0..0.95, 0..4u8, any::<bool>()).prop_map(|(sparsity, score, per_layer)| Act::Prune {
            sparsity,
            score,
            per_layer
        }),
        (2..9usize, any::<bool>(), any::<bool>()).prop_map(|(entries, sum, rows)| Act::Cluster {
            entries,
            sum,
            rows
        }),
        (2..6u8).prop_map(|bits| Act::Quantize { bits }),
        any::<bool>().prop_map(|group| Act::FineTune { group }),
        any::<bool>().prop_map(|exponential| Act::Average { exponential }),
        Just(Act::Shrink),
    ];
    proptest::collection::vec(act, 1..7)
}

fn data(rows: usize, rng: &mut Xoshiro256PlusPlus) -> Dataset<f32> {
    let inputs = Array2::from_shape_simple_fn((rows, 6), || rng.random_range(-1.0..1.0f32));
    let labels = inputs.rows().into_iter().map(|x| usize::from(x.sum() > 0.0)).collect();
    Dataset::classification(inputs, labels).unwrap()
}

fn train(mlp: &mut Mlp<f32>, data: &Dataset<f32>, adam: bool, callbacks: &mut [&mut dyn Callback<f32>]) {
    let trainer = Trainer::new(2, data.rows() / (STEPS as usize / 2)).unwrap().with_threads(1);
    assert_eq!(trainer.steps_per_epoch(data) * 2, STEPS as usize);
    let trainer = trainer.with_learning_rate(LearningRate::constant(0.01).unwrap());
    let (mut a, mut b) = (Adam::new(), Sgd::new().with_momentum(Momentum::Heavy(0.9)).unwrap());
    let optimizer: &mut dyn Optimizer<f32> = if adam { &mut a } else { &mut b };
    trainer.fit(mlp, &mut CrossEntropy, data, None, optimizer, callbacks).unwrap();
}

/// Different values besides zero in each linear layer, and in each row.
fn values(mlp: &Mlp<f32>) -> Vec<(usize, usize)> {
    let count = |weights: &mut dyn Iterator<Item = &f32>| {
        let mut bits: Vec<u32> = weights.filter(|w| **w != 0.0).map(|w| w.to_bits()).collect();
        bits.sort_unstable();
        bits.dedup();
        bits.len()
    };
    let rows = |w: ndarray::ArrayView2<'_, f32>| w.rows().into_iter().map(|row| count(&mut row.iter())).max();
    mlp.linears().map(|l| (count(&mut l.weight().iter()), rows(l.weight()).unwrap_or_default())).collect()
}

fn masks(mlp: &Mlp<f32>) -> Vec<Mask<ndarray::Ix2>> {
    mlp.linears().map(|l| l.mask().cloned().unwrap_or_else(|| Mask::full(l.weight().raw_dim()))).collect()
}

fn masked_are_zero(mlp: &Mlp<f32>) -> bool {
    masks(mlp).iter().zip(mlp.linears()).all(|(mask, linear)| {
        mask.keep().iter().zip(linear.weight()).all(|(&keep, &w)| keep || w.to_bits() == 0)
    })
}

/// Whether nothing that was masked is kept now.
fn only_more_masked(before: &[Mask<ndarray::Ix2>], mlp: &Mlp<f32>) -> bool {
    before
        .iter()
        .zip(masks(mlp))
        .all(|(before, now)| before.keep().iter().zip(now.keep()).all(|(b, n)| *b || !n))
}

fn nearly_equal(a: &Array2<f32>, b: &Array2<f32>) -> bool {
    a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * (1.0 + a.abs()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn each_step_keeps_what_an_earlier_one_established(acts in acts(), seed in 0..1000u64, adam in any::<bool>()) {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let data = data(24, &mut rng);
        let mut mlp = Mlp::builder(6).linear(8).relu().linear(5).tanh().linear(2).build::<f32>(&mut rng).unwrap();
        // What shares values now, as (entries, rows): what a later clustering or fine-tuning must not make more.
        let mut shared: Option<(usize, bool)> = None;
        for act in acts {
            let before = masks(&mlp);
            match act {
                Act::Prune { sparsity, score, per_layer } => {
                    let schedule = Schedule::cubic(0.0, sparsity, 0, STEPS - 2).unwrap();
                    let pruning = GradualPruning::new(schedule).with_min_keep(2);
                    let pruning = match score {
                        0 => pruning,
                        1 => pruning.by_lamp(),
                        2 => pruning.by_taylor().with_regrowth(0.2).unwrap(),
                        _ => pruning.by_activations(data.inputs()).unwrap(),
                    };
                    let mut pruning = if per_layer { pruning.per_layer() } else { pruning };
                    // Held together at the same time, if they were before.
                    let mut sharing = shared.map(|shared| sharing(shared, SharedGradient::Mean));
                    match &mut sharing {
                        Some(sharing) => {
                            // Clusters first, so that the pruning meets shared values.
                            train(&mut mlp, &data, adam, &mut [sharing, &mut pruning]);
                        }
                        None => train(&mut mlp, &data, adam, &mut [&mut pruning]),
                    }
                    if score != 2 || shared.is_some() {
                        prop_assert!(only_more_masked(&before, &mlp), "{act:?}");
                    }
                    // A layer that had weights keeps some; one that died and was shrunk to a single neuron had none.
                    for (before, mask) in before.iter().zip(mlp.masks()) {
                        prop_assert!(before.kept() == 0 || mask.is_some_and(|mask| mask.kept() >= 1), "{act:?}");
                    }
                }
                Act::Cluster { entries, sum, rows } => {
                    let gradient = if sum && adam { SharedGradient::Sum } else { SharedGradient::Mean };
                    train(&mut mlp, &data, adam, &mut [&mut sharing((entries, rows), gradient)]);
                    shared = Some((entries, rows));
                }
                Act::Quantize { bits } => {
                    let quantizer = UniformQuantizer::new(Scheme::symmetric(bits).unwrap());
                    let mut aware = StraightThrough::new(quantizer, &[(0, 0.5), (STEPS - 2, 1.0)]).unwrap();
                    train(&mut mlp, &data, adam, &mut [&mut aware]);
                    shared = Some(((1 << bits) - 1, false));
                }
                Act::FineTune { group } => {
                    let penalty = match group {
                        true => Penalty::group_lasso(0.01, Groups::Rows).unwrap(),
                        false => Penalty::l1(0.01).unwrap(),
                    };
                    let mut penalty = AnnealedPenalty::new(penalty, &[(0, 1.0), (STEPS, 0.0)]).unwrap();
                    match shared {
                        Some(shared) => {
                            let mut sharing = sharing(shared, SharedGradient::Mean);
                            train(&mut mlp, &data, adam, &mut [&mut penalty, &mut sharing]);
                        }
                        None => train(&mut mlp, &data, adam, &mut [&mut penalty]),
                    }
                }
                Act::Average { exponential } => {
                    let mut average = match exponential {
                        true => WeightAverage::exponential(0.8, 1).unwrap(),
                        false => WeightAverage::uniform(1),
                    };
                    match shared {
                        Some(shared) => {
                            let mut sharing = sharing(shared, SharedGradient::Mean);
                            train(&mut mlp, &data, adam, &mut [&mut sharing, &mut average]);
                        }
                        None => train(&mut mlp, &data, adam, &mut [&mut average]),
                    }
                    average.apply(&mut mlp).unwrap();
                }
                Act::Shrink => {
                    let (small, _) = mlp.shrink().unwrap();
                    let (a, b) = (mlp.predict(data.inputs()).unwrap(), small.predict(data.inputs()).unwrap());
                    prop_assert!(nearly_equal(&a, &b), "{a} {b}");
                    prop_assert!(small.parameters() <= mlp.parameters());
                    mlp = small;
                }
            }
            if !matches!(act, Act::Prune { .. } | Act::Shrink) {
                prop_assert_eq!(&masks(&mlp), &before, "{:?}", act);
            }
            prop_assert!(masked_are_zero(&mlp), "{act:?}");
            if let Some((entries, rows)) = shared {
                let most = values(&mlp).into_iter().map(|(all, row)| if rows { row } else { all }).max();
                prop_assert!(most <= Some(entries), "{act:?}: {most:?} values, at most {entries}");
            }
            // What it is stored as gives back every bit.
            prop_assert_eq!(&Mlp::<f32>::from_bytes(&mlp.to_bytes()).unwrap(), &mlp);
        }
    }
}

fn sharing((entries, rows): (usize, bool), gradient: SharedGradient) -> WeightSharing {
    let quantizer = PaletteQuantizer::new(entries.max(2)).unwrap();
    let granularity = if rows { Granularity::PerChannel { axis: 0 } } else { Granularity::PerTensor };
    WeightSharing::new(quantizer.with_granularity(granularity).unwrap(), 0).with_gradient(gradient)
}

#[test]
fn a_file_stores_a_shared_weight_as_a_palette() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let data = data(24, &mut rng);
    let mut mlp = Mlp::builder(6).linear(60).relu().linear(2).build::<f32>(&mut rng).unwrap();
    let mut sharing = sharing((8, false), SharedGradient::Mean);
    train(&mut mlp, &data, true, &mut [&mut sharing]);
    let report = trimnet::io::trim::TrimReport::of_bytes(&mlp.to_bytes()).unwrap();
    let weight = report.tensors.iter().find(|tensor| tensor.name == "0.weight").unwrap();
    assert_eq!(weight.encoding.mapping, trimnet::io::trim::Mapping::Palette);
}
