//! SPDY/3.1, both ends: many streams over one upgraded connection, for exec, attach and port-forward.
//!
//! Behaves as moby/spdystream, the only other implementation still spoken: stream windows are not kept
//! by the peer, so what this side sends is limited by the connection alone; updates are sent all the same.
//!
//! Limits: streams at once per connection, frame size, header block size, time without any frame.

mod frame;
mod headers;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use parking_lot::Mutex;
use rkube_apimachinery::{chain::chain, task};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, debug_span};

use crate::mux::{INBOUND_FRAMES_MAX, MuxStream, OUTBOUND_FRAMES_MAX, Outbound};
use frame::Frame;
use headers::{Deflater, Inflater};

/// The value of the `Upgrade` header.
pub const SPDY_31: &str = "SPDY/3.1";
/// Streams open at once; the peer's next is refused.
const STREAMS_MAX: usize = 1024;
/// Streams the peer opened that nobody has taken yet.
const ACCEPT_QUEUE_MAX: usize = 64;
/// How long a new stream may wait for its reply, as upstream's `createStreamResponseTimeout`.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// Encoded frames are written together up to this size.
const WRITE_BATCH_BYTES: usize = 64 * 1024;

const RESET_PROTOCOL_ERROR: u32 = 1;
const RESET_INVALID_STREAM: u32 = 2;
const RESET_REFUSED: u32 = 3;

/// Why a SPDY connection or stream failed.
#[derive(Debug, thiserror::Error)]
pub enum SpdyError {
    #[error("reading or writing frames")]
    Io(#[source] io::Error),
    #[error("SPDY header block: {0}")]
    Headers(&'static str),
    #[error("SPDY protocol: {0}")]
    Protocol(&'static str),
    #[error("the connection is closed")]
    Closed,
    #[error("the peer refused the stream")]
    Refused,
    #[error("the peer did not answer a new stream in time")]
    ReplyTimeout,
}

/// Which end of the connection this is: clients open odd streams, servers even ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

/// A connection. Dropping it, and all its streams, closes the socket.
#[derive(Debug)]
pub struct SpdyConnection {
    shared: Arc<Shared>,
    outbound: mpsc::Sender<Outbound>,
    incoming: mpsc::Receiver<MuxStream>,
}

/// Opens streams on a connection from anywhere.
#[derive(Clone, Debug)]
pub struct SpdyOpener {
    shared: Arc<Shared>,
    outbound: mpsc::Sender<Outbound>,
}

#[derive(Debug)]
struct Shared {
    streams: Mutex<Streams>,
    /// Cancelled when the connection is over, for whatever reason.
    closed: CancellationToken,
    /// Counts frames both ways; a connection whose count stands still is idle.
    activity: AtomicU64,
}

#[derive(Debug)]
struct Streams {
    next_id: u32,
    last_peer_id: u32,
    gone_away: bool,
    open: HashMap<u32, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// `None` once the peer has finished its side.
    inbound: Option<mpsc::Sender<Bytes>>,
    reply: Option<oneshot::Sender<Result<(), SpdyError>>>,
    finished_here: bool,
}

impl SpdyConnection {
    /// Speaks SPDY over an upgraded connection. After `idle_timeout` without a frame it is closed.
    pub fn start<IO>(io: IO, role: Role, idle_timeout: Duration) -> Self
    where
        IO: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (reader, writer) = tokio::io::split(io);
        let next_id = if role == Role::Client { 1 } else { 2 };
        let streams = Streams { next_id, last_peer_id: 0, gone_away: false, open: HashMap::new() };
        let shared = Arc::new(Shared {
            streams: Mutex::new(streams),
            closed: CancellationToken::new(),
            activity: AtomicU64::new(0),
        });
        let (outbound, commands) = mpsc::channel(OUTBOUND_FRAMES_MAX);
        let (accepted, incoming) = mpsc::channel(ACCEPT_QUEUE_MAX);
        task::spawn(debug_span!("spdy-writer"), write_loop(writer, commands, Arc::clone(&shared)));
        let reading = Reading {
            role,
            idle_timeout,
            shared: Arc::clone(&shared),
            outbound: outbound.downgrade(),
            accepted,
            inflater: Inflater::new(),
        };
        task::spawn(debug_span!("spdy-reader"), reading.run(reader));
        Self { shared, outbound, incoming }
    }

    /// The next stream the peer opens; `None` when the connection is over. It has been replied to.
    pub async fn accept(&mut self) -> Option<MuxStream> {
        self.incoming.recv().await
    }

    /// Opens a stream and waits for the peer's reply.
    pub async fn open(&self, headers: HeaderMap) -> Result<MuxStream, SpdyError> {
        self.opener().open(headers).await
    }

    pub fn opener(&self) -> SpdyOpener {
        SpdyOpener { shared: Arc::clone(&self.shared), outbound: self.outbound.clone() }
    }

    /// Resolves when the connection is over.
    pub fn closed(&self) -> CancellationToken {
        self.shared.closed.clone()
    }

    /// Says goodbye and closes once what is queued has been written.
    pub async fn close(self) {
        // A writer that is gone has closed already.
        let _ = self.outbound.send(Outbound::GoAway).await;
    }
}

impl SpdyOpener {
    pub async fn open(&self, headers: HeaderMap) -> Result<MuxStream, SpdyError> {
        let (reply, replied) = oneshot::channel();
        let (inbound, receiver) = mpsc::channel(INBOUND_FRAMES_MAX);
        // The number is taken and the frame queued in one step: numbers must increase on the wire.
        let permit = self.outbound.reserve().await.map_err(|_| SpdyError::Closed)?;
        let id = {
            let mut streams = self.shared.streams.lock();
            if streams.gone_away || self.shared.closed.is_cancelled() {
                return Err(SpdyError::Closed);
            }
            if streams.open.len() >= STREAMS_MAX || streams.next_id > 0x7fff_fffe {
                return Err(SpdyError::Refused);
            }
            let id = streams.next_id;
            streams.next_id += 2;
            streams.open.insert(id, Entry { inbound: Some(inbound), reply: Some(reply), finished_here: false });
            permit.send(Outbound::Open { id, headers: headers.clone() });
            id
        };
        let stream = MuxStream::new(id, headers, receiver, self.outbound.clone());
        match tokio::time::timeout(REPLY_TIMEOUT, replied).await {
            Ok(Ok(Ok(()))) => Ok(stream),
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_)) => Err(SpdyError::Closed),
            Err(_) => {
                stream.reset();
                Err(SpdyError::ReplyTimeout)
            }
        }
    }
}

