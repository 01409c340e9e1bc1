//! Networks in GGUF: the tensors of a state dict, and the architecture under the key `trimnet.network`.

use ndarray::Ix2;

use super::block::{GgufTensor, GgufType};
use super::file::Gguf;
use super::value::Value;
use crate::error::{Error, Result};
use crate::float::Float;
use crate::io::safetensors::{Architecture, Dtype, Names, SafeTensors, Tensor};
use crate::io::trim::malformed;
use crate::nn::Mlp;

const KEY: &str = "trimnet.network";

/// Networks.
impl Gguf {
    /// The state dict of a network, its weights in this type where their rows are whole blocks, all else in `F32`.
    ///
    /// # Errors
    /// As [`GgufTensor::from_floats`].
    pub fn from_mlp<F: Float>(mlp: &Mlp<F>, kind: GgufType) -> Result<Self> {
        let dict = SafeTensors::from_mlp(mlp, &Names::sequential(), Dtype::F32)?;
        let network = serde_json::to_string(&Architecture::of(mlp)).map_err(|e| malformed(e.to_string()))?;
        let mut file = Self::new("trimnet");
        file.push_key(KEY, Value::Text(network));
        for (name, tensor) in dict.iter() {
            let tensor = if tensor.dtype() == Dtype::I64 {
                GgufTensor::new(GgufType::I64, vec![1], tensor.bytes().to_vec())?
            } else {
                let x = tensor.to_floats::<f32>()?;
                match x.view().into_dimensionality::<Ix2>() {
                    Ok(x) if kind.fits(x.ncols()) => GgufTensor::from_floats(x, kind)?,
                    _ => GgufTensor::from_floats(x.view(), GgufType::F32)?,
                }
            };
            file.push(name, tensor);
        }
        Ok(file)
    }

    /// The network of a file that [`from_mlp`](Self::from_mlp) made. A weight that quantization made zero, or a mask's zero
    /// that it moved, is what the file says: masks follow the file.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a file without the key `trimnet.network`; otherwise as
    /// [`SafeTensors::to_mlp_of`].
    pub fn to_mlp<F: Float>(&self) -> Result<Mlp<F>> {
        let Some(Value::Text(network)) = self.key(KEY) else {
            let reason = format!("the key {KEY:?} is missing, which only files of this crate have");
            return Err(Error::Unsupported { what: "loading a network from GGUF", reason });
        };
        let architecture = Architecture::from_json(network)?;
        let dtype = if F::BYTES == 4 { Dtype::F32 } else { Dtype::F64 };
        let mut dict = SafeTensors::new();
        for (name, tensor) in self.tensors() {
            let tensor = match tensor.kind() {
                GgufType::I64 => Tensor::new(Dtype::I64, vec![], tensor.bytes().to_vec())?,
                _ => Tensor::from_floats(tensor.to_floats::<F>()?.view(), dtype)?,
            };
            dict.insert(name, tensor);
        }
        dict.to_mlp_of(&architecture, &Names::sequential())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;
    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    #[test]
    fn a_network_comes_back_as_near_as_its_type_allows() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        let builder = Mlp::builder(32).linear(64).batch_norm().relu().dropout(0.5).linear(5);
        let mut mlp = builder.build::<f32>(&mut rng).unwrap();
        let x = Array2::from_shape_fn((9, 32), |(i, j)| ((i * 32 + j) as f32 * 0.3).sin());
        mlp.forward(x.view(), &mut rng).unwrap();
        let y = mlp.predict(x.view()).unwrap();
        for (kind, allowed) in
            [(GgufType::F32, 0.0), (GgufType::F16, 0.002), (GgufType::Q8_0, 0.02), (GgufType::Q4_0, 0.4)]
        {
            let bytes = Gguf::from_mlp(&mlp, kind).unwrap().to_bytes().unwrap();
            let back: Mlp<f32> = Gguf::from_bytes(&bytes).unwrap().to_mlp().unwrap();
            let error = (back.predict(x.view()).unwrap() - &y).mapv(f32::abs);
            assert!(error.iter().all(|&error| error <= allowed), "{kind:?}: {error}");
            assert!(kind != GgufType::F32 || back == mlp);
        }
        assert!(Gguf::new("llama").to_mlp::<f32>().is_err());
    }
}
