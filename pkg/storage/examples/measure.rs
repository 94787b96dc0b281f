//! Measures the embedded store: `measure <directory> [puts] [value bytes] [in flight]`.
//!
//! Prints durable puts per second with the CPU time each took, then how long a store that was not closed takes to
//! open and to list everything. The directory must be empty or absent.

#![allow(clippy::print_stdout, reason = "prints figures")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rkube_apimachinery::clock::{Clock, SystemClock};
use rkube_apimachinery::task;
use rkube_storage::embedded::{EmbeddedOptions, EmbeddedStorage};
use rkube_storage::{ListRange, Precondition, Storage, StorageError};

#[tokio::main]
async fn main() -> Result<(), StorageError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let directory = PathBuf::from(arguments.first().cloned().unwrap_or_else(|| "measure.db".to_owned()));
    let (puts, bytes, in_flight) = (number(1, 100_000), number(2, 1024) as usize, number(3, 128));
    let clock = SystemClock::new();

    let storage = Arc::new(EmbeddedStorage::open(&directory, EmbeddedOptions::default()).await?);
    let next = Arc::new(AtomicU64::new(0));
    let (began, cpu) = (clock.monotonic(), cpu_seconds());
    let tasks: Vec<_> = (0..in_flight)
        .map(|_| {
            let (storage, next) = (storage.clone(), next.clone());
            task::spawn(tracing::Span::none(), async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= puts {
                        return Ok::<(), StorageError>(());
                    }
                    let key =
                        format!("/registry/configmaps/default/object-{:016x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
                    let mut value = vec![b'x'; bytes];
                    value[..8].copy_from_slice(&n.to_le_bytes());
                    storage.put(key, Bytes::from(value), Precondition::Absent).await?;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap_or(Err(StorageError::Closed))?;
    }
    let (took, cpu) = ((clock.monotonic() - began).as_secs_f64(), cpu_seconds() - cpu);
    let each = 1e6 / puts as f64;
    println!(
        "put   {puts} x {bytes} B, {in_flight} in flight: {:.0}/s, {:.1} us CPU each",
        puts as f64 / took,
        cpu * each
    );
    println!("size  {:?}", storage.size().await?);
    drop(storage);

    let began = clock.monotonic();
    let storage = EmbeddedStorage::open(&directory, EmbeddedOptions::default()).await?;
    let opened = clock.monotonic();
    let page = storage.list(ListRange { prefix: "/registry/".to_owned(), ..ListRange::default() }).await?;
    let listed = clock.monotonic();
    let total: usize = page.items.iter().map(|item| item.value.len()).sum();
    println!(
        "open  {:?} after no close; list {} keys, {} MB: {:?}",
        opened - began,
        page.items.len(),
        total >> 20,
        listed - opened
    );
    drop(page);
    let began = clock.monotonic();
    let (mut range, mut pages) =
        (ListRange { prefix: "/registry/".to_owned(), limit: 1000, ..ListRange::default() }, 0);
    loop {
        let page = storage.list(range.clone()).await?;
        pages += 1;
        (range.at, range.after) = (Some(page.revision), page.items.last().map(|item| item.key.clone()));
        if page.remaining == 0 {
            break;
        }
    }
    println!("pages {:?} for {pages} of 1000, each dropped after it", clock.monotonic() - began);
    storage.close().await?;
    let began = clock.monotonic();
    let storage = EmbeddedStorage::open(&directory, EmbeddedOptions::default()).await?;
    println!("open  {:?} after close", clock.monotonic() - began);
    let began = clock.monotonic();
    for n in 0..1000 {
        storage.get(&format!("/registry/configmaps/default/object-{:016x}", n as u64 * 77)).await?;
    }
    println!("get   {:?} for 1000", clock.monotonic() - began);
    Ok(())
}

/// CPU time of this process, user and system.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}
