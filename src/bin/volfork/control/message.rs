//! What the serving process answers a client.

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::request::progress::Progress;
use crate::request::response::Response;

/// One line from the server to a client: any number of `Alive` and `Progress`, then one of the others.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The server lives; said when there is nothing else to say, so that nobody waits for one that was stopped.
    Alive,
    /// Work goes on.
    Progress(Progress),
    /// It is done.
    Done(Response),
    /// It failed.
    Failed(Failure),
}
