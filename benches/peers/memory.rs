//! The allocator of these benchmarks: large memory in huge pages, as NumPy asks for it on the other side.

use std::alloc::{GlobalAlloc, Layout, System};
use std::mem::MaybeUninit;

use trimnet::kernel::prefer_huge_pages;

pub struct Huge;

/// Asks for `memory` that was just allocated, if it was.
fn prefer(memory: *mut u8, size: usize) -> *mut u8 {
    if !memory.is_null() {
        // SAFETY: the allocator gave these bytes to nobody else yet.
        prefer_huge_pages(unsafe { std::slice::from_raw_parts_mut(memory.cast::<MaybeUninit<u8>>(), size) });
    }
    memory
}

// SAFETY: all memory is that of the system's allocator, which is told nothing else.
unsafe impl GlobalAlloc for Huge {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those of `System`.
        prefer(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those of `System`.
        prefer(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promises are those of `System`.
        prefer(unsafe { System.realloc(memory, layout, size) }, size)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.dealloc(memory, layout) }
    }
}
