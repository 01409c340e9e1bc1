//! Bad ONNX files: each is an error that says what is wrong, no panic, and costs no more memory than a file of its size
//! may. `tests/data/hostile/onnx/make.py` writes them.
#![cfg(feature = "onnx")]

mod memory;

use std::path::PathBuf;

use trimnet::Error;
use trimnet::io::onnx::OnnxImporter;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/hostile/onnx")
}

/// What the path, the buffer that a file is read by, and the message take.
const SMALL: isize = 16 << 10;

fn refused(name: &str) -> String {
    let path = folder().join(format!("{name}.onnx"));
    let importer = OnnxImporter::new();
    let size = std::fs::metadata(&path).unwrap().len() as isize;
    let (floats, peak) = memory::peak(|| importer.read::<f32>(&path).unwrap_err());
    let (wide, peak_wide) = memory::peak(|| importer.read::<f64>(&path).is_err());
    let (integers, peak_integers) = memory::peak(|| importer.read_quantized(&path).is_err());
    let peak = peak.max(peak_wide).max(peak_integers);
    assert!(peak <= 10 * size + SMALL, "{name}: {peak} bytes of memory for {size}");
    assert!(wide, "{name} in f64");
    assert!(integers, "{name} in integers");
    assert!(matches!(floats, Error::Format { .. } | Error::Unsupported { .. }), "{floats:?}");
    floats.to_string()
}

macro_rules! hostile {
    ($($name:ident: $reason:literal,)*) => {
        $(
            #[test]
            fn $name() {
                let error = refused(stringify!($name));
                assert!(error.contains($reason), "{error}");
            }
        )*

        #[test]
        fn every_file_has_a_test() {
            let tested = [$(stringify!($name)),*];
            let files = std::fs::read_dir(folder()).unwrap().map(|file| file.unwrap().path());
            for file in files.filter(|file| file.extension().is_some_and(|e| e == "onnx")) {
                let name = file.file_stem().unwrap().to_str().unwrap();
                assert!(tested.contains(&name), "{name} has no test");
            }
        }
    };
}

hostile! {
    empty: "does not say which operator set",
    not_protobuf: "not an ONNX model",
    truncated_varint: "cut off inside the number at byte 3",
    endless_varint: "does not end after ten bytes",
    lying_length: "claims 2147483647 bytes, 3 are left",
    length_of_2_63: "claims 9223372036854775808 bytes, 0 are left",
    no_graph: "it has no graph",
    no_opset: "does not say which operator set",
    opset_99: "operator set 99; 7 to 26 are read",
    no_output: "the graph has no output",
    duplicate_initializer: "initializer `w`: another value has the same name",
    duplicate_output: "the output of a node `y`: another value has the same name",
    cycle: "a cycle: node `second` (operator Relu) needs its own output",
    self_cycle: "a cycle: node `bad` (operator Relu) needs its own output",
    missing_initializer: "node `bad` (operator Gemm) reads `w`, which is no input, no initializer",
    negative_dimension: "the shape [-1, 2] has a negative length",
    dimensions_of_2_62: "has more elements than memory has bytes",
    dimension_of_2_63: "has a negative length",
    a_terabyte_of_four_bytes: "4 bytes of data, 1099511627776 are needed",
    too_few_numbers: "4 bytes of data, 8 are needed",
    too_many_numbers: "12 bytes of data, 8 are needed",
    nine_axes: "9 axes, 8 is the most",
    weight_of_three_axes: "its weight has shape [1, 1, 2]; two axes are read",
    empty_weight: "is empty",
    weight_does_not_fit: "a weight for 3 inputs, where 2 arrive",
    nan_weight: "weight is NaN at index [0, 1]",
    tensor_of_strings: "elements of type STRING; FLOAT,",
    unknown_element_type: "elements of type number 77",
    name_not_utf8: "not an ONNX model",
    attribute_not_utf8: "attribute `approximate` is not UTF-8",
    attribute_of_wrong_type: "attribute `transB` has type 3",
    external_absolute: "`/etc/passwd` of its data is not below the model's folder",
    external_parent: "`../onnx/make.py` of its data is not below the model's folder",
    external_missing: "nowhere.data",
    external_nowhere: "which is not named",
    external_past_the_end: "8 bytes at 1099511627776 of `make.py`, which has",
    external_overflow: "8 bytes at 18446744073709551615 of `make.py`",
    external_wrong_length: "its length is 9, 8 bytes are needed",
    external_not_a_number: "its offset is `-1`",
    unsupported_operator: "node `conv1` (operator Conv): this operator is not supported; supported are Gemm,",
    unsupported_domain: "node `mine` (operator my.domain.Gemm): this operator is not supported",
    residual: "node `skip` (operator Add): both its inputs depend on the input of the network",
    two_inputs: "two inputs, `x` and `z`; a network has one",
    softmax_in_the_middle: "nothing may follow the Softmax",
    no_linear_layer: "the list of linear layers is empty",
    node_without_inputs: "node `bad` (operator Gemm)",
    node_without_outputs: "no output",
    output_of_no_node: "the output `y` is not computed from the input",
    scale_of_zero: "a scale of 0; scales are finite and above 0",
    scale_of_nan: "a scale of NaN",
    scales_of_no_axis: "axis 7 of a tensor of shape [1, 2]",
    block_of_minus_one: "a block size of -1",
    half_bytes_missing: "2 bytes of data, 3 are needed",
}

