//! A scheme says how real numbers become integers: how many bits, which codes, which scale, which rounding.
//!
//! ```text
//! code = clip(round(x / scale) + zero_point, qmin, qmax)        x' = (code - zero_point) * scale
//! ```
//!
//! Two runtimes that disagree on one of these choices are "off by one" against each other; so every choice has
//! a name, and the name of the runtime that makes it: ONNX Runtime 1.32, PyTorch 2.15, torchao 0.18.

use crate::error::{Error, Result};
use crate::float::Float;
use crate::quantize::params::{QuantParams, Range};

/// How `x / scale` becomes an integer.
///
/// Accumulators of an integer product are rounded by the requantizer.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Rounding {
    /// `x / scale`, to the nearest, ties to even: ONNX and ONNX Runtime.
    #[default]
    HalfEvenDivide,
    /// `x * (1 / scale)`, to the nearest, ties to even: PyTorch and torchao. Differs from division on ties. Takes no scale whose
    /// reciprocal is infinite.
    HalfEvenReciprocal,
    /// `x / scale`, to the nearest, ties away from zero: C's `round`.
    HalfAwayFromZero,
    /// `floor(x / scale + 0.5)`: TensorFlow's fake-quantize.
    HalfUp,
    /// Towards zero: twice the error of the nearest, and it shrinks every weight.
    Truncate,
    /// `floor(x / scale + u)`, `u` uniform in 0..1: right on the average. One draw per position and seed.
    Stochastic {
        /// The draws depend on this and on the position of the element, on nothing else.
        seed: u64,
    },
}

/// Which integers a scheme of `b` bits may use.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum CodeRange {
    /// All of the type: -128..=127, or 0..=255.
    #[default]
    Full,
    /// All but the lowest: -127..=127, or 1..=255.
    Narrow,
    /// One bit less, so that 16-bit sums of two products cannot overflow: -64..=63, or 0..=127 (PyTorch).
    Reduced,
    /// One bit less and as many codes below zero as above: -64..=64, or 0..=127 (ONNX Runtime's int8).
    ReducedNarrow,
}

/// How the range of the data becomes a scale and a zero point. With `n = qmax - qmin`, and the range widened to
/// include 0:
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum ScaleRule {
    /// `scale = max(-lo, hi) / (n / 2)`, zero point in the middle (0 for signed codes, 128 for uint8).
    ///
    /// With [`CodeRange::Narrow`] this is `amax / 127`, with [`CodeRange::Full`] `amax / 127.5`.
    #[default]
    Symmetric,
    /// `scale = max(lo / qmin, hi / qmax)`, zero point 0: torchao's "no clipping error". Signed codes only.
    SymmetricNoClipping,
    /// `scale = (hi - lo) / n`, `zero_point = rne(qmin - lo / scale)`, all in `f64`: ONNX Runtime's offline tool.
    AffineOnnxRuntime,
    /// `scale = (hi - lo) / n`, `zero_point = clip(qmin - rne(lo / scale))` in the element type: PyTorch.
    AffineTorch,
    /// `scale = (hi - lo) / n`, `zero_point = rne(clip(qmin - lo / scale))` in the element type: the operator
    /// DynamicQuantizeLinear.
    AffineDynamic,
}

impl ScaleRule {
    /// Whether the zero point is fixed, whatever the data.
    pub fn is_symmetric(self) -> bool {
        matches!(self, Self::Symmetric | Self::SymmetricNoClipping)
    }
}

/// What happens where the data leave no usable scale: all zeros, or a scale below the smallest normal number.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum ZeroRange {
    /// `scale = 1, zero_point = 0` (or the code nearest to 0): ONNX Runtime.
    #[default]
    One,
    /// `scale = max(scale, 1.1920929e-7)`, always: PyTorch.
    TorchEps,
    /// `scale = max(scale, 1.1754944e-38)`, the smallest normal `f32`: torchao.
    TorchaoTiny,
    /// As if the range were -1..1: the published GPTQ code.
    GptqUnit,
}

/// Which elements share one scale and zero point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Granularity {
    /// All of them.
    #[default]
    PerTensor,
    /// Those with the same index along `axis`; 0 is one scale per output of a weight `[out, in]`.
    PerChannel {
        /// The axis whose every index has a scale of its own.
        axis: usize,
    },
    /// Runs of `size` along `axis`, for each index of all other axes; the last run may be shorter.
    PerGroup {
        /// The axis that is cut into groups.
        axis: usize,
        /// Elements of a group, at least 1.
        size: usize,
    },
}

