//! The NBD handshake of a client: agrees on extended headers if the server has them, else on structured replies, else on simple ones.

use std::io::{self, Write};
use std::time::Duration;

use super::NbdOptions;
use super::address::Address;
use crate::io::Socket;
use crate::limits::BLOCK_BYTES_MAX;
use crate::place::index;
use crate::source::{About, SourceError, SourceErrorKind};
use crate::sync::time::Instant;
use crate::wire::constants::{
    CLIENT_FLAG_FIXED_NEWSTYLE, CLIENT_FLAG_NO_ZEROES, CONTEXT_ALLOCATION, CONTEXT_CHECKSUMS, CONTEXT_TRACE, DESCRIPTION_OF_SNAPSHOT,
    EXPORT_BLOCK_STATUS_PAYLOAD, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, INFO_BLOCK_SIZE, INFO_DESCRIPTION, INFO_VOLFORK, MAGIC_NBD,
    MAGIC_OPTION, OPT_EXPORT_NAME, OPT_EXTENDED_HEADERS, OPT_GO, OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY, REP_ACK, REP_ERR_PLATFORM,
    REP_ERR_SHUTDOWN, REP_ERR_TLS_REQD, REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_INFO, REP_META_CONTEXT,
};
use crate::wire::{
    ContextQuery, ExportInfo, GoRequest, HeaderMode, LeaseAction, LeaseGrant, LeaseRequest, OptionReply, OptionRequest, WireError,
    WireReader, deadline_after, decode_export_info, foreign_text, read_by,
};

/// Most replies to one option: a server that sends more is given up.
const REPLIES_MAX: usize = 1024;

/// Longest identity that is accepted, in bytes.
const IDENTITY_BYTES_MAX: usize = 255;

/// Smallest blocks whose checksums are asked for.
const CHECKSUM_BLOCK_BYTES_MIN: u32 = 512;

/// A connection that is ready for requests.
pub struct Agreed {
    /// The lease that was requested; `None` if the server does not support leases.
    pub lease: Option<LeaseGrant>,
    pub socket: Socket,
    pub mode: HeaderMode,
    pub info: ExportInfo,
    pub contexts: Contexts,
    /// Identity of the bytes, if the server is a volfork and the export a snapshot.
    pub identity: Option<String>,
    /// What else a volfork server tells about the export.
    pub about: About,
    /// Measured time from an option to its reply.
    pub round_trip: Duration,
}

/// Numbers of the metadata contexts that the server has agreed to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contexts {
    pub allocation: Option<u32>,
    pub checksums: Option<u32>,
    pub trace: Option<u32>,
    /// Bytes of a block that has a checksum: the preferred block size of a volfork server.
    pub block_bytes: u32,
    /// A block status request may select contexts (extended headers).
    pub are_selectable: bool,
}

/// What a block status can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    Allocation,
    Trace,
}

impl Contexts {
    /// The number of a topic on this connection.
    pub fn number(&self, topic: Topic) -> Option<u32> {
        match topic {
            Topic::Allocation => self.allocation,
            Topic::Trace => self.trace,
        }
    }

    /// Whether another connection has the same contexts. Their numbers are private to a connection and are not compared.
    pub fn is_like(&self, other: &Self) -> bool {
        let kinds = |contexts: &Self| {
            let Self { allocation, checksums, trace, block_bytes, are_selectable } = *contexts;
            (allocation.is_some(), checksums.is_some(), trace.is_some(), block_bytes, are_selectable)
        };
        kinds(self) == kinds(other)
    }
}

/// Why a handshake failed.
pub enum Refusal {
    /// Another try may succeed.
    Later(String),
    /// No try will.
    Never(SourceErrorKind, String),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        #[cfg(feature = "tls")]
        if let Some(why) = error.get_ref().and_then(|why| why.downcast_ref::<crate::tls::Refused>()).filter(|why| why.is_final) {
            return Self::Never(SourceErrorKind::Invalid, why.text.clone());
        }
        let text = match error.kind() {
            io::ErrorKind::UnexpectedEof => "the server closed the connection".into(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "the server does not answer".into(),
            _ => error.to_string(),
        };
        Self::Later(text)
    }
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Self {
        Self::Never(SourceErrorKind::Invalid, format!("the server does not speak NBD: {error}"))
    }
}

impl Refusal {
    /// The error for a user.
    pub fn into_error(self, uri: &str) -> SourceError {
        match self {
            Self::Later(text) => SourceError { kind: SourceErrorKind::Lost, message: format!("{uri}: {text}") },
            Self::Never(kind, text) => SourceError { kind, message: format!("{uri}: {text}") },
        }
    }
}

/// The kind and data of one reply.
pub(super) type Reply = (u32, Vec<u8>);

pub(super) struct Talk {
    pub socket: Socket,
    pub deadline: Instant,
}

