//! The wire format: varints, tags and delimited fields.
//!
//! **Invariant:** nothing is allocated by a length that the input claims; every length is checked against the bytes
//! that are there.

use super::MessageError;

pub(super) const VARINT: u8 = 0;
const FIXED64: u8 = 1;
pub(super) const DELIMITED: u8 = 2;
const START_GROUP: u8 = 3;
const END_GROUP: u8 = 4;
const FIXED32: u8 = 5;

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        #[expect(clippy::cast_possible_truncation, reason = "seven bits at a time")]
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    #[expect(clippy::cast_possible_truncation, reason = "below 0x80")]
    out.push(value as u8);
}

pub(super) fn varint_len(value: u64) -> usize {
    // Seven bits to a byte; zero takes one.
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

pub(super) fn put_tag(out: &mut Vec<u8>, number: u32, wire_type: u8) {
    put_varint(out, u64::from(number) << 3 | u64::from(wire_type));
}

pub fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_tag(out, number, DELIMITED);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub fn put_int(out: &mut Vec<u8>, number: u32, value: i64) {
    put_tag(out, number, VARINT);
    #[expect(clippy::cast_sign_loss, reason = "negative numbers are sign-extended to ten bytes")]
    put_varint(out, value as u64);
}

pub fn put_double(out: &mut Vec<u8>, number: u32, value: f64) {
    put_tag(out, number, FIXED64);
    out.extend_from_slice(&value.to_le_bytes());
}

/// A field whose length is known only after its content: one byte is kept for it, and the content moves when that
/// is too little.
pub fn put_nested<E>(
    out: &mut Vec<u8>,
    number: u32,
    content: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    put_tag(out, number, DELIMITED);
    let at = out.len();
    out.push(0);
    content(out)?;
    let length = out.len() - at - 1;
    let extra = varint_len(length as u64) - 1;
    if extra > 0 {
        out.resize(out.len() + extra, 0);
        out.copy_within(at + 1..at + 1 + length, at + 1 + extra);
    }
    let mut prefix = Vec::with_capacity(10);
    put_varint(&mut prefix, length as u64);
    if let Some(place) = out.get_mut(at..at + prefix.len()) {
        place.copy_from_slice(&prefix);
    }
    Ok(())
}

/// One field as it is on the wire.
pub(super) enum Payload<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

pub(super) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], MessageError> {
        let (head, tail) = self.bytes.split_at_checked(length).ok_or(MessageError::Truncated)?;
        self.bytes = tail;
        Ok(head)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn varint(&mut self) -> Result<u64, MessageError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = *self.take(1)? else { return Err(MessageError::Truncated) };
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(MessageError::Overflow)
    }

    pub(super) fn delimited(&mut self) -> Result<&'a [u8], MessageError> {
        let length = self.varint()?;
        self.take(usize::try_from(length).map_err(|_| MessageError::Truncated)?)
    }

    /// The next field, or `None` at the end. Groups, which nothing of ours writes, are skipped.
    pub(super) fn field(&mut self) -> Result<Option<(u32, Payload<'a>)>, MessageError> {
        let mut depth = 0_usize;
        loop {
            if self.bytes.is_empty() {
                return if depth == 0 { Ok(None) } else { Err(MessageError::Truncated) };
            }
            let tag = self.varint()?;
            let number = u32::try_from(tag >> 3).map_err(|_| MessageError::Overflow)?;
            if number == 0 {
                return Err(MessageError::Tag(0));
            }
            let payload = match (tag & 7) as u8 {
                VARINT => Payload::Varint(self.varint()?),
                FIXED64 => {
                    let bytes = self.take(8)?.try_into().map_err(|_| MessageError::Truncated)?;
                    Payload::Fixed64(u64::from_le_bytes(bytes))
                }
                DELIMITED => Payload::Bytes(self.delimited()?),
                START_GROUP => {
                    depth += 1;
                    continue;
                }
                END_GROUP if depth > 0 => {
                    depth -= 1;
                    continue;
                }
                FIXED32 => {
                    self.take(4)?;
                    Payload::Fixed32
                }
                other => return Err(MessageError::WireType(other)),
            };
            if depth == 0 {
                return Ok(Some((number, payload)));
            }
        }
    }
}