/// Bits, codes, scale, granularity and rounding of a quantizer.
///
/// ```
/// use trimnet::quantize::{Range, Scheme};
///
/// let int8 = Scheme::int8_symmetric_127().per_channel(0);
/// assert_eq!((int8.qmin(), int8.qmax()), (-127, 127));
/// assert_eq!(int8.params(Range::new(-1.0f32, 2.0)?).scale, 2.0 / 127.0);
///
/// let int4 = Scheme::symmetric(4)?.per_group(1, 32)?;
/// assert_eq!((int4.qmin(), int4.qmax()), (-7, 7));
/// # Ok::<(), trimnet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "RawScheme", into = "RawScheme"))]
pub struct Scheme {
    bits: u8,
    signed: bool,
    codes: CodeRange,
    rule: ScaleRule,
    zero_range: ZeroRange,
    granularity: Granularity,
    rounding: Rounding,
}

impl Default for Scheme {
    /// [`Scheme::int8_symmetric_127`].
    fn default() -> Self {
        Self::int8_symmetric_127()
    }
}

impl Scheme {
    /// Int8 weights as ONNX Runtime and TFLite want them: `scale = amax / 127`, codes -127..=127, one scale.
    pub const fn int8_symmetric_127() -> Self {
        Self {
            bits: 8,
            signed: true,
            codes: CodeRange::Narrow,
            rule: ScaleRule::Symmetric,
            zero_range: ZeroRange::One,
            granularity: Granularity::PerTensor,
            rounding: Rounding::HalfEvenDivide,
        }
    }

    /// Int8 weights of PyTorch, torchao and compressed-tensors: `scale = amax / 127.5`, codes -128..=127.
    pub const fn int8_symmetric_128() -> Self {
        Self { codes: CodeRange::Full, ..Self::int8_symmetric_127() }
    }

    /// Uint8 activations as ONNX Runtime's offline tool makes them: affine, codes 0..=255.
    pub const fn uint8_affine() -> Self {
        Self {
            signed: false,
            codes: CodeRange::Full,
            rule: ScaleRule::AffineOnnxRuntime,
            ..Self::int8_symmetric_127()
        }
    }

    /// PyTorch's numbers: all codes, affine in the element type, the reciprocal, and its least scale.
    ///
    /// # Errors
    /// As [`symmetric`](Self::symmetric).
    pub fn torch_affine(bits: u8, signed: bool) -> Result<Self> {
        let scheme = Self {
            bits,
            signed,
            codes: CodeRange::Full,
            rule: ScaleRule::AffineTorch,
            zero_range: ZeroRange::TorchEps,
            rounding: Rounding::HalfEvenReciprocal,
            ..Self::int8_symmetric_127()
        };
        scheme.checked()
    }

    /// Signed codes around a zero point of 0, without the lowest one: `scale = amax / (2^(bits-1) - 1)`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `bits` is 2..=8 or 16.
    pub fn symmetric(bits: u8) -> Result<Self> {
        Self { bits, ..Self::int8_symmetric_127() }.checked()
    }

    /// Unsigned codes with a zero point between them, for data of one sign or lopsided data.
    ///
    /// # Errors
    /// As [`symmetric`](Self::symmetric).
    pub fn affine(bits: u8) -> Result<Self> {
        Self { bits, ..Self::uint8_affine() }.checked()
    }

    /// One scale for all elements.
    #[must_use]
    pub fn per_tensor(self) -> Self {
        Self { granularity: Granularity::PerTensor, ..self }
    }

    /// One scale for each index along `axis`.
    #[must_use]
    pub fn per_channel(self, axis: usize) -> Self {
        Self { granularity: Granularity::PerChannel { axis }, ..self }
    }

    /// One scale for each run of `size` elements along `axis`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for size 0.
    pub fn per_group(self, axis: usize, size: usize) -> Result<Self> {
        Self { granularity: Granularity::PerGroup { axis, size }, ..self }.checked()
    }

    /// Codes with or without a sign.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for [`ScaleRule::SymmetricNoClipping`] without a sign.
    pub fn with_signed(self, signed: bool) -> Result<Self> {
        Self { signed, ..self }.checked()
    }

    /// Another choice of codes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for reduced codes of 2 bits, of which too few would be left.
    pub fn with_codes(self, codes: CodeRange) -> Result<Self> {
        Self { codes, ..self }.checked()
    }

    /// Another rule for scale and zero point.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for [`ScaleRule::SymmetricNoClipping`] without a sign.
    pub fn with_rule(self, rule: ScaleRule) -> Result<Self> {
        Self { rule, ..self }.checked()
    }

