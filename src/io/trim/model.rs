//! What the range coder's predictions are made of, in integers only, so that every machine decodes the same.
//!
//! ```text
//! Prob     p += (bit - p) / (n + 1.5)     n = decisions seen, held at a limit: first it averages, then it forgets
//! stretch  ln(p / (1 - p))                in 1/256
//! squash   1 / (1 + exp(-x))              the inverse
//! Mixer    p = squash(sum of w[i] * stretch(p[i])),   w[i] += rate * (bit - p) * stretch(p[i])
//! ```
//!
//! The mixer is logistic regression trained while coding (M. Mahoney, "Adaptive Weighing of Context Models for
//! Lossless Data Compression", 2005): several contexts each say how likely a one is, and those that were right
//! gain weight.

/// A probability that learns, 22 bits, and the number of decisions it has seen, 10 bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prob(u32);

const COUNT_BITS: u32 = 10;
const COUNT_MASK: u32 = (1 << COUNT_BITS) - 1;
const ONE: i64 = (1 << 22) - 1;

/// 65536 / (n + 1.5)
static RECIPROCAL: [u32; 1 << COUNT_BITS] = {
    let mut table = [0; 1 << COUNT_BITS];
    let mut n = 0;
    while n < table.len() {
        table[n] = (2 * 65_536 / (2 * n + 3)) as u32;
        n += 1;
    }
    table
};

impl Prob {
    /// Knows nothing: one half.
    pub(crate) const NEW: Self = Self(1 << 31);

    /// Chance of a one in 1/65536, within `1..=65535`.
    #[inline(always)]
    pub(crate) fn p(self) -> u32 {
        (self.0 >> 16).max(1)
    }

    /// Decisions seen.
    #[inline(always)]
    pub(crate) fn count(self) -> u32 {
        self.0 & COUNT_MASK
    }

    /// Learns `bit`; `limit <= 1023` is the memory in decisions.
    #[inline(always)]
    pub(crate) fn update(&mut self, bit: bool, limit: u32) {
        let count = self.0 & COUNT_MASK;
        let p = i64::from(self.0 >> COUNT_BITS);
        let target = if bit { ONE } else { 0 };
        let p = p + (((target - p) * i64::from(RECIPROCAL[count as usize])) >> 16);
        self.0 = (p as u32) << COUNT_BITS | (count + u32::from(count < limit));
    }
}

const EDGE: i32 = 2840; // squash(2840 / 256) is 65535 / 65536

static SQUASH: [u16; 2 * EDGE as usize + 1] = {
    // Only + - * / of f64, which are exact to the bit everywhere.
    let step = 1.0 + (1.0 / 256.0) * (1.0 + (1.0 / 512.0) * (1.0 + (1.0 / 768.0) * (1.0 + 1.0 / 1024.0)));
    let mut table = [0u16; 2 * EDGE as usize + 1];
    let mut x = 0;
    let mut exp = 1.0f64;
    while x <= EDGE as usize {
        let p = (65_536.0 / (1.0 + exp) + 0.5) as u32;
        let p = if p < 1 { 1 } else { p };
        table[EDGE as usize - x] = p as u16;
        table[EDGE as usize + x] = (65_536 - p) as u16;
        exp *= step;
        x += 1;
    }
    table
};

static STRETCH: [i16; 4096] = {
    let mut table = [0i16; 4096];
    let mut x = 0;
    let mut i = 0;
    while i < table.len() {
        while x + 1 < SQUASH.len() && SQUASH[x + 1] as usize <= 16 * i + 8 {
            x += 1;
        }
        table[i] = (x as i32 - EDGE) as i16;
        i += 1;
    }
    table
};

/// `ln(p / (1 - p))` in 1/256 for `p` in 1/65536.
#[inline(always)]
pub(crate) fn stretch(p: u32) -> i32 {
    i32::from(STRETCH[(p >> 4).min(4095) as usize])
}

