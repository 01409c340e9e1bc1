//! Files that lie: every one of `tests/data/hostile/{safetensors,gguf}` (made by `make_tensors.py` there) is an error that says
//! what is wrong, and costs no more memory than a file of its size may.
#![cfg(feature = "gguf")]

mod memory;

use std::fs;
use std::path::PathBuf;

use trimnet::Compressor;
use trimnet::io::gguf::{Gguf, GgufType, Value};
use trimnet::io::safetensors::compressed::Packing;
use trimnet::io::safetensors::{Dtype, Names, SafeTensors};
use trimnet::nn::Mlp;
use trimnet::quantize::{Scheme, UniformQuantizer};
use trimnet::rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

/// The error of a file, and the check that reading it took at most ten times its size, and 8 kB for messages.
fn error_of<T>(file: &str, read: impl Fn(&[u8]) -> trimnet::Result<T>) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/hostile").join(file);
    let bytes = fs::read(path).unwrap();
    let (text, peak) = memory::peak(|| match read(&bytes) {
        Ok(_) => panic!("{file} was read"),
        Err(error) => error.to_string(),
    });
    assert!(peak <= 10 * bytes.len() as isize + 8192, "{file}: {peak} bytes of memory for {}", bytes.len());
    text
}

macro_rules! hostile {
    ($module:ident, $end:literal, $read:expr; $($name:ident: $says:literal;)*) => {
        mod $module {
            use super::*;

            const FILES: &[&str] = &[$(stringify!($name),)*];

            $(#[test]
            fn $name() {
                let text = error_of(concat!(stringify!($module), "/", stringify!($name), $end), $read);
                assert!(text.contains($says), "{text}");
            })*

            #[test]
            fn every_file_has_its_test() {
                let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/hostile/", stringify!($module));
                for file in fs::read_dir(folder).unwrap() {
                    let name = file.unwrap().file_name().into_string().unwrap();
                    assert!(FILES.contains(&name.strip_suffix($end).unwrap()), "{name}");
                }
            }
        }
    };
}

hostile! { safetensors, ".safetensors", |bytes: &[u8]| SafeTensors::from_bytes(bytes)?.to_mlp::<f32>();
    empty: "0 bytes are too few";
    seven_bytes: "7 bytes are too few";
    header_longer_than_file: "a header of 5000 bytes in a file of";
    header_of_2_63_bytes: "a header of 9223372036854775808 bytes";
    header_of_200_mb: "at most 100000000 are allowed";
    header_cut_in_json: "EOF while parsing";
    header_not_utf8: "the header is not UTF-8";
    header_not_an_object: "expected an object of tensors";
    header_with_garbage_after_it: "trailing characters";
    deeply_nested: "the header is not what it should be";
    unknown_dtype: "the element type \"F31\" is unknown";
    missing_offsets: "missing field `data_offsets`";
    negative_dimension: "-2";
    dimension_of_2_63: "more bytes than memory can address";
    product_wraps_to_2: "more bytes than memory can address";
    dimension_beyond_64_bits: "the header is not what it should be";
    shape_smaller_than_offsets: "shape [1] of F32 has 4 bytes, the offsets say 8";
    offsets_backwards: "bytes 8..0 do not lie within the data";
    offsets_beyond_the_data: "bytes 0..8 do not lie within the data, which have 4";
    offsets_of_2_64: "do not lie within the data";
    overlapping: "tensor \"b\" overlaps \"a\"";
    same_bytes_twice: "tensor \"b\" overlaps \"a\"";
    a_gap: "bytes 8..12 of the data, before tensor \"b\", belong to no tensor";
    bytes_after_the_last_tensor: "14 bytes of data, the tensors cover 8";
    data_cut_off: "do not lie within the data, which have 15";
    duplicate_name: "two tensors are called \"a\"";
    metadata_of_numbers: "invalid type: integer `1`, expected a string";
    half_a_byte: "does not fill whole bytes";
    network_wider_than_memory: "has shape [1, 1], the network wants [4611686018427387904, 4611686018427387904]";
    network_of_a_later_version: "a network of version 99, this reader knows 1";
    network_with_a_mask_of_lies: "a mask of 100 digits for 1 weights";
    network_with_a_layer_it_has_not: "there is no tensor \"1.weight\"";
    network_with_a_dropout_of_2: "layer 1: p is 2";
    network_with_a_norm_of_2_62: "its width 4611686018427387904 is that of no tensor";
    network_that_uses_a_tensor_twice: "two layers want tensor \"0.weight\"";
    network_of_10001_layers: "a network of 10001 layers, at most 10000 are read";
}

