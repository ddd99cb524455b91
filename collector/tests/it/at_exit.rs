//! How a test process ends while its engine is open, which it always is: tests share it, and nothing runs after the
//! last of them. libchdb closes an open engine among the destructors of its statics, under its own running threads, and dies
//! of it (SIGSEGV), so those do not run. A collector closes its store before it exits.
//!
//! Handlers of the exit run in the reverse order of their registration, and the engine makes statics as long as it is used: ours
//! has to be registered when nothing else will be any more. That is when the main thread, which ends the process, destroys
//! its thread-locals.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::ptr;

unsafe extern "C" {
    /// on_exit(3): a handler that is told the exit status; glibc has it.
    fn on_exit(handler: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
    /// What destroys the thread-locals of this thread, and before all other handlers if it is the one that calls exit(3).
    fn __cxa_thread_atexit_impl(
        handler: extern "C" fn(*mut c_void),
        argument: *mut c_void,
        program: *mut c_void,
    ) -> c_int;
    /// Stands for this program.
    static mut __dso_handle: u8;
}

/// Called by the loader, in the main thread.
// SAFETY: the section holds functions to call before `main`, and this one needs nothing of Rust's runtime.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = wait_for_the_end;

extern "C" fn wait_for_the_end() {
    // SAFETY: the handler lives as long as the process, and does not use its argument.
    unsafe { __cxa_thread_atexit_impl(leave_as_is, ptr::null_mut(), &raw mut __dso_handle as *mut c_void) };
}

extern "C" fn leave_as_is(_: *mut c_void) {
    // SAFETY: likewise.
    unsafe { on_exit(exit_now, ptr::null_mut()) };
}

extern "C" fn exit_now(status: c_int, _: *mut c_void) {
    // SAFETY: it ends the process, whatever its state; what was printed was flushed before handlers run.
    unsafe { libc::_exit(status) }
}
