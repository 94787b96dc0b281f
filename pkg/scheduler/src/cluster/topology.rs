//! Node labels as small numbers: for each topology key some pod has named, the domain every node is in.

use std::collections::HashMap;
use std::sync::Arc;

use rkube_api::k8s::core::v1::Node;

use crate::cluster::slots::Slot;

/// Domain of a node without the label.
pub(crate) const NO_DOMAIN: u32 = u32::MAX;
/// A key's values are numbered anew when this many more were seen than there are nodes.
const STALE_VALUES_MAX: usize = 1024;

pub(crate) type TopologyId = usize;

/// One topology key.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) key: Arc<str>,
    domains: Vec<u32>,
    values: HashMap<Arc<str>, u32>,
}

impl Topology {
    pub(crate) fn domain(&self, slot: Slot) -> Option<usize> {
        self.domains.get(slot as usize).copied().filter(|domain| *domain != NO_DOMAIN).map(|domain| domain as usize)
    }

    /// One more than the largest domain number.
    pub(crate) fn domain_count(&self) -> usize {
        self.values.len()
    }

    fn set(&mut self, slot: Slot, node: Option<&Node>) {
        let value = node.and_then(|node| node.metadata.labels.as_ref()?.get(&*self.key));
        let domain = match value {
            None => NO_DOMAIN,
            Some(value) => match self.values.get(value.as_str()) {
                Some(domain) => *domain,
                None => {
                    let domain = u32::try_from(self.values.len()).unwrap_or(NO_DOMAIN);
                    self.values.insert(value.as_str().into(), domain);
                    domain
                }
            },
        };
        if self.domains.len() <= slot as usize {
            self.domains.resize(slot as usize + 1, NO_DOMAIN);
        }
        self.domains[slot as usize] = domain;
    }
}

/// All keys. There are as many as users invent; a handful.
#[derive(Debug, Default)]
pub(crate) struct Topologies {
    ids: HashMap<Arc<str>, TopologyId>,
    tables: Vec<Topology>,
}

impl Topologies {
    /// The table of a key, made from `nodes` when it is new.
    pub(crate) fn ensure<'a>(&mut self, key: &str, nodes: impl Iterator<Item = (Slot, &'a Node)>) -> TopologyId {
        if let Some(id) = self.ids.get(key) {
            return *id;
        }
        let key: Arc<str> = key.into();
        let mut table = Topology { key: Arc::clone(&key), domains: Vec::new(), values: HashMap::new() };
        nodes.for_each(|(slot, node)| table.set(slot, Some(node)));
        self.tables.push(table);
        self.ids.insert(key, self.tables.len() - 1);
        self.tables.len() - 1
    }

    pub(crate) fn known(&self, key: &str) -> Option<TopologyId> {
        self.ids.get(key).copied()
    }

    pub(crate) fn get(&self, id: TopologyId) -> &Topology {
        &self.tables[id]
    }

    pub(crate) fn node_changed(&mut self, slot: Slot, node: Option<&Node>) {
        self.tables.iter_mut().for_each(|table| table.set(slot, node));
    }

    /// Forgets the keys whose nodes came and went too often; they are made anew when asked for.
    pub(crate) fn compact(&mut self, nodes: usize) {
        if self.tables.iter().any(|table| table.values.len() > 2 * nodes + STALE_VALUES_MAX) {
            self.ids.clear();
            self.tables.clear();
        }
    }
}
