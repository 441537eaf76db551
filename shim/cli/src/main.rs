//! The one binary, `pageless`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    pageless_cli::run(std::env::args_os())
}
