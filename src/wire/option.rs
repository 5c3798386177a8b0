//! Options: what client and server agree on before requests.
//!
//! ```text
//! option        magic u64, option u32, length u32, data
//! option reply  magic u64, option u32, reply u32, length u32, data
//! GO, INFO      name (u32 length, bytes), n u16, n x info type u16
//! META_CONTEXT  export name, n u32, n x query
//! ```

use super::bytes::{WireError, WireReader, WireWriter};
use super::constants::{
    EXPORT_HAS_FLAGS, INFO_BLOCK_SIZE, INFO_EXPORT, MAGIC_OPTION, MAGIC_OPTION_REPLY, PAYLOAD_BYTES_MAX, STRING_BYTES_MAX,
};

/// Most bytes of an option's data: enough for a name and for more contexts than clients ask for.
const OPTION_BYTES_MAX: u32 = 64 << 10;
/// Most queries of one context option.
const QUERIES_MAX: u32 = 128;

/// The header of an option; its data follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionRequest {
    /// Which option.
    pub option: u32,
    /// Bytes of data.
    pub length: u32,
}

impl OptionRequest {
    /// Bytes of the header.
    pub const BYTES: usize = 16;

    /// # Errors
    /// The magic number is wrong, or the data are longer than any option's.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, WireError> {
        let mut reader = WireReader::new(bytes);
        if reader.u64()? != MAGIC_OPTION {
            return Err(WireError("an option has no magic number".into()));
        }
        let (option, length) = (reader.u32()?, reader.u32()?);
        if length > OPTION_BYTES_MAX {
            return Err(WireError(format!("option {option} has {length} bytes, at most {OPTION_BYTES_MAX} are taken")));
        }
        Ok(Self { option, length })
    }

    /// The bytes of an option with its data.
    pub fn encode(option: u32, data: &[u8]) -> Vec<u8> {
        let mut writer = WireWriter::default();
        writer.u64(MAGIC_OPTION).u32(option).blob(data);
        writer.bytes
    }
}

/// The header of a reply to an option; its data follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReply {
    /// The option replied to.
    pub option: u32,
    /// Kind of reply (`REP_*`).
    pub reply: u32,
    /// Bytes of data.
    pub length: u32,
}

impl OptionReply {
    /// Bytes of the header.
    pub const BYTES: usize = 20;

    /// # Errors
    /// The magic number is wrong, or the data are longer than any reply's.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, WireError> {
        let mut reader = WireReader::new(bytes);
        if reader.u64()? != MAGIC_OPTION_REPLY {
            return Err(WireError("a reply to an option has no magic number".into()));
        }
        let reply = Self { option: reader.u32()?, reply: reader.u32()?, length: reader.u32()? };
        if reply.length > OPTION_BYTES_MAX {
            return Err(WireError(format!("a reply to option {} has {} bytes", reply.option, reply.length)));
        }
        Ok(reply)
    }

    /// The bytes of a reply with its data.
    pub fn encode(option: u32, reply: u32, data: &[u8]) -> Vec<u8> {
        let mut writer = WireWriter::default();
        writer.u64(MAGIC_OPTION_REPLY).u32(option).u32(reply).blob(data);
        writer.bytes
    }
}

/// Data of `GO` and `INFO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoRequest {
    /// Export; empty is the default one.
    pub name: String,
    /// Information asked for.
    pub infos: Vec<u16>,
}

impl GoRequest {
    /// # Errors
    /// The lengths do not fit together, or the name is no name.
    pub fn decode(data: &[u8]) -> Result<Self, WireError> {
        let mut reader = WireReader::new(data);
        let name = reader.text_within(STRING_BYTES_MAX)?;
        let count = reader.u16()?;
        let infos = (0..count).map(|_| reader.u16()).collect::<Result<_, _>>()?;
        reader.end()?;
        Ok(Self { name, infos })
    }

    /// The data of the option.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = WireWriter::default();
        writer.text(&self.name).short_count(self.infos.len());
        for info in &self.infos {
            writer.u16(*info);
        }
        writer.bytes
    }
}

