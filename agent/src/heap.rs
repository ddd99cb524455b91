//! Giving back what only the start needs: reading the kernel's types takes tens of MB for a moment, which the C library
//! would keep.
#![allow(unsafe_code)]

/// Gives the heap's free pages back to the system.
pub(crate) fn trim() {
    // SAFETY: no preconditions; it locks what it looks at.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
