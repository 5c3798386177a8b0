//! The order in which forks first touch a snapshot: shown, dropped, recorded.

use volfork::Store;

use crate::failure::Result;
use crate::request::TraceAction;
use crate::request::response::Response;
use crate::request::target::Target;

/// Carries out a request about a trace.
pub fn carry_out(store: &Store, action: TraceAction, target: Target) -> Result<Response> {
    let Target { volume, snapshot } = &target;
    match action {
        TraceAction::Show => {}
        TraceAction::Drop => store.drop_trace(volume, snapshot.as_deref())?,
        TraceAction::Record => store.record_trace(volume)?,
    }
    let info = store.trace(volume, snapshot.as_deref())?;
    Ok(Response::Trace(target, info))
}
