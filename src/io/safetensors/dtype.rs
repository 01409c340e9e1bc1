//! The element types of safetensors.

use std::fmt;

use crate::error::Result;
use crate::io::trim::malformed;

macro_rules! dtypes {
    ($($name:ident = $text:literal, $bits:literal, $doc:literal;)*) => {
        /// The element type of a tensor in a file.
        ///
        /// This crate computes with a few of them and carries all others along untouched.
        #[non_exhaustive]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum Dtype {
            $(#[doc = $doc] #[serde(rename = $text)] $name,)*
        }

        impl Dtype {
            const ALL: &[Self] = &[$(Self::$name,)*];

            /// Bits of one element.
            pub fn bits(self) -> usize {
                match self { $(Self::$name => $bits,)* }
            }

            /// The name in the header.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

dtypes! {
    Bool = "BOOL", 8, "One byte, 0 or 1.";
    F4 = "F4", 4, "MXFP4, two in a byte.";
    F6E2m3 = "F6_E2M3", 6, "MXFP6 with three bits of mantissa.";
    F6E3m2 = "F6_E3M2", 6, "MXFP6 with two bits of mantissa.";
    U8 = "U8", 8, "Unsigned bytes.";
    I8 = "I8", 8, "Signed bytes.";
    F8E5m2 = "F8_E5M2", 8, "Eight-bit float with two bits of mantissa.";
    F8E4m3 = "F8_E4M3", 8, "Eight-bit float with three bits of mantissa.";
    F8E8m0 = "F8_E8M0", 8, "Powers of two, the scales of MX formats.";
    F8E4m3Fnuz = "F8_E4M3FNUZ", 8, "Eight-bit float with three bits of mantissa, without negative zero.";
    F8E5m2Fnuz = "F8_E5M2FNUZ", 8, "Eight-bit float with two bits of mantissa, without negative zero.";
    I16 = "I16", 16, "Signed, two bytes.";
    U16 = "U16", 16, "Unsigned, two bytes.";
    F16 = "F16", 16, "IEEE half precision.";
    Bf16 = "BF16", 16, "The upper half of a single-precision number.";
    I32 = "I32", 32, "Signed, four bytes.";
    U32 = "U32", 32, "Unsigned, four bytes.";
    F32 = "F32", 32, "IEEE single precision.";
    C64 = "C64", 64, "Complex numbers of two singles.";
    F64 = "F64", 64, "IEEE double precision.";
    I64 = "I64", 64, "Signed, eight bytes.";
    U64 = "U64", 64, "Unsigned, eight bytes.";
}

impl Dtype {
    /// The type of this name, as it stands in a header.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|dtype| dtype.name() == name)
    }

    /// Whether this crate converts to and from it: `F16`, `BF16`, `F32`, `F64`.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F64)
    }

    /// Bytes of a tensor of this shape.
    pub(crate) fn bytes_of(self, shape: &[usize]) -> Result<usize> {
        let elements = shape.iter().try_fold(1usize, |n, &length| n.checked_mul(length));
        let bits = elements.and_then(|n| n.checked_mul(self.bits()));
        match bits {
            Some(bits) if bits % 8 == 0 => Ok(bits / 8),
            Some(_) => Err(malformed(format!("shape {shape:?} of {self} does not fill whole bytes"))),
            None => {
                Err(malformed(format!("shape {shape:?} of {self} has more bytes than memory can address")))
            }
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