    /// Another rule for data without a usable range.
    #[must_use]
    pub fn with_zero_range(self, zero_range: ZeroRange) -> Self {
        Self { zero_range, ..self }
    }

    /// Another rounding.
    #[must_use]
    pub fn with_rounding(self, rounding: Rounding) -> Self {
        Self { rounding, ..self }
    }

    fn checked(self) -> Result<Self> {
        if !matches!(self.bits, 2..=8 | 16) {
            return Err(Error::OutOfRange { name: "bits", value: self.bits.into(), range: "2..=8 or 16" });
        }
        if let Granularity::PerGroup { size: 0, .. } = self.granularity {
            return Err(Error::OutOfRange { name: "group size", value: 0.0, range: "1 or more" });
        }
        if self.bits == 2 && matches!(self.codes, CodeRange::Reduced | CodeRange::ReducedNarrow) {
            return Err(Error::Unsupported {
                what: "reduced codes",
                reason: "of 2 bits no range is left; at least 3 bits are needed".into(),
            });
        }
        if !self.signed && self.rule == ScaleRule::SymmetricNoClipping {
            return Err(Error::Unsupported {
                what: "the no-clipping scale",
                reason: "it divides by the lowest code, which is not negative without a sign".into(),
            });
        }
        Ok(self)
    }

    /// Bits of a code.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Whether codes have a sign.
    pub fn is_signed(&self) -> bool {
        self.signed
    }

    /// Whether the zero point is the same for all data.
    pub fn is_symmetric(&self) -> bool {
        self.rule.is_symmetric()
    }

    /// Which codes are used.
    pub fn codes(&self) -> CodeRange {
        self.codes
    }

    /// How a range becomes a scale.
    pub fn rule(&self) -> ScaleRule {
        self.rule
    }

    /// What a range of nothing becomes.
    pub fn zero_range(&self) -> ZeroRange {
        self.zero_range
    }

    /// Which elements share a scale.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// How quotients become integers.
    pub fn rounding(&self) -> Rounding {
        self.rounding
    }

    /// The lowest code.
    pub fn qmin(&self) -> i32 {
        let half = 1i32 << (self.bits - 1);
        match (self.signed, self.codes) {
            (true, CodeRange::Full) => -half,
            (true, CodeRange::Narrow) => 1 - half,
            (true, CodeRange::Reduced | CodeRange::ReducedNarrow) => -half / 2,
            (false, CodeRange::Narrow) => 1,
            (false, _) => 0,
        }
    }

    /// The highest code.
    pub fn qmax(&self) -> i32 {
        let half = 1i32 << (self.bits - 1);
        match (self.signed, self.codes) {
            (true, CodeRange::Full | CodeRange::Narrow) => half - 1,
            (true, CodeRange::Reduced) => half / 2 - 1,
            (true, CodeRange::ReducedNarrow) => half / 2,
            (false, CodeRange::Full | CodeRange::Narrow) => 2 * half - 1,
            (false, _) => half - 1,
        }
    }

    /// The scale and zero point for data within `range`. The scale is finite and above 0, and no code
    /// dequantizes to infinity, whatever the range.
    pub fn params<F: Float>(&self, range: Range<F>) -> QuantParams<F> {
        let range = range.with_zero();
        let params = self.raw_params(range);
        let usable = params.scale >= F::min_positive_value();
        let params = match self.zero_range {
            ZeroRange::TorchEps => self.with_floor(range, params, 1.192_092_9e-7_f32),
            ZeroRange::TorchaoTiny => self.with_floor(range, params, f32::MIN_POSITIVE),
            _ if usable => params,
            ZeroRange::GptqUnit => self.raw_params(Range::unit()),
            ZeroRange::One => QuantParams { scale: F::one(), zero_point: 0.clamp(self.qmin(), self.qmax()) },
        };
        self.bounded(params)
    }

    fn with_floor<F: Float>(&self, range: Range<F>, params: QuantParams<F>, floor: f32) -> QuantParams<F> {
        let floor = F::of(f64::from(floor));
        if params.scale >= floor {
            return params;
        }
        QuantParams { scale: floor, zero_point: self.zero_point(range, floor.as_f64(), floor) }
    }

