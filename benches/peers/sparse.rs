//! `sparse.f32.N.sPERCENT.bBATCH`: a batch times sparse weights.

use super::case::Case;

/// The cases of this family.
pub fn cases() -> Vec<Case> {
    Vec::new()
}
