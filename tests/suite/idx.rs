//! Every way in which a folder of IDX files can lie.
#![cfg(feature = "idx")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::{Compression, write::GzEncoder};
use trimnet::Error;
use trimnet::io::idx::{read_array, read_folder};

/// A folder of its own for each test, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("trimnet-idx-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn with(self, name: &str, bytes: &[u8]) -> Self {
        fs::write(self.0.join(name), bytes).unwrap();
        self
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn idx(shape: &[u32], bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, shape.len() as u8];
    shape.iter().for_each(|n| file.extend(n.to_be_bytes()));
    file.extend(bytes);
    file
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The reason of a [`Error::Format`].
fn reason<T: std::fmt::Debug>(result: trimnet::Result<T>) -> String {
    match result {
        Err(Error::Format { path, reason }) => {
            assert!(!path.as_os_str().is_empty());
            reason
        }
        other => panic!("expected a format error, got {other:?}"),
    }
}

fn read_bytes(name: &str, bytes: &[u8]) -> trimnet::Result<ndarray::ArrayD<u8>> {
    let folder = Folder::new(name).with("file", bytes);
    read_array(&folder.0.join("file"))
}

#[test]
fn reads_the_digits_of_the_examples() {
    let digits = read_folder::<f32>(Path::new("examples/data/digits")).unwrap();
    assert_eq!((digits.height, digits.width, digits.classes), (8, 8, 10));
    assert_eq!(digits.train.inputs().dim(), (1797, 64));
    assert!(digits.test.is_none());
    assert_eq!(&digits.train.labels().unwrap()[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    // The first image begins 0 0 5 13 9 1 of 16.
    assert_eq!(digits.train.inputs()[[0, 2]], 5.0 / 16.0);
    assert_eq!(digits.train.inputs().iter().copied().fold(0.0, f32::max), 1.0);
}

#[test]
fn reads_a_training_and_a_test_pair_plain_or_gzipped_scaled_by_the_same_maximum() {
    let folder = Folder::new("pairs")
        .with("train-images-idx3-ubyte.gz", &gzip(&idx(&[2, 1, 2], &[0, 10, 20, 40])))
        .with("train-labels.idx1-ubyte", &idx(&[2], &[3, 1]))
        .with("t10k-images-idx3-ubyte", &idx(&[1, 1, 2], &[10, 80]))
        .with("t10k-labels-idx1-ubyte.gz", &gzip(&idx(&[1], &[4])))
        .with("README.md", b"not data");
    let images = read_folder::<f64>(&folder.0).unwrap();
    assert_eq!(images.train.inputs(), ndarray::array![[0.0, 0.25], [0.5, 1.0]]);
    assert_eq!(images.train.labels().unwrap(), [3, 1]);
    let test = images.test.unwrap();
    assert_eq!(test.inputs(), ndarray::array![[0.25, 2.0]]);
    assert_eq!((test.labels().unwrap(), images.classes), ([4].as_slice(), 5));
}

#[test]
fn a_missing_folder_is_named() {
    let missing = std::env::temp_dir().join("trimnet-no-such-folder");
    match read_folder::<f32>(&missing) {
        Err(Error::Io { path, .. }) => assert_eq!(path, missing),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_folder_without_pairs_is_refused() {
    let folder = Folder::new("none").with("something.txt", b"");
    assert!(reason(read_folder::<f32>(&folder.0)).contains("images-idx3-ubyte"));
    let folder = Folder::new("half").with("a-images-idx3-ubyte", &idx(&[1, 1, 1], &[1]));
    assert!(reason(read_folder::<f32>(&folder.0)).contains("a-labels-idx1-ubyte"));
    let folder = Folder::new("three");
    let folder = ["a", "b", "c"].iter().fold(folder, |folder, prefix| {
        folder
            .with(&format!("{prefix}-images-idx3-ubyte"), &idx(&[1, 1, 1], &[1]))
            .with(&format!("{prefix}-labels-idx1-ubyte"), &idx(&[1], &[1]))
    });
    assert!(reason(read_folder::<f32>(&folder.0)).contains(r#"["a-", "b-", "c-"]"#));
}

#[test]
fn images_and_labels_must_be_equally_many() {
    let folder = Folder::new("counts")
        .with("x-images-idx3-ubyte", &idx(&[2, 1, 1], &[1, 2]))
        .with("x-labels-idx1-ubyte", &idx(&[3], &[0, 1, 2]));
    let reason = reason(read_folder::<f32>(&folder.0));
    assert!(reason.contains("[3]") && reason.contains("[2]"), "{reason}");
}

#[test]
fn no_images_at_all_is_an_error() {
    let folder = Folder::new("zero")
        .with("x-images-idx3-ubyte", &idx(&[0, 8, 8], &[]))
        .with("x-labels-idx1-ubyte", &idx(&[0], &[]));
    assert!(matches!(read_folder::<f32>(&folder.0), Err(Error::Empty { .. })));
}

#[test]
fn another_magic_is_refused() {
    for bytes in [
        b"P6 8 8 255".to_vec(),
        vec![0, 0, 0x0d, 1, 0, 0, 0, 0],
        vec![0, 0, 8, 0],
        vec![0, 0, 8, 9, 0, 0],
        vec![1, 0, 8, 1, 0, 0, 0, 0],
    ] {
        assert!(reason(read_bytes("magic", &bytes)).starts_with("magic 0x"), "{bytes:?}");
    }
    let folder = Folder::new("swapped")
        .with("x-images-idx3-ubyte", &idx(&[1], &[1]))
        .with("x-labels-idx1-ubyte", &idx(&[1], &[1]));
    assert!(reason(read_folder::<f32>(&folder.0)).contains("expected 3 dimensions"));
}

#[test]
fn truncation_anywhere_is_an_error() {
    let whole = idx(&[2, 3, 2], &(0..12).collect::<Vec<_>>());
    assert_eq!(read_bytes("whole", &whole).unwrap().shape(), [2, 3, 2]);
    let packed = gzip(&whole);
    assert_eq!(read_bytes("packed", &packed).unwrap().shape(), [2, 3, 2]);
    for n in 0..whole.len() {
        reason(read_bytes("plain-cut", &whole[..n]));
    }
    for n in 0..packed.len() {
        reason(read_bytes("gzip-cut", &packed[..n]));
    }
}

#[test]
fn a_flipped_bit_of_a_gzip_stream_is_noticed() {
    let packed = gzip(&idx(&[2, 3, 2], &(0..12).collect::<Vec<_>>()));
    for (at, bit) in (10..packed.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        let mut bytes = packed.clone();
        bytes[at] ^= 1 << bit;
        if let Ok(array) = read_bytes("flip", &bytes) {
            assert!(array.iter().copied().eq(0..12), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn bytes_after_the_last_element_are_refused() {
    assert!(reason(read_bytes("long", &idx(&[2], &[1, 2, 3]))).contains("more than the 2 bytes"));
    assert!(reason(read_bytes("longer", &gzip(&idx(&[2], &[1, 2, 3])))).contains("more than the 2 bytes"));
}

#[test]
fn a_hostile_header_is_refused_before_anything_is_allocated() {
    for shape in [vec![1 << 31; 3], vec![u32::MAX; 8], vec![1 << 31], vec![1 << 20, 1 << 10]] {
        for bytes in [idx(&shape, &[1, 2, 3]), gzip(&idx(&shape, &[1, 2, 3]))] {
            assert!(reason(read_bytes("hostile", &bytes)).contains("holds at most"), "{shape:?}");
        }
    }
}

#[test]
fn a_gzip_bomb_stops_at_the_declared_length() {
    let mut bomb = idx(&[4], &[1, 2, 3, 4]);
    bomb.resize(64 << 20, 0);
    assert!(reason(read_bytes("bomb", &gzip(&bomb))).contains("more than the 4 bytes"));
}
