//! Random bits by position: which elements of a tensor a dropout keeps, from the blocks of Philox4x32-10.

use super::Isa;

/// Sets bit `i` of word `w` if draw `i` of block `first + w` is at least `threshold`: the 16-bit halves, the lower one
/// first, of the words of eight counters, word by word. Returns false, and has done nothing, where this is not faster than
/// the definition, which is that of the caller.
pub(crate) fn kept_bits(isa: Isa, key: u64, first: u64, threshold: u16, keep: &mut [u64]) -> bool {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(cpu) => {
            cpu.kept_bits(key, first, threshold, keep);
            true
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(cpu) => {
            cpu.kept_bits(key, first, threshold, keep);
            true
        }
        _ => {
            let _ = (key, first, threshold, keep);
            false
        }
    }
}
