//! Palettes: every weight is one of at most 256 shared values.
//!
//! ```text
//! x'[i] = palette[g(i)][code[i]]                       g: the granularity
//! d loss / d palette[g][c] = sum of d loss / d x'[i] over its members: g(i) = g, code[i] = c
//! ```
//!
//! Weight sharing of Han et al., "Deep Compression", ICLR 2016. What is 0 stays 0, as an entry of its own, so that masks
//! survive. In memory codes are packed at fixed width; a `.trim` file stores a palette once and entropy codes where its
//! values stand.

use ndarray::{Array, ArrayView, ArrayViewMut, Dimension};

use crate::error::{Error, Result};
use crate::float::{Float, check_finite, check_shape};
use crate::kernel::Pool;
use crate::quantize::cluster::{Clustering, cluster};
use crate::quantize::layout::{Layout, Run};
use crate::quantize::nearest::assign_nearest;
use crate::quantize::scheme::Granularity;
use crate::quantize::tensor::elements;
use crate::tensor::PackedInts;
use crate::traits::{Compressed, Compressor};

/// Entries that a code of one byte can name.
const ENTRIES_MAX: usize = 256;

/// Shares at most so many values among the weights of a tensor, of a channel, or of a group.
///
/// ```
/// use ndarray::array;
/// use trimnet::quantize::PaletteQuantizer;
/// use trimnet::{Compressed, Compressor};
///
/// let weights = array![[0.0f32, 0.9, 1.1, -2.0], [0.0, 0.0, 1.0, -2.2]];
/// let tensor = PaletteQuantizer::new(3)?.compress(weights.view())?;
/// assert_eq!(tensor.palettes(), [-2.1, 0.0, 1.0]);
/// assert_eq!(tensor.decompress()?, array![[0.0, 1.0, 1.0, -2.1], [0.0, 0.0, 1.0, -2.1]]);
/// assert_eq!(tensor.size_bytes(), 2 + 3 * 4); // 8 codes of 2 bits, 3 values
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "RawQuantizer"))]
pub struct PaletteQuantizer {
    entries: usize,
    granularity: Granularity,
    clustering: Clustering,
    keeps_zeros: bool,
}

impl PaletteQuantizer {
    /// At most `entries` values for the tensor, 0 among them if it has zeros.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `2 <= entries <= 256`.
    pub fn new(entries: usize) -> Result<Self> {
        let clustering = Clustering::default();
        Self { entries, granularity: Granularity::PerTensor, clustering, keeps_zeros: true }.checked()
    }

    /// A palette for each channel or group.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for groups of 0.
    pub fn with_granularity(self, granularity: Granularity) -> Result<Self> {
        Self { granularity, ..self }.checked()
    }

    /// Another way to find the values.
    pub fn with_clustering(self, clustering: Clustering) -> Self {
        Self { clustering, ..self }
    }

    /// Clusters zeros like any other weight: for dense tensors, where 0 means nothing.
    pub fn with_zeros_clustered(self) -> Self {
        Self { keeps_zeros: false, ..self }
    }

    /// The largest number of values in a palette.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Which weights share a palette.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    fn checked(self) -> Result<Self> {
        if !(2..=ENTRIES_MAX).contains(&self.entries) {
            let range = "2 <= entries <= 256";
            return Err(Error::OutOfRange {
                name: "entries of a palette",
                value: self.entries as f64,
                range,
            });
        }
        match self.granularity {
            Granularity::PerGroup { size: 0, .. } => {
                Err(Error::OutOfRange { name: "group size", value: 0.0, range: "at least 1" })
            }
            _ => Ok(self),
        }
    }

    /// The palette of these values, ascending, and the code of each.
    fn share<F: Float>(&self, values: &[F]) -> Result<(Vec<F>, Vec<u8>)> {
        let pool = Pool::for_elements(values.len());
        let keeps_zero = self.keeps_zeros && values.iter().any(|x| x.is_zero());
        if !keeps_zero {
            let palette = cluster(values, self.entries, self.clustering)?;
            let mut codes = vec![0; values.len()];
            assign_nearest(values, &palette, &mut codes, &pool)?;
            return Ok((palette, codes));
        }
        let others: Vec<F> = values.iter().copied().filter(|x| !x.is_zero()).collect();
        let mut palette = cluster(&others, self.entries - 1, self.clustering)?;
        let mut found = vec![0; others.len()];
        if !others.is_empty() {
            assign_nearest(&others, &palette, &mut found, &pool)?;
        }
        // A centroid of 0 (the mean of two signs) is the zero entry too.
        let zero = palette.partition_point(|c| *c < F::zero());
        let shift = if palette.get(zero).is_some_and(|c| c.is_zero()) { 0 } else { 1 };
        if shift == 1 {
            palette.insert(zero, F::zero());
        }
        let mut next = found.into_iter();
        let mut code = |x: &F| match x.is_zero() {
            true => zero as u8,
            false => next.next().map_or(0, |c| if usize::from(c) >= zero { c + shift } else { c }),
        };
        let codes = values.iter().map(&mut code).collect();
        Ok((palette, codes))
    }
}

