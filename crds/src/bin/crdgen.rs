//! Writes the generated files.
fn main() {}
