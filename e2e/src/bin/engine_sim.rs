//! Simulated vLLM engine; see the `weir-sim` crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    weir_sim::main(std::env::args())
}