/// Data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextQuery {
    /// Name of the export.
    pub name: String,
    /// Names of contexts, or prefixes of them that end with a colon.
    pub queries: Vec<String>,
}

impl ContextQuery {
    /// # Errors
    /// The lengths do not fit together, or there are too many queries.
    pub fn decode(data: &[u8]) -> Result<Self, WireError> {
        let mut reader = WireReader::new(data);
        let name = reader.text_within(STRING_BYTES_MAX)?;
        let count = reader.u32()?;
        if count > QUERIES_MAX {
            return Err(WireError(format!("{count} context queries, at most {QUERIES_MAX} are taken")));
        }
        let queries = (0..count).map(|_| reader.text_within(STRING_BYTES_MAX)).collect::<Result<_, _>>()?;
        reader.end()?;
        Ok(Self { name, queries })
    }

    /// The data of the option.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = WireWriter::default();
        writer.text(&self.name).count(self.queries.len());
        for query in &self.queries {
            writer.text(query);
        }
        writer.bytes
    }
}

/// Size, flags and block sizes that a server tells of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Smallest, preferred and largest transfer in bytes.
    pub block_sizes: Option<(u32, u32, u32)>,
}

/// Takes one `REP_INFO` into what is known of an export; unknown kinds are ignored.
///
/// # Errors
/// The data are not of their kind's length, or block sizes make no sense.
pub fn decode_export_info(data: &[u8], info: &mut ExportInfo) -> Result<(), WireError> {
    let mut reader = WireReader::new(data);
    match reader.u16()? {
        INFO_EXPORT => {
            (info.size_bytes, info.flags) = (reader.u64()?, reader.u16()?);
            if info.flags & EXPORT_HAS_FLAGS == 0 {
                return Err(WireError("the export has no flags".into()));
            }
        }
        INFO_BLOCK_SIZE => {
            let (minimum, preferred, maximum) = (reader.u32()?, reader.u32()?, reader.u32()?);
            let sensible = minimum.is_power_of_two() && minimum <= 64 << 10 && maximum >= minimum.max(512);
            if !sensible {
                return Err(WireError(format!("block sizes {minimum}, {preferred}, {maximum} make no sense")));
            }
            info.block_sizes = Some((minimum, preferred, maximum));
        }
        _ => return Ok(()),
    }
    reader.end()
}

impl ExportInfo {
    /// The data of `INFO_EXPORT`.
    pub fn encode_export(&self) -> Vec<u8> {
        let mut writer = WireWriter::default();
        writer.u16(INFO_EXPORT).u64(self.size_bytes).u16(self.flags);
        writer.bytes
    }

    /// The data of `INFO_BLOCK_SIZE`.
    pub fn encode_block_sizes(preferred: u32) -> Vec<u8> {
        let mut writer = WireWriter::default();
        writer.u16(INFO_BLOCK_SIZE).u32(1).u32(preferred).u32(PAYLOAD_BYTES_MAX);
        writer.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_and_every_cut() {
        let go = GoRequest { name: "ab".into(), infos: vec![3] };
        assert_eq!(go.encode(), b"\0\0\0\x02ab\0\x01\0\x03");
        let query = ContextQuery { name: "ab".into(), queries: vec!["base:allocation".into()] };
        assert_eq!(GoRequest::decode(&go.encode()), Ok(go.clone()));
        assert_eq!(ContextQuery::decode(&query.encode()), Ok(query.clone()));
        for cut in 0..go.encode().len() {
            assert!(GoRequest::decode(&go.encode()[..cut]).is_err());
        }
        for cut in 0..query.encode().len() {
            assert!(ContextQuery::decode(&query.encode()[..cut]).is_err());
        }
        let option = OptionRequest::encode(7, b"xyz");
        assert_eq!(option, b"IHAVEOPT\0\0\0\x07\0\0\0\x03xyz");
        let header: &[u8; 16] = option[..16].try_into().unwrap();
        assert_eq!(OptionRequest::decode(header), Ok(OptionRequest { option: 7, length: 3 }));
        assert!(GoRequest::decode(b"\xff\xff\xff\xff").is_err());
        assert!(ContextQuery::decode(b"\0\0\0\0\xff\xff\xff\xff").is_err());
    }
}
