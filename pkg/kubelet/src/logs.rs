//! Reads container logs in the runtime's format, from any point, and follows them over rotation.
//!
//! ```text
//! 2026-01-02T03:04:05.123456789Z stdout F a whole line
//! 2026-01-02T03:04:05.123456789Z stderr P the first part of a long
//! ```
//! Behaves as staging/src/k8s.io/cri-client/pkg/logs/logs.go, v1.36.

use std::io::SeekFrom;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use inotify::{EventStream, Inotify, WatchMask};
use jiff::Timestamp;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, BufReader};
use tokio::sync::mpsc;

/// How often a follower looks whether its container still runs when nothing is written.
const STATE_CHECK: Duration = Duration::from_secs(1);
/// A runtime cuts lines at 16 KiB; longer ones are damage and are skipped.
const LINE_BYTES_MAX: usize = 1 << 20;
const BLOCK: u64 = 64 << 10;

/// What to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    /// The last so many lines; all when absent.
    pub tail: Option<u64>,
    pub since: Option<Timestamp>,
    pub limit_bytes: Option<u64>,
    pub timestamps: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// One line as written.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    time: &'a str,
    stream: &'a str,
    /// With the newline, unless more of it follows.
    text: &'a [u8],
    partial: bool,
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tags = parts.next()?;
    let text = parts.next()?;
    if !matches!(stream, "stdout" | "stderr") || time.len() < 20 {
        return None;
    }
    let partial = tags.split(|byte| *byte == b':').next() == Some(b"P");
    let text = if partial { text.strip_suffix(b"\n").unwrap_or(text) } else { text };
    Some(Line { time, stream, text, partial })
}

/// The text of whole log lines, without times; for termination messages.
pub fn plain_text(log: &str) -> String {
    let lines = log.split_inclusive('\n').filter_map(|line| parse(line.as_bytes()));
    lines.map(|line| String::from_utf8_lossy(line.text).into_owned()).collect()
}

/// Formats lines within the options; keeps what spans lines.
struct Formatter {
    options: LogOptions,
    left: Option<u64>,
    /// The last line was a part, so what follows continues it without a time of its own.
    continues: bool,
}

impl Formatter {
    fn new(options: LogOptions) -> Self {
        Self { left: options.limit_bytes, options, continues: false }
    }

    /// The bytes to send for one line; `None` when the limit is used up.
    fn format(&mut self, raw: &[u8]) -> Option<Bytes> {
        let Some(line) = parse(raw) else { return Some(Bytes::new()) };
        let wanted = match line.stream {
            "stdout" => self.options.stdout,
            _ => self.options.stderr,
        };
        let old = self.options.since.is_some_and(|since| line.time.parse::<Timestamp>().is_ok_and(|time| time < since));
        if !wanted || old {
            return Some(Bytes::new());
        }
        let mut out = Vec::with_capacity(line.text.len() + 36);
        if self.options.timestamps && !self.continues {
            out.extend_from_slice(line.time.as_bytes());
            out.push(b' ');
        }
        self.continues = line.partial;
        out.extend_from_slice(line.text);
        if let Some(left) = &mut self.left {
            out.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= out.len() as u64;
            if *left == 0 {
                return (!out.is_empty()).then(|| Bytes::from(out));
            }
        }
        Some(Bytes::from(out))
    }

    fn is_done(&self) -> bool {
        self.left == Some(0)
    }
}

/// Whether the container whose log is followed still runs.
pub type IsRunning = Box<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>;

/// Sends the log at `path` to `sink` and returns when it ended: at the end of the file, or for a
/// follower when its container ended or the reader went away.
pub async fn read(
    path: &Path,
    options: LogOptions,
    is_running: IsRunning,
    sink: mpsc::Sender<Bytes>,
) -> std::io::Result<()> {
    let follow = options.follow;
    let mut watch = if follow { Some(Watch::new(path)?) } else { None };
    let mut file = open(path, options.tail).await?;
    let mut formatter = Formatter::new(options);
    if formatter.is_done() {
        return Ok(());
    }
    let mut line = Vec::new();
    loop {
        if !read_lines(&mut file, &mut line, &mut formatter, &sink).await? {
            return Ok(());
        }
        let Some(watch) = &mut watch else { return Ok(()) };
        if let Some(next) = reopened(path, &file).await {
            // What was written between the last read and the swap is still in the old file.
            if !read_lines(&mut file, &mut line, &mut formatter, &sink).await? {
                return Ok(());
            }
            line.clear();
            file = next;
            continue;
        }
        let changed = tokio::select! {
            changed = watch.changed() => changed,
            () = sink.closed() => return Ok(()),
        };
        if !changed && !is_running().await {
            read_lines(&mut file, &mut line, &mut formatter, &sink).await?;
            return Ok(());
        }
    }
}

/// Sends all complete lines there are. False when there is nobody or nothing left to send to.
async fn read_lines(
    file: &mut BufReader<File>,
    line: &mut Vec<u8>,
    formatter: &mut Formatter,
    sink: &mpsc::Sender<Bytes>,
) -> std::io::Result<bool> {
    loop {
        let mut limited = file.take((LINE_BYTES_MAX - line.len().min(LINE_BYTES_MAX)) as u64);
        limited.read_until(b'\n', line).await?;
        if line.last() != Some(&b'\n') {
            if line.len() >= LINE_BYTES_MAX {
                line.clear();
                continue;
            }
            return Ok(true);
        }
        let Some(bytes) = formatter.format(line) else { return Ok(false) };
        line.clear();
        if !bytes.is_empty() && sink.send(bytes).await.is_err() {
            return Ok(false);
        }
        if formatter.is_done() {
            return Ok(false);
        }
    }
}

