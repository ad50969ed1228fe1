//! The C library's heap.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod library {
    use std::ffi::c_int;

    /// What `mallopt` calls the number of heaps that threads take memory from.
    pub const ARENA_MAX: c_int = -8;

    unsafe extern "C" {
        pub fn mallopt(parameter: c_int, value: c_int) -> c_int;
        pub fn malloc_trim(pad: usize) -> c_int;
    }
}

/// Lets every thread take memory from one heap: another one takes 64 MiB of addresses, and keeps what its thread gave back.
pub fn share() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the program has one thread when it begins with a session's files.
    unsafe {
        library::mallopt(library::ARENA_MAX, 1);
    }
}

/// Gives the system back what was freed: the tokenizer is read in steps that leave some.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: glibc documents the call for any time and any thread.
    unsafe {
        library::malloc_trim(0);
    }
}
