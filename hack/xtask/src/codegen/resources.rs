//! The resource table and the list of kinds that have a typed form.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use anyhow::{Context, Result};

use super::HEADER;
use super::facts::{Group, Type};

pub(crate) fn render(groups: &[Group], types: &BTreeMap<String, Type>) -> Result<String> {
    let mut out = String::from(HEADER);
    out.push_str("use crate::table::{Row, SubresourceRow};\n\n");
    out.push_str("/// Group names with their versions, in the order of discovery: the preferred version first.\n");
    let _ = writeln!(out, "pub(crate) static GROUPS: &[(&str, &[&str])] = &[");
    for group in groups {
        let _ = writeln!(out, "    ({:?}, &{:?}),", group.name, group.versions);
    }
    out.push_str("];\n\npub(crate) static ROWS: &[Row] = &[\n");
    for group in groups {
        for resource in &group.resources {
            // A row whose kind has no type would panic at the first look-up; say it here.
            type_name(types, &group.name, &resource.version, &resource.kind)?;
            let _ = writeln!(out, "    Row {{");
            let _ = writeln!(out, "        group: {:?},", group.name);
            let _ = writeln!(out, "        version: {:?},", resource.version);
            let _ = writeln!(out, "        plural: {:?},", resource.plural);
            let _ = writeln!(out, "        singular: {:?},", resource.singular);
            let _ = writeln!(out, "        kind: {:?},", resource.kind);
            let _ = writeln!(out, "        namespaced: {:?},", resource.namespaced);
            let _ = writeln!(out, "        verbs: &{:?},", resource.verbs);
            let _ = writeln!(out, "        short_names: &{:?},", resource.short_names);
            let _ = writeln!(out, "        categories: &{:?},", resource.categories);
            let _ = writeln!(out, "        storage_version_hash: {:?},", resource.hash);
            match &resource.stored {
                Some([prefix, group, version]) => {
                    let _ = writeln!(out, "        stored: Some(({prefix:?}, {group:?}, {version:?})),");
                }
                None => out.push_str("        stored: None,\n"),
            }
            out.push_str("        subresources: &[\n");
            for sub in &resource.subresources {
                let _ = writeln!(
                    out,
                    "            SubresourceRow {{ name: {:?}, group: {:?}, version: {:?}, kind: {:?}, verbs: &{:?} }},",
                    sub.name, sub.group, sub.version, sub.kind, sub.verbs
                );
            }
            out.push_str("        ],\n        selectable: &[\n");
            for [label, path, zero] in &resource.selectable {
                let _ = writeln!(out, "            ({label:?}, {path:?}, {zero:?}),");
            }
            out.push_str("        ],\n    },\n");
        }
    }
    out.push_str("];\n");
    Ok(out)
}

/// The OpenAPI definition of a kind.
fn type_name<'a>(types: &'a BTreeMap<String, Type>, group: &str, version: &str, kind: &str) -> Result<&'a str> {
    let suffix = format!(".{kind}");
    let found = types.iter().find(|(name, ty)| {
        ty.kind.as_ref().is_some_and(|(known_group, known_version)| known_group == group && known_version == version)
            && name.ends_with(&suffix)
    });
    Ok(found.with_context(|| format!("no type for {group}/{version} {kind}"))?.0)
}

/// Calls of the macro that implements `Kind`, for every kind that is served and has metadata.
pub(crate) fn render_kinds(groups: &[Group], types: &BTreeMap<String, Type>) -> Result<String> {
    let mut kinds = BTreeSet::new();
    for group in groups {
        for resource in &group.resources {
            let key = (group.name.as_str(), resource.version.as_str(), resource.kind.as_str());
            kinds.insert((key, resource.plural.clone(), resource.namespaced));
        }
    }
    // Kinds that only subresources speak get the plural their name gives.
    let served: BTreeSet<_> = kinds.iter().map(|(key, ..)| *key).collect();
    for sub in groups.iter().flat_map(|group| &group.resources).flat_map(|resource| &resource.subresources) {
        let key = (sub.group.as_str(), sub.version.as_str(), sub.kind.as_str());
        if !served.contains(&key) && !sub.kind.ends_with("Options") {
            kinds.insert((key, format!("{}s", sub.kind.to_lowercase()), true));
        }
    }
    let mut out = String::from(HEADER);
    out.push_str("crate::kinds::kinds! {\n");
    for ((group, version, kind), plural, namespaced) in kinds {
        let name = type_name(types, group, version, kind)?;
        let path = name
            .trim_start_matches("io.k8s.")
            .replace('-', "_")
            .split('.')
            .map(str::to_owned)
            .collect::<Vec<_>>()
            .join("::");
        let _ = writeln!(out, "    k8s_openapi::{path}: {group:?}, {version:?}, {kind:?}, {plural:?}, {namespaced};");
    }
    out.push_str("}\n");
    Ok(out)
}
