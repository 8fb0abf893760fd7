//! The only unsafe code of the cluster tests: something to do when the process ends.
//!
//! libtest has no hook after the last test and drops no static, so what tests share could not be
//! cleaned up otherwise.

use std::sync::OnceLock;

/// What is done at the end.
static ACTION: OnceLock<fn()> = OnceLock::new();

extern "C" fn run() {
    if let Some(action) = ACTION.get() {
        // Unwinding out of a C callback would abort the process and hide the tests' own verdict.
        drop(std::panic::catch_unwind(action));
    }
}

/// Calls `action` when the process ends by `exit`, whatever its status. Only the first call counts.
pub fn at_exit(action: fn()) {
    if ACTION.set(action).is_err() {
        return;
    }
    // SAFETY: `run` is a plain C function that lives as long as the process and never unwinds.
    #[expect(unsafe_code, reason = "std has no hook for the end of the process")]
    let status = unsafe { libc::atexit(run) };
    if status != 0 {
        eprintln!("lb-tests: the C library refused an exit handler; run `xtask lab down` after");
    }
}
