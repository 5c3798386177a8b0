//! Randomness of the machine, which in a run comes from the seed: ids that the engine draws, and the order of its hash tables.

use std::ffi::{c_uint, c_void};

use super::current;

/// Stands for the function of the C library, which the standard library and the crate `getrandom` call.
///
/// # Safety
/// As there: `buffer` is valid for writes of `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    let Some(task) = current() else {
        // SAFETY: the caller's buffer, passed on as it is.
        let filled = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
        return isize::try_from(filled).unwrap_or(-1);
    };
    for at in (0..length).step_by(8) {
        let bytes = task.random().to_ne_bytes();
        // SAFETY: at most the bytes from `at` to `length` are written, which are the caller's.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.cast::<u8>().add(at), bytes.len().min(length - at)) };
    }
    length.cast_signed()
}
