//! IDX, the format of MNIST: images and their labels, gzipped or plain.
//!
//! ```text
//! 00 00 08 d      magic: 08 = unsigned bytes, d = number of dimensions (3 for images, 1 for labels)
//! d x u32         the dimensions, big-endian: images, height, width
//! bytes           row-major
//! ```
//!
//! Gzip is recognised by its first two bytes, not by the file's name. A header is believed only as far as the
//! file's size justifies: deflate cannot expand a byte into more than 1032, so a larger claim is refused before
//! anything is allocated. Format: LeCun, Cortes, Burges, "The MNIST database of handwritten digits".

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use ndarray::{Array2, ArrayD, IxDyn};

use crate::error::{Error, Result};
use crate::float::Float;
use crate::nn::data::Dataset;

/// The most bytes that one byte of a deflate stream can stand for.
const MAX_EXPANSION: u64 = 1032;

/// The most dimensions that a header may declare; images have three.
const MAX_DIMENSIONS: u8 = 8;

/// A folder of labelled images, read and scaled to 0..=1.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageFolder<F> {
    /// The training part, or everything where the folder holds one part only.
    pub train: Dataset<F>,
    /// The test part, where the folder holds one.
    pub test: Option<Dataset<F>>,
    /// Rows of pixels of an image.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
    /// One more than the largest label.
    pub classes: usize,
}

/// Reads the images and labels of a folder.
///
/// The folder holds either one pair of files, `ANY-images-idx3-ubyte` and `ANY-labels-idx1-ubyte`, or two, of which
/// the test pair has `t10k` or `test` in its name and the training pair `train`. Each may be gzipped (`.gz`), and a
/// dot may stand in place of the dash before `idx`; of a plain and a gzipped file of one name, the plain one is read.
///
/// Pixels are divided by the largest pixel of the training images (16 for the digits of the examples, 255 for MNIST);
/// each image becomes a row of `height * width` inputs.
///
/// # Errors
/// [`Error::Io`] if the folder or a file cannot be read; [`Error::Format`] if the pairs are not there, a file is
/// truncated, longer than its header says, or of another magic, or if images and labels differ in number.
///
/// ```no_run
/// use std::path::Path;
/// let digits = trimnet::io::idx::read_folder::<f32>(Path::new("examples/data/digits"))?;
/// assert_eq!((digits.train.rows(), digits.height, digits.width), (1797, 8, 8));
/// # Ok::<(), trimnet::Error>(())
/// ```
pub fn read_folder<F: Float>(folder: &Path) -> Result<ImageFolder<F>> {
    let pairs = pairs(folder)?;
    let (train, test) = match pairs.as_slice() {
        [only] => (only, None),
        _ => {
            let test: Vec<_> = pairs.iter().filter(|pair| is_test(&pair.prefix)).collect();
            let train: Vec<_> = pairs.iter().filter(|pair| pair.prefix.contains("train")).collect();
            match (train.as_slice(), test.as_slice()) {
                ([train], [test]) => (*train, Some(*test)),
                _ => {
                    let found: Vec<_> = pairs.iter().map(|pair| pair.prefix.as_str()).collect();
                    return Err(format_error(
                        folder,
                        format!(
                            "found the pairs {found:?}; expected one pair of images and labels, or a train and a \
                             t10k/test pair"
                        ),
                    ));
                }
            }
        }
    };
    let train = train.read()?;
    let test = test.map(Pair::read).transpose()?;
    let (height, width) = (train.height, train.width);
    if let Some(test) = &test
        && (test.height, test.width) != (height, width)
    {
        let found = (test.height, test.width);
        return Err(format_error(
            folder,
            format!("test images of {found:?} pixels, training images of {:?}", (height, width)),
        ));
    }
    let labels = train.labels.iter().chain(test.iter().flat_map(|test| &test.labels));
    let classes = labels.max().map_or(0, |&label| label + 1);
    let white = train.pixels.iter().copied().max().unwrap_or(0).max(1);
    Ok(ImageFolder {
        train: train.scaled(white)?,
        test: test.map(|test| test.scaled(white)).transpose()?,
        height,
        width,
        classes,
    })
}

/// Reads one IDX file of unsigned bytes, gzipped or plain, of any 1 to 8 dimensions.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; [`Error::Format`] if its magic is another, if it is truncated or longer
/// than its header says, or if the header claims more than a file of this size can hold.
pub fn read_array(path: &Path) -> Result<ArrayD<u8>> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let stored = file.metadata().map_err(io)?.len();
    let mut file = BufReader::new(file);
    if file.fill_buf().map_err(io)?.starts_with(&[0x1f, 0x8b]) {
        parse(path, MultiGzDecoder::new(file), stored.saturating_mul(MAX_EXPANSION))
    } else {
        parse(path, file, stored)
    }
}

