//! The engine simulator as a process.

#[cfg(test)]
mod process;
