//! A network as a PyTorch state dict, and a state dict as a network.
//!
//! ```text
//! linear      P.weight [out, in], P.bias [out]      or P.weight_orig and P.weight_mask (torch.nn.utils.prune),
//!                                                   or P.parametrizations.weight.original0, 1 (weight_norm)
//! batch norm  P.weight, P.bias, P.running_mean, P.running_var, P.num_batches_tracked (I64, a scalar)
//! layer norm  P.weight, P.bias
//! others      nothing
//! ```
//!
//! Files that this crate writes have the architecture in their metadata, under `trimnet`.

use std::collections::BTreeSet;
use std::path::Path;

use ndarray::{Array1, Array2, Axis, Dimension, Ix2};

use super::architecture::{Architecture, LayerShape, MomentumShape};
use super::dtype::Dtype;
use super::file::SafeTensors;
use super::names::Names;
use super::tensor::Tensor;
use crate::error::{Error, Result};
use crate::float::Float;
use crate::io::trim::{malformed, named};
use crate::nn::{Layer, Linear, Mlp};
use crate::normalize::{BatchNorm, LayerNorm};
use crate::regularize::{Dropout, GaussianNoise};
use crate::tensor::Mask;

const KEY: &str = "trimnet";
const VERSION: u32 = 1;

/// A layer takes more memory than the twenty letters that describe it.
const MOST_LAYERS: usize = 10_000;

/// What stands under `trimnet` in the metadata.
#[derive(serde::Serialize, serde::Deserialize)]
struct Described {
    version: u32,
    names: Names,
    network: Architecture,
}

/// Networks.
///
/// ```
/// use trimnet::io::safetensors::{Architecture, Dtype, Names, SafeTensors};
/// use trimnet::nn::Mlp;
/// use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
///
/// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
/// let mlp = Mlp::builder(8).linear(16).batch_norm().relu().linear(4).build::<f32>(&mut rng)?;
/// let file = SafeTensors::from_mlp(&mlp, &Names::sequential(), Dtype::F32)?;
/// assert!(file.get("1.running_mean").is_ok());
///
/// // Ours know their architecture; for one of PyTorch's, say it.
/// assert_eq!(file.to_mlp::<f32>()?, mlp);
/// assert_eq!(file.to_mlp_of::<f32>(&Architecture::of(&mlp), &Names::sequential())?, mlp);
/// # Ok::<(), trimnet::Error>(())
/// ```
impl SafeTensors {
    /// The state dict of a network, with `format` = `pt` and its architecture in the metadata.
    ///
    /// # Errors
    /// [`Error::Unsupported`] unless `dtype` is a float type, and for a number that would become infinite in it;
    /// [`Error::Format`] if `names` has names for another number of layers, or one name for two.
    pub fn from_mlp<F: Float>(mlp: &Mlp<F>, names: &Names, dtype: Dtype) -> Result<Self> {
        let mut file = Self::new();
        let mut nth = 0;
        for (i, layer) in mlp.layers().iter().enumerate() {
            let mut put = |name: &str, tensor: Tensor| -> Result<()> {
                let name = format!("{}.{name}", names.module(i, nth)?);
                if file.find(&name).is_some() {
                    return Err(malformed(format!("layer {i} and one before it both have tensor {name:?}")));
                }
                file.insert(name, tensor);
                Ok(())
            };
            match layer {
                Layer::Linear(linear) => {
                    put("weight", Tensor::from_floats(linear.weight(), dtype)?)?;
                    if let Some(bias) = linear.bias() {
                        put("bias", Tensor::from_floats(bias, dtype)?)?;
                    }
                }
                Layer::BatchNorm(norm) => {
                    put("weight", Tensor::from_floats(norm.gamma(), dtype)?)?;
                    put("bias", Tensor::from_floats(norm.beta(), dtype)?)?;
                    put("running_mean", Tensor::from_floats(norm.running_mean(), dtype)?)?;
                    put("running_var", Tensor::from_floats(norm.running_var(), dtype)?)?;
                    let batches = i64::try_from(norm.batches()).unwrap_or(i64::MAX).to_le_bytes();
                    put("num_batches_tracked", Tensor::new(Dtype::I64, vec![], batches.to_vec())?)?;
                }
                Layer::LayerNorm(norm) => {
                    put("weight", Tensor::from_floats(norm.gamma(), dtype)?)?;
                    put("bias", Tensor::from_floats(norm.beta(), dtype)?)?;
                }
                Layer::Activation(_) | Layer::Dropout(_) | Layer::GaussianNoise(_) => continue,
            }
            nth += 1;
        }
        names.check_used(nth)?;
        let described = Described {
            version: VERSION,
            names: names.clone(),
            network: Architecture::stored_as(mlp, dtype),
        };
        let described = serde_json::to_string(&described).map_err(|error| malformed(error.to_string()))?;
        file.insert_metadata("format", "pt");
        file.insert_metadata(KEY, described);
        Ok(file)
    }

