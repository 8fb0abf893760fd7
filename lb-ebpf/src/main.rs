//! The kernel programs, one thin file per kind of hook. Every decision is in `lb-common`; here are
//! the maps, the environment that decisions ask, and the delivery of their verdicts.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod answer;
mod env;
mod fib;
mod maps;
mod monitor;
mod parked;
mod sock;
mod tc;
mod xdp;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // Nothing here panics (clippy denies it), and the verifier would reject a loop.
    // SAFETY: unreachable, as said.
    unsafe { core::hint::unreachable_unchecked() }
}

/// The kernel gives a program with this licence every helper.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