impl<F: Float, D: Dimension> Compressor<F, D> for PaletteQuantizer {
    type Output = PaletteTensor<F, D>;

    /// # Errors
    /// [`Error::NotFinite`] for NaN or infinity; [`Error::Unsupported`] for an axis that the tensor has not, or for more weights
    /// than [`Clustering::Exact`] takes.
    fn compress(&self, weights: ArrayView<'_, F, D>) -> Result<Self::Output> {
        check_finite("weights", &weights)?;
        let layout = Layout::new(self.granularity, weights.shape())?;
        let dense = weights.as_standard_layout();
        let dense = dense.as_slice().unwrap_or_default(); // standard layout: always a slice
        let mut members = vec![Vec::new(); layout.scales()];
        each_member(&layout, |scale, i| members[scale].push(dense[i]));
        let shared = members.iter().map(|values| self.share(values)).collect::<Result<Vec<_>>>()?;
        let mut codes = vec![0; dense.len()];
        let mut places = vec![0; layout.scales()];
        each_member(&layout, |scale, i| {
            codes[i] = shared[scale].1[places[scale]];
            places[scale] += 1;
        });
        let palettes: Vec<_> = shared.into_iter().map(|(palette, _)| palette).collect();
        PaletteTensor::assemble(weights.raw_dim(), self.granularity, &palettes, codes)
    }
}

/// Scale and position of every element, row-major.
fn each_member(layout: &Layout, mut f: impl FnMut(usize, usize)) {
    layout.for_each_run(|Run { elements, scales }| match scales.len() {
        1 => elements.for_each(|i| f(scales.start, i)),
        _ => elements.zip(scales).for_each(|(i, scale)| f(scale, i)),
    });
}

/// A tensor of codes that name shared values.
///
/// Made by [`PaletteQuantizer`]; the shared values can be trained further:
///
/// ```
/// use ndarray::array;
/// use trimnet::quantize::PaletteQuantizer;
/// use trimnet::{Compressed, Compressor};
///
/// let weights = array![[0.0f32, 1.0, 1.0, -2.0]];
/// let mut tensor = PaletteQuantizer::new(4)?.compress(weights.view())?;
/// let dw = array![[9.0, 0.5, 0.25, 1.0]]; // the gradient of the loss by the weights
/// assert_eq!(tensor.gradients(dw.view())?, [1.0, 0.0, 0.75]); // of -2, 0, 1: zero does not move
/// tensor.step(dw.view(), 0.1)?;
/// assert_eq!(tensor.decompress()?, array![[0.0, 0.925, 0.925, -2.1]]);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "RawTensor<F, D>"))]
#[cfg_attr(
    feature = "serde",
    serde(bound(
        serialize = "F: serde::Serialize, D: serde::Serialize",
        deserialize = "F: Float + serde::Deserialize<'de>, D: Dimension + serde::Deserialize<'de>"
    ))
)]
pub struct PaletteTensor<F, D> {
    shape: D,
    granularity: Granularity,
    entries: usize,
    codes: PackedInts,
    /// `entries` for each palette.
    values: Vec<F>,
}

impl<F: Float, D: Dimension> PaletteTensor<F, D> {
    /// Takes over codes and palettes that were made elsewhere: one palette for the tensor, for each channel, or for each
    /// group in row-major order.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of palettes than the granularity asks for; [`Error::OutOfRange`] unless each has 1 to
    /// 256 values, and for groups of size 0; [`Error::NotFinite`] for NaN or infinity; [`Error::Unsupported`] for an axis that the tensor has not or a code
    /// that names no value.
    pub fn from_codes(
        granularity: Granularity,
        palettes: &[Vec<F>],
        codes: ArrayView<'_, u8, D>,
    ) -> Result<Self> {
        let layout = Layout::new(granularity, codes.shape())?;
        check_shape("the list of palettes", &[palettes.len()], &[layout.scales()])?;
        for palette in palettes {
            if !(1..=ENTRIES_MAX).contains(&palette.len()) {
                let range = "1 <= entries <= 256";
                let value = palette.len() as f64;
                return Err(Error::OutOfRange { name: "entries of a palette", value, range });
            }
        }
        let flat: Vec<u8> = codes.iter().copied().collect();
        let mut wrong = None;
        each_member(&layout, |scale, i| {
            if usize::from(flat[i]) >= palettes[scale].len() {
                wrong = Some((flat[i], palettes[scale].len()));
            }
        });
        if let Some((code, entries)) = wrong {
            return Err(Error::Unsupported {
                what: "the codes of a palette",
                reason: format!("code {code} names none of {entries} values"),
            });
        }
        Self::assemble(codes.raw_dim(), granularity, palettes, flat)?.checked()
    }