    /// The architecture that a file of this crate has in its metadata, or `None`.
    ///
    /// # Errors
    /// [`Error::Format`] if it is of a later version, or none.
    pub fn architecture(&self) -> Result<Option<(Architecture, Names)>> {
        let Some(text) = self.metadata().get(KEY) else { return Ok(None) };
        let described: Described = serde_json::from_str(text)
            .map_err(|error| malformed(format!("the metadata under {KEY:?}: {error}")))?;
        if described.version != VERSION {
            let version = described.version;
            return Err(malformed(format!("a network of version {version}, this reader knows {VERSION}")));
        }
        Ok(Some((described.network, described.names)))
    }

    /// The network of a file that this crate wrote.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a file without an architecture in its metadata; otherwise as
    /// [`to_mlp_of`](Self::to_mlp_of).
    pub fn to_mlp<F: Float>(&self) -> Result<Mlp<F>> {
        let Some((architecture, names)) = self.architecture()? else {
            let reason = "the file does not say its layers: give them to `to_mlp_of`".to_string();
            return Err(Error::Unsupported { what: "loading a plain state dict", reason });
        };
        self.to_mlp_of(&architecture, &names)
    }

    /// A network of these layers from the tensors that belong to them; numbers go to the nearest of `F`.
    ///
    /// # Errors
    /// [`Error::Format`] for a tensor that is missing, or of another shape, or, among those that begin with the prefix of
    /// `names`, one too many; and for layers that their own constructors refuse.
    pub fn to_mlp_of<F: Float>(&self, architecture: &Architecture, names: &Names) -> Result<Mlp<F>> {
        let count = architecture.layers().len();
        if count > MOST_LAYERS {
            return Err(malformed(format!("a network of {count} layers, at most {MOST_LAYERS} are read")));
        }
        let invented = self.iter().map(|(_, tensor)| tensor.bytes().len()).sum();
        let mut reader = Reader { file: self, used: BTreeSet::new(), width: architecture.inputs(), invented };
        let mut layers = Vec::with_capacity(count);
        let mut nth = 0;
        for (i, shape) in architecture.layers().iter().enumerate() {
            let module = match shape {
                LayerShape::Linear { .. } | LayerShape::BatchNorm { .. } | LayerShape::LayerNorm { .. } => {
                    nth += 1;
                    names.module(i, nth - 1)?
                }
                _ => String::new(),
            };
            let layer = reader.layer(shape, &module);
            layers.push(layer.map_err(|error| match error {
                Error::Format { .. } => error,
                other => malformed(format!("layer {i}: {other}")),
            })?);
        }
        names.check_used(nth)?;
        let mut left =
            self.names().filter(|name| name.starts_with(names.prefix()) && !reader.used.contains(*name));
        if let Some(name) = left.next() {
            let more = left.count();
            return Err(malformed(format!(
                "tensor {name:?} and {more} more belong to no layer of the network"
            )));
        }
        Mlp::from_layers(architecture.inputs(), layers).map_err(|e| malformed(format!("not a network: {e}")))
    }
}

/// Takes layers out of a file, and remembers what was taken.
struct Reader<'a> {
    file: &'a SafeTensors,
    used: BTreeSet<String>,
    width: usize,
    /// How many ones and zeros may yet be made up for norms without parameters. Each stands next to a linear layer of its
    /// width, so that all bytes of the file are plenty.
    invented: usize,
}

