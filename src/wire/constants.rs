//! The numbers of the NBD protocol. All integers on the wire are big-endian.
//!
//! Source: the NBD protocol description (`doc/proto.md` of the NBD project, public domain).
#![allow(missing_docs, reason = "the names are the specification's own")]

pub const DEFAULT_PORT: u16 = 10809;

pub const MAGIC_NBD: u64 = 0x4e42_444d_4147_4943;
pub const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054;
pub const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
pub const MAGIC_REQUEST: u32 = 0x2560_9513;
pub const MAGIC_REQUEST_EXTENDED: u32 = 0x21e4_1c71;
pub const MAGIC_REPLY_SIMPLE: u32 = 0x6744_6698;
pub const MAGIC_REPLY_STRUCTURED: u32 = 0x668e_33ef;
pub const MAGIC_REPLY_EXTENDED: u32 = 0x6e8a_278c;

/// Handshake flags of the server.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
pub const FLAG_NO_ZEROES: u16 = 1 << 1;
/// Handshake flags of the client.
pub const CLIENT_FLAG_FIXED_NEWSTYLE: u32 = 1 << 0;
pub const CLIENT_FLAG_NO_ZEROES: u32 = 1 << 1;

pub const OPT_EXPORT_NAME: u32 = 1;
pub const OPT_ABORT: u32 = 2;
pub const OPT_LIST: u32 = 3;
pub const OPT_STARTTLS: u32 = 5;
pub const OPT_INFO: u32 = 6;
pub const OPT_GO: u32 = 7;
pub const OPT_STRUCTURED_REPLY: u32 = 8;
pub const OPT_LIST_META_CONTEXT: u32 = 9;
pub const OPT_SET_META_CONTEXT: u32 = 10;
pub const OPT_EXTENDED_HEADERS: u32 = 11;

/// Of a volfork server alone: a lease of a snapshot, for a fork.
pub const OPT_LEASE: u32 = 0x766f_6c65;

pub const REP_ACK: u32 = 1;
pub const REP_SERVER: u32 = 2;
pub const REP_INFO: u32 = 3;
pub const REP_META_CONTEXT: u32 = 4;
/// A lease that was given.
pub const REP_LEASE: u32 = 0x766f_6c65;
const REP_ERR: u32 = 1 << 31;
pub const REP_ERR_UNSUP: u32 = REP_ERR + 1;
pub const REP_ERR_POLICY: u32 = REP_ERR + 2;
pub const REP_ERR_INVALID: u32 = REP_ERR + 3;
pub const REP_ERR_PLATFORM: u32 = REP_ERR + 4;
pub const REP_ERR_TLS_REQD: u32 = REP_ERR + 5;
pub const REP_ERR_UNKNOWN: u32 = REP_ERR + 6;
pub const REP_ERR_SHUTDOWN: u32 = REP_ERR + 7;
pub const REP_ERR_BLOCK_SIZE_REQD: u32 = REP_ERR + 8;
pub const REP_ERR_TOO_BIG: u32 = REP_ERR + 9;
pub const REP_ERR_EXT_HEADER_REQD: u32 = REP_ERR + 10;

pub const INFO_EXPORT: u16 = 0;
pub const INFO_NAME: u16 = 1;
pub const INFO_DESCRIPTION: u16 = 2;
pub const INFO_BLOCK_SIZE: u16 = 3;
/// Private to volfork, and sent only to those that ask for it: JSON with what a server tells of an export beside its bytes.
pub const INFO_VOLFORK: u16 = 0x7666;

pub const EXPORT_HAS_FLAGS: u16 = 1 << 0;
pub const EXPORT_READ_ONLY: u16 = 1 << 1;
pub const EXPORT_SEND_FLUSH: u16 = 1 << 2;
pub const EXPORT_SEND_FUA: u16 = 1 << 3;
pub const EXPORT_ROTATIONAL: u16 = 1 << 4;
pub const EXPORT_SEND_TRIM: u16 = 1 << 5;
pub const EXPORT_SEND_WRITE_ZEROES: u16 = 1 << 6;
pub const EXPORT_SEND_DF: u16 = 1 << 7;
pub const EXPORT_CAN_MULTI_CONN: u16 = 1 << 8;
pub const EXPORT_SEND_CACHE: u16 = 1 << 10;
pub const EXPORT_SEND_FAST_ZERO: u16 = 1 << 11;
pub const EXPORT_BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;

