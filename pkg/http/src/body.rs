//! Request and response bodies: empty, whole, from a socket, or a stream of chunks.
//!
//! Invariant: every chunk of a stream goes to the socket as its own frame, so what a producer yields is
//! flushed at once. Watches and followed logs depend on it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{BoxStream, Stream, StreamExt};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

/// Request bodies are at most 3 MiB, as upstream's `MaxRequestBodyBytes`.
pub const REQUEST_BODY_BYTES_MAX: usize = 3 * 1024 * 1024;

/// A client that sends nothing for so long while its body is awaited is cut off.
pub const BODY_CHUNK_TIMEOUT: Duration = Duration::from_secs(30);

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body of any origin.
pub struct Body(Inner);

enum Inner {
    Empty,
    Full(Bytes),
    Incoming(Incoming),
    Stream(BoxStream<'static, Result<Bytes, BoxError>>),
}

impl Body {
    pub fn empty() -> Self {
        Self(Inner::Empty)
    }

    /// Each item is sent as soon as it is yielded. An error breaks the connection off, so that the peer
    /// sees that the body is not complete.
    pub fn stream<S>(stream: S) -> Self
    where
        S: Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
    {
        Self(Inner::Stream(stream.boxed()))
    }

    /// The bytes, where the body is already whole.
    pub fn as_bytes(&self) -> Option<Bytes> {
        match &self.0 {
            Inner::Empty => Some(Bytes::new()),
            Inner::Full(bytes) => Some(bytes.clone()),
            Inner::Incoming(_) | Inner::Stream(_) => None,
        }
    }

    /// The body as a stream of chunks; trailers are dropped.
    pub fn into_stream(self) -> BoxStream<'static, Result<Bytes, BoxError>> {
        match self.0 {
            Inner::Empty => futures_util::stream::empty().boxed(),
            Inner::Full(bytes) => futures_util::stream::iter([Ok(bytes)]).boxed(),
            Inner::Incoming(incoming) => incoming.into_data_stream().map(|chunk| chunk.map_err(Into::into)).boxed(),
            Inner::Stream(stream) => stream,
        }
    }

    /// Reads the whole body.
    ///
    /// # Errors
    /// [`ReadError::TooLarge`] past `limit` bytes; what follows is not read.
    pub async fn read(self, limit: usize) -> Result<Bytes, ReadError> {
        let hint = self.size_hint();
        if hint.lower() > limit as u64 {
            return Err(ReadError::TooLarge { limit });
        }
        let mut stream = match self.0 {
            Inner::Empty => return Ok(Bytes::new()),
            Inner::Full(bytes) => return Ok(bytes),
            other => Self(other).into_stream(),
        };
        let mut first: Option<Bytes> = None;
        let mut whole: Option<BytesMut> = None;
        loop {
            let next = tokio::time::timeout(BODY_CHUNK_TIMEOUT, stream.next()).await;
            let chunk = match next.map_err(|_| ReadError::TimedOut)? {
                None => break,
                Some(chunk) => chunk.map_err(ReadError::Transport)?,
            };
            let have = first.as_ref().map_or(0, Bytes::len) + whole.as_ref().map_or(0, BytesMut::len);
            if have + chunk.len() > limit {
                return Err(ReadError::TooLarge { limit });
            }
            match (first.take(), whole.as_mut()) {
                (None, None) => first = Some(chunk),
                (Some(head), None) => {
                    let mut buffer = BytesMut::with_capacity((head.len() + chunk.len()).max(hint.lower() as usize));
                    buffer.extend_from_slice(&head);
                    buffer.extend_from_slice(&chunk);
                    whole = Some(buffer);
                }
                (_, Some(buffer)) => buffer.extend_from_slice(&chunk),
            }
        }
        Ok(whole.map(BytesMut::freeze).or(first).unwrap_or_default())
    }
}

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("request body is larger than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the client sent no data for {} s", BODY_CHUNK_TIMEOUT.as_secs())]
    TimedOut,
    #[error("reading the body")]
    Transport(#[source] BoxError),
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::empty() } else { Self(Inner::Full(bytes)) }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl From<Incoming> for Body {
    fn from(incoming: Incoming) -> Self {
        if incoming.is_end_stream() { Self::empty() } else { Self(Inner::Incoming(incoming)) }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Inner::Empty => Poll::Ready(None),
            Inner::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = Inner::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Inner::Incoming(incoming) => {
                Pin::new(incoming).poll_frame(context).map(|frame| frame.map(|frame| frame.map_err(Into::into)))
            }
            Inner::Stream(stream) => {
                stream.as_mut().poll_next(context).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Empty => true,
            Inner::Full(bytes) => bytes.is_empty(),
            Inner::Incoming(incoming) => incoming.is_end_stream(),
            Inner::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Inner::Incoming(incoming) => incoming.size_hint(),
            Inner::Stream(_) => SizeHint::default(),
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match &self.0 {
            Inner::Empty => "empty",
            Inner::Full(_) => "full",
            Inner::Incoming(_) => "incoming",
            Inner::Stream(_) => "stream",
        };
        f.debug_tuple("Body").field(&what).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(parts: &[&'static str]) -> Body {
        let parts: Vec<Result<Bytes, BoxError>> =
            parts.iter().map(|part| Ok(Bytes::from_static(part.as_bytes()))).collect();
        Body::stream(futures_util::stream::iter(parts))
    }

    #[tokio::test]
    async fn reads_up_to_the_limit_and_no_further() {
        assert_eq!(chunks(&["ab", "cd", "e"]).read(5).await.unwrap(), "abcde");
        assert_eq!(chunks(&["ab"]).read(2).await.unwrap(), "ab");
        assert!(matches!(chunks(&["ab", "cd", "ef"]).read(5).await, Err(ReadError::TooLarge { limit: 5 })));
        assert!(matches!(Body::from("abc").read(2).await, Err(ReadError::TooLarge { .. })));
        assert!(Body::empty().read(0).await.unwrap().is_empty());
    }
}
