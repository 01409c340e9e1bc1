//! Slices in, slices out: the loops that take the time, and the only unsafe code of the crate.
