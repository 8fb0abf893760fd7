//! The heap after a start: what building the first whole state needed goes back to the kernel.
//!
//! Decides nothing; one of the agent's modules with `unsafe`.

/// Returns freed memory to the kernel. The lists of ten thousand Services, their plan and its
/// difference are alive together once, when the lists have arrived; glibc keeps what was freed of
/// them, scattered below what stays.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer; glibc locks its arenas (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
