//! The quantized tensor: packed codes, scales and zero points.
//!
//! ```text
//! x'[i] = (code[i] - zero_point[g(i)]) * scale[g(i)]        g: the granularity of the scheme
//! ```

use ndarray::{Array, ArrayView, ArrayViewMut, Dimension};

use crate::error::{Error, Result};
use crate::float::{Float, check_shape};
use crate::kernel::{Pool, Stream, as_signed};
use crate::quantize::layout::Layout;
use crate::quantize::params::QuantParams;
use crate::quantize::report::{ErrorReport, Errors};
use crate::quantize::round::{self, CHUNK, Code, Params};
use crate::quantize::scheme::Scheme;
use crate::tensor::PackedInts;
use crate::traits::Compressed;

/// A tensor of integers that stand for real numbers.
///
/// Made by [`UniformQuantizer`](crate::quantize::UniformQuantizer), or from parameters known beforehand:
///
/// ```
/// use ndarray::array;
/// use trimnet::Compressed;
/// use trimnet::quantize::{QuantParams, QuantizedTensor, Scheme};
///
/// let params = [QuantParams { scale: 0.5, zero_point: 0 }, QuantParams { scale: 2.0, zero_point: 0 }];
/// let x = array![[1.0f32, -2.0, 3.0], [4.0, 5.0, -6.0]];
/// let tensor = QuantizedTensor::with_params(Scheme::default().per_channel(0), &params, x.view())?;
/// assert_eq!(tensor.codes(), array![[2, -4, 6], [2, 2, -3]]); // 5 / 2 is a tie: to even
/// assert_eq!(tensor.size_bytes(), 6 + 2 * 4);
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "Raw<F, D>"))]
#[cfg_attr(
    feature = "serde",
    serde(bound(
        serialize = "F: serde::Serialize, D: serde::Serialize",
        deserialize = "F: Float + serde::Deserialize<'de>, D: Dimension + serde::Deserialize<'de>"
    ))
)]
pub struct QuantizedTensor<F, D> {
    scheme: Scheme,
    shape: D,
    codes: PackedInts,
    scales: Vec<F>,
    zero_points: Vec<i32>,
}

impl<F: Float, D: Dimension> QuantizedTensor<F, D> {
    /// Quantizes `x` with parameters in the order of [`scales`](Self::scales). Infinities saturate; NaN becomes the
    /// lowest code.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of parameters than the granularity asks for; [`Error::OutOfRange`] unless
    /// scales are finite and above 0 and zero points are codes; [`Error::Unsupported`] for an axis that `x` has not.
    pub fn with_params(scheme: Scheme, params: &[QuantParams<F>], x: ArrayView<'_, F, D>) -> Result<Self> {
        let layout = Layout::new(scheme.granularity(), x.shape())?;
        check_params(&scheme, params, &layout)?;
        let shape = x.raw_dim();
        let x = x.as_standard_layout();
        let x = x.as_slice().unwrap_or_default(); // standard layout: always a slice
        let (bits, signed) = (scheme.bits(), scheme.is_signed());
        let codes = match bits {
            16 => PackedInts::from_words(bits, signed, &quantize(&scheme, params, &layout, x)),
            _ => PackedInts::from_octets(bits, signed, quantize(&scheme, params, &layout, x)),
        };
        let (scales, zero_points) = split(params);
        Ok(Self { scheme, shape, codes, scales, zero_points })
    }

    /// Takes over codes that were made elsewhere.
    ///
    /// # Errors
    /// As [`with_params`](Self::with_params); [`Error::Unsupported`] for a code outside the scheme.
    pub fn from_codes(
        scheme: Scheme,
        params: &[QuantParams<F>],
        codes: ArrayView<'_, i32, D>,
    ) -> Result<Self> {
        let (scales, zero_points) = split(params);
        let shape = codes.raw_dim();
        let codes: Vec<i32> = codes.iter().copied().collect();
        let codes = PackedInts::pack(scheme.bits(), scheme.is_signed(), &codes)?;
        Self { scheme, shape, codes, scales, zero_points }.checked()
    }

