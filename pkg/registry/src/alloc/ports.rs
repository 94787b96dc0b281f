//! Node ports: one bitmap in storage, in kube-apiserver's form and under its key.
//!
//! Behaves as `pkg/registry/core/service/portallocator` and `allocator/storage`, v1.36.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rkube_apimachinery::random::SharedRandom;
use rkube_apimachinery::status::ApiStatus;
use rkube_storage::{Precondition, Revision, Storage, WriteOutcome};
use serde::{Deserialize, Serialize};

use super::AllocationError;
use super::range::Bands;
use crate::cache::feed::ROOT;
use crate::store::core::storage_status;

const KEY: &str = "ranges/servicenodeports";

/// Attempts of one change against other servers.
const ATTEMPTS_MAX: usize = 32;

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RangeAllocation {
    kind: String,
    api_version: String,
    metadata: serde_json::Map<String, serde_json::Value>,
    range: String,
    data: String,
}

/// The node ports of the cluster.
pub(crate) struct Ports {
    storage: Arc<dyn Storage>,
    random: SharedRandom,
    first: u16,
    last: u16,
    /// What storage had when we last looked. Held over the write: ports are given out one at a time.
    known: tokio::sync::Mutex<Known>,
}

#[derive(Clone, Default)]
struct Known {
    /// `None`: not looked yet, or not there.
    revision: Option<Revision>,
    taken: PortSet,
}

/// A bit per port of the range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PortSet(Vec<u64>);

impl PortSet {
    fn has(&self, offset: usize) -> bool {
        self.0.get(offset / 64).is_some_and(|word| word >> (offset % 64) & 1 == 1)
    }

    fn set(&mut self, offset: usize, taken: bool) {
        let word = offset / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        if let Some(word) = self.0.get_mut(word) {
            *word = if taken { *word | 1 << (offset % 64) } else { *word & !(1 << (offset % 64)) };
        }
    }

    /// As the bytes of a big-endian number.
    fn encode(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().rev().flat_map(|word| word.to_be_bytes()).collect();
        let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
        STANDARD.encode(bytes.get(start..).unwrap_or_default())
    }

    fn decode(text: &str) -> Self {
        let bytes = STANDARD.decode(text).unwrap_or_default();
        let words = bytes.rchunks(8).map(|chunk| chunk.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)));
        Self(words.collect())
    }
}

impl Ports {
    pub(crate) fn new(storage: Arc<dyn Storage>, random: SharedRandom, (first, last): (u16, u16)) -> Self {
        Self { storage, random, first, last, known: tokio::sync::Mutex::default() }
    }

    fn size(&self) -> usize {
        usize::from(self.last.saturating_sub(self.first)) + 1
    }

    fn offset(&self, port: i32) -> Result<usize, AllocationError> {
        let port = u16::try_from(port).ok().filter(|port| (self.first..=self.last).contains(port));
        let offset = port.map(|port| usize::from(port - self.first));
        offset.ok_or(AllocationError::PortOutOfRange(self.first, self.last))
    }

    fn port(&self, offset: usize) -> i32 {
        i32::from(self.first) + i32::try_from(offset).unwrap_or_default()
    }

    /// Whether the port could be taken now. For dry runs.
    pub(crate) async fn check(&self, port: i32) -> Result<(), AllocationError> {
        let offset = self.offset(port)?;
        let mut known = self.known.lock().await;
        self.refresh(&mut known).await?;
        if known.taken.has(offset) { Err(AllocationError::PortTaken) } else { Ok(()) }
    }

    pub(crate) async fn allocate(&self, port: i32) -> Result<(), AllocationError> {
        let offset = self.offset(port)?;
        self.change(|taken| {
            if taken.has(offset) {
                return Err(AllocationError::PortTaken);
            }
            taken.set(offset, true);
            Ok(())
        })
        .await
    }

    pub(crate) async fn allocate_next(&self) -> Result<i32, AllocationError> {
        self.change(|taken| {
            let order = Bands::of_ports(self.size() as u64).offsets(self.random.as_ref());
            let free =
                order.map(|offset| usize::try_from(offset).unwrap_or_default()).find(|offset| !taken.has(*offset));
            let offset = free.ok_or(AllocationError::Full)?;
            taken.set(offset, true);
            Ok(self.port(offset))
        })
        .await
    }