/// A length-delimited field.
fn field(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag << 3 | 2];
    let mut length = content.len();
    while length >= 128 {
        out.push(length as u8 | 128);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend(content);
    out
}

/// The error, and the check that memory stayed within ten times the file, with no base beyond the small.
fn bytes_refused(bytes: &[u8]) -> String {
    let limit = 10 * bytes.len() as isize + SMALL;
    let importer = OnnxImporter::new().with_limits(SMALL as usize, 10);
    let (_, peak) = memory::peak(|| importer.from_bytes::<f32>(bytes).unwrap_err().to_string());
    assert!(peak <= limit, "{peak} bytes of memory for {}", bytes.len());
    OnnxImporter::new().from_bytes::<f32>(bytes).unwrap_err().to_string()
}

#[test]
fn many_empty_messages_are_refused_before_they_are_made() {
    let model = field(7, &[0x0a, 0].repeat(1 << 20));
    assert!(bytes_refused(&model).contains("of memory"));
}

#[test]
fn deeply_nested_groups_do_not_exhaust_the_stack() {
    assert!(bytes_refused(&[0x0b; 1 << 20]).contains("not an ONNX model"));
    let nested = (0..1000).fold(Vec::new(), |inner, _| field(7, &inner));
    assert!(!bytes_refused(&nested).is_empty());
}

#[test]
fn one_weight_for_many_layers_has_to_be_worth_it() {
    let weight = [vec![0x08, 64, 0x08, 64, 0x10, 1], field(8, b"w"), field(9, &[0; 64 * 64 * 4])].concat();
    let mut graph = field(5, &weight);
    for i in 0..20_000_u32 {
        let (input, output) = (format!("v{i}"), format!("v{}", i + 1));
        let node =
            [field(1, input.as_bytes()), field(1, b"w"), field(2, output.as_bytes()), field(4, b"MatMul")];
        graph.extend(field(1, &node.concat()));
    }
    graph.extend(field(11, &field(1, b"v0")));
    graph.extend(field(12, &field(1, b"v20000")));
    let model = [field(7, &graph), field(8, &[0x10, 17])].concat();
    assert!(
        bytes_refused(&model).contains("than a file of this size justifies"),
        "{}",
        bytes_refused(&model)
    );
}

