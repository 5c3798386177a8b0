//! Messages from the serving process to a client.

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::request::progress::Progress;
use crate::request::response::Response;

/// One line from the server to a client: any number of `Alive` and `Progress`, then one of the others.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// Sign of life: sent when nothing else is, so that a client notices a server that was stopped.
    Alive,
    /// Progress of the work.
    Progress(Progress),
    /// The work is done.
    Done(Response),
    /// The work failed.
    Failed(Failure),
}
