//! The loaded tc and XDP programs by `BPF_PROG_TEST_RUN`; needs root.

use lb_tests::{packet, report};
use std::process::ExitCode;

fn main() -> ExitCode {
    report::print(packet::run_all())
}
