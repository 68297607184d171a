//! Memory that nobody uses any more.

/// Gives what the allocator keeps for later back to the system, where the C library can: a server
/// that was busy would else keep its largest size for ever.
pub fn release_unused_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call touches free memory only, and may be made at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
