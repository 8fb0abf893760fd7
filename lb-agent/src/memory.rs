//! The heap: one for all threads, and what building the first whole state needed goes back to the
//! kernel.
//!
//! Decides nothing; one of the agent's modules with `unsafe`.

/// Makes all threads share one heap; to be called before there are others. The threads that
/// read from the API server make what the loop then holds and frees: in heaps of their own both leave
/// gaps, which took 10 MiB at ten thousand Services. The loop alone is busy after the start, so
/// there is nobody to wait for.
pub fn share() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer; there is no other thread yet (mallopt(3)). A refusal leaves more heaps.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Returns freed memory to the kernel. The lists of ten thousand Services and what building their
/// plan took are there together once, when the lists have arrived; glibc keeps what was freed of
/// them, scattered below what stays.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer; glibc locks its arenas (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