    fn checked(self) -> Result<Self> {
        let (scheme, shape) = (&self.scheme, self.shape.slice());
        if elements(&self.shape)? != self.codes.len() || self.scales.len() != self.zero_points.len() {
            return Err(Error::Shape {
                what: "the codes of a quantized tensor",
                actual: vec![self.codes.len()],
                expected: shape.to_vec(),
            });
        }
        if (self.codes.bits(), self.codes.is_signed()) != (scheme.bits(), scheme.is_signed()) {
            return Err(Error::Unsupported {
                what: "the codes of a quantized tensor",
                reason: format!("{} bits, where the scheme has {}", self.codes.bits(), scheme.bits()),
            });
        }
        check_params(scheme, &self.params(), &Layout::new(scheme.granularity(), shape)?)?;
        let (qmin, qmax) = (scheme.qmin(), scheme.qmax());
        if let Some((i, code)) = self.codes.iter().enumerate().find(|(_, code)| !(qmin..=qmax).contains(code))
        {
            return Err(Error::Unsupported {
                what: "the codes of a quantized tensor",
                reason: format!("code {code} at {i} is outside {qmin}..={qmax}"),
            });
        }
        Ok(self)
    }

    /// Bits, codes, rounding and granularity.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// The shape of the tensor.
    pub fn shape(&self) -> &[usize] {
        self.shape.slice()
    }

    /// The codes, unpacked.
    pub fn codes(&self) -> Array<i32, D> {
        let codes = self.codes.to_vec().into_iter();
        let mut out = Array::zeros(self.shape.clone());
        for (out, code) in out.iter_mut().zip(codes) {
            *out = code;
        }
        out
    }

    /// The codes as they are stored, in row-major order; `to_i8`, `to_u8` and `bytes` serve an engine.
    pub fn packed(&self) -> &PackedInts {
        &self.codes
    }

    /// One scale for the tensor, for each channel, or for each group: those in row-major order of the tensor that
    /// has one element per group.
    pub fn scales(&self) -> &[F] {
        &self.scales
    }

    /// The code of 0, for each scale.
    pub fn zero_points(&self) -> &[i32] {
        &self.zero_points
    }

    /// Scales and zero points together.
    pub fn params(&self) -> Vec<QuantParams<F>> {
        let params = self.scales.iter().zip(&self.zero_points);
        params.map(|(&scale, &zero_point)| QuantParams { scale, zero_point }).collect()
    }

    /// What quantizing cost, against the tensor that was quantized.
    ///
    /// # Errors
    /// [`Error::Shape`] if `original` has another shape, [`Error::NotFinite`] if it holds NaN or infinity.
    pub fn report(&self, original: ArrayView<'_, F, D>) -> Result<ErrorReport> {
        check_shape("the original", original.shape(), self.shape())?;
        crate::float::check_finite("the original", &original)?;
        let original = original.as_standard_layout();
        let original = original.as_slice().unwrap_or_default(); // standard layout: always a slice
        let mut errors = Errors::new(&self.scheme, original);
        self.for_each_chunk(|start, codes, params| {
            errors.add(&original[start..start + codes.len()], codes, params)
        });
        Ok(errors.report())
    }

    fn layout(&self) -> Result<Layout> {
        Layout::new(self.scheme.granularity(), self.shape())
    }

    /// Calls `f` with the position of the first of some codes, the codes, and their parameters.
    fn for_each_chunk(&self, mut f: impl FnMut(usize, &[i32], Params<'_, F>)) {
        let Ok(layout) = self.layout() else { return }; // checked when the tensor was made
        let params = self.params();
        let mut codes = [0; CHUNK];
        layout.for_each_run(|run| {
            let params = &params[run.scales];
            for start in run.elements.clone().step_by(CHUNK) {
                let codes = &mut codes[..CHUNK.min(run.elements.end - start)];
                let offset = start - run.elements.start;
                let params = match params {
                    [one] => Params::One(*one),
                    each => Params::Each(&each[offset..offset + codes.len()]),
                };
                self.codes.read_within(start, start + codes.len(), codes);
                f(start, codes, params);
            }
        });
    }

    fn expand(&self, out: &mut [F], pool: &Pool) {
        if self.scheme.bits() == 8 {
            let Ok(layout) = self.layout() else { return }; // checked when the tensor was made
            let (params, signed) = (self.params(), self.scheme.is_signed());
            layout.each_part(pool, self.codes.bytes(), out, Stream::near, |stream, scales, _, codes, out| {
                let params = Params::of(&params[scales]);
                match signed {
                    true => round::dequantize(stream, params, as_signed(codes), out),
                    false => round::dequantize(stream, params, codes, out),
                }
            });
            return;
        }
        self.for_each_chunk(|start, codes, params| {
            let out = out[start..].iter_mut().zip(codes);
            match params {
                Params::One(params) => out.for_each(|(out, &code)| *out = params.dequantize(code)),
                Params::Each(params) => {
                    out.zip(params).for_each(|((out, &code), params)| *out = params.dequantize(code));
                }
            }
        });
    }
}

impl<F: Float, D: Dimension> Compressed<F, D> for QuantizedTensor<F, D> {
    fn raw_dim(&self) -> D {
        self.shape.clone()
    }