impl Talk {
    /// Connects and reads the greeting. Also returns the flags of the server.
    pub fn begin(address: &Address, timeout: Duration) -> Result<(Self, u16), Refusal> {
        let socket = address.connect(timeout)?;
        socket.set_patience(Some(timeout))?;
        let mut talk = Self { socket, deadline: deadline_after(timeout) };
        let flags = talk.greet()?;
        #[cfg(feature = "tls")]
        if let Some(terms) = &address.tls {
            talk.secure(terms)?;
        }
        Ok((talk, flags))
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        read_by(self.deadline, &mut self.socket, buffer, |socket, left| socket.set_patience(Some(left)))
    }

    pub fn send(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        self.socket.write_all(&OptionRequest::encode(option, data))
    }

    fn reply(&mut self, option: u32) -> Result<Reply, Refusal> {
        let mut header = [0; OptionReply::BYTES];
        self.read(&mut header)?;
        let reply = OptionReply::decode(&header)?;
        let mut data = vec![0; index(reply.length)];
        self.read(&mut data)?;
        if reply.option != option {
            return Err(WireError(format!("the reply to option {option} is for option {}", reply.option)).into());
        }
        Ok((reply.reply, data))
    }

    /// Reads the replies to an option that was sent: the kind of the last one, and the ones before it.
    pub fn answer(&mut self, option: u32) -> Result<(u32, Vec<Reply>), Refusal> {
        let mut replies = Vec::new();
        for _ in 0..REPLIES_MAX {
            let (kind, data) = self.reply(option)?;
            if kind == REP_ACK || kind >> 31 == 1 {
                replies.push((kind, data));
                return Ok((kind, replies));
            }
            replies.push((kind, data));
        }
        Err(WireError(format!("option {option} has no end of replies")).into())
    }

    pub fn greet(&mut self) -> Result<u16, Refusal> {
        let mut greeting = [0; 18];
        self.read(&mut greeting)?;
        let mut reader = WireReader::new(&greeting);
        if (reader.u64()?, reader.u64()?) != (MAGIC_NBD, MAGIC_OPTION) {
            return Err(WireError("the greeting is not that of a newstyle server".into()).into());
        }
        let flags = reader.u16()?;
        if flags & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(WireError("the server is older than fixed newstyle".into()).into());
        }
        let no_zeroes = if flags & FLAG_NO_ZEROES != 0 { CLIENT_FLAG_NO_ZEROES } else { 0 };
        self.socket.write_all(&(CLIENT_FLAG_FIXED_NEWSTYLE | no_zeroes).to_be_bytes())?;
        Ok(flags)
    }

    fn contexts(&mut self) -> Result<Contexts, Refusal> {
        let (end, replies) = self.answer(OPT_SET_META_CONTEXT)?;
        let mut contexts = Contexts::default();
        for (_, data) in replies.iter().filter(|(kind, _)| *kind == REP_META_CONTEXT && end == REP_ACK) {
            let mut reader = WireReader::new(data);
            let number = reader.u32()?;
            match reader.take(reader.remaining())? {
                name if name == CONTEXT_ALLOCATION.as_bytes() => contexts.allocation = Some(number),
                name if name == CONTEXT_CHECKSUMS.as_bytes() => contexts.checksums = Some(number),
                name if name == CONTEXT_TRACE.as_bytes() => contexts.trace = Some(number),
                _ => {}
            }
        }
        Ok(contexts)
    }

    fn go(&mut self, export: &str, mode: HeaderMode, flags: u16) -> Result<(ExportInfo, Option<String>, About), Refusal> {
        let mut info = ExportInfo { size_bytes: 0, flags: 0, block_sizes: None };
        let (mut identity, mut about) = (None, None);
        let (end, replies) = self.answer(OPT_GO)?;
        for (kind, data) in &replies {
            if *kind == REP_INFO {
                decode_export_info(data, &mut info)?;
                identity = identity.or(identity_of(data));
                about = about.or(data.strip_prefix(&INFO_VOLFORK.to_be_bytes()).map(About::decode));
            }
        }
        match end {
            REP_ACK if info.flags != 0 => Ok((info, identity, about.unwrap_or_default())),
            REP_ERR_UNSUP if mode != HeaderMode::Extended => Ok((self.export_name(export, flags)?, None, About::default())),
            other => Err(refused(other, export, &replies)),
        }
    }

    /// Opens the export by `NBD_OPT_EXPORT_NAME`, which has no error reply: the server closes the connection if there is no such export.
    fn export_name(&mut self, export: &str, flags: u16) -> Result<ExportInfo, Refusal> {
        self.send(OPT_EXPORT_NAME, export.as_bytes())?;
        let mut answer = [0; 10];
        self.read(&mut answer)?;
        if flags & FLAG_NO_ZEROES == 0 {
            self.read(&mut [0; 124])?;
        }
        let mut reader = WireReader::new(&answer);
        Ok(ExportInfo { size_bytes: reader.u64()?, flags: reader.u16()?, block_sizes: None })
    }
}

