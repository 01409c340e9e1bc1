//! Not one allocation in a call: counted by the allocator itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use ndarray::Array2;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use trimnet::engine::{Config, Element, Engine, Format};
use trimnet::kernel::Pool;
use trimnet::nn::Mlp;
use trimnet::prune::NmPruner;
use trimnet::{Compressed, Compressor};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: the system's allocator, and a counter beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: passed on as it came.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on as it came.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations<F: Element>(format: Format, pool: &Pool) -> Vec<(usize, usize)> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mlp = Mlp::builder(200).linear(300).relu().linear(100).tanh().layer_norm().linear(10);
    let mut mlp = mlp.build::<F>(&mut rng).unwrap();
    if format.is_two_four() {
        for linear in mlp.linears_mut() {
            let pruned =
                NmPruner::keep(2, 4).unwrap().compress(linear.weight()).unwrap().decompress().unwrap();
            linear.set_weight(pruned).unwrap();
        }
    }
    let data = Array2::from_shape_fn((600, 200), |(i, j)| F::of(((i * 7 + j * 13) % 29) as f64 / 29.0));
    let config = Config::new(format).with_calibration(data.view()).with_pool(pool.clone());
    let engine = Engine::build(&mlp, &config).unwrap();
    let mut workspace = engine.workspace(600);
    let mut out = Array2::zeros((600, 10));
    let mut found = Vec::new();
    for rows in [600, 1, 3, 40, 95, 300, 600] {
        let before = ALLOCATIONS.load(Ordering::SeqCst);
        let (x, y) = (data.slice(ndarray::s![..rows, ..]), out.slice_mut(ndarray::s![..rows, ..]));
        engine.predict_into(x, y, &mut workspace).unwrap();
        if rows == 1 {
            let row = x.row(0);
            engine.predict_one(row.as_slice().unwrap(), &mut workspace).unwrap();
        }
        found.push((rows, ALLOCATIONS.load(Ordering::SeqCst) - before));
    }
    found
}

// One test in this file: another one beside it would be counted as well.
#[test]
fn a_call_allocates_nothing_whatever_its_format_size_and_threads() {
    for pool in [Pool::single(), Pool::new(3)] {
        // The threads of the pool, and of the shared one that building an engine uses, start and come to rest.
        pool.run(3, |_| {});
        Pool::shared().run(3, |_| {});
        std::thread::sleep(std::time::Duration::from_millis(50));
        for format in Format::ALL {
            for found in [allocations::<f32>(format, &pool), allocations::<f64>(format, &pool)] {
                assert!(found.iter().all(|&(_, count)| count == 0), "{format}, {pool:?}: {found:?}");
            }
        }
    }
}
