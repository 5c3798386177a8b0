//! How a connection begins TLS.

use std::os::fd::AsFd;

use super::handshake::{Refusal, Talk};
use crate::source::SourceErrorKind;
use crate::tls::{ClientTerms, ClientTls, Failure};
use crate::wire::constants::{OPT_STARTTLS, REP_ACK};
use crate::wire::foreign_text;

impl Talk {
    /// Begins TLS. A server that refuses it is not spoken to in clear text. The files of the directory are read each time, so that renewed
    /// certificates are used without a restart.
    ///
    /// # Errors
    /// The server has no TLS, or another certificate than is wanted; it does not answer in time.
    pub(super) fn secure(&mut self, terms: &ClientTerms) -> Result<(), Refusal> {
        let never = |text: String| Refusal::Never(SourceErrorKind::Invalid, text);
        let tls = ClientTls::open(terms).map_err(|error| never(error.to_string()))?;
        self.send(OPT_STARTTLS, &[])?;
        let (end, replies) = self.answer(OPT_STARTTLS)?;
        if end != REP_ACK {
            let text = replies.last().map(|(_, data)| foreign_text(data)).unwrap_or_default();
            return Err(never(format!("the server offers no TLS (reply {end:#x}: {text}), and without it nothing is sent")));
        }
        let socket = self.socket.as_fd().try_clone_to_owned()?;
        self.socket = tls.connect(socket, self.deadline).map_err(|failure| match failure {
            Failure::Io(error) => error.into(),
            Failure::Refused(why) => never(why.text),
        })?;
        Ok(())
    }
}
