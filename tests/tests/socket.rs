//! The loaded socket hooks with real sockets; needs root.

use lb_tests::{report, socket};
use std::process::ExitCode;

fn main() -> ExitCode {
    report::print(socket::run_all())
}