pub const CMD_READ: u16 = 0;
pub const CMD_WRITE: u16 = 1;
pub const CMD_DISC: u16 = 2;
pub const CMD_FLUSH: u16 = 3;
pub const CMD_TRIM: u16 = 4;
pub const CMD_CACHE: u16 = 5;
pub const CMD_WRITE_ZEROES: u16 = 6;
pub const CMD_BLOCK_STATUS: u16 = 7;

pub const CMD_FLAG_FUA: u16 = 1 << 0;
pub const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
pub const CMD_FLAG_DF: u16 = 1 << 2;
pub const CMD_FLAG_REQ_ONE: u16 = 1 << 3;
pub const CMD_FLAG_FAST_ZERO: u16 = 1 << 4;
pub const CMD_FLAG_PAYLOAD_LEN: u16 = 1 << 5;

pub const REPLY_FLAG_DONE: u16 = 1 << 0;
pub const REPLY_NONE: u16 = 0;
pub const REPLY_OFFSET_DATA: u16 = 1;
pub const REPLY_OFFSET_HOLE: u16 = 2;
pub const REPLY_BLOCK_STATUS: u16 = 5;
pub const REPLY_BLOCK_STATUS_EXT: u16 = 6;
pub const REPLY_ERROR: u16 = 0x8001;
pub const REPLY_ERROR_OFFSET: u16 = 0x8002;

pub const CONTEXT_ALLOCATION: &str = "base:allocation";
pub const CONTEXT_ALLOCATION_DEPTH: &str = "qemu:allocation-depth";
/// The name of a snapshot follows; bit 0 says that the bytes may have changed since.
pub const CONTEXT_DIRTY_BITMAP: &str = "qemu:dirty-bitmap:";
pub const STATE_DIRTY: u64 = 1 << 0;
/// Of any volfork export; bit 0 says that the bytes are still only at a source.
pub const CONTEXT_MISSING: &str = "x-volfork:missing";
pub const STATE_MISSING: u64 = 1 << 0;
/// Of a volfork snapshot, with extended headers: one extent for each block, the flags of which are [`CHECKSUM_KNOWN`] and the
/// crc32 (IEEE) of the block's bytes; or extents with flags 0 where it is not known.
pub const CONTEXT_CHECKSUMS: &str = "x-volfork:crc32";
pub const CHECKSUM_KNOWN: u64 = 1 << 32;
/// Of a volfork snapshot, with extended headers: the flags count the extents in the order in which an earlier fork first
/// touched them, from 1 on; 0 is an extent that it did not touch.
pub const CONTEXT_TRACE: &str = "x-volfork:trace";
/// Prefix of the description of a volfork snapshot; the identity of its bytes follows.
pub const DESCRIPTION_OF_SNAPSHOT: &str = "volfork snapshot ";
pub const STATE_HOLE: u32 = 1 << 0;
pub const STATE_ZERO: u32 = 1 << 1;

pub const EPERM: u32 = 1;
pub const EIO: u32 = 5;
pub const ENOMEM: u32 = 12;
pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;
pub const EOVERFLOW: u32 = 75;
pub const ENOTSUP: u32 = 95;
pub const ESHUTDOWN: u32 = 108;

/// Longest export name, description or error text, in bytes (the specification's maximum string).
pub const STRING_BYTES_MAX: usize = 4096;
/// Largest payload that a peer may send without being told another limit.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

pub const REQUEST_BYTES: usize = 28;
pub const REQUEST_EXTENDED_BYTES: usize = 32;
pub const REPLY_SIMPLE_BYTES: usize = 16;
pub const REPLY_STRUCTURED_BYTES: usize = 20;
pub const REPLY_EXTENDED_BYTES: usize = 32;