impl Reader<'_> {
    fn layer<F: Float>(&mut self, shape: &LayerShape, module: &str) -> Result<Layer<F>> {
        Ok(match shape {
            LayerShape::Linear { outputs, bias, mask } => {
                let dim = [*outputs, self.width];
                let (weight, pruned) = self.weight(module, dim)?;
                let mask = pruned.map_or_else(|| mask.mask(&weight), |mask| Ok(Some(mask)))?;
                let bias = if *bias { Some(self.vector(module, "bias", *outputs)?) } else { None };
                let mut linear = Linear::new(weight, bias)?;
                if let Some(mask) = mask {
                    linear.set_mask(mask)?;
                }
                self.width = *outputs;
                Layer::Linear(linear)
            }
            LayerShape::BatchNorm { eps, momentum, convention } => {
                let norm = self.batch_norm(module, *eps)?.with_convention(*convention);
                Layer::BatchNorm(match momentum {
                    MomentumShape::Usual => norm,
                    MomentumShape::Cumulative => norm.with_momentum(None)?,
                    MomentumShape::Fixed(momentum) => norm.with_momentum(Some(*momentum))?,
                })
            }
            LayerShape::LayerNorm { eps } => {
                let (gamma, beta) = self.affine(module)?;
                Layer::LayerNorm(LayerNorm::from_parts(gamma, beta, *eps)?)
            }
            LayerShape::Activation(activation) => Layer::Activation(*activation),
            LayerShape::Dropout { p } => Layer::Dropout(Dropout::new(*p)?),
            LayerShape::GaussianNoise { deviation } => Layer::GaussianNoise(GaussianNoise::new(*deviation)?),
        })
    }

    /// A weight, and its mask where the file has one.
    fn weight<F: Float>(&mut self, module: &str, dim: [usize; 2]) -> Result<(Array2<F>, Option<Mask<Ix2>>)> {
        let (orig, mask) = (format!("{module}.weight_orig"), format!("{module}.weight_mask"));
        let norms = format!("{module}.parametrizations.weight.original0");
        if self.file.find(&mask).is_some() {
            let weight: Array2<F> = self.floats(&orig, &dim)?;
            let mask = Mask::of_nonzero(self.floats::<F, Ix2>(&mask, &dim)?.view());
            return Ok((weight, Some(mask)));
        }
        if self.file.find(&norms).is_some() {
            // w = g v / ||v||, one norm for each output.
            let g: Array2<F> = self.floats(&norms, &[dim[0], 1])?;
            let v = self.floats(&format!("{module}.parametrizations.weight.original1"), &dim)?;
            return Ok((weight_norm(&g, v), None));
        }
        Ok((self.floats(&format!("{module}.weight"), &dim)?, None))
    }

    fn batch_norm<F: Float>(&mut self, module: &str, eps: f64) -> Result<BatchNorm<F>> {
        let (mean, var) = (
            self.vector(module, "running_mean", self.width)?,
            self.vector(module, "running_var", self.width)?,
        );
        let (gamma, beta) = self.affine(module)?;
        let name = format!("{module}.num_batches_tracked");
        let mut batches = 0;
        if let Some(tensor) = self.file.find(&name) {
            // A counter; PyTorch's is an I64, and one that is no number from 0 on counts nothing.
            if let (Dtype::I64, Ok(bytes)) = (tensor.dtype(), tensor.bytes().try_into()) {
                batches = u64::try_from(i64::from_le_bytes(bytes)).unwrap_or(0);
            }
            self.used.insert(name);
        }
        Ok(BatchNorm::from_parts(gamma, beta, mean, var, eps)?.with_batches(batches))
    }

    /// Gamma and beta; 1 and 0 where the module has neither (`affine=False`).
    fn affine<F: Float>(&mut self, module: &str) -> Result<(Array1<F>, Array1<F>)> {
        let has = |name| self.file.find(&format!("{module}.{name}")).is_some();
        match (has("weight"), has("bias")) {
            (false, false) => {
                let left = self.invented.checked_sub(self.width);
                self.invented = left.ok_or_else(|| {
                    malformed(format!(
                        "{module:?} has no weight, and its width {} is that of no tensor",
                        self.width
                    ))
                })?;
                Ok((Array1::ones(self.width), Array1::zeros(self.width)))
            }
            // `bias=False` of a layer norm.
            (true, false) => Ok((self.vector(module, "weight", self.width)?, Array1::zeros(self.width))),
            _ => Ok((self.vector(module, "weight", self.width)?, self.vector(module, "bias", self.width)?)),
        }
    }

    fn vector<F: Float>(&mut self, module: &str, name: &str, length: usize) -> Result<Array1<F>> {
        self.floats(&format!("{module}.{name}"), &[length])
    }

    fn floats<F: Float, D: Dimension>(
        &mut self,
        name: &str,
        shape: &[usize],
    ) -> Result<ndarray::Array<F, D>> {
        let tensor = self.file.get(name)?;
        if tensor.shape() != shape {
            let actual = tensor.shape();
            return Err(malformed(format!(
                "tensor {name:?} has shape {actual:?}, the network wants {shape:?}"
            )));
        }
        if !self.used.insert(name.to_string()) {
            return Err(malformed(format!("two layers want tensor {name:?}")));
        }
        tensor.to_floats::<F>()?.into_dimensionality().map_err(|error| malformed(error.to_string()))
    }
}