/// The inverse of [`stretch`], within `1..=65535`.
#[inline(always)]
pub(crate) fn squash(x: i32) -> u32 {
    u32::from(SQUASH[(x.clamp(-EDGE, EDGE) + EDGE) as usize])
}

/// Combines `N` opinions; one set of weights for each value of a small context.
#[derive(Debug)]
pub(crate) struct Mixer<const N: usize> {
    weights: Vec<[i32; N]>, // in 1/65536
    rates: Vec<i32>,
    inputs: [i32; N],
    set: usize,
    p: u32,
}

/// Learning rates in the units of [`Mixer::update`], times 256: small files live off the first, large ones settle
/// at the last, with a time constant of `2^RATE_SHIFT` decisions between.
const RATE_START: i32 = 8_000 << 8;
const RATE_END: i32 = 800 << 8;
const RATE_SHIFT: u32 = 16;

impl<const N: usize> Mixer<N> {
    pub(crate) fn new(sets: usize, start: [i32; N]) -> Self {
        Self { weights: vec![start; sets], rates: vec![RATE_START; sets], inputs: [0; N], set: 0, p: 1 << 15 }
    }

    /// The combined chance of a one in 1/65536.
    #[inline(always)]
    pub(crate) fn mix(&mut self, set: usize, inputs: [i32; N]) -> u32 {
        let weights = &self.weights[set];
        let mut sum = 0i64;
        for i in 0..N {
            sum += i64::from(weights[i]) * i64::from(inputs[i]);
        }
        self.inputs = inputs;
        self.set = set;
        self.p = squash((sum >> 16).clamp(-i64::from(EDGE), i64::from(EDGE)) as i32);
        self.p
    }

    /// Learns from the decision that [`mix`](Self::mix) predicted.
    #[inline(always)]
    pub(crate) fn update(&mut self, bit: bool) {
        let error = (i32::from(bit) << 16) - self.p as i32;
        let rate = &mut self.rates[self.set];
        let step = i64::from(error) * i64::from(*rate >> 8);
        *rate -= (*rate - RATE_END) >> RATE_SHIFT;
        for (w, &x) in self.weights[self.set].iter_mut().zip(&self.inputs) {
            let delta = (step * i64::from(x)) >> 28;
            *w = (i64::from(*w) + delta).clamp(-(1 << 20), 1 << 20) as i32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squash_is_the_logistic_function_and_stretch_its_inverse() {
        for x in (-EDGE..=EDGE).step_by(7) {
            let exact = 65_536.0 / (1.0 + (-f64::from(x) / 256.0).exp());
            assert!((f64::from(squash(x)) - exact).abs() <= 1.0, "{x}");
        }
        for p in (64..65_472).step_by(97) {
            let (x, q) = (stretch(p), f64::from(p) / 65_536.0);
            assert!(
                (f64::from(x) / 256.0 - (q / (1.0 - q)).ln()).abs()
                    < 0.02 + 16.0 / f64::from(p.min(65_536 - p))
            );
        }
    }

    #[test]
    fn the_tables_are_what_the_format_says() {
        // Pinned: another table is another format.
        let squash = SQUASH.iter().fold(0u64, |h, &v| h.wrapping_mul(31).wrapping_add(u64::from(v)));
        let stretch = STRETCH.iter().fold(0u64, |h, &v| h.wrapping_mul(31).wrapping_add(v as u64));
        assert_eq!((squash, stretch), (2_471_325_200_744_548_032, 18_220_704_533_886_800_349));
    }

    #[test]
    fn a_probability_converges_and_stays_inside() {
        let mut p = Prob::NEW;
        for _ in 0..100_000 {
            p.update(false, 1023);
        }
        assert!(p.p() >= 1 && p.p() < 66);
        for _ in 0..100_000 {
            p.update(true, 1023);
        }
        assert!(p.p() > 65_470 && p.p() <= 65_535);
        assert_eq!(p.count(), 1023);
    }
}