/// Reads header and elements from `source`, which holds at most `limit` bytes.
fn parse(path: &Path, mut source: impl Read, limit: u64) -> Result<ArrayD<u8>> {
    let magic = read_word(path, &mut source, "magic")?;
    let [zero, also_zero, element, dimensions] = magic;
    if [zero, also_zero] != [0, 0] || element != 0x08 || !(1..=MAX_DIMENSIONS).contains(&dimensions) {
        return Err(format_error(
            path,
            format!(
                "magic {:#010x}, expected 0x0000080d: unsigned bytes of d = 1..={MAX_DIMENSIONS} dimensions",
                u32::from_be_bytes(magic)
            ),
        ));
    }
    let mut shape = Vec::with_capacity(dimensions.into());
    for _ in 0..dimensions {
        shape.push(u32::from_be_bytes(read_word(path, &mut source, "dimensions")?) as usize);
    }
    let elements = shape.iter().try_fold(1_u64, |product, &n| product.checked_mul(n as u64));
    let elements = match elements {
        Some(elements) if elements <= limit => elements,
        _ => {
            return Err(format_error(
                path,
                format!("the header claims {shape:?} bytes, a file of this size holds at most {limit}"),
            ));
        }
    };
    // Grows with what really arrives, so that a small file with a large claim costs little.
    let mut bytes = Vec::new();
    source.by_ref().take(elements).read_to_end(&mut bytes).map_err(|e| read_error(path, e))?;
    if bytes.len() as u64 != elements {
        return Err(format_error(
            path,
            format!("truncated: {} bytes after the header, expected {elements} = {shape:?}", bytes.len()),
        ));
    }
    // Reading to the end also makes the gzip decoder compare its checksum.
    let more = source.take(1).read_to_end(&mut Vec::new()).map_err(|e| read_error(path, e))?;
    if more != 0 {
        return Err(format_error(path, format!("more than the {elements} bytes that the header declares")));
    }
    ArrayD::from_shape_vec(IxDyn(&shape), bytes).map_err(|e| format_error(path, format!("{shape:?}: {e}")))
}

fn read_word(path: &Path, source: &mut impl Read, what: &str) -> Result<[u8; 4]> {
    let mut word = [0; 4];
    source.read_exact(&mut word).map_err(|e| match e.kind() {
        ErrorKind::UnexpectedEof => format_error(path, format!("truncated: the file ends within its {what}")),
        _ => read_error(path, e),
    })?;
    Ok(word)
}

/// A fault inside the compressed stream is the file's; anything else the system's.
fn read_error(path: &Path, source: std::io::Error) -> Error {
    match source.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::InvalidInput | ErrorKind::InvalidData => {
            format_error(path, format!("broken gzip stream: {source}"))
        }
        _ => Error::Io { path: path.to_owned(), source },
    }
}

fn format_error(path: &Path, reason: String) -> Error {
    Error::Format { path: path.to_owned(), reason }
}

/// The two files of one part.
struct Pair {
    prefix: String,
    images: PathBuf,
    labels: PathBuf,
}

/// What [`Pair::read`] found.
struct Part {
    pixels: Vec<u8>,
    labels: Vec<usize>,
    height: usize,
    width: usize,
}

impl Pair {
    fn read(&self) -> Result<Part> {
        let images = read_array(&self.images)?;
        let &[count, height, width] = images.shape() else {
            return Err(format_error(
                &self.images,
                format!("images of shape {:?}, expected 3 dimensions", images.shape()),
            ));
        };
        let labels = read_array(&self.labels)?;
        if labels.shape() != [count] {
            return Err(format_error(
                &self.labels,
                format!(
                    "labels of shape {:?}, expected [{count}] as {} has images",
                    labels.shape(),
                    self.images.display()
                ),
            ));
        }
        let pixels = images.into_raw_vec_and_offset().0;
        Ok(Part { pixels, labels: labels.iter().map(|&label| label.into()).collect(), height, width })
    }
}

impl Part {
    fn scaled<F: Float>(self, white: u8) -> Result<Dataset<F>> {
        let shape = (self.labels.len(), self.height * self.width);
        let white = F::of(white.into());
        let pixels = self.pixels.into_iter().map(|pixel| F::of(pixel.into()) / white).collect();
        let inputs = Array2::from_shape_vec(shape, pixels).map_err(|_| Error::Shape {
            what: "images",
            actual: vec![self.labels.len(), self.height, self.width],
            expected: vec![shape.0, shape.1],
        })?;
        Dataset::classification(inputs, self.labels)
    }
}

fn is_test(prefix: &str) -> bool {
    prefix.contains("t10k") || prefix.contains("test")
}

/// The pairs of a folder in the order of their names.
fn pairs(folder: &Path) -> Result<Vec<Pair>> {
    let io = |source| Error::Io { path: folder.to_owned(), source };
    let mut images = BTreeMap::new();
    let mut labels = BTreeMap::new();
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        paths.push(entry.map_err(io)?.path());
    }
    // Descending, so that the plain file, which sorts before its `.gz`, is inserted last and wins.
    paths.sort_by(|a, b| b.cmp(a));
    for path in paths {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let name = name.strip_suffix(".gz").unwrap_or(name);
        let suffixed = |kind: &str, dimensions: u8| {
            ["-", "."]
                .iter()
                .find_map(|dash| name.strip_suffix(&format!("{kind}{dash}idx{dimensions}-ubyte")))
        };
        if let Some(prefix) = suffixed("images", 3) {
            images.insert(prefix.to_owned(), path.clone());
        } else if let Some(prefix) = suffixed("labels", 1) {
            labels.insert(prefix.to_owned(), path.clone());
        }
    }
    if images.is_empty() {
        return Err(format_error(
            folder,
            "no file named *-images-idx3-ubyte or *-images-idx3-ubyte.gz".to_owned(),
        ));
    }
    images
        .into_iter()
        .map(|(prefix, images)| match labels.remove(&prefix) {
            Some(labels) => Ok(Pair { prefix, images, labels }),
            None => Err(format_error(&images, format!("no file {prefix}labels-idx1-ubyte[.gz] beside it"))),
        })
        .collect()
}
