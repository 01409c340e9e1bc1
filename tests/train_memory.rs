//! A training step works in the memory of the step before: after the first steps, nothing is allocated.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::ControlFlow;

use ndarray::Array2;
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
use trimnet::Result;
use trimnet::distill::{Distillation, KdLoss};
use trimnet::nn::{Adam, Callback, CrossEntropy, Dataset, Mlp, Objective, Step, Trainer};

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is the system allocator's, unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, memory: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise about `memory` is passed on.
        unsafe { System.alloc(memory) }
    }

    unsafe fn dealloc(&self, at: *mut u8, memory: Layout) {
        // SAFETY: `at` came from `alloc` above, that is from the system, with this `memory`.
        unsafe { System.dealloc(at, memory) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread in each step.
struct Watch {
    before: usize,
    of_steps: Vec<usize>,
}

impl Callback<f32> for Watch {
    fn on_step(&mut self, _: &mut Mlp<f32>, _: &Step) -> Result<ControlFlow<()>> {
        let now = COUNT.with(Cell::get);
        self.of_steps.push(now - self.before);
        self.before = COUNT.with(Cell::get);
        Ok(ControlFlow::Continue(()))
    }
}

fn allocations(threads: usize, objective: &mut dyn Objective<f32>) -> usize {
    let inputs = Array2::from_shape_fn((40 * 32, 50), |(i, j)| ((i * 7 + j * 3) % 11) as f32 / 11.0);
    let labels = (0..40 * 32).map(|i| i % 3).collect();
    let data = Dataset::classification(inputs, labels).unwrap();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut mlp = Mlp::builder(50).linear(700).relu().linear(60).relu().linear(3).build(&mut rng).unwrap();
    let mut watch = Watch { before: 0, of_steps: Vec::with_capacity(40) };
    let trainer = Trainer::new(1, 32).unwrap().with_threads(threads);
    trainer.fit(&mut mlp, objective, &data, None, &mut Adam::new(), &mut [&mut watch]).unwrap();
    assert_eq!(watch.of_steps.len(), 40);
    watch.of_steps[20..].iter().sum()
}

#[test]
fn nothing_is_allocated_after_the_first_steps() {
    for threads in [1, 2] {
        assert_eq!(allocations(threads, &mut CrossEntropy), 0, "{threads} threads");
    }
}

#[test]
fn nor_with_a_teacher() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(2);
    let teacher = Mlp::builder(50).linear(80).relu().linear(3).build(&mut rng).unwrap();
    let mut objective = Distillation::live(&teacher, KdLoss::new(4.0, 0.3).unwrap()).unwrap().with_threads(1);
    assert_eq!(allocations(1, &mut objective), 0);
}
