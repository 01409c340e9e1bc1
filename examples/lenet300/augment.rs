//! Images moved, turned, scaled, sheared and warped a little: the same digit, written by another hand.

use trimnet::ndarray::{Array2, ArrayView2, Axis};
use trimnet::rand::rngs::Xoshiro256PlusPlus;
use trimnet::rand::{RngExt, SeedableRng};

/// The largest changes of a random affine map; each is drawn evenly between its negative and itself.
#[derive(Clone, Copy)]
pub struct Affine {
    /// In pixels, to each side.
    pub shift: f32,
    /// In radians.
    pub rotation: f32,
    /// Of each axis, as a share.
    pub scale: f32,
    pub shear: f32,
    /// Standard deviation of a smooth random displacement, in pixels (Simard 2003).
    pub elastic: f32,
}

impl Affine {
    /// A changed copy of square `images` `[rows, pixels]`: row by row another map, from `seed` and the row alone.
    pub fn apply(&self, images: ArrayView2<'_, f32>, seed: u64) -> Array2<f32> {
        let side = images.ncols().isqrt();
        let cosines = cosines(side);
        let mut out = Array2::zeros(images.raw_dim());
        let pairs = images.axis_iter(Axis(0)).zip(out.axis_iter_mut(Axis(0)));
        for (row, (image, mut to)) in pairs.enumerate() {
            let rng =
                &mut Xoshiro256PlusPlus::seed_from_u64(seed.wrapping_mul(1 << 32).wrapping_add(row as u64));
            if let (Some(image), Some(to)) = (image.as_slice(), to.as_slice_mut()) {
                self.warp(image, to, side, &cosines, rng);
            }
        }
        out
    }

    fn warp(
        &self,
        image: &[f32],
        out: &mut [f32],
        side: usize,
        cosines: &[Vec<f32>],
        rng: &mut Xoshiro256PlusPlus,
    ) {
        let mut within = |limit: f32| (2.0 * rng.random::<f32>() - 1.0) * limit;
        let (dx, dy) = (within(self.shift), within(self.shift));
        let (sin, cos) = within(self.rotation).sin_cos();
        let (sx, sy, shear) = (1.0 + within(self.scale), 1.0 + within(self.scale), within(self.shear));
        let [a, b, c, d] = [cos * sx, (shear * cos - sin) * sy, sin * sx, (shear * sin + cos) * sy];
        let waves = (self.elastic > 0.0).then(|| Waves::new(self.elastic, rng));
        let middle = (side - 1) as f32 / 2.0;
        for (at, out) in out.iter_mut().enumerate() {
            let (y, x) = ((at / side) as f32 - middle, (at % side) as f32 - middle);
            let (mut u, mut v) = (a * x + b * y + middle + dx, c * x + d * y + middle + dy);
            if let Some(waves) = &waves {
                let (du, dv) = waves.at(cosines, at / side, at % side);
                (u, v) = (u + du, v + dv);
            }
            *out = sample(image, side, u, v);
        }
    }
}

/// The image between its pixels; black outside.
fn sample(image: &[f32], side: usize, x: f32, y: f32) -> f32 {
    let end = side as f32;
    if !(x > -1.0 && y > -1.0 && x < end && y < end) {
        return 0.0;
    }
    let (left, top) = (x.floor(), y.floor());
    let (fx, fy) = (x - left, y - top);
    let pixel = |dy: isize, dx: isize| {
        let (y, x) = (top as isize + dy, left as isize + dx);
        let inside = (0..side as isize).contains(&y) && (0..side as isize).contains(&x);
        if inside { image[y as usize * side + x as usize] } else { 0.0 }
    };
    let upper = pixel(0, 0) + fx * (pixel(0, 1) - pixel(0, 0));
    let lower = pixel(1, 0) + fx * (pixel(1, 1) - pixel(1, 0));
    upper + fy * (lower - upper)
}

/// Waves along each axis.
const WAVES: usize = 5;

fn cosines(side: usize) -> Vec<Vec<f32>> {
    let angle =
        |wave: usize, at: usize| std::f32::consts::PI * (wave as f32 + 1.0) * (at as f32 + 0.5) / side as f32;
    (0..WAVES).map(|wave| (0..side).map(|at| angle(wave, at).cos()).collect()).collect()
}

/// A smooth displacement: the strengths of some products of two cosines, for each direction.
struct Waves([[f32; WAVES * WAVES]; 2]);

impl Waves {
    fn new(deviation: f32, rng: &mut Xoshiro256PlusPlus) -> Self {
        // A product of two cosines has the mean square 1/4; a number drawn evenly from -1..1 has 1/3.
        let scale = deviation * (12.0 / (WAVES * WAVES) as f32).sqrt();
        Self([(); 2].map(|()| [(); WAVES * WAVES].map(|()| (2.0 * rng.random::<f32>() - 1.0) * scale)))
    }

    fn at(&self, cosines: &[Vec<f32>], y: usize, x: usize) -> (f32, f32) {
        let [du, dv] = self.0.each_ref().map(|strengths| {
            let along = |row: &[f32]| row.iter().zip(cosines).map(|(s, wave)| s * wave[x]).sum::<f32>();
            strengths.chunks_exact(WAVES).zip(cosines).map(|(row, wave)| along(row) * wave[y]).sum()
        });
        (du, dv)
    }
}
