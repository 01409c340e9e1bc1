//! The promises of `.trim` for networks: what is loaded is what was saved, in a file of the size it should have.

use ndarray::{Array1, Array2};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use trimnet::io::trim::{EncodeOptions, Layout, Limits, TrimReport};
use trimnet::nn::{Activation, Layer, Linear, Mlp};
use trimnet::normalize::{BatchNorm, BnConvention, LayerNorm};
use trimnet::regularize::{Dropout, GaussianNoise};
use trimnet::{Error, Float, Mask};

fn rng(seed: u64) -> Xoshiro256PlusPlus {
    Xoshiro256PlusPlus::seed_from_u64(seed)
}

/// A network with a layer of every kind.
fn everything<F: Float>() -> Mlp<F> {
    let mut rng = rng(7);
    let mut vector =
        |n: usize, low: f64| Array1::from_shape_simple_fn(n, || F::of(low + rng.random::<f64>()));
    let norm = |vector: &mut dyn FnMut(usize, f64) -> Array1<F>, n| {
        BatchNorm::from_parts(vector(n, 0.5), vector(n, -0.5), vector(n, -0.5), vector(n, 0.5), 1e-3).unwrap()
    };
    let weight = |vector: &mut dyn FnMut(usize, f64) -> Array1<F>, r, c| {
        Array2::from_shape_vec((r, c), vector(r * c, -0.5).to_vec()).unwrap()
    };
    let mut masked = Linear::new(weight(&mut vector, 6, 9), Some(vector(6, -0.5))).unwrap();
    masked.set_mask(Mask::new(Array2::from_shape_fn((6, 9), |(r, c)| (r + c) % 3 == 0))).unwrap();
    // A kept weight that happens to be zero: its mask is not where the weight is not zero.
    let mut odd = Linear::new(Array2::from_shape_fn((5, 6), |(r, c)| F::of((r * c) as f64)), None).unwrap();
    odd.set_mask(Mask::new(Array2::from_shape_fn((5, 6), |(r, c)| r <= c))).unwrap();
    let last = Linear::new(weight(&mut vector, 4, 5), Some(vector(4, -0.5))).unwrap();
    let layers = vec![
        Layer::Dropout(Dropout::new(0.2).unwrap()),
        Layer::Linear(masked),
        Layer::BatchNorm(norm(&mut vector, 6)),
        Layer::Activation(Activation::LeakyRelu(0.01)),
        Layer::BatchNorm(norm(&mut vector, 6).with_momentum(None).unwrap().with_batches(1000)),
        Layer::Activation(Activation::Elu(1.5)),
        Layer::BatchNorm(norm(&mut vector, 6).with_convention(BnConvention::Onnx)),
        Layer::BatchNorm(
            norm(&mut vector, 6).with_convention(BnConvention::Burn).with_momentum(Some(0.3)).unwrap(),
        ),
        Layer::Activation(Activation::Tanh),
        Layer::Linear(odd),
        Layer::LayerNorm(LayerNorm::from_parts(vector(5, 0.5), vector(5, -0.5), 1e-5).unwrap()),
        Layer::Activation(Activation::Gelu),
        Layer::GaussianNoise(GaussianNoise::new(0.1).unwrap()),
        Layer::Activation(Activation::GeluTanh),
        Layer::Activation(Activation::Sigmoid),
        Layer::Activation(Activation::Relu),
        Layer::Linear(last),
    ];
    Mlp::from_layers(9, layers).unwrap()
}

/// Of the activations that came after the first golden files.
fn clipped<F: Float>() -> Mlp<F> {
    let linear = Layer::Linear(Linear::new(Array2::from_elem((3, 2), F::of(0.5)), None).unwrap());
    let clip = |min, max| Layer::Activation(Activation::Clip { min, max });
    Mlp::from_layers(2, vec![clip(-0.1, 1.5), linear, clip(0.0, 6.0)]).unwrap()
}

#[test]
fn every_kind_of_layer_comes_back_equal() {
    assert_eq!(Mlp::<f64>::from_bytes(&clipped::<f64>().to_bytes()).unwrap(), clipped());
    let single = everything::<f32>();
    assert_eq!(Mlp::<f32>::from_bytes(&single.to_bytes()).unwrap(), single);
    let double = everything::<f64>();
    assert_eq!(Mlp::<f64>::from_bytes(&double.to_bytes()).unwrap(), double);
}

#[test]
fn single_precision_loads_as_double_and_not_the_other_way() {
    let single = everything::<f32>();
    let double = Mlp::<f64>::from_bytes(&single.to_bytes()).unwrap();
    for (a, b) in single.linears().zip(double.linears()) {
        assert_eq!(a.weight().mapv(f64::from), b.weight());
        assert_eq!(a.mask(), b.mask());
    }
    let refused = Mlp::<f32>::from_bytes(&double.to_bytes());
    assert!(matches!(refused, Err(Error::Unsupported { .. })));
}