impl Shared {
    fn close(&self) {
        self.closed.cancel();
        // Dropping the senders ends every stream's reader.
        self.streams.lock().open.clear();
    }

    /// Forgets a stream when both sides are finished.
    fn finish(&self, id: u32, here: bool) {
        let mut streams = self.streams.lock();
        let Some(entry) = streams.open.get_mut(&id) else { return };
        if here {
            entry.finished_here = true;
        } else {
            entry.inbound = None;
        }
        if entry.finished_here && entry.inbound.is_none() {
            streams.open.remove(&id);
        }
    }

    fn forget(&self, id: u32) -> Option<Entry> {
        self.streams.lock().open.remove(&id)
    }
}

async fn write_loop<IO>(mut writer: WriteHalf<IO>, mut commands: mpsc::Receiver<Outbound>, shared: Arc<Shared>)
where
    IO: AsyncWrite + Send,
{
    let result = write_frames(&mut writer, &mut commands, &shared).await;
    if let Err(error) = result {
        debug!(error = %chain(&error), "Writing SPDY frames ended");
    }
    shared.close();
    // The peer may be gone already.
    let _ = writer.shutdown().await;
}

async fn write_frames<IO>(
    writer: &mut WriteHalf<IO>,
    commands: &mut mpsc::Receiver<Outbound>,
    shared: &Shared,
) -> Result<(), SpdyError>
where
    IO: AsyncWrite + Send,
{
    let mut deflater = Deflater::new()?;
    let mut buffer = BytesMut::new();
    loop {
        let command = tokio::select! {
            command = commands.recv() => command,
            () = shared.closed.cancelled() => None,
        };
        let Some(mut command) = command else { break };
        let mut last = false;
        loop {
            last |= matches!(command, Outbound::GoAway);
            encode(command, &mut deflater, &mut buffer, shared)?;
            if last || buffer.len() >= WRITE_BATCH_BYTES {
                break;
            }
            match commands.try_recv() {
                Ok(next) => command = next,
                Err(_) => break,
            }
        }
        shared.activity.fetch_add(1, Ordering::Relaxed);
        writer.write_all_buf(&mut buffer).await.map_err(SpdyError::Io)?;
        writer.flush().await.map_err(SpdyError::Io)?;
        if last {
            return Ok(());
        }
    }
    let last_good = shared.streams.lock().last_peer_id;
    frame::put_control(&mut buffer, frame::GOAWAY, 0, &[&last_good.to_be_bytes(), &[0; 4]]);
    writer.write_all_buf(&mut buffer).await.map_err(SpdyError::Io)?;
    writer.flush().await.map_err(SpdyError::Io)
}

