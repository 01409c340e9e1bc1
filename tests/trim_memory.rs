//! Hostile bytes cannot make a reader of `.trim` take more memory than its limits allow.

use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::cell::Cell;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use trimnet::io::trim::{Codes, EncodeOptions, Layout, Limits, TensorData, Values, decode, encode};

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // Without a destructor these are there until the thread ends.
    let _ = NOW.try_with(|now| {
        now.set(now.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now.get())));
    });
}

struct Counting;

// SAFETY: every call is the system allocator's, unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, memory: Memory) -> *mut u8 {
        count(memory.size() as isize);
        // SAFETY: the caller's promise about `memory` is passed on.
        unsafe { System.alloc(memory) }
    }

    unsafe fn dealloc(&self, at: *mut u8, memory: Memory) {
        count(-(memory.size() as isize));
        // SAFETY: `at` came from `alloc` above, that is from the system, with this `memory`.
        unsafe { System.dealloc(at, memory) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes in use at the worst moment of `run`, beyond those before it.
fn peak<T>(run: impl FnOnce() -> T) -> isize {
    let before = NOW.with(Cell::get);
    PEAK.with(|peak| peak.set(before));
    drop(run());
    PEAK.with(Cell::get) - before
}

#[test]
fn damaged_tensors_stay_inside_the_limits() {
    const BASE: usize = 1 << 16;
    // Twice the decoded tensor and 5 bytes per element for mask and symbols; the models' tables are constant.
    const ALLOWED: isize = 4 * BASE as isize + (4 << 20);
    let limits = Limits::new(BASE, 0);
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(9);
    for layout in [Layout::Dense, Layout::Bitmap, Layout::Gaps, Layout::Coded, Layout::Mixed] {
        for kind in 0..4 {
            let values: Vec<f32> = (0..600)
                .map(|_| match kind {
                    0 => rng.random(),
                    1 if rng.random_bool(0.8) => 0.0,
                    1 => rng.random(),
                    2 => [0.0, 0.1, -0.37, 0.72][rng.random_range(0..4)],
                    _ => 0.3 * f32::from(rng.random_range(-3..=3i8)),
                })
                .collect();
            let floats = TensorData::new(vec![20, 30], Values::F32(values.clone())).unwrap();
            let codes = values.iter().map(|&x| (x * 10.0) as i32).collect();
            let codes =
                TensorData::new(vec![30, 20], Values::Codes(Codes::new(8, true, codes).unwrap())).unwrap();
            for tensor in [floats, codes] {
                let options = EncodeOptions::default().with_layouts(&[layout]);
                let good = encode(&tensor, &options).bytes().to_vec();
                for _ in 0..400 {
                    let mut bytes = good.clone();
                    // The lengths stand at the front.
                    for _ in 0..rng.random_range(1..4) {
                        let front = if rng.random() { 16 } else { usize::MAX };
                        let at = rng.random_range(0..bytes.len().min(front));
                        bytes[at] = rng.random();
                    }
                    let used = peak(|| decode(&bytes, &limits));
                    assert!(used <= ALLOWED, "{used} bytes for {layout:?}: {bytes:02x?}");
                }
            }
        }
    }
}
