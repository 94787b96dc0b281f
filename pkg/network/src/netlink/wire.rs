//! Netlink messages as bytes: building them, and walking through the attributes of answers.
//!
//! Invariant: a nested attribute's length is written when its closure returns, so that a message is always
//! well-formed. Lengths are 16 bits wide; callers split lists before they reach that (see `nft::batch`).

/// A request: header, fixed part, attributes.
#[derive(Clone, Debug)]
pub struct Message {
    bytes: Vec<u8>,
}

/// `struct nlmsghdr`.
const HEADER_LENGTH: usize = 16;
const NESTED: u16 = 1 << 15;

pub const REQUEST: u16 = 1;
pub const ACK: u16 = 4;
pub const DUMP: u16 = 0x300;
pub const REPLACE: u16 = 0x100;
pub const EXCLUSIVE: u16 = 0x200;
pub const CREATE: u16 = 0x400;
pub const APPEND: u16 = 0x800;

impl Message {
    /// `fixed` is the struct that follows the header in messages of this kind.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER_LENGTH];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(fixed);
        let mut message = Self { bytes };
        message.pad();
        message
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub fn attr(&mut self, kind: u16, data: &[u8]) -> &mut Self {
        let length = u16::try_from(data.len() + 4).unwrap_or(u16::MAX);
        debug_assert!(usize::from(length) == data.len() + 4, "an attribute holds less than 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(data);
        self.pad();
        self
    }

    /// Text with the terminating zero that the kernel's string attributes have.
    pub fn text(&mut self, kind: u16, text: &str) -> &mut Self {
        let mut data = text.as_bytes().to_vec();
        data.push(0);
        self.attr(kind, &data)
    }

    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Netfilter's numbers are big-endian.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        fill(self);
        let length = self.bytes.len() - start;
        debug_assert!(length <= usize::from(u16::MAX), "a nested attribute holds less than 64 KiB");
        let length = u16::try_from(length).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Bytes as they are, for the fixed structs inside some nested attributes.
    pub fn raw(&mut self, data: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(data);
        self.pad();
        self
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    /// The message with its length, flags and number filled in.
    pub(super) fn finish(mut self, extra_flags: u16, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | extra_flags;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// One message from the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

/// Walks through the messages of one datagram; ends at the first malformed one.
#[derive(Clone, Copy, Debug)]
pub struct Replies<'a>(pub &'a [u8]);

impl<'a> Iterator for Replies<'a> {
    type Item = Reply<'a>;

    fn next(&mut self) -> Option<Reply<'a>> {
        let header = self.0.get(..HEADER_LENGTH)?;
        let length = u32_at(header, 0)? as usize;
        let body = self.0.get(HEADER_LENGTH..length)?;
        let (kind, flags) = (u16_at(header, 4)?, u16_at(header, 6)?);
        let sequence = u32_at(header, 8)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Reply { kind, flags, sequence, body })
    }
}

/// Walks through attributes; ends at the first malformed one.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The last attribute of this kind.
    pub fn find(self, kind: u16) -> Option<&'a [u8]> {
        self.filter(|(found, _)| *found == kind).last().map(|(_, data)| data)
    }

    pub fn find_u32(self, kind: u16) -> Option<u32> {
        u32_at(self.find(kind)?, 0)
    }

    pub fn find_text(self, kind: u16) -> Option<&'a str> {
        text(self.find(kind)?)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        // The two high bits say "nested" and "network byte order".
        let kind = u16_at(self.0, 2)? & 0x3fff;
        let data = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, data))
    }
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_put() {
        let mut message = Message::new(7, ACK, &[1, 2, 3, 4]);
        message.text(1, "eth0").nest(2, |inner| {
            inner.u32(3, 9);
        });
        let bytes = message.finish(0, 5);
        let reply = Replies(&bytes).next().unwrap();
        assert_eq!((reply.kind, reply.flags, reply.sequence), (7, ACK | REQUEST, 5));
        let attributes = Attributes(&reply.body[4..]);
        assert_eq!(attributes.find_text(1), Some("eth0"));
        assert_eq!(Attributes(attributes.find(2).unwrap()).find_u32(3), Some(9));
    }

    #[test]
    fn truncated_and_lying_lengths_end_the_walk() {
        for bytes in [&[8, 0, 1][..], &[8, 0, 1, 0, 1], &[0, 0, 1, 0], &[255, 255, 0, 0, 0]] {
            assert_eq!(Attributes(bytes).count(), 0, "{bytes:?}");
        }
        assert_eq!(Replies(&[255; 20]).count(), 0);
    }
}