fn encode(command: Outbound, deflater: &mut Deflater, buffer: &mut BytesMut, shared: &Shared) -> Result<(), SpdyError> {
    match command {
        Outbound::Open { id, headers } => {
            let block = deflater.block(&headers)?;
            // Associated stream 0, priority 0, slot 0.
            frame::put_control(buffer, frame::SYN_STREAM, 0, &[&id.to_be_bytes(), &[0; 6], &block]);
        }
        Outbound::Reply { id } => {
            let block = deflater.block(&HeaderMap::new())?;
            frame::put_control(buffer, frame::SYN_REPLY, 0, &[&id.to_be_bytes(), &block]);
        }
        Outbound::Data { id, bytes } => frame::put_data(buffer, id, false, &bytes),
        Outbound::Close { id } => {
            frame::put_data(buffer, id, true, &[]);
            shared.finish(id, true);
        }
        Outbound::Reset { id, status } => {
            frame::put_control(buffer, frame::RST_STREAM, 0, &[&id.to_be_bytes(), &status.to_be_bytes()]);
            shared.forget(id);
        }
        Outbound::Consumed { id, bytes } => {
            frame::put_control(buffer, frame::WINDOW_UPDATE, 0, &[&id.to_be_bytes(), &bytes.to_be_bytes()]);
        }
        Outbound::Pong(payload) => frame::put_control(buffer, frame::PING, 0, &[&payload]),
        Outbound::GoAway => {
            let last_good = shared.streams.lock().last_peer_id;
            frame::put_control(buffer, frame::GOAWAY, 0, &[&last_good.to_be_bytes(), &[0; 4]]);
        }
    }
    Ok(())
}

struct Reading {
    role: Role,
    idle_timeout: Duration,
    shared: Arc<Shared>,
    /// Weak, so that the writer ends when the connection and all its streams are dropped.
    outbound: mpsc::WeakSender<Outbound>,
    accepted: mpsc::Sender<MuxStream>,
    inflater: Inflater,
}

impl Reading {
    async fn run<IO>(mut self, reader: ReadHalf<IO>)
    where
        IO: AsyncRead + Send,
    {
        let closed = self.shared.closed.clone();
        let result = tokio::select! {
            result = self.read_frames(BufReader::with_capacity(16 * 1024, reader)) => result,
            () = closed.cancelled() => Ok(()),
        };
        if let Err(error) = result {
            debug!(error = %chain(&error), "Reading SPDY frames ended");
        }
        self.shared.close();
    }

    async fn read_frames<R: AsyncRead + Unpin>(&mut self, mut reader: R) -> Result<(), SpdyError> {
        loop {
            let before = self.shared.activity.load(Ordering::Relaxed);
            // A frame is not cancelled half-read: only its beginning is waited for with a limit, and a
            // timeout either ends the connection or finds that the other direction was busy.
            let mut next = std::pin::pin!(Frame::read(&mut reader));
            let mut seen = before;
            let frame = loop {
                match tokio::time::timeout(self.idle_timeout, next.as_mut()).await {
                    Ok(frame) => break frame?,
                    Err(_) => {
                        let now = self.shared.activity.load(Ordering::Relaxed);
                        if now == seen {
                            return Err(SpdyError::Protocol("the connection was idle for too long"));
                        }
                        seen = now;
                    }
                }
            };
            let Some(frame) = frame else { return Ok(()) };
            self.shared.activity.fetch_add(1, Ordering::Relaxed);
            match frame {
                Frame::Data { id, fin, bytes } => self.data(id, fin, bytes).await,
                Frame::Control { kind, flags, payload } => self.control(kind, flags, &payload).await?,
            }
        }
    }

