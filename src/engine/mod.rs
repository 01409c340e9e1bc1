//! The deployable network: folded, lowered, integer or sparse; no training code.
