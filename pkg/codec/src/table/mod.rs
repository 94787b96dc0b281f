//! Tables: what `kubectl get` prints, rendered on the server.
//!
//! Behaves as `k8s.io/apiserver/pkg/registry/rest/table.go` and `pkg/printers`, v1.36.

mod autoscaler;
mod cells;
mod pod;
mod printers;
mod rows;

use std::io::Write as _;
use std::sync::Arc;

use rkube_api::StoredObject;
use rkube_api::resource::Resource;
use serde::Deserialize;
use serde_json::value::RawValue;

use printers::{Column, Printer};

/// How much of each object a row carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

/// What the client wants of a table.
#[derive(Clone, Debug)]
pub struct Options {
    pub include_object: IncludeObject,
    /// Leave out the column definitions: in all events of a watch but the first.
    pub no_headers: bool,
    /// Ages are counted up to now.
    pub now: jiff::Timestamp,
}

/// The metadata of a table of a list.
#[derive(Clone, Debug, Default)]
pub struct ListMeta {
    pub resource_version: String,
    pub continue_token: String,
    pub remaining_item_count: Option<i64>,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: String,
    creation_timestamp: Option<String>,
}

/// Renders objects of one resource as a `meta.k8s.io` Table of the given version, encoded.
pub fn render(
    resource: &Resource,
    objects: &[Arc<StoredObject>],
    version: &str,
    meta: &ListMeta,
    options: &Options,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(512 + objects.len() * 256);
    begin(&mut out, version, meta);
    let printer = printers::printer(&resource.group, &resource.plural);
    if options.no_headers {
        out.extend_from_slice(b"\"columnDefinitions\":null,\"rows\":[");
    } else {
        match printer {
            Some(printer) => columns(&mut out, printer.columns),
            None => out.extend_from_slice(COLUMNS.as_bytes()),
        }
        out.extend_from_slice(b",\"rows\":[");
    }
    for (index, object) in objects.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        row(&mut out, printer, object, version, options);
    }
    out.extend_from_slice(b"]}");
    out
}

const NAME_DESCRIPTION: &str = "Name must be unique within a namespace. Is required when creating resources, although some \
    resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended \
    for creation idempotence and configuration definition. Cannot be updated. More info: \
    https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";

const COLUMNS: &str = concat!(
    r#""columnDefinitions":[{"name":"Name","type":"string","format":"name","description":"Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names","priority":0},"#,
    r#"{"name":"Created At","type":"date","format":"","description":"CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata","priority":0}]"#
);

fn begin(out: &mut Vec<u8>, version: &str, meta: &ListMeta) {
    // Writing to a vector cannot fail.
    let _ = write!(out, "{{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/{version}\",\"metadata\":{{");
    let mut separator = "";
    if !meta.resource_version.is_empty() {
        let _ = write!(out, "\"resourceVersion\":\"{}\"", meta.resource_version);
        separator = ",";
    }
    if !meta.continue_token.is_empty() {
        let _ = write!(out, "{separator}\"continue\":\"{}\"", meta.continue_token);
        separator = ",";
    }
    if let Some(remaining) = meta.remaining_item_count {
        let _ = write!(out, "{separator}\"remainingItemCount\":{remaining}");
    }
    out.extend_from_slice(b"},");
}

fn columns(out: &mut Vec<u8>, columns: &[Column]) {
    let columns: Vec<_> = columns
        .iter()
        .map(|column| {
            serde_json::json!({
                "name": column.name, "type": column.kind, "format": column.format,
                "description": if column.format == "name" { NAME_DESCRIPTION } else { "" }, "priority": column.priority,
            })
        })
        .collect();
    let _ = write!(out, "\"columnDefinitions\":{}", serde_json::Value::from(columns));
}

/// One object's cells and as much of the object as was asked for. Kinds without a printer show name and
/// time of creation.
fn row(out: &mut Vec<u8>, printer: Option<&Printer>, object: &StoredObject, version: &str, options: &Options) {
    let head: Option<Head<'_>> = serde_json::from_slice(&object.json).ok();
    let raw = head.as_ref().map_or("{}", |head| head.metadata.get());
    let cells = match printer {
        Some(printer) => {
            let tree = object.value().unwrap_or_default();
            serde_json::Value::from((printer.cells)(&tree, options.now))
        }
        None => {
            let metadata: Metadata = serde_json::from_str(raw).unwrap_or_default();
            serde_json::json!([metadata.name, metadata.creation_timestamp.unwrap_or_default()])
        }
    };
    let _ = write!(out, "{{\"cells\":{cells},\"object\":");
    match options.include_object {
        IncludeObject::None => out.extend_from_slice(b"null"),
        IncludeObject::Object => out.extend_from_slice(&object.json),
        IncludeObject::Metadata => {
            let _ = write!(
                out,
                "{{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/{version}\",\"metadata\":{raw}}}"
            );
        }
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn printers_are_unique_and_make_as_many_cells_as_columns() {
        let keys: HashSet<_> = printers::printers().map(|(group, plural, _)| (*group, *plural)).collect();
        assert_eq!(keys.len(), printers::printers().count());
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        for (group, plural, printer) in printers::printers() {
            // An object with nothing in it prints too: whatever a client stored must not break a list.
            let cells = (printer.cells)(&serde_json::json!({}), now);
            assert_eq!(cells.len(), printer.columns.len(), "{group}/{plural}");
        }
    }
}