    /// Palettes of different lengths are filled up with their last value.
    fn assemble(shape: D, granularity: Granularity, palettes: &[Vec<F>], codes: Vec<u8>) -> Result<Self> {
        let entries = palettes.iter().map(Vec::len).max().unwrap_or(1);
        let mut values = Vec::with_capacity(entries * palettes.len());
        for palette in palettes {
            let last = palette.last().copied().unwrap_or_default();
            values.extend(palette.iter().copied().chain(std::iter::repeat(last)).take(entries));
        }
        let codes = PackedInts::from_octets(bits(entries), false, codes);
        Ok(Self { shape, granularity, entries, codes, values })
    }

    fn checked(self) -> Result<Self> {
        // First: a shape from outside may have more elements than can be counted.
        let elements = elements(&self.shape)?;
        let layout = Layout::new(self.granularity, self.shape.slice())?;
        check_shape("the codes of a palette", &[self.codes.len()], &[elements])?;
        if !(1..=ENTRIES_MAX).contains(&self.entries) {
            let range = "1 <= entries <= 256";
            return Err(Error::OutOfRange {
                name: "entries of a palette",
                value: self.entries as f64,
                range,
            });
        }
        let expected = layout.scales().saturating_mul(self.entries);
        check_shape("the values of the palettes", &[self.values.len()], &[expected])?;
        check_finite("the values of the palettes", &self.values.as_slice().into())?;
        if (self.codes.bits(), self.codes.is_signed()) != (bits(self.entries), false) {
            return Err(Error::Unsupported {
                what: "the codes of a palette",
                reason: format!("{} bits for {} values", self.codes.bits(), self.entries),
            });
        }
        let wrong = self.codes.iter().find(|&code| code as usize >= self.entries);
        match wrong {
            None => Ok(self),
            Some(code) => Err(Error::Unsupported {
                what: "the codes of a palette",
                reason: format!("code {code} names none of {} values", self.entries),
            }),
        }
    }

    /// The shape of the tensor.
    pub fn shape(&self) -> &[usize] {
        self.shape.slice()
    }

    /// Which weights share a palette.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Values in each palette; a shorter one repeats its last value.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// The values of all palettes, [`entries`](Self::entries) of each; ascending when made by [`PaletteQuantizer`].
    pub fn palettes(&self) -> &[F] {
        &self.values
    }

    /// The codes, unpacked.
    pub fn codes(&self) -> Array<u8, D> {
        let mut out = Array::zeros(self.shape.clone());
        out.iter_mut().zip(self.codes.iter()).for_each(|(out, code)| *out = code as u8);
        out
    }

    /// The codes as they are stored, in row-major order.
    pub fn packed(&self) -> &PackedInts {
        &self.codes
    }

    /// How many weights have each of [`palettes`](Self::palettes).
    pub fn members(&self) -> Vec<usize> {
        let mut members = vec![0; self.values.len()];
        self.each(|place, _| members[place] += 1);
        members
    }

    /// The gradient by each of [`palettes`](Self::palettes): the sum of `dw`, the gradient by the weights, over its members;
    /// formed in `f64`. That of the value 0.0 is 0.
    ///
    /// # Errors
    /// [`Error::Shape`] if `dw` has another shape.
    pub fn gradients(&self, dw: ArrayView<'_, F, D>) -> Result<Vec<F>> {
        check_shape("dw", dw.shape(), self.shape())?;
        let dw = dw.as_standard_layout();
        let dw = dw.as_slice().unwrap_or_default(); // standard layout: always a slice
        let mut sums = vec![0.0; self.values.len()];
        self.each(|place, i| sums[place] += dw[i].as_f64());
        let of = |(&sum, value): (&f64, &F)| if value.is_zero() { F::zero() } else { F::of(sum) };
        Ok(sums.iter().zip(&self.values).map(of).collect())
    }

