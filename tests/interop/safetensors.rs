//! The Rust half of the interop checks of safetensors and GGUF.
//!
//! `write DIR`       networks as N.safetensors, with inputs N.x.f32 and outputs N.y.f32
//! `read DIR`        state dicts N.torch.safetensors with N.json (the architecture) and N.x.f32: outputs N.y.f32, and the
//!                   network again as N.back.safetensors
//! `gguf-write DIR`  matrices N.f32 and N.gguf of them in each element type
//! `gguf-read DIR`   N.theirs.gguf: the numbers of its tensors as N.NAME.f32, and the file again as N.back.gguf
//!
//! Numbers stand in files of little-endian `f32`, row after row.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use trimnet::io::gguf::{Gguf, GgufTensor, GgufType};
use trimnet::io::safetensors::{Architecture, Dtype, Names, SafeTensors, load_mlp, save_mlp};
use trimnet::ndarray::Array2;
use trimnet::nn::{Activation, Mlp};
use trimnet::rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

type Done = Result<(), Box<dyn Error>>;

fn main() -> Done {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write", folder] => write(Path::new(folder)),
        ["read", folder] => read(Path::new(folder)),
        ["gguf-write", folder] => gguf_write(Path::new(folder)),
        ["gguf-read", folder] => gguf_read(Path::new(folder)),
        _ => Err("write DIR | read DIR | gguf-write DIR | gguf-read DIR".into()),
    }
}

fn bytes<'a>(x: impl IntoIterator<Item = &'a f32>) -> Vec<u8> {
    x.into_iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn random(rng: &mut Xoshiro256PlusPlus, rows: usize, width: usize) -> Array2<f32> {
    Array2::from_shape_simple_fn((rows, width), || (rng.random::<f64>() * 6.0 - 3.0) as f32)
}

fn network(seed: usize) -> trimnet::Result<(Mlp<f32>, Xoshiro256PlusPlus)> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed as u64);
    let inputs = 1 + seed * 5 % 37;
    let mut builder = Mlp::builder(inputs);
    for hidden in 0..=seed % 4 {
        let width = 3 + (seed * 11 + hidden * 7) % 61;
        builder = if seed % 5 == 4 { builder.linear_no_bias(width) } else { builder.linear(width) };
        builder = match (seed + hidden) % 4 {
            0 => builder.batch_norm(),
            1 => builder.layer_norm(),
            _ => builder,
        };
        builder = match (seed + hidden) % 8 {
            0 => builder.relu(),
            1 => builder.leaky_relu(0.1),
            2 => builder.elu(0.7),
            3 => builder.tanh(),
            4 => builder.sigmoid(),
            5 => builder.gelu(),
            6 => builder.clip(0.0, 6.0),
            _ => builder.activation(Activation::GeluTanh),
        };
        if hidden == 0 && seed.is_multiple_of(3) {
            builder = builder.dropout(0.25);
        }
    }
    let mut mlp = builder.linear(1 + seed % 12).build::<f32>(&mut rng)?;
    for _ in 0..5 {
        let x = random(&mut rng, 64, inputs);
        mlp.forward(x.view(), &mut rng)?;
    }
    Ok((mlp, rng))
}

fn write(folder: &Path) -> Done {
    for seed in 0..24 {
        let (mlp, mut rng) = network(seed)?;
        let x = random(&mut rng, 37, mlp.inputs());
        let path = folder.join(format!("{seed}.safetensors"));
        save_mlp(&path, &mlp)?;
        assert_eq!(load_mlp::<f32>(&path)?, mlp);
        fs::write(folder.join(format!("{seed}.x.f32")), bytes(&x))?;
        fs::write(folder.join(format!("{seed}.y.f32")), bytes(&mlp.predict(x.view())?))?;
    }
    Ok(())
}

/// The files of a folder that end so, without the end.
fn stems(folder: &Path, end: &str) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut stems = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path().to_string_lossy().into_owned();
        stems.extend(path.strip_suffix(end).map(PathBuf::from));
    }
    stems.sort();
    Ok(stems)
}

fn read(folder: &Path) -> Done {
    for stem in stems(folder, ".torch.safetensors")? {
        let file = SafeTensors::load(stem.with_extension("torch.safetensors"))?;
        let architecture = Architecture::from_json(&fs::read_to_string(stem.with_extension("json"))?)?;
        let mlp: Mlp<f32> = file.to_mlp_of(&architecture, &Names::sequential())?;
        let (quads, _) = (fs::read(stem.with_extension("x.f32"))?, ());
        let x: Vec<f32> = quads.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let x = Array2::from_shape_vec((x.len() / mlp.inputs(), mlp.inputs()), x)?;
        fs::write(stem.with_extension("y.f32"), bytes(&mlp.predict(x.view())?))?;
        SafeTensors::from_mlp(&mlp, &Names::sequential(), Dtype::F32)?
            .save(stem.with_extension("back.safetensors"))?;
    }
    Ok(())
}

const TYPES: [(&str, GgufType); 5] = [
    ("F32", GgufType::F32),
    ("F16", GgufType::F16),
    ("BF16", GgufType::Bf16),
    ("Q8_0", GgufType::Q8_0),
    ("Q4_0", GgufType::Q4_0),
];

fn gguf_write(folder: &Path) -> Done {
    for seed in 0..20 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let (rows, columns) = (1 + seed as usize * 7 % 40, 32 * (1 + seed as usize % 5));
        let mut w = random(&mut rng, rows, columns);
        // Blocks of zeros, of ties, and of one outlier.
        w.row_mut(0).fill(0.0);
        w.mapv_inplace(|x| if seed % 4 == 1 { (x * 4.0).round() / 4.0 } else { x });
        if seed % 4 == 2 {
            w[[rows - 1, 5]] = 1000.0;
        }
        let mut file = Gguf::new("trimnet");
        for (name, kind) in TYPES {
            file.push(name, GgufTensor::from_floats(w.view(), kind)?);
        }
        file.save(folder.join(format!("{seed}.gguf")))?;
        fs::write(folder.join(format!("{seed}.f32")), bytes(&w))?;
        for (name, _) in TYPES {
            let numbers = file.get(name)?.to_floats::<f32>()?;
            fs::write(folder.join(format!("{seed}.{name}.f32")), bytes(&numbers))?;
        }
    }
    Ok(())
}

fn gguf_read(folder: &Path) -> Done {
    for stem in stems(folder, ".theirs.gguf")? {
        let file = Gguf::load(stem.with_extension("theirs.gguf"))?;
        for (name, tensor) in file.tensors() {
            fs::write(stem.with_extension(format!("{name}.f32")), bytes(&tensor.to_floats::<f32>()?))?;
        }
        file.save(stem.with_extension("back.gguf"))?;
    }
    Ok(())
}
