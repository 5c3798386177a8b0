//! temp
use super::handle::OpenSnapshot;
use super::head::Head;
use super::request::{Completion, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::io::RingKind;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;
pub struct Queue(());
impl Queue {
    pub(super) fn for_volume(_: &Arc<Head>, _: u32) -> Result<Self> {
        Err(Error::new(ErrorKind::Unsupported, ""))
    }
    pub(super) fn for_snapshot(_: &Arc<OpenSnapshot>, _: u32) -> Result<Self> {
        Err(Error::new(ErrorKind::Unsupported, ""))
    }
    pub fn submit(&mut self, _token: u64, _request: Request) -> Result<()> {
        Ok(())
    }
    pub fn reap(&mut self, _completions: &mut Vec<Completion>) -> Result<usize> {
        Ok(0)
    }
    pub fn wait(&mut self, _completions: &mut Vec<Completion>, _timeout: Option<Duration>) -> Result<usize> {
        Ok(0)
    }
    pub fn in_flight(&self) -> usize {
        0
    }
    pub fn kind(&self) -> RingKind {
        RingKind::Threads
    }
}
impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        -1
    }
}
