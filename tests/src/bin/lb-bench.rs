//! `cargo xtask bench` runs this program as root; see `lb_tests::bench`.

fn main() -> std::process::ExitCode {
    lb_tests::bench::main()
}