    /// One step of gradient descent of the shared values; 0.0 stays.
    ///
    /// # Errors
    /// [`Error::Shape`] if `dw` has another shape, [`Error::NotFinite`] if a value would not be finite any more; then nothing
    /// has changed.
    pub fn step(&mut self, dw: ArrayView<'_, F, D>, learning_rate: f64) -> Result<()> {
        let gradients = self.gradients(dw)?;
        let rate = F::of(learning_rate);
        self.set_palettes(self.values.iter().zip(gradients).map(|(&v, g)| v - rate * g).collect())
    }

    /// Other values in the same order.
    ///
    /// # Errors
    /// [`Error::Shape`] for more or fewer, [`Error::NotFinite`] for NaN or infinity.
    pub fn set_palettes(&mut self, values: Vec<F>) -> Result<()> {
        check_shape("the values of the palettes", &[values.len()], &[self.values.len()])?;
        check_finite("the values of the palettes", &values.as_slice().into())?;
        self.values = values;
        Ok(())
    }

    /// The place of its value among all palettes, and the position of every element.
    pub(crate) fn each(&self, mut f: impl FnMut(usize, usize)) {
        let Ok(layout) = Layout::new(self.granularity, self.shape()) else { return }; // checked when made
        let codes = self.codes.to_vec();
        each_member(&layout, |scale, i| f(scale * self.entries + codes[i] as usize, i));
    }
}

impl<F: Float, D: Dimension> Compressed<F, D> for PaletteTensor<F, D> {
    fn raw_dim(&self) -> D {
        self.shape.clone()
    }

    /// Packed codes and the values of the palettes.
    fn size_bytes(&self) -> usize {
        self.codes.bytes().len() + self.values.len() * F::BYTES
    }

    fn decompress_into(&self, mut out: ArrayViewMut<'_, F, D>) -> Result<()> {
        check_shape("the place for the tensor", out.shape(), self.shape())?;
        if let Some(out) = out.as_slice_mut() {
            self.each(|place, i| out[i] = self.values[place]);
            return Ok(());
        }
        let mut dense = vec![F::zero(); self.codes.len()];
        self.each(|place, i| dense[i] = self.values[place]);
        out.iter_mut().zip(dense).for_each(|(out, x)| *out = x);
        Ok(())
    }
}

/// Bits that the codes of so many entries take.
fn bits(entries: usize) -> u8 {
    entries.next_power_of_two().trailing_zeros().max(1) as u8
}

/// What serde reads, before it is believed.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct RawQuantizer {
    entries: usize,
    granularity: Granularity,
    clustering: Clustering,
    keeps_zeros: bool,
}

#[cfg(feature = "serde")]
impl TryFrom<RawQuantizer> for PaletteQuantizer {
    type Error = Error;

    fn try_from(raw: RawQuantizer) -> Result<Self> {
        let RawQuantizer { entries, granularity, clustering, keeps_zeros } = raw;
        Self { entries, granularity, clustering, keeps_zeros }.checked()
    }
}

#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct RawTensor<F, D> {
    shape: D,
    granularity: Granularity,
    entries: usize,
    codes: PackedInts,
    values: Vec<F>,
}

#[cfg(feature = "serde")]
impl<F: Float, D: Dimension> TryFrom<RawTensor<F, D>> for PaletteTensor<F, D> {
    type Error = Error;

    fn try_from(raw: RawTensor<F, D>) -> Result<Self> {
        let RawTensor { shape, granularity, entries, codes, values } = raw;
        Self { shape, granularity, entries, codes, values }.checked()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, array};
    use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