    /// Gives ports back. Those that are not taken, or not in the range, are passed over.
    pub(crate) async fn release(&self, ports: &[i32]) -> Result<(), AllocationError> {
        let offsets: Vec<usize> = ports.iter().filter_map(|port| self.offset(*port).ok()).collect();
        if offsets.is_empty() {
            return Ok(());
        }
        self.change(|taken| {
            offsets.iter().for_each(|offset| taken.set(*offset, false));
            Ok(())
        })
        .await
    }

    /// Every port that is taken.
    pub(crate) async fn taken(&self) -> Result<Vec<i32>, AllocationError> {
        let mut known = self.known.lock().await;
        self.refresh(&mut known).await?;
        Ok((0..self.size()).filter(|offset| known.taken.has(*offset)).map(|offset| self.port(offset)).collect())
    }

    /// Takes ports that services hold, and says which were not taken before.
    pub(crate) async fn ensure(&self, ports: &[i32]) -> Result<Vec<i32>, AllocationError> {
        let offsets: Vec<usize> = ports.iter().filter_map(|port| self.offset(*port).ok()).collect();
        self.change(|taken| {
            let missing: Vec<usize> = offsets.iter().copied().filter(|offset| !taken.has(*offset)).collect();
            missing.iter().for_each(|offset| taken.set(*offset, true));
            Ok(missing.iter().map(|offset| self.port(*offset)).collect())
        })
        .await
    }

    async fn refresh(&self, known: &mut Known) -> Result<(), AllocationError> {
        let key = format!("{ROOT}{KEY}");
        let (found, _) =
            self.storage.get(&key).await.map_err(|error| AllocationError::Status(storage_status(&error)))?;
        *known = found.map_or_else(Known::default, |item| Known {
            revision: Some(item.mod_revision),
            taken: self.decode(&item.value),
        });
        Ok(())
    }

    /// A range of another size is read as empty: `repair` fills it from the Services.
    fn decode(&self, value: &[u8]) -> PortSet {
        match serde_json::from_slice::<RangeAllocation>(value) {
            Ok(stored) if stored.range == self.range() => PortSet::decode(&stored.data),
            _ => PortSet::default(),
        }
    }

    fn range(&self) -> String {
        format!("{}-{}", self.first, self.last)
    }

    /// Changes the set as `change` says, in one conditional write, or not at all.
    async fn change<T>(
        &self,
        change: impl Fn(&mut PortSet) -> Result<T, AllocationError>,
    ) -> Result<T, AllocationError> {
        let mut known = self.known.lock().await;
        // What is remembered may be old; it is proven by the write, and an error by reading again.
        let mut proven = false;
        for _ in 0..ATTEMPTS_MAX {
            let mut taken = known.taken.clone();
            let changed = change(&mut taken);
            if changed.is_err() && !proven {
                self.refresh(&mut known).await?;
                proven = true;
                continue;
            }
            let result = changed?;
            if taken == known.taken && known.revision.is_some() {
                return Ok(result);
            }
            let precondition = known.revision.map_or(Precondition::Absent, Precondition::Unchanged);
            let written = self.storage.put(format!("{ROOT}{KEY}"), self.encode(&taken)?, precondition).await;
            match written.map_err(|error| AllocationError::Status(storage_status(&error)))? {
                WriteOutcome::Done(revision) => {
                    *known = Known { revision: Some(revision), taken };
                    return Ok(result);
                }
                WriteOutcome::Failed(current) => {
                    *known = current.map_or_else(Known::default, |item| Known {
                        revision: Some(item.mod_revision),
                        taken: self.decode(&item.value),
                    });
                    proven = true;
                }
            }
        }
        Err(AllocationError::Status(ApiStatus::internal("node ports change too fast to allocate one")))
    }

    fn encode(&self, taken: &PortSet) -> Result<Bytes, AllocationError> {
        let stored = RangeAllocation {
            kind: "RangeAllocation".to_owned(),
            api_version: "v1".to_owned(),
            range: self.range(),
            data: taken.encode(),
            ..RangeAllocation::default()
        };
        let bytes = serde_json::to_vec(&stored);
        bytes.map(Bytes::from).map_err(|error| AllocationError::Status(ApiStatus::internal(error.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_reads_back_as_it_was_written(offsets in proptest::collection::btree_set(0_usize..2768, 0..60)) {
            let mut set = PortSet::default();
            offsets.iter().for_each(|offset| set.set(*offset, true));
            let read = PortSet::decode(&set.encode());
            prop_assert!((0..2768).all(|offset| read.has(offset) == offsets.contains(&offset)));
        }
    }
}