    async fn data(&self, id: u32, fin: bool, bytes: Bytes) {
        let sender = self.shared.streams.lock().open.get(&id).map(|entry| entry.inbound.clone());
        match sender {
            // Data for a stream that is gone says that the peer has not seen our reset yet.
            None => {}
            Some(None) => self.send(Outbound::Reset { id, status: RESET_INVALID_STREAM }).await,
            Some(Some(sender)) if !bytes.is_empty() => {
                // The consumer may have dropped its reader: what it did not want is discarded.
                let _ = sender.send(bytes).await;
            }
            Some(Some(_)) => {}
        }
        if fin {
            self.shared.finish(id, false);
        }
    }

    async fn control(&mut self, kind: u16, flags: u8, payload: &Bytes) -> Result<(), SpdyError> {
        match kind {
            frame::SYN_STREAM => {
                let id = frame::word(payload, 0)? & 0x7fff_ffff;
                let block = payload.get(10..).ok_or(SpdyError::Protocol("a control frame is cut short"))?;
                // The block is always inflated: the compression context spans all of them.
                let headers = self.inflater.headers(block)?;
                self.opened(id, flags & frame::FLAG_FIN != 0, headers).await?;
            }
            frame::SYN_REPLY => {
                let id = frame::word(payload, 0)? & 0x7fff_ffff;
                self.inflater.headers(payload.get(4..).unwrap_or_default())?;
                let reply = self.shared.streams.lock().open.get_mut(&id).and_then(|entry| entry.reply.take());
                if let Some(reply) = reply {
                    // The opener may have given up.
                    let _ = reply.send(Ok(()));
                }
                if flags & frame::FLAG_FIN != 0 {
                    self.shared.finish(id, false);
                }
            }
            frame::RST_STREAM => {
                let id = frame::word(payload, 0)? & 0x7fff_ffff;
                if let Some(Entry { reply: Some(reply), .. }) = self.shared.forget(id) {
                    let _ = reply.send(Err(SpdyError::Refused));
                }
            }
            frame::HEADERS => {
                self.inflater.headers(payload.get(4..).unwrap_or_default())?;
            }
            frame::PING => {
                let id = frame::word(payload, 0)?;
                let from_peer = (id % 2 == 1) == (self.role == Role::Server);
                if from_peer {
                    self.send(Outbound::Pong(payload.clone())).await;
                }
            }
            frame::GOAWAY => self.shared.streams.lock().gone_away = true,
            // The peer's windows and settings limit nothing here; see the module header.
            frame::SETTINGS | frame::WINDOW_UPDATE => {}
            _ => return Err(SpdyError::Protocol("a control frame of an unknown kind")),
        }
        Ok(())
    }

    async fn opened(&self, id: u32, fin: bool, headers: HeaderMap) -> Result<(), SpdyError> {
        let from_peer = (id % 2 == 1) == (self.role == Role::Server);
        let (sender, receiver) = mpsc::channel(INBOUND_FRAMES_MAX);
        let refusal = {
            let mut streams = self.shared.streams.lock();
            if id == 0 || !from_peer || id <= streams.last_peer_id {
                Some(RESET_PROTOCOL_ERROR)
            } else {
                streams.last_peer_id = id;
                if streams.gone_away || streams.open.len() >= STREAMS_MAX {
                    Some(RESET_REFUSED)
                } else {
                    let inbound = if fin { None } else { Some(sender) };
                    streams.open.insert(id, Entry { inbound, reply: None, finished_here: false });
                    None
                }
            }
        };
        if let Some(status) = refusal {
            self.send(Outbound::Reset { id, status }).await;
            return Ok(());
        }
        let outbound = self.outbound.upgrade().ok_or(SpdyError::Closed)?;
        self.send(Outbound::Reply { id }).await;
        let stream = MuxStream::new(id, headers, receiver, outbound);
        if self.accepted.send(stream).await.is_err() {
            // Nobody accepts streams on this end; dropping the stream has closed it.
            debug!(stream = id, "A stream was opened that nobody takes");
        }
        Ok(())
    }

    async fn send(&self, command: Outbound) {
        if let Some(outbound) = self.outbound.upgrade() {
            // A writer that is gone has cancelled `closed`, which ends the reader too.
            let _ = outbound.send(command).await;
        }
    }
}

#[cfg(test)]
mod tests;
