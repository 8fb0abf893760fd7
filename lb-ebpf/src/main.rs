//! The kernel programs.
#![no_std]
#![no_main]

/// Nothing panics: the linker removes this with the last bounds check that could call it.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The verifier gives helpers that are GPL-only to programs that say so.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
