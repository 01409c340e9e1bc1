//! What users may rely on about the types themselves: they can be sent, shared and printed, and the traits make objects.

use std::fmt::Debug;

use ndarray::{Ix2, array};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use trimnet::distill::{Distillation, KdLoss};
use trimnet::engine::{Choice, Config, Engine, LayerInfo, Timing, Workspace};
use trimnet::nn::{Adam, AdamW, Dataset, Grads, History, Linear, Mlp, MlpCache, Optimizer, Sgd, Trainer};
use trimnet::normalize::{BatchNorm, LayerNorm, MinMax, Standard};
use trimnet::prune::{MagnitudePruner, NmPruner, Pruner, Schedule, Selection, StructuredPruner};
use trimnet::quantize::{
    HistogramObserver, MinMaxObserver, Observer, QuantizedTensor, RatioQuantizer, Scheme, UniformQuantizer,
};
use trimnet::regularize::{Dropout, GaussianNoise, Penalty};
use trimnet::tensor::{Mask, PackedInts, SparseTensor};
use trimnet::{Compressed, Compressor, Erased, Error, Normalizer, Regularizer};

fn shareable<T: Send + Sync + Debug + 'static>() {}

#[test]
fn every_public_type_is_send_sync_and_debug() {
    shareable::<Error>();
    shareable::<Mask<Ix2>>();
    shareable::<SparseTensor<f32, Ix2>>();
    shareable::<PackedInts>();
    shareable::<(MagnitudePruner, StructuredPruner, NmPruner)>();
    shareable::<(Selection, Schedule)>();
    shareable::<(Scheme, UniformQuantizer, RatioQuantizer)>();
    shareable::<QuantizedTensor<f64, Ix2>>();
    shareable::<(MinMaxObserver<f32>, HistogramObserver<f64>)>();
    shareable::<(BatchNorm<f32>, LayerNorm<f64>, MinMax<f32>, Standard<f64>)>();
    shareable::<(Dropout, GaussianNoise, Penalty)>();
    shareable::<(Linear<f32>, Mlp<f64>, MlpCache<f32>, Grads<f64>)>();
    shareable::<(Sgd<f32>, Adam<f64>, AdamW<f32>)>();
    shareable::<(Dataset<f32>, Trainer, History)>();
    shareable::<(KdLoss, Distillation<'static, f32>)>();
    shareable::<(Engine<f32>, Engine<f64>, Workspace<f32>, Config<'static, f64>)>();
    shareable::<(LayerInfo, Timing, Choice, trimnet::report::Report)>();
}

#[test]
fn different_compressors_share_a_list() {
    type Any = Box<dyn Compressor<f32, Ix2, Output = Box<dyn Compressed<f32, Ix2>>>>;
    let list: Vec<Any> = vec![
        Box::new(Erased(MagnitudePruner::sparsity(0.5).unwrap())),
        Box::new(Erased(NmPruner::keep(2, 4).unwrap())),
        Box::new(Erased(UniformQuantizer::new(Scheme::symmetric(4).unwrap()))),
        Box::new(Erased(RatioQuantizer::new(64.0).unwrap())),
    ];
    let weights = array![[0.5_f32, -1.0, 0.25, 2.0], [0.0, 0.125, -0.75, 1.5]];
    for compressor in &list {
        let artifact = compressor.compress(weights.view()).unwrap();
        assert_eq!(artifact.decompress().unwrap().dim(), (2, 4));
        assert!(artifact.size_bytes() < weights.len() * 4);
    }
}

#[test]
fn the_other_traits_make_objects() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let dropout: Box<dyn Regularizer<f32, Cache = _>> = Box::new(Dropout::new(0.5).unwrap());
    let (y, cache) = dropout.perturb(array![[1.0, 2.0]], &mut rng);
    assert_eq!(dropout.backward(cache, array![[1.0, 2.0]]), y);

    let mut norm: Box<dyn Normalizer<f64, Cache = _, Grads = _>> = Box::new(BatchNorm::new(2).unwrap());
    assert!(norm.normalize_batch(array![[1.0, 2.0], [3.0, 5.0]]).is_ok());
    assert!(norm.normalize(array![[1.0]]).is_err());

    let optimizers: [Box<dyn Optimizer<f32>>; 2] = [Box::new(Sgd::new()), Box::new(Adam::new())];
    assert_eq!(optimizers.len(), 2);
    let pruner: Box<dyn Pruner<f32, Ix2, Output = SparseTensor<f32, Ix2>>> =
        Box::new(NmPruner::keep(1, 2).unwrap());
    assert_eq!(pruner.mask(array![[1.0, 2.0]].view(), None).unwrap().0.kept(), 1);
    let observers: [Box<dyn Observer<f32>>; 2] =
        [Box::new(MinMaxObserver::default()), Box::new(HistogramObserver::default())];
    assert!(observers.iter().all(|observer| observer.range().is_err()));
}
