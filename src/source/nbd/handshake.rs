//! Agreeing with a server: extended headers if it has them, else structured replies, else simple ones.

use std::io::{self, Read, Write};
use std::time::Duration;

use super::address::{Address, Socket};
use crate::source::{SourceError, SourceErrorKind};
use crate::wire::constants::{
    CLIENT_FLAG_FIXED_NEWSTYLE, CLIENT_FLAG_NO_ZEROES, CONTEXT_ALLOCATION, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, INFO_BLOCK_SIZE, MAGIC_NBD,
    MAGIC_OPTION, OPT_EXPORT_NAME, OPT_EXTENDED_HEADERS, OPT_GO, OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY, REP_ACK, REP_ERR_UNKNOWN,
    REP_ERR_UNSUP, REP_INFO, REP_META_CONTEXT,
};
use crate::wire::{ContextQuery, ExportInfo, GoRequest, HeaderMode, OptionReply, OptionRequest, WireError, WireReader, decode_export_info};

/// Most replies to one option: bounds a server that never ends.
const REPLIES_MAX: usize = 1024;

/// A connection that is ready for requests.
pub struct Agreed {
    pub socket: Socket,
    pub mode: HeaderMode,
    pub info: ExportInfo,
    /// Number of the allocation context, if it can be asked for.
    pub allocation: Option<u32>,
}

/// Why there is no connection.
pub enum Refusal {
    /// Another try may succeed.
    Later(String),
    /// No try will.
    Never(SourceErrorKind, String),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
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
type Reply = (u32, Vec<u8>);

struct Talk {
    socket: Socket,
}

impl Talk {
    fn send(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        self.socket.write_all(&OptionRequest::encode(option, data))
    }

    fn reply(&mut self, option: u32) -> Result<Reply, Refusal> {
        let mut header = [0; OptionReply::BYTES];
        self.socket.read_exact(&mut header)?;
        let reply = OptionReply::decode(&header)?;
        let mut data = vec![0; reply.length as usize];
        self.socket.read_exact(&mut data)?;
        if reply.option != option {
            return Err(WireError(format!("the reply to option {option} is for option {}", reply.option)).into());
        }
        Ok((reply.reply, data))
    }

    /// Sends an option and takes replies up to the last one.
    fn ask(&mut self, option: u32, data: &[u8]) -> Result<(u32, Vec<Reply>), Refusal> {
        self.send(option, data)?;
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

    fn greet(&mut self) -> Result<u16, Refusal> {
        let mut greeting = [0; 18];
        self.socket.read_exact(&mut greeting)?;
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

    fn allocation_context(&mut self, export: &str) -> Result<Option<u32>, Refusal> {
        let query = ContextQuery { name: export.to_owned(), queries: vec![CONTEXT_ALLOCATION.into()] };
        let (end, replies) = self.ask(OPT_SET_META_CONTEXT, &query.encode())?;
        let context = replies.iter().find(|(kind, data)| *kind == REP_META_CONTEXT && data.get(4..) == Some(CONTEXT_ALLOCATION.as_bytes()));
        match context {
            Some((_, data)) if end == REP_ACK => Ok(Some(WireReader::new(data).u32()?)),
            _ => Ok(None),
        }
    }

    fn go(&mut self, export: &str, mode: HeaderMode, flags: u16) -> Result<ExportInfo, Refusal> {
        let mut info = ExportInfo { size_bytes: 0, flags: 0, block_sizes: None };
        let request = GoRequest { name: export.to_owned(), infos: vec![INFO_BLOCK_SIZE] };
        let (end, replies) = self.ask(OPT_GO, &request.encode())?;
        for (kind, data) in &replies {
            if *kind == REP_INFO {
                decode_export_info(data, &mut info)?;
            }
        }
        match end {
            REP_ACK if info.flags != 0 => Ok(info),
            REP_ERR_UNSUP if mode != HeaderMode::Extended => self.export_name(export, flags),
            REP_ERR_UNKNOWN => {
                let what = format!("the server has no export '{export}': 'nbdinfo --list' shows those it has");
                Err(Refusal::Never(SourceErrorKind::Invalid, what))
            }
            other => {
                let text = replies.last().map(|(_, data)| String::from_utf8_lossy(data).into_owned()).unwrap_or_default();
                let what = format!("the server refuses export '{export}' (reply {other:#x}): {text}");
                Err(Refusal::Never(SourceErrorKind::Invalid, what))
            }
        }
    }

    /// The old way, without replies: the server closes the connection if there is no such export.
    fn export_name(&mut self, export: &str, flags: u16) -> Result<ExportInfo, Refusal> {
        self.send(OPT_EXPORT_NAME, export.as_bytes())?;
        let mut answer = [0; 10];
        self.socket.read_exact(&mut answer)?;
        if flags & FLAG_NO_ZEROES == 0 {
            self.socket.read_exact(&mut [0; 124])?;
        }
        let mut reader = WireReader::new(&answer);
        Ok(ExportInfo { size_bytes: reader.u64()?, flags: reader.u16()?, block_sizes: None })
    }
}

/// Connects and agrees.
pub fn connect(address: &Address, timeout: Duration) -> Result<Agreed, Refusal> {
    let socket = address.connect(timeout)?;
    socket.set_timeouts(timeout, timeout)?;
    let mut talk = Talk { socket };
    let flags = talk.greet()?;
    let mut mode = HeaderMode::Simple;
    for (option, reached) in [(OPT_EXTENDED_HEADERS, HeaderMode::Extended), (OPT_STRUCTURED_REPLY, HeaderMode::Structured)] {
        if talk.ask(option, &[])?.0 == REP_ACK {
            mode = reached;
            break;
        }
    }
    let allocation = if mode == HeaderMode::Simple { None } else { talk.allocation_context(&address.export)? };
    let info = talk.go(&address.export, mode, flags)?;
    Ok(Agreed { socket: talk.socket, mode, info, allocation })
}
