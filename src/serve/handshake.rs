//! Agreeing with a client on an export and on the form of messages.

use std::io::{self, Write};
use std::time::Duration;

use super::export::{Export, Exports};
use super::security::{Answer, Security};
use super::status::Context;
use crate::error::{Error, ErrorKind};
use crate::io::Socket;
use crate::place::index;
use crate::sync::time::Instant;
use crate::wire::constants::{
    CLIENT_FLAG_FIXED_NEWSTYLE, CLIENT_FLAG_NO_ZEROES, EXPORT_BLOCK_STATUS_PAYLOAD, EXPORT_CAN_MULTI_CONN, EXPORT_HAS_FLAGS,
    EXPORT_READ_ONLY, EXPORT_SEND_CACHE, EXPORT_SEND_DF, EXPORT_SEND_FAST_ZERO, EXPORT_SEND_FLUSH, EXPORT_SEND_FUA, EXPORT_SEND_TRIM,
    EXPORT_SEND_WRITE_ZEROES, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, INFO_DESCRIPTION, INFO_NAME, INFO_VOLFORK, MAGIC_NBD, MAGIC_OPTION,
    OPT_ABORT, OPT_EXPORT_NAME, OPT_EXTENDED_HEADERS, OPT_GO, OPT_INFO, OPT_LEASE, OPT_LIST, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT,
    OPT_STARTTLS, OPT_STRUCTURED_REPLY, REP_ACK, REP_ERR_EXT_HEADER_REQD, REP_ERR_INVALID, REP_ERR_PLATFORM, REP_ERR_POLICY,
    REP_ERR_SHUTDOWN, REP_ERR_TLS_REQD, REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_INFO, REP_LEASE, REP_META_CONTEXT, REP_SERVER,
    STRING_BYTES_MAX,
};
use crate::wire::{
    ContextQuery, ExportInfo, GoRequest, HeaderMode, LeaseRequest, OptionReply, OptionRequest, WireWriter, deadline_after, read_by,
    time_left,
};

/// Most options in a row that tell the client nothing about an export. The others are not counted: to list many exports takes many.
const IDLE_OPTIONS_MAX: usize = 256;
/// Bytes of replies that are sent at once, about.
const REPLY_BYTES: usize = 64 << 10;
/// Snapshots that a list of contexts without a query tells: the latest ones. Each of many snapshots stands on all that are older, so
/// a client that lists all exports would be told the square of their number.
const CHANGED_CONTEXTS_MAX: usize = 64;

/// The outcome of the handshake.
pub struct Session {
    pub export: Export,
    pub mode: HeaderMode,
    /// The selected contexts by number.
    pub contexts: Vec<(u32, Context)>,
    /// Size that the client was told.
    pub size_bytes: u64,
}

struct Talk<'a> {
    socket: &'a mut Socket,
    exports: &'a dyn Exports,
    security: &'a mut Security,
    /// Where the client is. Behind TLS the socket does not know.
    peer: String,
    mode: HeaderMode,
    no_zeroes: bool,
    /// Export and contexts of the latest successful selection.
    selection: Option<(String, Vec<(u32, Context)>)>,
    deadline: Instant,
    timeout: Duration,
    /// Replies that were not sent yet.
    unsent: Vec<u8>,
    /// The client was told something about an export since the latest option.
    told: bool,
}

