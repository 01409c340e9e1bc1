//! Fewer bits: schemes, ranges, the uniform quantizer and the integer product.
