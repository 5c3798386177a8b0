//! Priority of threads.

/// How much less of a busy processor the background gets: about a tenth of what a thread of the foreground gets, so that it never
/// stands still (`nice` levels differ by a factor of 1.25 each, sched(7)).
const BACKGROUND_NICE: i32 = 10;

/// From now on the calling thread, and those that it starts, give way to threads of the foreground. Where the machine does not
/// allow it, nothing changes.
pub fn give_way() {
    // On Linux each thread has a value of its own (setpriority(2), "C library/kernel differences").
    let _ = rustix::process::nice(BACKGROUND_NICE);
}
