//! The inputs, bit for bit those of the peers: SplitMix64, `uniform(seed)` and `normal(seed)`.
//!
//! ```text
//! z_i = seed + i * 0x9E3779B97F4A7C15, i = 1, 2, ..., mixed by two rounds of (z ^ z >> a) * b and z ^ z >> 31
//! uniform: (z >> 40) * 2^-24
//! normal:  r = sqrt(-2 ln(1 - u)) * scale;  r cos(2 pi v), r sin(2 pi v)  for pairs u, v of (z >> 11) * 2^-53
//! ```

// Each family uses its share of these.
#![allow(dead_code)]

/// The outputs of SplitMix64 started with `seed`.
pub fn splitmix(seed: u64) -> impl Iterator<Item = u64> {
    (1u64..).map(move |i| {
        let mut z = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

/// `count` numbers in [0, 1).
pub fn uniform(count: usize, seed: u64) -> Vec<f32> {
    splitmix(seed).take(count).map(|z| (z >> 40) as f32 * 2f32.powi(-24)).collect()
}

/// `count` normal numbers of mean 0 and deviation `scale`.
pub fn normal(count: usize, seed: u64, scale: f64) -> Vec<f32> {
    let mut units = splitmix(seed).map(|z| (z >> 11) as f64 * 2f64.powi(-53));
    let mut out = Vec::with_capacity(count + 1);
    while out.len() < count {
        if let (Some(u), Some(v)) = (units.next(), units.next()) {
            let (r, angle) = ((-2.0 * (-u).ln_1p()).sqrt() * scale, 2.0 * std::f64::consts::PI * v);
            out.push((r * angle.cos()) as f32);
            out.push((r * angle.sin()) as f32);
        }
    }
    out.truncate(count);
    out
}

/// `count` codes in -127..=127.
pub fn codes(count: usize, seed: u64) -> Vec<i8> {
    splitmix(seed).take(count).map(|z| (((z >> 32) % 255) as i64 - 127) as i8).collect()
}

/// The same numbers in f64.
pub fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}
