//! The exponential of numbers that are not positive, in a form that vectorises: what softmax is made of.
//!
//! ```text
//! e^x = 2^n * e^r        n = rne(x / ln 2)        r = x - n * ln 2, |r| <= ln 2 / 2
//! ```
//!
//! `ln 2` comes in two parts, the upper one (355/512 in `f32`) with so few bits that `n` times it is exact. `e^r` is that of Cephes
//! (S. L. Moshier, `expf.c` and `exp.c`): a polynomial in `f32`, and in `f64` the fraction `(Q + r P) / (Q - r P)` of polynomials in
//! `r^2`, whose chains of dependent steps are short. No fused steps, so that every instruction set gives the same bits. Off by at most
//! 2 units in the last place down to the least normal number, and 0 below it.

use super::real::Real;

/// Numbers with an exponential.
pub trait Exp: Real {
    /// `e^x` for `x <= 0`; 1 for any larger `x`. NaN stays NaN.
    #[doc(hidden)]
    fn exp_below(self) -> Self;
}

macro_rules! exp {
    ($t:ty, $bits:ty, $round:literal, $mantissa:literal, $bias:literal, lowest: $lowest:literal,
     ln2: $high:literal + $low:literal, $r:ident => $near_one:expr) => {
        impl Exp for $t {
            #[inline(always)]
            fn exp_below(self) -> Self {
                const LOWEST: $t = $lowest;
                let x = if self < LOWEST { LOWEST } else { self };
                let x = if x > 0.0 { 0.0 } else { x };
                // In the binade of this number neighbours are 1 apart, so the addition rounds, and the low bits of
                // the sum are n: an integer as wide as the number, which vectors need not convert.
                const ROUND: $t = $round;
                let sum = x * std::f64::consts::LOG2_E as $t + ROUND;
                let (whole, power) = (sum - ROUND, sum.to_bits().wrapping_add($bias) << $mantissa);
                let $r = (x - whole * $high) - whole * $low;
                let value = $near_one * <$t>::from_bits(power);
                if self < LOWEST { 0.0 } else { value }
            }
        }
    };
}

exp!(f32, u32, 12_582_912.0, 23, 127, lowest: -87.336_54, ln2: 0.693_359_4 + -2.121_944_4e-4, r => {
    let sum = polynomial(r, [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5]);
    (sum * (r * r) + r) + 1.0
});

exp!(f64, u64, 6_755_399_441_055_744.0, 52, 1023, lowest: -708.396_418_532_264_1,
     ln2: 6.931_457_519_531_25e-1 + 1.428_606_820_309_417_2e-6, r => {
    let square = r * r;
    let p = r * polynomial(square, [1.261_771_930_748_105_9e-4, 3.029_944_077_074_419_6e-2, 1.0]);
    let q = polynomial(square, [
        3.001_985_051_386_644_6e-6, 2.524_483_403_496_841e-3, 2.272_655_482_081_550_3e-1, 2.0,
    ]);
    // (q + p) / (q - p)
    1.0 + 2.0 * (p / (q - p))
});

/// `c[0] * x^(N - 1) + .. + c[N - 1]`.
#[inline(always)]
fn polynomial<F: Real, const N: usize>(x: F, coefficients: [F; N]) -> F {
    let mut sum = coefficients[0];
    for &c in &coefficients[1..] {
        sum = sum * x + c;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_within_two_units_in_the_last_place() {
        let mut worst = (0u64, 0u64);
        for i in 0..2_000_000 {
            let x = -f64::from(i) / 2_000_000.0 * 87.3;
            let single = (x as f32).exp_below();
            let exact = f64::from(x as f32).exp();
            worst.0 = worst.0.max(u64::from(single.to_bits().abs_diff((exact as f32).to_bits())));
            let x = x * 8.1;
            worst.1 = worst.1.max(x.exp_below().to_bits().abs_diff(x.exp().to_bits()));
        }
        assert!(worst.0 <= 2 && worst.1 <= 2, "{worst:?}");
    }

    #[test]
    fn the_ends_are_one_zero_and_nan() {
        assert_eq!([0.0f32, -0.0, 5.0, f32::INFINITY].map(Exp::exp_below), [1.0; 4]);
        assert_eq!([-87.4f32, -1e30, f32::NEG_INFINITY].map(Exp::exp_below), [0.0; 3]);
        assert_eq!([0.0f64, -0.0, 5.0, f64::INFINITY].map(Exp::exp_below), [1.0; 4]);
        assert_eq!([-708.5f64, -1e300, f64::NEG_INFINITY].map(Exp::exp_below), [0.0; 3]);
        assert!(f32::NAN.exp_below().is_nan() && f64::NAN.exp_below().is_nan());
    }
}
