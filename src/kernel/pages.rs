//! Huge pages: large memory in pages of 2 MB instead of 4 KB, of which the processor remembers enough.
//!
//! Linux gives them to programs that ask (`madvise`); NumPy does for arrays of 4 MB and more, the allocators of Rust do not. In a
//! virtual machine a forgotten page is looked up in two tables. On an AMD EPYC (Zen 3, virtual, one thread) it saves an
//! eighth of the time of one row through 96 MB of weights, a quarter of fake quantizing 64 MB, and two fifths of an epoch of training
//! on images that take 188 MB.

use std::mem::MaybeUninit;

/// Asks for huge pages where this memory is large, 4 MB and more, and lies on Linux; otherwise nothing happens.
///
/// For memory that was just allocated: pages that were written to before stay as they are. Packed weights ask by themselves. A
/// program that holds large arrays can do so for all its memory in a global allocator, see `benches/peers/memory.rs`.
///
/// ```
/// let mut images: Vec<f32> = Vec::with_capacity(60_000 * 784);
/// trimnet::kernel::prefer_huge_pages(images.spare_capacity_mut());
/// images.resize(60_000 * 784, 0.0);
/// ```
pub fn prefer_huge_pages<T>(memory: &mut [MaybeUninit<T>]) {
    #[cfg(target_os = "linux")]
    {
        const LARGE: usize = 4 << 20;
        const PAGE: usize = 4096;
        if size_of_val(memory) >= LARGE {
            let start = memory.as_mut_ptr().cast::<u8>();
            let skipped = start.align_offset(PAGE);
            let length = (size_of_val(memory) - skipped) / PAGE * PAGE;
            // SAFETY: whole pages within memory that is borrowed exclusively; the advice changes none of what it holds.
            // Whether it was taken does not matter.
            unsafe { libc::madvise(start.wrapping_add(skipped).cast(), length, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// So many times `value`.
pub(super) fn filled<T: Clone>(value: T, count: usize) -> Vec<T> {
    let mut all = Vec::with_capacity(count);
    prefer_huge_pages(all.spare_capacity_mut());
    all.resize(count, value);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_memory_of_every_size() {
        for count in [0, 1, 1000, 5 << 20] {
            let all = filled(7u8, count);
            assert!(all.len() == count && all.iter().all(|&x| x == 7));
        }
        prefer_huge_pages::<u64>(&mut []);
    }
}
