//! SPDY/3's compressed name/value blocks: zlib with a preset dictionary, one context per direction for
//! the life of a connection.

use std::sync::LazyLock;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::SpdyError;

/// A block this side accepts, inflated.
const BLOCK_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 256;

/// The dictionary begins with these words, each after its length as four bytes.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host \
    if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards \
    pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding \
    upgrade user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public \
    set-cookie keep-alive origin";

/// And ends with this text.
const TAIL: &str = concat!(
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505",
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden",
    "404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable",
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT",
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,",
    "publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
);

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dictionary = Vec::with_capacity(1423);
    for word in WORDS.split_ascii_whitespace() {
        let word = word.replace('_', " ");
        dictionary.extend_from_slice(&u32::try_from(word.len()).unwrap_or_default().to_be_bytes());
        dictionary.extend_from_slice(word.as_bytes());
    }
    dictionary.extend_from_slice(TAIL.as_bytes());
    dictionary
});

/// Writes blocks.
pub(super) struct Deflater(Compress);

impl Deflater {
    pub(super) fn new() -> Result<Self, SpdyError> {
        let mut compress = Compress::new(Compression::best(), true);
        compress.set_dictionary(&DICTIONARY).map_err(|_| SpdyError::Headers("setting the dictionary"))?;
        Ok(Self(compress))
    }

    pub(super) fn block(&mut self, headers: &HeaderMap) -> Result<Vec<u8>, SpdyError> {
        let mut plain = Vec::with_capacity(256);
        put_u32(&mut plain, headers.keys_len());
        for name in headers.keys() {
            put_u32(&mut plain, name.as_str().len());
            plain.extend_from_slice(name.as_str().as_bytes());
            let values: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
            let joined = values.join(&0);
            put_u32(&mut plain, joined.len());
            plain.extend_from_slice(&joined);
        }
        let mut block = Vec::with_capacity(plain.len() + 64);
        let mut input = plain.as_slice();
        loop {
            block.reserve(256);
            let before = self.0.total_in();
            self.0
                .compress_vec(input, &mut block, FlushCompress::Sync)
                .map_err(|_| SpdyError::Headers("compressing"))?;
            input = &input[usize::try_from(self.0.total_in() - before).unwrap_or_default()..];
            // Room left over means that the flush is complete.
            if input.is_empty() && block.len() < block.capacity() {
                return Ok(block);
            }
        }
    }
}

fn put_u32(buffer: &mut Vec<u8>, number: usize) {
    buffer.extend_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes());
}

/// Reads blocks.
pub(super) struct Inflater(Decompress);

impl Inflater {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    pub(super) fn headers(&mut self, block: &[u8]) -> Result<HeaderMap, SpdyError> {
        let plain = self.inflate(block)?;
        parse(&plain)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let mut plain = Vec::with_capacity((block.len() * 4).clamp(256, BLOCK_BYTES_MAX));
        loop {
            if plain.len() == plain.capacity() {
                if plain.len() >= BLOCK_BYTES_MAX {
                    return Err(SpdyError::Headers("a block is too large"));
                }
                plain.reserve(plain.len());
            }
            let before = (self.0.total_in(), self.0.total_out());
            let result = self.0.decompress_vec(block, &mut plain, FlushDecompress::Sync);
            let consumed = usize::try_from(self.0.total_in() - before.0).unwrap_or_default();
            block = block.get(consumed..).unwrap_or_default();
            match result {
                Ok(Status::StreamEnd) => return Err(SpdyError::Headers("the compressed stream ended")),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&DICTIONARY).map_err(|_| SpdyError::Headers("a foreign dictionary"))?;
                    continue;
                }
                Err(_) => return Err(SpdyError::Headers("decompressing")),
            }
            let produced = self.0.total_out() - before.1;
            if block.is_empty() && plain.len() < plain.capacity() {
                return Ok(plain);
            }
            if consumed == 0 && produced == 0 {
                return Err(SpdyError::Headers("a block is cut short"));
            }
        }
    }
}

fn parse(mut plain: &[u8]) -> Result<HeaderMap, SpdyError> {
    let count = take_u32(&mut plain)?;
    if count > HEADERS_MAX {
        return Err(SpdyError::Headers("too many headers"));
    }
    let mut headers = HeaderMap::with_capacity(count);
    for _ in 0..count {
        let name = take_text(&mut plain)?;
        let values = take_text(&mut plain)?;
        // Names that begin with a colon are SPDY's own (`:method`); the channel protocols use none.
        let Ok(name) = HeaderName::from_bytes(name) else { continue };
        for value in values.split(|byte| *byte == 0) {
            let value = HeaderValue::from_bytes(value).map_err(|_| SpdyError::Headers("a value with control bytes"))?;
            headers.append(&name, value);
        }
    }
    Ok(headers)
}

fn take_u32(plain: &mut &[u8]) -> Result<usize, SpdyError> {
    let (head, tail) = plain.split_first_chunk::<4>().ok_or(SpdyError::Headers("a block is cut short"))?;
    *plain = tail;
    Ok(u32::from_be_bytes(*head) as usize)
}

fn take_text<'a>(plain: &mut &'a [u8]) -> Result<&'a [u8], SpdyError> {
    let length = take_u32(plain)?;
    let (head, tail) = plain.split_at_checked(length).ok_or(SpdyError::Headers("a block is cut short"))?;
    *plain = tail;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The checksum zlib names the dictionary by in streams of any implementation.
    #[test]
    fn the_dictionary_is_spdy_3s() {
        assert_eq!(DICTIONARY.len(), 1423);
        let (mut a, mut b) = (1_u32, 0_u32);
        for byte in DICTIONARY.iter() {
            a = (a + u32::from(*byte)) % 65_521;
            b = (b + a) % 65_521;
        }
        assert_eq!(b << 16 | a, 0xe3c6_a7c2);
    }

    #[test]
    fn blocks_share_one_context_per_direction() {
        let mut deflater = Deflater::new().unwrap();
        let mut inflater = Inflater::new();
        for round in 0..50 {
            let mut headers = HeaderMap::new();
            headers.insert("streamtype", HeaderValue::from_static("stdin"));
            headers.append("x-many", HeaderValue::from_static("a"));
            headers.append("x-many", HeaderValue::from_static("b"));
            headers.insert("x-round", HeaderValue::from_str(&format!("{round:0>300}")).unwrap());
            let block = deflater.block(&headers).unwrap();
            assert_eq!(inflater.headers(&block).unwrap(), headers);
        }
    }

    #[test]
    fn hostile_blocks_are_refused() {
        assert!(Inflater::new().headers(b"not zlib at all").is_err());
        assert!(Inflater::new().headers(b"").is_err());
        assert!(parse(&[0, 0, 0, 1, 0, 0, 0, 9, b'a']).is_err());
        assert!(parse(&[0xff, 0xff, 0xff, 0xff]).is_err());
        let mut deflater = Deflater::new().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("bomb", HeaderValue::from_bytes(&vec![b'x'; 1 << 20]).unwrap());
        let block = deflater.block(&headers).unwrap();
        assert!(Inflater::new().headers(&block).is_err());
    }
}