    /// Packed codes and scales, and zero points of as many bits as a code where the scheme may choose them.
    fn size_bytes(&self) -> usize {
        let chosen = !(self.scheme.is_symmetric() && self.scheme.is_signed());
        let zero_points = if chosen { self.zero_points.len() * usize::from(self.scheme.bits()) } else { 0 };
        self.codes.bytes().len() + self.scales.len() * F::BYTES + zero_points.div_ceil(8)
    }

    fn decompress_into(&self, mut out: ArrayViewMut<'_, F, D>) -> Result<()> {
        check_shape("the place for the tensor", out.shape(), self.shape())?;
        let pool = Pool::for_elements(out.len());
        match out.as_slice_mut() {
            Some(out) => self.expand(out, &pool),
            None => {
                let mut dense = vec![F::zero(); self.codes.len()];
                self.expand(&mut dense, &pool);
                out.iter_mut().zip(dense).for_each(|(out, x)| *out = x);
            }
        }
        Ok(())
    }
}

fn quantize<F: Float, C: Code + Send>(
    scheme: &Scheme,
    params: &[QuantParams<F>],
    layout: &Layout,
    x: &[F],
) -> Vec<C> {
    let mut codes = vec![C::default(); x.len()];
    let pool = Pool::for_elements(x.len());
    // New memory is in the caches already: the system has just cleared it.
    quantize_into(&pool, Stream::near, scheme, params, layout, x, &mut codes);
    codes
}

pub(super) fn quantize_into<F: Float, C: Code + Send>(
    pool: &Pool,
    stream: impl Fn() -> Stream<C> + Sync,
    scheme: &Scheme,
    params: &[QuantParams<F>],
    layout: &Layout,
    x: &[F],
    codes: &mut [C],
) {
    layout.each_part(pool, x, codes, stream, |stream, scales, first, x, codes| {
        round::quantize(stream, scheme, Params::of(&params[scales]), first, x, codes);
    });
}

/// Number of elements of a shape from outside, if an array of it can exist: the lengths that are not 0 multiply to what
/// memory can address.
pub(crate) fn elements<D: Dimension>(shape: &D) -> Result<usize> {
    let mut positive = shape.slice().iter().filter(|&&n| n > 0);
    let bytes = positive.try_fold(size_of::<f64>(), |bytes, &n| bytes.checked_mul(n));
    match bytes {
        Some(bytes) if isize::try_from(bytes).is_ok() => Ok(shape.slice().iter().product()),
        _ => Err(Error::Unsupported {
            what: "the shape",
            reason: format!("{:?} has more elements than memory can address", shape.slice()),
        }),
    }
}

fn split<F: Float>(params: &[QuantParams<F>]) -> (Vec<F>, Vec<i32>) {
    params.iter().map(|params| (params.scale, params.zero_point)).unzip()
}

pub(super) fn check_params<F: Float>(
    scheme: &Scheme,
    params: &[QuantParams<F>],
    layout: &Layout,
) -> Result<()> {
    check_shape("the scales", &[params.len()], &[layout.scales()])?;
    params.iter().try_for_each(|&params| check_one(scheme, params))
}

pub(super) fn check_one<F: Float>(scheme: &Scheme, params: QuantParams<F>) -> Result<()> {
    scheme.check(params)?;
    let ends = [params.dequantize(scheme.qmin()), params.dequantize(scheme.qmax())];
    if ends.iter().all(|end| end.is_finite()) {
        return Ok(());
    }
    let range = "low enough for the codes to stand for finite numbers";
    Err(Error::OutOfRange { name: "scale", value: params.scale.as_f64(), range })
}

#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
struct Raw<F, D> {
    scheme: Scheme,
    shape: D,
    codes: PackedInts,
    scales: Vec<F>,
    zero_points: Vec<i32>,
}

#[cfg(feature = "serde")]
impl<F: Float, D: Dimension> TryFrom<Raw<F, D>> for QuantizedTensor<F, D> {
    type Error = Error;

    fn try_from(raw: Raw<F, D>) -> Result<Self> {
        let Raw { scheme, shape, codes, scales, zero_points } = raw;
        Self { scheme, shape, codes, scales, zero_points }.checked()
    }
}
