//! A serving process, for the tests of a fleet and the acceptance.

use std::process::Child;

use rustix::process::{Pid, Signal, kill_process};

/// Killed when dropped.
pub struct Server(pub Child);

impl Server {
    pub fn stop(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
