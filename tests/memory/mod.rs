//! An allocator that counts: how much memory does a call take at its worst moment?

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes that this thread has in use, and the most it ever had.
    static USED: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn count(change: isize) {
    // A thread that is ending has no counter any more, and nothing to measure.
    let _ = USED.try_with(|used| {
        let (now, peak) = used.get();
        used.set((now + change, peak.max(now + change)));
    });
}

struct Counting;

// SAFETY: all memory comes from and returns to the system allocator with its own layout; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the contract of this function is that of the one called.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The result of `run`, and the bytes that this thread had in use at its worst moment beyond those before.
pub fn peak<T>(run: impl FnOnce() -> T) -> (T, isize) {
    let before = USED.with(Cell::get).0;
    USED.with(|used| used.set((before, before)));
    let result = run();
    (result, USED.with(Cell::get).1 - before)
}