fn broken(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Talks until an export is chosen; `None` if the client leaves without one. The time begins anew after each option that tells the
/// client something about an export.
///
/// # Errors
/// The client breaks the protocol, leaves in the middle, takes too long, or asks on and on for what tells it nothing.
pub fn agree(socket: &mut Socket, exports: &dyn Exports, timeout: Duration, security: &mut Security) -> io::Result<Option<Session>> {
    let deadline = deadline_after(timeout);
    let (mode, unsent, peer) = (HeaderMode::Simple, Vec::new(), socket.peer());
    let mut talk =
        Talk { socket, exports, security, peer, mode, no_zeroes: false, selection: None, deadline, timeout, unsent, told: false };
    talk.greet()?;
    let mut idle = 0;
    while idle < IDLE_OPTIONS_MAX {
        let mut header = [0; OptionRequest::BYTES];
        talk.read(&mut header)?;
        let option = OptionRequest::decode(&header).map_err(|error| broken(&error.0))?;
        // Bounded when the header was decoded; always consumed, also for unknown options.
        let mut data = vec![0; index(option.length)];
        talk.read(&mut data)?;
        match option.option {
            OPT_EXPORT_NAME if !talk.security.is_enough() => return Err(broken("this listener requires TLS")),
            other if !talk.security.is_enough() && ![OPT_STARTTLS, OPT_ABORT].contains(&other) => {
                talk.refuse(other, REP_ERR_TLS_REQD, "this listener requires TLS")?;
            }
            OPT_EXPORT_NAME => return talk.export_name(&data).map(Some),
            OPT_ABORT => {
                // The client may be gone already.
                let _ = talk.reply(OPT_ABORT, REP_ACK, &[]);
                return Ok(None);
            }
            OPT_GO | OPT_INFO => {
                if let Some(session) = talk.go(option.option, &data)? {
                    return Ok(Some(session));
                }
            }
            other => talk.answer(other, &data)?,
        }
        idle += 1;
        if std::mem::take(&mut talk.told) {
            idle = 0;
            talk.deadline = deadline_after(timeout);
        }
    }
    Err(broken("too many options that tell nothing about an export"))
}

impl Talk<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        read_by(self.deadline, self.socket, buffer, |socket, left| socket.set_patience(Some(left)))
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            // A client that takes a byte at a time has no more time either.
            self.socket.set_patience(Some(time_left(self.deadline)?))?;
            match self.socket.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Replies that others follow are sent together.
    fn reply(&mut self, option: u32, reply: u32, data: &[u8]) -> io::Result<()> {
        self.unsent.extend(OptionReply::encode(option, reply, data));
        let tells = matches!(reply, REP_INFO | REP_SERVER | REP_META_CONTEXT);
        self.told |= tells;
        if tells && self.unsent.len() < REPLY_BYTES {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.unsent);
        self.write(&bytes)
    }

    fn refuse(&mut self, option: u32, reply: u32, text: &str) -> io::Result<()> {
        // It may quote a name, and so be longer than a string may be.
        self.reply(option, reply, &text.as_bytes()[..text.floor_char_boundary(STRING_BYTES_MAX)])
    }

    fn greet(&mut self) -> io::Result<()> {
        let mut writer = WireWriter::default();
        writer.u64(MAGIC_NBD).u64(MAGIC_OPTION).u16(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        self.write(&writer.bytes)?;
        let mut flags = [0; 4];
        self.read(&mut flags)?;
        let flags = u32::from_be_bytes(flags);
        if flags & !(CLIENT_FLAG_FIXED_NEWSTYLE | CLIENT_FLAG_NO_ZEROES) != 0 {
            return Err(broken("the client sets unknown flags"));
        }
        self.no_zeroes = flags & CLIENT_FLAG_NO_ZEROES != 0;
        Ok(())
    }

    /// Options that need no more than a reply.
    fn answer(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        match option {
            OPT_LIST if !data.is_empty() => self.refuse(option, REP_ERR_INVALID, "LIST takes no data"),
            OPT_LIST => {
                for name in self.exports.names() {
                    let mut writer = WireWriter::default();
                    writer.text(&name);
                    self.reply(option, REP_SERVER, &writer.bytes)?;
                }
                self.reply(option, REP_ACK, &[])
            }
            OPT_STRUCTURED_REPLY | OPT_EXTENDED_HEADERS if !data.is_empty() => {
                self.refuse(option, REP_ERR_INVALID, "this option takes no data")
            }
            OPT_STRUCTURED_REPLY if self.mode == HeaderMode::Extended => {
                self.refuse(option, REP_ERR_EXT_HEADER_REQD, "extended headers were agreed on")
            }
            OPT_STRUCTURED_REPLY => {
                self.mode = HeaderMode::Structured;
                self.reply(option, REP_ACK, &[])
            }
            OPT_EXTENDED_HEADERS if self.mode == HeaderMode::Extended => self.refuse(option, REP_ERR_INVALID, "agreed on already"),
            OPT_EXTENDED_HEADERS => {
                self.mode = HeaderMode::Extended;
                self.reply(option, REP_ACK, &[])
            }
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => self.contexts(option, data),
            OPT_LEASE => self.lease(data),
            OPT_STARTTLS => self.start_tls(data),
            _ => self.refuse(option, REP_ERR_UNSUP, "this server does not know the option"),
        }
    }

    #[cfg_attr(not(feature = "tls"), expect(unused_variables, reason = "without TLS the option is unknown, whatever it brings"))]
    fn start_tls(&mut self, data: &[u8]) -> io::Result<()> {
        match self.security.asked() {
            #[cfg(feature = "tls")]
            _ if !data.is_empty() => self.refuse(OPT_STARTTLS, REP_ERR_INVALID, "STARTTLS takes no data"),
            #[cfg(feature = "tls")]
            Answer::Twice => self.refuse(OPT_STARTTLS, REP_ERR_INVALID, "TLS has begun already"),
            #[cfg(feature = "tls")]
            Answer::NotHere => self.refuse(OPT_STARTTLS, REP_ERR_POLICY, "this listener has no TLS"),
            #[cfg(feature = "tls")]
            Answer::Begin => self.begin_tls(),
            #[cfg(not(feature = "tls"))]
            Answer::Unknown => self.refuse(OPT_STARTTLS, REP_ERR_UNSUP, "this server knows no TLS"),
        }
    }

    /// Bytes behind the option may be those of somebody in between, who wants them taken for those of the client: none is read before TLS
    /// has begun, and none is kept.
    #[cfg(feature = "tls")]
    fn begin_tls(&mut self) -> io::Result<()> {
        if self.socket.has_input()? {
            return Err(broken("bytes in clear text follow STARTTLS"));
        }
        self.reply(OPT_STARTTLS, REP_ACK, &[])?;
        *self.socket = self.security.begin(self.socket, self.deadline)?;
        (self.mode, self.selection) = (HeaderMode::Simple, None);
        Ok(())
    }

    fn contexts(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        if option == OPT_SET_META_CONTEXT {
            self.selection = None;
        }
        if self.mode == HeaderMode::Simple {
            return self.refuse(option, REP_ERR_INVALID, "contexts need structured replies");
        }
        let query = match ContextQuery::decode(data) {
            Ok(query) => query,
            Err(error) => return self.refuse(option, REP_ERR_INVALID, &error.0),
        };
        let export = match self.exports.open(&query.name) {
            Ok(export) => export,
            Err(error) => return self.refuse(option, REP_ERR_UNKNOWN, &error.to_string()),
        };
        let list = option == OPT_LIST_META_CONTEXT;
        let wanted = |name: &str| {
            (list && query.queries.is_empty())
                || query.queries.iter().any(|query| query == name || (list && query.ends_with(':') && name.starts_with(query.as_str())))
        };
        let offered = Context::of(&export, self.mode == HeaderMode::Extended);
        let mut chosen: Vec<(u32, Context)> = (1..).zip(offered).filter(|(_, context)| wanted(&context.name())).collect();
        if list && query.queries.is_empty() {
            let changed = chosen.iter().filter(|(_, context)| matches!(context, Context::Changed(_))).count();
            let mut skipped = changed.saturating_sub(CHANGED_CONTEXTS_MAX);
            chosen.retain(|(_, context)| {
                let skip = skipped > 0 && matches!(context, Context::Changed(_));
                skipped -= usize::from(skip);
                !skip
            });
        }
        for (number, context) in &chosen {
            let mut writer = WireWriter::default();
            writer.u32(if list { 0 } else { *number }).raw(context.name().as_bytes());
            self.reply(option, REP_META_CONTEXT, &writer.bytes)?;
        }
        if !list {
            self.selection = Some((query.name, chosen));
        }
        self.reply(option, REP_ACK, &[])
    }

    /// A lease counts as an option that tells nothing: a client does not get them without end.
    fn lease(&mut self, data: &[u8]) -> io::Result<()> {
        let (name, request) = match LeaseRequest::decode(data) {
            Ok(decoded) => decoded,
            Err(error) => return self.refuse(OPT_LEASE, REP_ERR_INVALID, &error.0),
        };
        let leased = self.exports.lease(&name, &request, &self.peer);
        // The time that the store took is not the client's.
        self.deadline = deadline_after(self.timeout);
        match leased {
            Ok(grant) => {
                if let Some(grant) = grant {
                    self.unsent.extend(OptionReply::encode(OPT_LEASE, REP_LEASE, &grant.encode()));
                }
                self.reply(OPT_LEASE, REP_ACK, &[])
            }
            Err(error) => {
                let reply = match error.kind() {
                    ErrorKind::NotFound => REP_ERR_UNKNOWN,
                    ErrorKind::Unsupported => REP_ERR_UNSUP,
                    ErrorKind::Busy | ErrorKind::InvalidInput => REP_ERR_POLICY,
                    ErrorKind::Closed => REP_ERR_SHUTDOWN,
                    _ => REP_ERR_PLATFORM,
                };
                self.refuse(OPT_LEASE, reply, &error.to_string())
            }
        }
    }

    fn info(&self, name: &str, export: &Export) -> ExportInfo {
        let mut flags = EXPORT_HAS_FLAGS | EXPORT_SEND_FLUSH | EXPORT_SEND_FUA | EXPORT_CAN_MULTI_CONN | EXPORT_SEND_CACHE;
        flags |= match export.is_read_only() {
            true => EXPORT_READ_ONLY,
            false => EXPORT_SEND_TRIM | EXPORT_SEND_WRITE_ZEROES | EXPORT_SEND_FAST_ZERO,
        };
        if self.mode != HeaderMode::Simple {
            flags |= EXPORT_SEND_DF;
        }
        let has_contexts = self.selection.as_ref().is_some_and(|(of, contexts)| of == name && !contexts.is_empty());
        if self.mode == HeaderMode::Extended && has_contexts {
            flags |= EXPORT_BLOCK_STATUS_PAYLOAD;
        }
        ExportInfo { size_bytes: export.size_bytes(), flags, block_sizes: None }
    }

    fn go(&mut self, option: u32, data: &[u8]) -> io::Result<Option<Session>> {
        let request = match GoRequest::decode(data) {
            Ok(request) => request,
            Err(error) => return self.refuse(option, REP_ERR_INVALID, &error.0).map(|()| None),
        };
        let export = match self.exports.open(&request.name) {
            Ok(export) => export,
            Err(error) => {
                let reply = if error.kind() == ErrorKind::NotFound { REP_ERR_UNKNOWN } else { REP_ERR_PLATFORM };
                return self.refuse(option, reply, &error.to_string()).map(|()| None);
            }
        };
        let info = self.info(&request.name, &export);
        self.reply(option, REP_INFO, &info.encode_export())?;
        self.reply(option, REP_INFO, &ExportInfo::encode_block_sizes(export.block_bytes()))?;
        let texts = [
            (INFO_NAME, export.name().into_bytes()),
            (INFO_DESCRIPTION, export.description().into_bytes()),
            (INFO_VOLFORK, export.about().encode()),
        ];
        for (kind, text) in texts {
            if request.infos.contains(&kind) {
                let mut writer = WireWriter::default();
                writer.u16(kind).raw(&text);
                self.reply(option, REP_INFO, &writer.bytes)?;
            }
        }
        self.reply(option, REP_ACK, &[])?;
        Ok((option == OPT_GO).then(|| self.session(&request.name, export, &info)))
    }

    fn session(&mut self, name: &str, export: Export, info: &ExportInfo) -> Session {
        // A selection counts for the export it was made for.
        let contexts = self.selection.take().filter(|(export, _)| export == name).map_or_else(Vec::new, |(_, contexts)| contexts);
        Session { export, mode: self.mode, contexts, size_bytes: info.size_bytes }
    }

    /// The old way of choosing: no error can be replied, so the connection ends.
    fn export_name(&mut self, data: &[u8]) -> io::Result<Session> {
        if self.mode == HeaderMode::Extended || data.len() > STRING_BYTES_MAX {
            return Err(broken("EXPORT_NAME is not allowed here"));
        }
        let name = std::str::from_utf8(data).map_err(|_| broken("the export's name is not UTF-8"))?;
        let export = self.exports.open(name).map_err(|error: Error| broken(&error.to_string()))?;
        let info = self.info(name, &export);
        let mut writer = WireWriter::default();
        writer.u64(info.size_bytes).u16(info.flags);
        if !self.no_zeroes {
            writer.raw(&[0; 124]);
        }
        self.write(&writer.bytes)?;
        Ok(self.session(name, export, &info))
    }
}