/// Why the server refuses an export, or a lease of it.
pub(super) fn refused(reply: u32, export: &str, replies: &[Reply]) -> Refusal {
    if reply == REP_ERR_UNKNOWN {
        let what = format!("the server has no export '{export}': 'nbdinfo --list' shows those it has");
        return Refusal::Never(SourceErrorKind::Invalid, what);
    }
    if reply == REP_ERR_TLS_REQD {
        let what = "the server demands TLS: use nbds:// or nbds+unix://, with tls-certificates=DIR";
        return Refusal::Never(SourceErrorKind::Invalid, what.into());
    }
    let text = replies.last().map(|(_, data)| foreign_text(data)).unwrap_or_default();
    let what = format!("the server refuses export '{export}' (reply {reply:#x}): {text}");
    match reply {
        // The server shuts down or has an internal error: a later try may succeed.
        REP_ERR_SHUTDOWN | REP_ERR_PLATFORM => Refusal::Later(what),
        _ => Refusal::Never(SourceErrorKind::Invalid, what),
    }
}

/// The identity in the description of a volfork snapshot.
fn identity_of(info: &[u8]) -> Option<String> {
    let mut reader = WireReader::new(info);
    if reader.u16().ok()? != INFO_DESCRIPTION {
        return None;
    }
    let text = std::str::from_utf8(reader.take(reader.remaining()).ok()?).ok()?;
    let identity = text.strip_prefix(DESCRIPTION_OF_SNAPSHOT)?;
    // Stored in the journal and shown to people: text that no volfork server sends is no identity.
    let is_plain = (1..=IDENTITY_BYTES_MAX).contains(&identity.len()) && identity.bytes().all(|byte| byte.is_ascii_graphic());
    is_plain.then(|| identity.to_owned())
}

/// Connects and completes the handshake. A lease is requested first, because its reply names the export to open.
pub fn connect(address: &Address, options: &NbdOptions, lease: Option<&LeaseRequest>) -> Result<Agreed, Refusal> {
    let (mut talk, flags) = Talk::begin(address, options.connect_timeout)?;
    let lease = match lease.map(|request| (request.action, talk.lease(&address.export, request, options))) {
        // A refused `Hold` is no error: the fork reads the export without a lease.
        None | Some((LeaseAction::Hold, Err(Refusal::Never(..)))) => None,
        Some((LeaseAction::Take, asked)) => asked?,
        Some((_, asked)) => asked?.map(|grant| LeaseGrant { export: address.export.clone(), ..grant }),
    };
    let export = lease.as_ref().map_or(&address.export, |lease| &lease.export).clone();
    let query = [CONTEXT_ALLOCATION, CONTEXT_CHECKSUMS, CONTEXT_TRACE].map(str::to_owned);
    // All options are sent at once and cost one round trip. If the server refuses one of the first three, the later ones agree on less.
    let options = [
        OptionRequest::encode(OPT_EXTENDED_HEADERS, &[]),
        OptionRequest::encode(OPT_STRUCTURED_REPLY, &[]),
        OptionRequest::encode(OPT_SET_META_CONTEXT, &ContextQuery { name: export.clone(), queries: query.into() }.encode()),
        OptionRequest::encode(
            OPT_GO,
            &GoRequest { name: export.clone(), infos: vec![INFO_BLOCK_SIZE, INFO_DESCRIPTION, INFO_VOLFORK] }.encode(),
        ),
    ];
    let begun = Instant::now();
    talk.socket.write_all(&options.concat())?;
    let is_extended = talk.answer(OPT_EXTENDED_HEADERS)?.0 == REP_ACK;
    let round_trip = begun.elapsed();
    let mode = match (is_extended, talk.answer(OPT_STRUCTURED_REPLY)?.0) {
        (true, _) => HeaderMode::Extended,
        (false, REP_ACK) => HeaderMode::Structured,
        (false, _) => HeaderMode::Simple,
    };
    let mut contexts = talk.contexts()?;
    let (info, identity, about) = talk.go(&export, mode, flags)?;
    contexts.are_selectable = mode == HeaderMode::Extended && info.flags & EXPORT_BLOCK_STATUS_PAYLOAD != 0;
    contexts.block_bytes = info.block_sizes.map_or(0, |(_, preferred, _)| preferred);
    // Checksums of smaller blocks would need more memory than the bytes.
    if !contexts.block_bytes.is_power_of_two() || !(CHECKSUM_BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&contexts.block_bytes) {
        contexts.checksums = None;
    }
    if !contexts.are_selectable {
        // Every status would carry all contexts.
        (contexts.checksums, contexts.trace) = (None, None);
    }
    Ok(Agreed { lease, socket: talk.socket, mode, info, contexts, identity, about, round_trip })
}
