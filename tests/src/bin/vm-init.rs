//! The first program of the virtual machines that `cargo xtask vm` boots.

fn main() {
    lb_tests::vm::boot::main();
}
