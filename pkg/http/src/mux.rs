//! Byte streams multiplexed over one connection, whatever frames they travel in (SPDY, WebSocket).
//!
//! A connection owns a writer task that takes [`Outbound`] commands from one bounded queue, and a reader
//! task that feeds each stream's bounded queue. A stream whose consumer is slow stops the reader, and
//! so the peer: backpressure is the connection's, as with upstream's spdystream, which has no
//! per-stream windows either.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use rkube_apimachinery::task;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;
use tracing::debug_span;

/// Frames in a stream's queue towards its consumer: 64 of at most 32 KiB.
pub(crate) const INBOUND_FRAMES_MAX: usize = 64;
/// Commands in a connection's queue towards the socket.
pub(crate) const OUTBOUND_FRAMES_MAX: usize = 64;
/// Largest piece written as one frame.
pub(crate) const FRAME_BYTES_MAX: usize = 32 * 1024;

/// What the writer task is told.
#[derive(Debug)]
pub(crate) enum Outbound {
    Open {
        id: u32,
        headers: HeaderMap,
    },
    Reply {
        id: u32,
    },
    Data {
        id: u32,
        bytes: Bytes,
    },
    /// No more data from this side.
    Close {
        id: u32,
    },
    Reset {
        id: u32,
        status: u32,
    },
    /// The consumer took so many bytes.
    Consumed {
        id: u32,
        bytes: u32,
    },
    Pong(Bytes),
    GoAway,
}

/// RST_STREAM's status for a stream its owner no longer wants.
pub(crate) const RESET_CANCEL: u32 = 5;

/// One stream, both ways. Dropping a half closes it.
#[derive(Debug)]
pub struct MuxStream {
    id: u32,
    headers: HeaderMap,
    reader: MuxReader,
    writer: MuxWriter,
}

impl MuxStream {
    pub(crate) fn new(
        id: u32,
        headers: HeaderMap,
        inbound: mpsc::Receiver<Bytes>,
        outbound: mpsc::Sender<Outbound>,
    ) -> Self {
        let reader = MuxReader { id, inbound, current: Bytes::new(), unreported: 0, outbound: outbound.downgrade() };
        let writer = MuxWriter { id, queue: PollSender::new(outbound.clone()), outbound, closed: false };
        Self { id, headers, reader, writer }
    }

    pub fn id(&self) -> u32 {
        self.id
    }

    /// The headers the stream was opened with.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// A header's text, empty where it is absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub fn split(self) -> (MuxReader, MuxWriter) {
        (self.reader, self.writer)
    }

    /// Ends both directions at once and tells the peer that something went wrong.
    pub fn reset(self) {
        self.writer.reset();
    }
}

/// What the peer sends on a stream. It does not keep the connection open: some writer must.
#[derive(Debug)]
pub struct MuxReader {
    id: u32,
    inbound: mpsc::Receiver<Bytes>,
    current: Bytes,
    unreported: u32,
    /// Weak: a connection lasts as long as something can still be written to it.
    outbound: mpsc::WeakSender<Outbound>,
}

/// Consumption is reported in steps of half SPDY's initial window of 64 KiB, so that a peer that keeps
/// windows never stalls.
const CONSUMED_STEP: u32 = 32 * 1024;

impl MuxReader {
    /// The next piece as it came, `None` at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.current.has_remaining() {
            return Poll::Ready(Some(std::mem::take(&mut self.current)));
        }
        let next = ready!(self.inbound.poll_recv(context));
        if let Some(bytes) = &next {
            self.unreported = self.unreported.saturating_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            if self.unreported >= CONSUMED_STEP {
                let report = Outbound::Consumed { id: self.id, bytes: self.unreported };
                // A full queue delays the report until the next piece.
                if self.outbound.upgrade().is_some_and(|outbound| outbound.try_send(report).is_ok()) {
                    self.unreported = 0;
                }
            }
        }
        Poll::Ready(next)
    }
}

impl AsyncRead for MuxReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            match ready!(self.poll_next(context)) {
                None => return Poll::Ready(Ok(())),
                Some(bytes) => self.current = bytes,
            }
        }
        let length = self.current.len().min(buffer.remaining());
        buffer.put_slice(&self.current[..length]);
        self.current.advance(length);
        Poll::Ready(Ok(()))
    }
}

/// What this side sends on a stream.
#[derive(Debug)]
pub struct MuxWriter {
    id: u32,
    queue: PollSender<Outbound>,
    outbound: mpsc::Sender<Outbound>,
    closed: bool,
}

impl MuxWriter {
    /// Sends a frame without data, which some protocols use as a sign of life.
    pub async fn write_empty(&mut self) -> io::Result<()> {
        let command = Outbound::Data { id: self.id, bytes: Bytes::new() };
        self.outbound.send(command).await.map_err(|_| gone())
    }

    pub fn reset(mut self) {
        self.closed = true;
        send_later(&self.outbound, Outbound::Reset { id: self.id, status: RESET_CANCEL });
    }
}

/// Queues a command from a place that cannot wait.
fn send_later(outbound: &mpsc::Sender<Outbound>, command: Outbound) {
    if let Err(mpsc::error::TrySendError::Full(command)) = outbound.try_send(command) {
        let outbound = outbound.clone();
        if tokio::runtime::Handle::try_current().is_ok() {
            task::spawn(debug_span!("stream-close"), async move {
                // A connection that is gone has no streams left to close.
                let _ = outbound.send(command).await;
            });
        }
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the connection is closed")
}

impl AsyncWrite for MuxWriter {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.closed {
            return Poll::Ready(Err(gone()));
        }
        ready!(self.queue.poll_reserve(context)).map_err(|_| gone())?;
        let length = data.len().min(FRAME_BYTES_MAX);
        let command = Outbound::Data { id: self.id, bytes: Bytes::copy_from_slice(&data[..length]) };
        self.queue.send_item(command).map_err(|_| gone())?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The writer task flushes whenever its queue is empty.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closed {
            return Poll::Ready(Ok(()));
        }
        ready!(self.queue.poll_reserve(context)).map_err(|_| gone())?;
        let command = Outbound::Close { id: self.id };
        self.queue.send_item(command).map_err(|_| gone())?;
        self.closed = true;
        Poll::Ready(Ok(()))
    }
}

impl Drop for MuxWriter {
    fn drop(&mut self) {
        if !self.closed {
            // The reservation, if there is one, is given back first: it would keep a place in the queue.
            self.queue.abort_send();
            send_later(&self.outbound, Outbound::Close { id: self.id });
        }
    }
}

impl AsyncRead for MuxStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(context, buffer)
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(context)
    }
}
