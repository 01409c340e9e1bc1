//! Where the bytes of a `.trim` file are.

use std::fmt;

use super::container::{Kind, read_sections};
use super::encoding::{Encoding, Taken, TensorBytes};
use super::engine::read_recipe;
use super::named::read_tensors;
use super::network::read_network;
use super::tensor::{Limits, Values};
use crate::error::{Error, Result};

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct TensorReport {
    /// Index of the layer and role, as in `0.weight`; the name of a named tensor.
    pub name: String,
    /// The lengths of the axes.
    pub shape: Vec<usize>,
    /// Elements that are not zero.
    pub nonzero: usize,
    /// How it is encoded.
    pub encoding: Encoding,
    /// Its bytes.
    pub bytes: TensorBytes,
}

impl TensorReport {
    pub(super) fn new(name: String, taken: &Taken) -> Self {
        let nonzero = match taken.tensor.values() {
            Values::F32(v) => v.iter().filter(|&&x| x != 0.0).count(),
            Values::F64(v) => v.iter().filter(|&&x| x != 0.0).count(),
            Values::Codes(codes) => codes.values().iter().filter(|&&x| x != 0).count(),
        };
        let shape = taken.tensor.shape().to_vec();
        Self { name, shape, nonzero, encoding: taken.encoding, bytes: taken.parts }
    }
}

/// Where the bytes of a file went; prints as a table, and every number adds up to the file's length.
///
/// ```
/// use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
/// use trimnet::{io::trim::TrimReport, nn::Mlp};
///
/// let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
/// let bytes = Mlp::builder(8).linear(4).relu().linear(2).build::<f32>(&mut rng)?.to_bytes();
/// let report = TrimReport::of_bytes(&bytes)?;
/// assert_eq!(report.total, bytes.len());
/// assert_eq!(report.header + report.tensors.iter().map(|t| t.bytes.total()).sum::<usize>(), report.total);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct TrimReport {
    /// Bytes of the file.
    pub total: usize,
    /// Bytes outside of the tensors: magic, version, layers and their settings, checksum, sections that this
    /// version does not know.
    pub header: usize,
    /// The tensors in the order of the file.
    pub tensors: Vec<TensorReport>,
}

impl TrimReport {
    pub(super) fn new(total: usize, tensors: Vec<TensorReport>) -> Self {
        let header = total - tensors.iter().map(|t| t.bytes.total()).sum::<usize>();
        Self { total, header, tensors }
    }

    /// Reads a file for its report.
    ///
    /// # Errors
    /// As [`Mlp::from_bytes`](crate::nn::Mlp::from_bytes), [`Engine::from_bytes`](crate::engine::Engine::from_bytes) or
    /// [`tensors_from_bytes`](super::tensors_from_bytes), whichever the file holds, except that either element type will do.
    pub fn of_bytes(bytes: &[u8]) -> Result<Self> {
        Self::of_bytes_with(bytes, &Limits::default())
    }

    /// The same for a file that may need more, or is granted less, memory than by default.
    ///
    /// # Errors
    /// As [`of_bytes`](Self::of_bytes).
    pub fn of_bytes_with(bytes: &[u8], limits: &Limits) -> Result<Self> {
        let sections = read_sections(bytes)?;
        if sections.iter().any(|(kind, _)| *kind == Kind::Engine) {
            return Ok(match read_recipe::<f32>(bytes, limits) {
                Err(Error::Unsupported { .. }) => read_recipe::<f64>(bytes, limits)?.1,
                other => other?.1,
            });
        }
        if sections.iter().any(|(kind, _)| *kind == Kind::Tensors) {
            let tensors = read_tensors(bytes, limits)?;
            let report = |(name, taken): (String, Taken)| TensorReport::new(name, &taken);
            return Ok(Self::new(bytes.len(), tensors.into_iter().map(report).collect()));
        }
        Ok(read_network::<f64>(bytes, limits)?.1)
    }

    /// The parts of all tensors added up.
    pub fn parts(&self) -> TensorBytes {
        self.tensors.iter().fold(TensorBytes::default(), |sum, t| TensorBytes {
            head: sum.head + t.bytes.head,
            table: sum.table + t.bytes.table,
            mask: sum.mask + t.bytes.mask,
            values: sum.values + t.bytes.values,
        })
    }
}

impl fmt::Display for TrimReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = "-".repeat(88);
        let cells = "tensor              shape        nonzero  encoding               head  table   mask values  bytes";
        writeln!(f, "{cells}\n{line}")?;
        for t in &self.tensors {
            let shape = t.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
            let encoding = format!("{:?} {:?}", t.encoding.layout, t.encoding.mapping).to_lowercase();
            let TensorBytes { head, table, mask, values } = t.bytes;
            let total = t.bytes.total();
            let TensorReport { name, nonzero, .. } = t;
            write!(f, "{name:<16} {shape:>12} {nonzero:>10}  {encoding:<20} ")?;
            writeln!(f, "{head:>6} {table:>6} {mask:>6} {values:>6} {total:>6}")?;
        }
        let TensorBytes { head, table, mask, values } = self.parts();
        let tensors = head + table + mask + values;
        let nonzero: usize = self.tensors.iter().map(|t| t.nonzero).sum();
        writeln!(f, "{line}")?;
        writeln!(
            f,
            "{:<16} {:>12} {nonzero:>10}  {:<20} {head:>6} {table:>6} {mask:>6} {values:>6} {tensors:>6}",
            "tensors", "", ""
        )?;
        writeln!(f, "{:<62} {:>32}", "header, layers and checksum", self.header)?;
        write!(f, "{:<62} {:>32}", "file", self.total)
    }
}
