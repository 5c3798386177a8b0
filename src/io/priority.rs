//! Priority of threads.

use rustix::process::{getpid, getpriority_process, nice};

/// How much less of a busy processor the background gets: about a tenth of what a thread of the foreground gets, so that it never
/// stands still (`nice` levels differ by a factor of 1.25 each, sched(7)).
const BACKGROUND_NICE: i32 = 10;

/// From now on the calling thread, and those that it starts, give way to threads of the foreground; also when it does so already, because
/// the thread that started it does. Where the machine does not allow it, nothing changes.
pub fn give_way() {
    // On Linux each thread has a value of its own (setpriority(2), "C library/kernel differences"); the process's is that of its first.
    let of_process = getpriority_process(Some(getpid())).unwrap_or(0);
    let missing = of_process + BACKGROUND_NICE - getpriority_process(None).unwrap_or(of_process);
    if missing > 0 {
        let _ = nice(missing);
    }
}
