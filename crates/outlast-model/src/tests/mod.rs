//! The textbook's figures, and every formula against counting all the cases.

mod fixture;
mod formulas;
mod topologies;

/// Equal in every digit that a double carries through a few operations.
#[track_caller]
fn check_close(got: f64, expected: f64) {
    assert!((got - expected).abs() <= 1e-12 * expected.abs(), "got {got}, expected {expected}");
}

/// Equal as a book prints it.
#[track_caller]
fn check_printed(got: f64, digits: usize, expected: &str) {
    assert_eq!(format!("{got:.digits$}"), expected);
}
