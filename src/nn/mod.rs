//! A small network: just enough to train, prune, quantize and distil.
