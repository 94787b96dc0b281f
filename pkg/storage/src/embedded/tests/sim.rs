//! A disk in memory that forgets: what was not synced may be lost, in whole or by sector, and any operation
//! may fail. All choices come from a seed.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::embedded::disk::{Disk, DiskFile, LockError};

const SECTOR: usize = 512;

/// What happens at the operation with this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The machine stops: this write is cut short, and nothing happens after.
    Crash(u64),
    /// The device fails, once.
    Io(u64),
    /// There is no space, once.
    Full(u64),
}

#[derive(Clone, Debug, Default)]
struct Content {
    /// As processes see it.
    data: Vec<u8>,
    /// As it was when it was last synced.
    synced: Vec<u8>,
    /// Sectors written since.
    dirty: BTreeSet<usize>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Add(String, usize),
    Remove(String),
    Rename(String, String),
}

#[derive(Debug, Default)]
struct State {
    contents: Vec<Content>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// Since the directory was last synced, in order.
    name_changes: Vec<NameChange>,
    operations: u64,
    fault: Option<Fault>,
    crashed: bool,
    capacity: Option<usize>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    id: usize,
}

impl SimDisk {
    pub(super) fn with_fault(self, fault: Option<Fault>) -> Self {
        self.0.lock().fault = fault;
        self.0.lock().operations = 0;
        self
    }

    /// Bytes that all files together may have.
    pub(super) fn set_capacity(&self, bytes: Option<usize>) {
        self.0.lock().capacity = bytes;
    }

    pub(super) fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// What another process finds after this one was killed: everything it had written.
    pub(super) fn after_kill(&self) -> Self {
        let state = self.0.lock();
        let contents = state.contents.clone();
        Self(Arc::new(Mutex::new(State {
            contents,
            names: state.names.clone(),
            durable_names: state.durable_names.clone(),
            name_changes: state.name_changes.clone(),
            ..State::default()
        })))
    }

    /// What is found after a loss of power: of what was not synced, anything or nothing.
    pub(super) fn after_power_loss(&self, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let state = self.0.lock();
        let contents = state.contents.iter().map(|content| survive(content, &mut rng)).collect();
        let mut names = state.durable_names.clone();
        let kept = rng.random_range(0..=state.name_changes.len());
        for change in &state.name_changes[..kept] {
            apply(&mut names, change);
        }
        Self(Arc::new(Mutex::new(State { contents, durable_names: names.clone(), names, ..State::default() })))
    }

    pub(super) fn sizes(&self) -> Vec<(String, usize)> {
        let state = self.0.lock();
        state.names.iter().map(|(name, id)| (name.clone(), state.contents[*id].data.len())).collect()
    }

    pub(super) fn flip(&self, name: &str, byte: usize, bit: u8) {
        let mut state = self.0.lock();
        let id = state.names[name];
        state.contents[id].data[byte] ^= 1 << bit;
    }

    /// Counts an operation; says how it fails. A crash lets a write through in part.
    fn operation(state: &mut State) -> Result<(), io::Error> {
        if state.crashed {
            return Err(io::Error::other("the machine has stopped"));
        }
        let number = state.operations;
        state.operations += 1;
        match state.fault {
            Some(Fault::Crash(at)) if at == number => {
                state.crashed = true;
                Err(io::Error::other("the machine stops"))
            }
            Some(Fault::Io(at)) if at == number => Err(io::Error::from_raw_os_error(5)),
            Some(Fault::Full(at)) if at == number => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn change_name(&self, change: NameChange) -> io::Result<()> {
        let mut state = self.0.lock();
        Self::operation(&mut state)?;
        apply(&mut state.names, &change);
        state.name_changes.push(change);
        Ok(())
    }
}

fn apply(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Add(name, id) => {
            names.insert(name.clone(), *id);
        }
        NameChange::Remove(name) => {
            names.remove(name);
        }
        NameChange::Rename(from, to) => {
            if let Some(id) = names.remove(from) {
                names.insert(to.clone(), id);
            }
        }
    }
}

fn survive(content: &Content, rng: &mut StdRng) -> Content {
    let (old, new) = (&content.synced, &content.data);
    let len = match rng.random_range(0..3) {
        0 => old.len(),
        1 => new.len(),
        _ => rng.random_range(old.len().min(new.len())..=old.len().max(new.len())),
    };
    let mut data = old.clone();
    data.resize(len, 0);
    for sector in &content.dirty {
        let range = sector * SECTOR..((sector + 1) * SECTOR).min(len).min(new.len());
        if range.start < range.end && rng.random_bool(0.5) {
            data[range.clone()].copy_from_slice(&new[range]);
        }
    }
    Content { synced: data.clone(), data, dirty: BTreeSet::new() }
}

impl Disk for SimDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let known = self.0.lock().names.get(name).copied();
        if let Some(id) = known {
            let file = SimFile { disk: self.clone(), id };
            file.truncate(0)?;
            return Ok(Arc::new(file));
        }
        let id = {
            let mut state = self.0.lock();
            state.contents.push(Content::default());
            state.contents.len() - 1
        };
        self.change_name(NameChange::Add(name.to_owned(), id))?;
        Ok(Arc::new(SimFile { disk: self.clone(), id }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let id = self.0.lock().names.get(name).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { disk: self.clone(), id }))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().names.keys().cloned().collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change_name(NameChange::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change_name(NameChange::Remove(name.to_owned()))
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        Self::operation(&mut state)?;
        state.durable_names = state.names.clone();
        state.name_changes.clear();
        Ok(())
    }

    fn is_serial(&self) -> bool {
        true
    }

    fn lock(&self) -> Result<Box<dyn Any + Send + Sync>, LockError> {
        Ok(Box::new(()))
    }
}

impl SimFile {
    fn content<T>(&self, change: impl FnOnce(&mut Content) -> T) -> T {
        change(&mut self.disk.0.lock().contents[self.id])
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.content(|content| content.data.len() as u64))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.content(|content| {
            let range = offset as usize..offset as usize + buffer.len();
            let bytes = content.data.get(range).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(bytes);
            Ok(())
        })
    }

    fn read_at_once(&self, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
        self.read_at(buffer, offset).map(|()| true)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let result = SimDisk::operation(&mut state);
        let used: usize = state.names.values().map(|id| state.contents[*id].data.len()).sum();
        let room = state.capacity.map_or(usize::MAX, |capacity| capacity.saturating_sub(used));
        let stopped_now = result.is_err() && state.crashed;
        let content = &mut state.contents[self.id];
        let offset = offset as usize;
        let grows = (offset + bytes.len()).saturating_sub(content.data.len());
        let (written, result) = match result {
            // The process got no further than this.
            Err(error) if stopped_now => (bytes.len() / 2, Err(error)),
            Err(error) => (bytes.len() / 2, Err(error)),
            Ok(()) if grows > room => (bytes.len() - (grows - room), Err(io::ErrorKind::StorageFull.into())),
            Ok(()) => (bytes.len(), Ok(())),
        };
        let end = offset + written;
        if content.data.len() < end {
            content.data.resize(end, 0);
        }
        content.data[offset..end].copy_from_slice(&bytes[..written]);
        content.dirty.extend(offset / SECTOR..end.div_ceil(SECTOR));
        result
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        SimDisk::operation(&mut state)?;
        state.contents[self.id].data.resize(len as usize, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        SimDisk::operation(&mut state)?;
        let content = &mut state.contents[self.id];
        content.synced = content.data.clone();
        content.dirty.clear();
        Ok(())
    }
}