    /// The scale by the rule alone, possibly 0 or subnormal.
    fn raw_params<F: Float>(&self, range: Range<F>) -> QuantParams<F> {
        let (qmin, qmax) = (f64::from(self.qmin()), f64::from(self.qmax()));
        let (lo64, hi64) = (range.min().as_f64(), range.max().as_f64());
        let n = qmax - qmin;
        let (exact, scale) = match self.rule {
            ScaleRule::Symmetric => (0.0, F::of((-lo64).max(hi64) / (n / 2.0))),
            ScaleRule::SymmetricNoClipping => (0.0, F::of((lo64 / qmin).max(hi64 / qmax))),
            ScaleRule::AffineOnnxRuntime => {
                let exact = range.in_f64().step(n);
                (exact, F::of(exact))
            }
            ScaleRule::AffineTorch | ScaleRule::AffineDynamic => (0.0, range.step(F::of(n))),
        };
        QuantParams { scale, zero_point: self.zero_point(range, exact, scale) }
    }

    /// `exact` is the scale before it was rounded to `F`; only ONNX Runtime's tool looks at it.
    fn zero_point<F: Float>(&self, range: Range<F>, exact: f64, scale: F) -> i32 {
        let (qmin, qmax) = (self.qmin(), self.qmax());
        let (low, high) = (F::of(qmin.into()), F::of(qmax.into()));
        let steps = range.min() / scale; // 0 / 0 where the range is empty: the cast below makes it 0
        let zero_point = match self.rule {
            ScaleRule::Symmetric => ((f64::from(qmin) + f64::from(qmax)) / 2.0).round_ties_even(),
            ScaleRule::SymmetricNoClipping => 0.0,
            ScaleRule::AffineOnnxRuntime => {
                (f64::from(qmin) - range.min().as_f64() / exact).round_ties_even()
            }
            ScaleRule::AffineTorch => (low - steps.round_half_even()).as_f64(),
            ScaleRule::AffineDynamic => (low - steps).max(low).min(high).round_half_even().as_f64(),
        };
        (zero_point as i32).clamp(qmin, qmax)
    }

    /// Makes the scale small enough for every code to stand for a finite number.
    pub(super) fn bounded<F: Float>(&self, params: QuantParams<F>) -> QuantParams<F> {
        let reach = (self.qmax() - params.zero_point).max(params.zero_point - self.qmin());
        let reach = F::of(f64::from(reach));
        if (params.scale * reach).is_finite() {
            return params;
        }
        QuantParams { scale: F::max_value() / reach * (F::one() - F::epsilon()), ..params }
    }
}

#[cfg(feature = "serde")]
#[derive(serde::Serialize, serde::Deserialize)]
struct RawScheme {
    bits: u8,
    signed: bool,
    codes: CodeRange,
    rule: ScaleRule,
    zero_range: ZeroRange,
    granularity: Granularity,
    rounding: Rounding,
}

#[cfg(feature = "serde")]
impl From<Scheme> for RawScheme {
    fn from(scheme: Scheme) -> Self {
        let Scheme { bits, signed, codes, rule, zero_range, granularity, rounding } = scheme;
        Self { bits, signed, codes, rule, zero_range, granularity, rounding }
    }
}

#[cfg(feature = "serde")]
impl TryFrom<RawScheme> for Scheme {
    type Error = Error;

    fn try_from(raw: RawScheme) -> Result<Self> {
        let RawScheme { bits, signed, codes, rule, zero_range, granularity, rounding } = raw;
        Scheme { bits, signed, codes, rule, zero_range, granularity, rounding }.checked()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_bits_that_no_code_has() {
        for bits in [0, 1, 9, 10, 15, 17, 255] {
            let error = Scheme::symmetric(bits).unwrap_err();
            assert_eq!(error.to_string(), format!("bits is {bits}, allowed is 2..=8 or 16"));
            assert!(Scheme::affine(bits).is_err());
        }
    }

    #[test]
    fn refuses_a_group_of_none_and_a_scale_over_a_zero_code() {
        assert!(Scheme::default().per_group(0, 0).is_err());
        assert!(Scheme::uint8_affine().with_rule(ScaleRule::SymmetricNoClipping).is_err());
        assert!(Scheme::symmetric(2).unwrap().with_codes(CodeRange::Reduced).is_err());
    }

    #[test]
    fn the_widest_range_dequantizes_to_finite_numbers() {
        let range = Range::new(f64::MIN, f64::MAX).unwrap();
        for scheme in
            [Scheme::symmetric(2).unwrap(), Scheme::affine(16).unwrap(), Scheme::int8_symmetric_128()]
        {
            let params = scheme.params(range);
            assert!(params.dequantize(scheme.qmin()).is_finite(), "{scheme:?}");
            assert!(params.dequantize(scheme.qmax()).is_finite(), "{scheme:?}");
        }
    }
}
