//! SPDY/3 frames as bytes: an eight-byte head, then the payload.

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::SpdyError;

pub(super) const SYN_STREAM: u16 = 1;
pub(super) const SYN_REPLY: u16 = 2;
pub(super) const RST_STREAM: u16 = 3;
pub(super) const SETTINGS: u16 = 4;
pub(super) const PING: u16 = 6;
pub(super) const GOAWAY: u16 = 7;
pub(super) const HEADERS: u16 = 8;
pub(super) const WINDOW_UPDATE: u16 = 9;

pub(super) const FLAG_FIN: u8 = 1;

const VERSION: u16 = 3;
/// Frames this side accepts. Peers write what they read, at most some 32 KiB, as one frame; the format
/// allows 16 MiB.
const FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;

/// One frame as read.
#[derive(Debug, PartialEq)]
pub(super) enum Frame {
    Data { id: u32, fin: bool, bytes: Bytes },
    Control { kind: u16, flags: u8, payload: Bytes },
}

impl Frame {
    /// Reads one frame; `None` when the peer closed between frames.
    pub(super) async fn read<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Option<Self>, SpdyError> {
        let mut head = [0_u8; 8];
        match reader.read(&mut head[..1]).await {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(SpdyError::Io(error)),
        }
        reader.read_exact(&mut head[1..]).await.map_err(SpdyError::Io)?;
        let [a, b, c, d, flags, e, f, g] = head;
        let length = u32::from_be_bytes([0, e, f, g]) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(SpdyError::Protocol("a frame is too large"));
        }
        let mut payload = BytesMut::zeroed(length);
        reader.read_exact(&mut payload).await.map_err(SpdyError::Io)?;
        let bytes = payload.freeze();
        if a & 0x80 == 0 {
            let id = u32::from_be_bytes([a, b, c, d]);
            return Ok(Some(Self::Data { id, fin: flags & FLAG_FIN != 0, bytes }));
        }
        if u16::from_be_bytes([a & 0x7f, b]) != VERSION {
            return Err(SpdyError::Protocol("a frame of another SPDY version"));
        }
        Ok(Some(Self::Control { kind: u16::from_be_bytes([c, d]), flags, payload: bytes }))
    }
}

/// The `index`th 32-bit word of a control payload.
pub(super) fn word(payload: &[u8], index: usize) -> Result<u32, SpdyError> {
    let bytes = payload.get(index * 4..index * 4 + 4).and_then(|bytes| bytes.first_chunk::<4>());
    bytes.map(|bytes| u32::from_be_bytes(*bytes)).ok_or(SpdyError::Protocol("a control frame is cut short"))
}

pub(super) fn put_data(buffer: &mut BytesMut, id: u32, fin: bool, bytes: &[u8]) {
    buffer.put_u32(id & 0x7fff_ffff);
    put_flags_and_length(buffer, if fin { FLAG_FIN } else { 0 }, bytes.len());
    buffer.put_slice(bytes);
}

pub(super) fn put_control(buffer: &mut BytesMut, kind: u16, flags: u8, parts: &[&[u8]]) {
    buffer.put_u16(0x8000 | VERSION);
    buffer.put_u16(kind);
    put_flags_and_length(buffer, flags, parts.iter().map(|part| part.len()).sum());
    for part in parts {
        buffer.put_slice(part);
    }
}

fn put_flags_and_length(buffer: &mut BytesMut, flags: u8, length: usize) {
    debug_assert!(length < 1 << 24, "frames are cut before they are written");
    buffer.put_u8(flags);
    buffer.put_uint(length as u64, 3);
}