fn weight_norm<F: Float>(g: &Array2<F>, mut v: Array2<F>) -> Array2<F> {
    for (mut row, g) in v.axis_iter_mut(Axis(0)).zip(g) {
        let norm = row.iter().map(|v| v.as_f64() * v.as_f64()).sum::<f64>().sqrt();
        row.mapv_inplace(|v| F::of(v.as_f64() * g.as_f64() / norm));
    }
    v
}

/// Writes a network as safetensors, its numbers as `F`, its modules numbered.
///
/// # Errors
/// [`Error::Io`] if the system refuses.
pub fn save_mlp<F: Float>(path: impl AsRef<Path>, mlp: &Mlp<F>) -> Result<()> {
    let dtype = if F::BYTES == 4 { Dtype::F32 } else { Dtype::F64 };
    SafeTensors::from_mlp(mlp, &Names::sequential(), dtype)?.save(path)
}

/// Reads a network from safetensors that this crate wrote.
///
/// # Errors
/// As [`SafeTensors::load`] and [`SafeTensors::to_mlp`].
pub fn load_mlp<F: Float>(path: impl AsRef<Path>) -> Result<Mlp<F>> {
    let path = path.as_ref();
    named(SafeTensors::load(path)?.to_mlp(), path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    fn network() -> Mlp<f32> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        let mut mlp = Mlp::builder(5)
            .linear(8)
            .batch_norm()
            .leaky_relu(0.1)
            .dropout(0.25)
            .linear_no_bias(6)
            .layer_norm()
            .gaussian_noise(0.5)
            .linear(3)
            .build::<f32>(&mut rng)
            .unwrap();
        for _ in 0..3 {
            let x = Array2::from_shape_fn((7, 5), |(i, j)| (i * 5 + j) as f32 % 7.0);
            mlp.forward(x.view(), &mut rng).unwrap();
        }
        mlp
    }

    fn dict(mlp: &Mlp<f32>) -> SafeTensors {
        SafeTensors::from_mlp(mlp, &Names::sequential(), Dtype::F32).unwrap()
    }

    #[test]
    fn a_network_comes_back_whole() {
        let mut mlp = network();
        assert_eq!(dict(&mlp).to_mlp::<f32>().unwrap(), mlp);
        let masks: Vec<Mask<Ix2>> = mlp.linears().map(|l| Mask::new(l.weight().mapv(|w| w > 0.0))).collect();
        mlp.apply_masks(masks.clone()).unwrap();
        assert_eq!(dict(&mlp).to_mlp::<f32>().unwrap(), mlp);
        // A kept weight that happens to be zero: the mask has to be written of its own.
        let first = mlp.linears_mut().next().unwrap();
        let mut weight = first.weight().to_owned();
        let kept = masks[0].keep().indexed_iter().find(|(_, keep)| **keep).unwrap().0;
        weight[kept] = 0.0;
        first.set_weight(weight).unwrap();
        assert!(dict(&mlp).metadata()[KEY].contains("bits"));
        assert_eq!(dict(&mlp).to_mlp::<f32>().unwrap(), mlp);
        assert_eq!(dict(&mlp.shrink().unwrap().0).to_mlp::<f32>().unwrap(), mlp.shrink().unwrap().0);
    }

    #[test]
    fn masks_and_numbers_stay_what_they_are_in_half_precision() {
        for (small, dtype) in [(1e-9, Dtype::F16), (1e-45, Dtype::Bf16), (1e-300, Dtype::F32)] {
            let mut linear = Linear::new(array![[1.0f64, small, 0.5]], None).unwrap();
            let mask = Mask::new(array![[true, true, false]]);
            linear.set_mask(mask.clone()).unwrap();
            let mlp = Mlp::from_layers(3, vec![Layer::Linear(linear)]).unwrap();
            let file = SafeTensors::from_mlp(&mlp, &Names::sequential(), dtype).unwrap();
            let back: Mlp<f64> = file.to_mlp().unwrap();
            assert_eq!(back.linears().next().unwrap().mask(), Some(&mask), "{dtype}");
            let exact = SafeTensors::from_mlp(&mlp, &Names::sequential(), Dtype::F64).unwrap();
            assert!(exact.metadata()[KEY].contains("nonzero"));
        }
        let linear = Linear::new(array![[7e4f32]], None).unwrap();
        let mlp = Mlp::from_layers(1, vec![Layer::Linear(linear)]).unwrap();
        let error = SafeTensors::from_mlp(&mlp, &Names::sequential(), Dtype::F16).unwrap_err().to_string();
        assert!(error.contains("number 0 is 7e4, F16 ends at 6.5504e4"), "{error}");
    }

    #[test]
    fn names_and_types_are_those_of_a_state_dict() {
        let names: Vec<(String, Dtype, Vec<usize>)> =
            dict(&network()).iter().map(|(n, t)| (n.to_string(), t.dtype(), t.shape().to_vec())).collect();
        let expected = [
            ("0.bias", Dtype::F32, vec![8]),
            ("0.weight", Dtype::F32, vec![8, 5]),
            ("1.bias", Dtype::F32, vec![8]),
            ("1.num_batches_tracked", Dtype::I64, vec![]),
            ("1.running_mean", Dtype::F32, vec![8]),
            ("1.running_var", Dtype::F32, vec![8]),
            ("1.weight", Dtype::F32, vec![8]),
            ("4.weight", Dtype::F32, vec![6, 8]),
            ("5.bias", Dtype::F32, vec![6]),
            ("5.weight", Dtype::F32, vec![6]),
            ("7.bias", Dtype::F32, vec![3]),
            ("7.weight", Dtype::F32, vec![3, 6]),
        ];
        assert_eq!(names, expected.map(|(name, dtype, shape)| (name.to_string(), dtype, shape)));
    }

    #[test]
    fn other_names_find_the_same_layers() {
        let mlp = network();
        let (plain, architecture) = (dict(&mlp), Architecture::of(&mlp));
        let names = Names::of_modules(["a", "norm", "b", "ln", "c"]).with_prefix("module.");
        let file = SafeTensors::from_mlp(&mlp, &names, Dtype::F32).unwrap();
        assert!(file.get("module.norm.running_var").is_ok());
        assert_eq!(file.to_mlp_of::<f32>(&architecture, &names).unwrap(), mlp);
        assert_eq!(file.to_mlp::<f32>().unwrap(), mlp);
        // A Flatten before everything shifts the numbers.
        let mut shifted = SafeTensors::new();
        for (name, tensor) in plain.iter() {
            let (number, rest) = name.split_once('.').unwrap();
            shifted.insert(format!("net.{}.{rest}", number.parse::<u32>().unwrap() + 8), tensor.to_tensor());
        }
        assert!(shifted.to_mlp_of::<f32>(&architecture, &Names::sequential()).is_err());
        let names = Names::numbered_in(&shifted, "net.").unwrap();
        assert_eq!(shifted.to_mlp_of::<f32>(&architecture, &names).unwrap(), mlp);
        assert!(Names::numbered_in(&file, "module.").is_err());
        let short = Names::of_modules(["a"]);
        assert!(SafeTensors::from_mlp(&mlp, &short, Dtype::F32).is_err());
        let error = |names| SafeTensors::from_mlp(&mlp, &names, Dtype::F32).unwrap_err().to_string();
        let text = error(Names::of_modules(["a", "norm", "a", "ln", "c"]));
        assert!(text.contains("layer 4 and one before it both have tensor \"a.weight\""), "{text}");
        let long = Names::of_modules(["a", "b", "c", "d", "e", "f"]);
        assert!(SafeTensors::from_mlp(&mlp, &long, Dtype::F32).is_err());
    }

    #[test]
    fn what_is_missing_or_too_much_or_of_another_shape_is_named() {
        let mlp = network();
        let architecture = Architecture::of(&mlp);
        let error = |file: &SafeTensors| {
            file.to_mlp_of::<f32>(&architecture, &Names::sequential()).unwrap_err().to_string()
        };
        let mut file = dict(&mlp);
        file.insert("9.weight", Tensor::from_floats(array![1.0f32].view(), Dtype::F32).unwrap());
        assert!(error(&file).contains("9.weight"));
        file.insert("0.bias", Tensor::from_floats(array![1.0f32].view(), Dtype::F32).unwrap());
        assert!(error(&file).contains("\"0.bias\" has shape [1], the network wants [8]"));
        file.insert(
            "0.weight",
            Tensor::from_floats(Array2::from_elem((8, 5), f32::NAN).view(), Dtype::F32).unwrap(),
        );
        file.insert("0.bias", Tensor::from_floats(Array1::<f32>::ones(8).view(), Dtype::F32).unwrap());
        assert!(error(&file).contains("NaN"), "{}", error(&file));
        assert!(error(&SafeTensors::new()).contains("0.weight"));
        assert!(SafeTensors::new().to_mlp::<f32>().unwrap_err().to_string().contains("to_mlp_of"));
    }

    #[test]
    fn reads_pruned_and_weight_normed_modules_of_torch() {
        let tensor = |x: Array2<f32>| Tensor::from_floats(x.view(), Dtype::F32).unwrap();
        let json = r#"{"inputs": 2, "layers": [{"linear": {"outputs": 2, "bias": false}}]}"#;
        let architecture = Architecture::from_json(json).unwrap();
        let mut file = SafeTensors::new();
        file.insert("0.weight_orig", tensor(array![[1.0, 2.0], [3.0, 4.0]]));
        file.insert("0.weight_mask", tensor(array![[1.0, 0.0], [0.0, 1.0]]));
        let mlp: Mlp<f32> = file.to_mlp_of(&architecture, &Names::sequential()).unwrap();
        assert_eq!(mlp.linears().next().unwrap().weight(), array![[1.0, 0.0], [0.0, 4.0]]);
        assert!(mlp.masks().all(|mask| mask.is_some()));

        let mut file = SafeTensors::new();
        file.insert("0.parametrizations.weight.original0", tensor(array![[10.0], [1.0]]));
        file.insert("0.parametrizations.weight.original1", tensor(array![[3.0, 4.0], [0.0, 2.0]]));
        let mlp: Mlp<f32> = file.to_mlp_of(&architecture, &Names::sequential()).unwrap();
        assert_eq!(mlp.linears().next().unwrap().weight(), array![[6.0, 8.0], [0.0, 1.0]]);
    }

    #[test]
    fn half_precision_rounds_and_double_is_exact() {
        let mlp = network();
        for (dtype, error) in [(Dtype::F64, 0.0), (Dtype::F16, 1e-3), (Dtype::Bf16, 8e-3)] {
            let file = SafeTensors::from_mlp(&mlp, &Names::sequential(), dtype).unwrap();
            let back: Mlp<f32> = file.to_mlp().unwrap();
            for (a, b) in mlp.linears().zip(back.linears()) {
                assert!(a.weight().iter().zip(b.weight()).all(|(a, b)| (a - b).abs() <= error * a.abs()));
            }
        }
        assert!(SafeTensors::from_mlp(&mlp, &Names::sequential(), Dtype::I8).is_err());
    }
}