    fn weights() -> Array2<f32> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(4);
        Array2::from_shape_simple_fn((12, 30), || {
            let w = rng.random_range(-1.0..1.0f32);
            if w.abs() < 0.4 { 0.0 } else { w }
        })
    }

    #[test]
    fn zeros_stay_and_nothing_else_becomes_zero() {
        let weights = weights();
        for entries in [2, 3, 16, 256] {
            let tensor = PaletteQuantizer::new(entries).unwrap().compress(weights.view()).unwrap();
            assert!(tensor.entries() <= entries);
            let out = tensor.decompress().unwrap();
            assert!(weights.iter().zip(&out).all(|(w, x)| (*w == 0.0) == (*x == 0.0)), "{entries}");
        }
    }

    #[test]
    fn every_channel_has_a_palette_of_its_own() {
        let weights = array![[1.0f32, 1.0, 2.0], [-7.0, -7.0, -7.0], [0.0, 5.0, 6.0]];
        let quantizer = PaletteQuantizer::new(2).unwrap();
        let rows = quantizer.with_granularity(Granularity::PerChannel { axis: 0 }).unwrap();
        let tensor = rows.compress(weights.view()).unwrap();
        assert_eq!(tensor.palettes(), [1.0, 2.0, -7.0, -7.0, 0.0, 5.5]);
        assert_eq!(tensor.members(), [2, 1, 3, 0, 1, 2]);
        let columns = quantizer.with_granularity(Granularity::PerChannel { axis: 1 }).unwrap();
        let across = columns.compress(weights.t()).unwrap();
        assert_eq!(across.decompress().unwrap(), tensor.decompress().unwrap().t());
    }

    #[test]
    fn a_palette_of_as_many_values_as_there_are_loses_nothing() {
        let weights = weights().mapv(|w| (w * 20.0).round() / 20.0);
        let tensor = PaletteQuantizer::new(64).unwrap().compress(weights.view()).unwrap();
        assert_eq!(tensor.decompress().unwrap(), weights);
        assert_eq!(tensor.size_bytes(), (360 * 5usize).div_ceil(8) + 4 * tensor.entries());
    }

    #[test]
    fn codes_that_name_nothing_are_refused() {
        let new = |palettes: &[Vec<f32>], codes: Array2<u8>| {
            PaletteTensor::from_codes(Granularity::PerTensor, palettes, codes.view())
        };
        let good = new(&[vec![0.5, 1.5]], array![[0, 1], [1, 1]]).unwrap();
        assert_eq!(good.decompress().unwrap(), array![[0.5, 1.5], [1.5, 1.5]]);
        assert!(new(&[vec![0.5, 1.5]], array![[0, 2]]).is_err());
        assert!(new(&[vec![0.5], vec![1.0]], array![[0, 0]]).is_err());
        assert!(new(&[vec![]], array![[0, 0]]).is_err() && new(&[vec![f32::NAN]], array![[0, 0]]).is_err());
    }

    #[test]
    fn refuses_settings_that_cannot_be() {
        assert!(PaletteQuantizer::new(1).is_err() && PaletteQuantizer::new(257).is_err());
        let quantizer = PaletteQuantizer::new(4).unwrap();
        assert!(quantizer.with_granularity(Granularity::PerGroup { axis: 0, size: 0 }).is_err());
        let groups = Granularity::PerGroup { axis: 0, size: 0 };
        assert!(PaletteTensor::from_codes(groups, &[vec![1.0f32]], array![0u8].view()).is_err());
        let axis = quantizer.with_granularity(Granularity::PerChannel { axis: 2 }).unwrap();
        assert!(axis.compress(weights().view()).is_err());
    }

    #[test]
    fn a_step_that_leaves_the_numbers_changes_nothing() {
        let mut tensor = PaletteQuantizer::new(4).unwrap().compress(array![[1.0f32, 2.0]].view()).unwrap();
        let before = tensor.clone();
        assert!(tensor.step(array![[f32::MAX, 0.0]].view(), 1e30).is_err());
        assert_eq!(tensor, before);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn hostile_tensors_are_errors() {
        let tensor = PaletteQuantizer::new(5).unwrap().compress(weights().view()).unwrap();
        let good = serde_json::to_value(&tensor).unwrap();
        let read = |value: &serde_json::Value| {
            serde_json::from_value::<PaletteTensor<f32, ndarray::Ix2>>(value.clone())
        };
        assert_eq!(read(&good).unwrap(), tensor);
        let mut many = serde_json::to_value(
            PaletteQuantizer::new(5)
                .unwrap()
                .compress(weights().insert_axis(ndarray::Axis(2)).view())
                .unwrap(),
        )
        .unwrap();
        *many.pointer_mut("/shape").unwrap() = serde_json::json!([1u64 << 40, 1u64 << 40, 2]);
        assert!(serde_json::from_value::<PaletteTensor<f32, ndarray::Ix3>>(many).is_err());
        let changes =
            [("/shape", "[3, 4]"), ("/entries", "4"), ("/entries", "0"), ("/entries", "99999999999")];
        let more = [("/values", "[1.0]"), ("/granularity", r#"{"PerChannel": {"axis": 5}}"#)];
        for (place, value) in changes.into_iter().chain(more) {
            let mut bad = good.clone();
            *bad.pointer_mut(place).unwrap() = serde_json::from_str(value).unwrap();
            assert!(read(&bad).is_err(), "{place} = {value}");
        }
        let quantizer = serde_json::to_string(&PaletteQuantizer::new(5).unwrap()).unwrap();
        assert!(serde_json::from_str::<PaletteQuantizer>(&quantizer.replace('5', "1")).is_err());
    }
}
