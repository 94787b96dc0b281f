//! The columns of each built-in kind, in one table: name, type, priority, and how a cell is made.
//!
//! Columns with priority 1 are for `-o wide`; the server always sends them and the client hides them.
//! Behaves as `pkg/printers/internalversion/printers.go`, v1.36.

mod cluster;
mod core;
mod networking;
mod storage;
mod workloads;

use jiff::Timestamp;
use serde_json::Value;

/// How one kind is printed.
pub(crate) struct Printer {
    pub(crate) columns: &'static [Column],
    pub(crate) cells: fn(&Value, Timestamp) -> Vec<Value>,
}

#[derive(Clone, Copy)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) format: &'static str,
    pub(crate) priority: u8,
}

const NAME: Column = Column { name: "Name", kind: "string", format: "name", priority: 0 };
const AGE: Column = text("Age");

const fn text(name: &'static str) -> Column {
    Column { name, kind: "string", format: "", priority: 0 }
}

const fn number(name: &'static str) -> Column {
    Column { name, kind: "integer", format: "", priority: 0 }
}

const fn boolean(name: &'static str) -> Column {
    Column { name, kind: "boolean", format: "", priority: 0 }
}

const fn wide(name: &'static str) -> Column {
    Column { name, kind: "string", format: "", priority: 1 }
}

/// The printer of a resource, if it has one; others show name and time of creation.
pub(crate) fn printer(group: &str, plural: &str) -> Option<&'static Printer> {
    let found = printers().find(|(known_group, known, _)| *known_group == group && *known == plural);
    found.map(|(_, _, printer)| printer)
}

pub(crate) type Row = (&'static str, &'static str, Printer);

const WORKLOAD_WIDE: [Column; 3] = [wide("Containers"), wide("Images"), wide("Selector")];
const REPLICAS: &[Column] = &[
    NAME,
    number("Desired"),
    number("Current"),
    number("Ready"),
    AGE,
    WORKLOAD_WIDE[0],
    WORKLOAD_WIDE[1],
    WORKLOAD_WIDE[2],
];
const NAME_AND_AGE: &[Column] = &[NAME, AGE];

/// All printers with their groups and resources.
pub(crate) fn printers() -> impl Iterator<Item = &'static Row> {
    let groups = [core::PRINTERS, workloads::PRINTERS, networking::PRINTERS, storage::PRINTERS, cluster::PRINTERS];
    groups.into_iter().flatten()
}