/// 784-100-60-10, pruned to `kept` weights of six values each, as the deep-compression recipe leaves it.
fn tiny(kept: usize) -> Mlp<f32> {
    let mut rng = rng(3);
    let mut mlp =
        Mlp::builder(784).linear(100).relu().linear(60).relu().linear(10).build::<f32>(&mut rng).unwrap();
    let total: usize = mlp.linears().map(|l| l.weight().len()).sum();
    for linear in mlp.linears_mut() {
        let (rows, cols) = linear.weight().dim();
        let alive = |r: usize, c: usize| {
            cols != 784 || (!r.is_multiple_of(8) && !(c / 28).is_multiple_of(4) && c % 28 > 6)
        };
        let mask = Array2::from_shape_fn((rows, cols), |(r, c)| {
            alive(r, c) && rng.random_bool((2.0 * kept as f64 / total as f64).min(0.9))
        });
        let weight = Array2::from_shape_fn((rows, cols), |_| {
            (0.125 * f32::from(rng.random_range(1..=3i8))) * if rng.random() { 1.0 } else { -1.0 }
        });
        linear.set_weight(weight).unwrap();
        linear.set_mask(Mask::new(mask)).unwrap();
        let bias = Array1::from_shape_simple_fn(rows, || f32::from(rng.random_range(-31..=31i8)) / 64.0);
        linear.set_bias(Some(bias)).unwrap();
    }
    mlp
}

#[test]
fn a_tiny_network_spends_few_bytes_on_anything_but_weights() {
    let mlp = tiny(3000);
    let bytes = mlp.to_bytes();
    let report = TrimReport::of_bytes(&bytes).unwrap();
    let parts = report.parts();
    assert_eq!(Mlp::<f32>::from_bytes(&bytes).unwrap(), mlp);
    assert_eq!(report.header + parts.total(), bytes.len());
    assert!(report.header + parts.head <= 60, "{report}");
    assert_eq!(report.tensors.iter().map(|t| t.nonzero).sum::<usize>(), mlp.nonzero());
    let printed = report.to_string();
    assert!(printed.contains("0.weight") && printed.contains(&bytes.len().to_string()), "{printed}");
}

#[test]
fn a_pruned_network_reloads_from_disk_with_its_mask_and_without_its_constructor() {
    let mlp = tiny(2000);
    let path = std::env::temp_dir().join(format!("trimnet-network-{}.trim", std::process::id()));
    mlp.save(&path).unwrap();
    let loaded = Mlp::<f32>::load(&path).unwrap();
    assert_eq!(loaded, mlp);
    assert!(loaded.masks().all(|mask| mask.is_some()));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(Mlp::<f32>::load(&path), Err(Error::Io { .. })));
}

#[test]
fn options_change_the_bytes_and_not_the_network() {
    let mlp = tiny(2000);
    for layout in [Layout::Dense, Layout::Bitmap, Layout::Gaps, Layout::Coded, Layout::Mixed] {
        let bytes = mlp.to_bytes_with(&EncodeOptions::default().with_layouts(&[layout]));
        assert_eq!(Mlp::<f32>::from_bytes(&bytes).unwrap(), mlp);
    }
    assert!(Mlp::<f32>::from_bytes_with(&mlp.to_bytes(), &Limits::new(1000, 0)).is_err());
}

fn golden(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// Files of format version 1 must load for ever. They were written by the ignored test below.
#[test]
fn files_of_version_1_still_load() {
    assert_eq!(Mlp::<f32>::load(golden("trim_v1_every_layer.trim")).unwrap(), everything::<f32>());
    assert_eq!(Mlp::<f64>::load(golden("trim_v1_double.trim")).unwrap(), everything::<f64>());
    assert_eq!(Mlp::<f32>::load(golden("trim_v1_clip.trim")).unwrap(), clipped::<f32>());
    for (i, layout) in
        [Layout::Dense, Layout::Bitmap, Layout::Gaps, Layout::Coded, Layout::Mixed].iter().enumerate()
    {
        let name = format!("trim_v1_{}.trim", format!("{layout:?}").to_lowercase());
        assert_eq!(Mlp::<f32>::load(golden(&name)).unwrap(), tiny(300 + i), "{name}");
    }
}

#[test]
#[ignore = "writes the golden files of a format version, once"]
fn write_the_golden_files() {
    everything::<f32>().save(golden("trim_v1_every_layer.trim")).unwrap();
    everything::<f64>().save(golden("trim_v1_double.trim")).unwrap();
    clipped::<f32>().save(golden("trim_v1_clip.trim")).unwrap();
    for (i, layout) in
        [Layout::Dense, Layout::Bitmap, Layout::Gaps, Layout::Coded, Layout::Mixed].iter().enumerate()
    {
        let name = format!("trim_v1_{}.trim", format!("{layout:?}").to_lowercase());
        let bytes = tiny(300 + i).to_bytes_with(&EncodeOptions::default().with_layouts(&[*layout]));
        std::fs::write(golden(&name), bytes).unwrap();
    }
}