async fn open(path: &Path, tail: Option<u64>) -> std::io::Result<BufReader<File>> {
    let mut file = File::open(path).await?;
    if let Some(lines) = tail {
        let start = tail_start(&mut file, lines).await?;
        file.seek(SeekFrom::Start(start)).await?;
    }
    Ok(BufReader::with_capacity(BLOCK as usize, file))
}

/// Where the last `lines` lines begin, read backwards in blocks.
async fn tail_start(file: &mut File, lines: u64) -> std::io::Result<u64> {
    let end = file.seek(SeekFrom::End(0)).await?;
    if lines == 0 {
        return Ok(end);
    }
    let mut left = lines;
    let mut block_end = end;
    let mut buffer = vec![0u8; BLOCK as usize];
    while block_end > 0 {
        let block_start = block_end.saturating_sub(BLOCK);
        let length = usize::try_from(block_end - block_start).unwrap_or(0);
        let block = &mut buffer[..length];
        file.seek(SeekFrom::Start(block_start)).await?;
        file.read_exact(block).await?;
        for (at, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let position = block_start + at as u64;
            // The newline at the very end closes the last line.
            if position + 1 == end {
                continue;
            }
            left -= 1;
            if left == 0 {
                return Ok(position + 1);
            }
        }
        block_end = block_start;
    }
    Ok(0)
}

/// The new file at `path` if the open one was rotated away.
async fn reopened(path: &Path, file: &BufReader<File>) -> Option<BufReader<File>> {
    let at_path = tokio::fs::metadata(path).await.ok()?;
    let open_file = file.get_ref().metadata().await.ok()?;
    if (at_path.dev(), at_path.ino()) == (open_file.dev(), open_file.ino()) {
        return None;
    }
    open(path, None).await.ok()
}

/// Wakes when something is written to a log or a new file takes its place.
struct Watch {
    events: EventStream<[u8; 1024]>,
    _directory: PathBuf,
}

impl Watch {
    fn new(path: &Path) -> std::io::Result<Self> {
        let inotify = Inotify::init()?;
        let directory = path.parent().unwrap_or(path).to_owned();
        let mask = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE;
        inotify.watches().add(&directory, mask)?;
        Ok(Self { events: inotify.into_event_stream([0; 1024])?, _directory: directory })
    }

    /// False when nothing happened for a while.
    async fn changed(&mut self) -> bool {
        matches!(tokio::time::timeout(STATE_CHECK, self.events.next()).await, Ok(Some(Ok(_))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-02T03:04:05.1Z stdout F one\n\
        2026-01-02T03:04:06.1Z stderr P tw\n\
        2026-01-02T03:04:06.1Z stderr F o\n\
        damage\n\
        2026-01-02T03:04:07.1Z stdout F three\n";

    async fn check(log: &str, options: LogOptions, expected: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        std::fs::write(&path, log).unwrap();
        let (sink, mut received) = mpsc::channel(100);
        read(&path, options, Box::new(|| Box::pin(async { false })), sink).await.unwrap();
        let mut text = String::new();
        while let Some(bytes) = received.recv().await {
            text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
        assert_eq!(text, expected);
    }

    fn both() -> LogOptions {
        LogOptions { stdout: true, stderr: true, ..LogOptions::default() }
    }

    #[tokio::test]
    async fn options_choose_what_is_sent() {
        check(LOG, both(), "one\ntwo\nthree\n").await;
        check(LOG, LogOptions { stderr: false, ..both() }, "one\nthree\n").await;
        check(LOG, LogOptions { tail: Some(1), ..both() }, "three\n").await;
        check(LOG, LogOptions { tail: Some(0), ..both() }, "").await;
        check(LOG, LogOptions { limit_bytes: Some(5), ..both() }, "one\nt").await;
        let since = Some("2026-01-02T03:04:06Z".parse().unwrap());
        check(LOG, LogOptions { since, ..both() }, "two\nthree\n").await;
        check(
            LOG,
            LogOptions { timestamps: true, tail: Some(4), ..both() },
            "2026-01-02T03:04:06.1Z two\n2026-01-02T03:04:07.1Z three\n",
        )
        .await;
        check("", both(), "").await;
        // A line that is still being written belongs to a follower.
        check("2026-01-02T03:04:05.1Z stdout F hal", both(), "").await;
    }

    #[tokio::test]
    async fn a_follower_survives_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        std::fs::write(&path, "2026-01-02T03:04:05.1Z stdout F one\n").unwrap();
        let (sink, mut received) = mpsc::channel(100);
        let options = LogOptions { follow: true, ..both() };
        let log = path.clone();
        let reading = async move { read(&log, options, Box::new(|| Box::pin(async { true })), sink).await };
        let check = async {
            assert_eq!(received.recv().await.unwrap(), "one\n");
            std::fs::rename(&path, folder.path().join("0.log.old")).unwrap();
            std::fs::write(&path, "2026-01-02T03:04:06.1Z stdout F two\n").unwrap();
            assert_eq!(received.recv().await.unwrap(), "two\n");
        };
        tokio::select! {
            result = reading => panic!("the follower left: {result:?}"),
            checked = tokio::time::timeout(Duration::from_secs(60), check) => checked.expect("a line after rotation"),
        }
    }
}