hostile! { gguf, ".gguf", Gguf::from_bytes;
    empty: "it does not begin with GGUF";
    wrong_magic: "it does not begin with GGUF";
    version_1: "version 1; 2 and 3";
    big_endian: "big-endian";
    header_cut_off: "8 bytes are needed at byte 16, 0 are left";
    tensors_2_63: "bytes are needed at byte";
    keys_2_63: "bytes are needed at byte";
    key_longer_than_file: "4611686018427387904 bytes are needed";
    key_not_utf8: "is not UTF-8";
    duplicate_key: "two keys are called \"general.architecture\"";
    unknown_value_type: "key \"k\": a value of type 99, which is unknown";
    array_of_2_60_numbers: "bytes are needed at byte";
    array_of_2_60_texts: "bytes are needed at byte";
    array_of_arrays: "an array of type 9; numbers and texts are read";
    bool_of_2: "a value of type 7 that it cannot have";
    alignment_0: "general.alignment is U32(0)";
    alignment_3: "general.alignment is U32(3)";
    five_axes: "5 axes, at most 4";
    axes_2_32: "4294967295 axes, at most 4";
    dimension_2_63: "more bytes than memory can address";
    product_wraps: "more bytes than memory can address";
    unknown_element_type: "element type 12 is not read here";
    row_of_33_in_blocks_of_32: "rows of 33 numbers, Q8_0 has blocks of 32";
    offset_unaligned: "its offset 8 is no multiple of 32";
    offset_2_64: "do not lie within the data";
    overlapping: "it begins at 64, within another one that ends at 128";
    duplicate_tensor: "two tensors are called \"a\"";
    data_cut_off: "128 bytes at 0 do not lie within the data, which have 127";
    tensor_name_not_utf8: "is not UTF-8";
}

/// A network with everything that the formats know, quantized weights beside it.
fn sample(rng: &mut Xoshiro256PlusPlus) -> (SafeTensors, Gguf) {
    let builder = Mlp::builder(32).linear(32).batch_norm().relu().dropout(0.5).linear_no_bias(3).layer_norm();
    let mlp = builder.build::<f32>(rng).unwrap();
    let mut file = SafeTensors::from_mlp(&mlp, &Names::sequential(), Dtype::Bf16).unwrap();
    let scheme = Scheme::affine(4).unwrap().with_signed(true).unwrap().per_group(1, 8).unwrap();
    let weight = mlp.linears().next().unwrap().weight();
    let quantized = UniformQuantizer::new(scheme).compress(weight).unwrap();
    file.insert_quantized("q", &quantized, Packing::Packed).unwrap();
    let mut gguf = Gguf::from_mlp(&mlp, GgufType::Q4_0).unwrap();
    gguf.push_key("texts", Value::Texts(vec!["a".into(), "b".into()]));
    (file, gguf)
}

/// Changes a few bytes, most of them digits for digits, or takes some away.
fn damage(bytes: &mut Vec<u8>, rng: &mut Xoshiro256PlusPlus) {
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..bytes.len());
        match rng.random_range(0..4) {
            0 => bytes[at] = rng.random(),
            1 => bytes.truncate(at.max(1)),
            _ if bytes[at].is_ascii_digit() => bytes[at] = b'0' + rng.random_range(0..10) as u8,
            _ => bytes[at] = bytes[at].wrapping_add(1),
        }
    }
}

#[test]
fn damaged_files_are_errors_or_files_but_never_a_panic() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(11);
    let (safetensors, gguf) = sample(&mut rng);
    let (safetensors, gguf) = (safetensors.to_bytes().unwrap(), gguf.to_bytes().unwrap());
    let (mut refused, mut read) = (0, 0);
    for round in 0..20_000 {
        let mut bytes = if round % 2 == 0 { safetensors.clone() } else { gguf.clone() };
        damage(&mut bytes, &mut rng);
        let fine = if round % 2 == 0 {
            SafeTensors::from_bytes(&bytes).is_ok_and(|file| {
                let _ = (file.to_mlp::<f32>(), file.quantized("q"), file.quantized("0"));
                true
            })
        } else {
            Gguf::from_bytes(&bytes).is_ok_and(|file| {
                let _ = file.to_mlp::<f64>();
                true
            })
        };
        *(if fine { &mut read } else { &mut refused }) += 1;
    }
    assert!(refused > 1000 && read > 1000, "{refused} refused, {read} read");
}
