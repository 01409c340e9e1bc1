//! A wrong result is not a result: the comparisons that every case makes before it is timed.

// Each family uses its share of these.
#![allow(dead_code)]

/// Compares the size of the error with the size of what is expected, as the peers do.
pub fn close(what: &str, result: &[f64], expected: &[f64], tolerance: f64) -> Result<(), String> {
    if result.len() != expected.len() {
        return Err(format!("{what} has {} numbers, expected {}", result.len(), expected.len()));
    }
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut result.iter().zip(expected).map(|(a, b)| a - b))
        / norm(&mut expected.iter().copied()).max(1e-300);
    // Written so that NaN fails.
    if error <= tolerance {
        Ok(())
    } else {
        Err(format!("{what} is off by {error:.2e}, allowed {tolerance:.0e}"))
    }
}

/// Demands the same values, and names the first that differs.
pub fn equal<T: PartialEq + std::fmt::Debug>(what: &str, result: &[T], expected: &[T]) -> Result<(), String> {
    if result.len() != expected.len() {
        return Err(format!("{what} has {} numbers, expected {}", result.len(), expected.len()));
    }
    match result.iter().zip(expected).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(i) => Err(format!("{what} is {:?} at {i}, expected {:?}", result[i], expected[i])),
    }
}
