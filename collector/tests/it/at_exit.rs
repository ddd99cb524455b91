//! How a test process ends while its engine is open, which it always is: tests share it, and nothing runs after the
//! last of them. libchdb closes an open engine among the destructors of its statics and dies of it (SIGSEGV), so
//! those do not run. A collector closes its store before it exits.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::sync::Once;

unsafe extern "C" {
    /// on_exit(3): a handler that is told the exit status; glibc has it.
    fn on_exit(handler: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
}

extern "C" fn exit_now(status: c_int, _: *mut c_void) {
    // SAFETY: it ends the process, whatever its state; what was printed was flushed before handlers run.
    unsafe { libc::_exit(status) }
}

/// To be called once the engine is open: handlers run in the reverse order of their registration.
pub(crate) fn leave_as_is_at_exit() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        // SAFETY: the handler is a function that lives as long as the process, and does not use its argument.
        let failed = unsafe { on_exit(exit_now, std::ptr::null_mut()) };
        assert_eq!(failed, 0);
    });
}