#[test]
fn a_long_row_of_nodes_needs_no_stack() {
    let mut graph = Vec::new();
    for i in 0..100_000_u32 {
        let (input, output) = (format!("v{i}"), format!("v{}", i + 1));
        let node = [field(1, input.as_bytes()), field(2, output.as_bytes()), field(4, b"Identity")];
        graph.extend(field(1, &node.concat()));
    }
    graph.extend(field(11, &field(1, b"v0")));
    graph.extend(field(12, &field(1, b"v100000")));
    let model = [field(7, &graph), field(8, &[0x10, 17])].concat();
    let importer = OnnxImporter::new().with_limits(1 << 30, 100);
    assert!(importer.from_bytes::<f32>(&model).unwrap_err().to_string().contains("no network"));
}

#[cfg(unix)]
#[test]
fn a_link_out_of_the_folder_is_not_followed() {
    let folder = std::env::temp_dir().join(format!("trimnet-onnx-link-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", folder.join("nowhere.data")).unwrap();
    std::fs::copy(self::folder().join("external_missing.onnx"), folder.join("a.onnx")).unwrap();
    let error = OnnxImporter::new().read::<f32>(folder.join("a.onnx")).unwrap_err().to_string();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(error.contains("leads out of the model's folder"), "{error}");
}

#[test]
fn cut_anywhere_a_model_is_refused_or_a_network() {
    use trimnet::io::onnx::OnnxExporter;
    use trimnet::rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mlp = trimnet::nn::Mlp::builder(3).linear(4).relu().linear(2).build::<f32>(&mut rng).unwrap();
    let bytes = OnnxExporter::new().float(&mlp).unwrap().to_bytes().unwrap();
    for length in 0..bytes.len() {
        let _ = OnnxImporter::new().from_bytes::<f32>(&bytes[..length]);
    }
    for place in 0..bytes.len() {
        for change in [1, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[place] ^= change;
            let importer = OnnxImporter::new().with_limits(SMALL as usize, 10);
            for peak in [
                memory::peak(|| importer.from_bytes::<f32>(&bytes).is_ok()).1,
                memory::peak(|| importer.quantized_from_bytes(&bytes).is_ok()).1,
            ] {
                assert!(peak <= 10 * bytes.len() as isize + SMALL, "{peak} bytes, byte {place} ^ {change}");
            }
        }
    }
    assert_eq!(OnnxImporter::new().from_bytes::<f32>(&bytes).unwrap().network, mlp);
}

/// A number of the wire format.
fn varint(mut x: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while x >= 128 {
        out.push(x as u8 | 128);
        x >>= 7;
    }
    out.push(x as u8);
    out
}

/// One node of a graph.
fn node(op: &str, inputs: &[&str], output: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut node: Vec<u8> = inputs.iter().flat_map(|input| field(1, input.as_bytes())).collect();
    node.extend(field(2, output.as_bytes()));
    node.extend(field(4, op.as_bytes()));
    node.extend(attributes.iter().flat_map(|attribute| field(5, attribute)));
    field(1, &node)
}

/// An initializer of this type and shape.
fn initializer(name: &str, element: u8, shape: &[u64], raw: &[u8]) -> Vec<u8> {
    let mut tensor: Vec<u8> = shape.iter().flat_map(|&dim| [vec![0x08], varint(dim)].concat()).collect();
    tensor.extend([0x10, element]);
    tensor.extend(field(8, name.as_bytes()));
    tensor.extend(field(9, raw));
    field(5, &tensor)
}

fn floats(name: &str, shape: &[u64], values: &[f32]) -> Vec<u8> {
    initializer(name, 1, shape, &values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
}

/// An attribute of one integer or of several.
fn ints(name: &str, kind: u8, values: &[i64]) -> Vec<u8> {
    let tag = if kind == 2 { 0x18 } else { 0x40 };
    let values = values.iter().flat_map(|&x| [vec![tag], varint(x as u64)].concat());
    [field(1, name.as_bytes()), values.collect(), vec![0xa0, 0x01, kind]].concat()
}

/// A model from `x`, `width` wide, to `y`.
fn model(width: u64, parts: &[Vec<u8>]) -> Vec<u8> {
    let batch = field(1, &field(2, b"N"));
    let width = field(1, &[vec![0x08], varint(width)].concat());
    let tensor_type = field(1, &[vec![0x08, 1], field(2, &[batch, width].concat())].concat());
    let input = field(11, &[field(1, b"x"), field(2, &tensor_type)].concat());
    let graph = [parts.concat(), input, field(12, &field(1, b"y"))].concat();
    [field(7, &graph), field(8, &[0x10, 17])].concat()
}

#[test]
fn a_width_that_no_tensor_has_costs_no_memory() {
    let (two, weight) = (floats("two", &[], &[2.0]), floats("w", &[3, 2], &[1.0; 6]));
    let nodes = [
        node("Mul", &["x", "two"], "a", &[]),
        node("Relu", &["a"], "r", &[]),
        node("MatMul", &["r", "w"], "y", &[]),
    ];
    for width in [1 << 33, 1 << 62] {
        let error = bytes_refused(&model(width, &[nodes.concat(), two.clone(), weight.clone()]));
        assert!(error.contains("than a file of this size justifies"), "{error}");
    }
    let three = model(3, &[nodes.concat(), two.clone(), weight.clone()]);
    assert!(OnnxImporter::new().from_bytes::<f32>(&three).is_ok());

    let mean = |input, output| {
        node("ReduceMean", &[input], output, &[ints("axes", 7, &[-1]), ints("keepdims", 2, &[1])])
    };
    let norm = [
        mean("x", "mean"),
        node("Sub", &["x", "mean"], "centred", &[]),
        node("Pow", &["centred", "two"], "square", &[]),
        mean("square", "var"),
        node("Add", &["var", "eps"], "sum", &[]),
        node("Sqrt", &["sum"], "std", &[]),
        node("Div", &["centred", "std"], "n", &[]),
        node("MatMul", &["n", "w"], "y", &[]),
        floats("eps", &[], &[1e-5]),
        two,
        weight,
    ];
    for width in [1 << 33, 1 << 61, 1 << 62] {
        let error = bytes_refused(&model(width, &norm));
        assert!(error.contains("than a file of this size justifies"), "{error}");
    }
    assert!(OnnxImporter::new().from_bytes::<f32>(&model(3, &norm)).is_ok());
}

#[test]
fn a_constant_for_many_products_has_to_be_worth_it() {
    let mut parts = vec![floats("c", &[4096], &[1.0; 4096])];
    parts.extend((0..5000).map(|i| node("Mul", &[&format!("v{i}"), "c"], &format!("v{}", i + 1), &[])));
    parts.push(node("Identity", &["x"], "v0", &[]));
    parts.push(node("Relu", &["v5000"], "y", &[]));
    let error = bytes_refused(&model(4096, &parts));
    assert!(error.contains("than a file of this size justifies"), "{error}");
}

#[test]
fn empty_constants_of_any_shape_are_refused_at_once() {
    let axis = |axis| [ints("axis", 2, &[axis])];
    let product = node("MatMul", &["x", "w"], "y", &[]);
    for (shape, scales) in [([0, 1 << 40, 1 << 40], 2), ([0, 1 << 33, 1 << 31], 0)] {
        let parts = [
            node("DequantizeLinear", &["q", "s"], "w", &axis(0)),
            product.clone(),
            initializer("q", 3, &shape, &[]),
            floats("s", &[scales], &vec![1.0; scales as usize]),
        ];
        let error = bytes_refused(&model(3, &parts));
        assert!(error.contains("are empty"), "{error}");
    }
    let parts = [node("Transpose", &["z"], "w", &[]), product, floats("z", &[0, 1 << 60], &[])];
    let error = bytes_refused(&model(3, &parts));
    assert!(error.contains("is empty") || error.contains("a weight for"), "{error}");
}
