//! Checks what the compiler cannot: crate edges, owners of heavy dependencies, file headers and sizes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Lines a hand-written file may have. Over 800 a reviewer asks; here it stops.
const FILE_LINES_MAX: usize = 1_000;

/// The crates that talk to the kernel and may opt out of `forbid(unsafe_code)`.
const UNSAFE_CRATES: [&str; 2] = ["network", "kubelet"];

/// Runs every check and reports all findings at once.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut findings = Vec::new();
    let layers: toml::Table = fs::read_to_string(root.join("hack/layers.toml"))?.parse()?;
    check_edges(&metadata(root)?, &layers, &mut findings)?;
    for file in rust_files(root)? {
        check_file(root, &file, &mut findings)?;
    }
    check_lints(root, &mut findings)?;
    if findings.is_empty() {
        return Ok(());
    }
    bail!("{} findings\n{}", findings.len(), findings.join("\n"))
}

fn metadata(root: &Path) -> Result<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--locked"])
        .current_dir(root)
        .output()
        .context("running cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn strings(table: &toml::Table, section: &str) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let section_table = table.get(section).and_then(toml::Value::as_table).with_context(|| format!("[{section}]"))?;
    section_table
        .iter()
        .map(|(name, list)| {
            let list = list.as_array().with_context(|| format!("{section}.{name} is a list"))?;
            let items = list.iter().filter_map(toml::Value::as_str).map(str::to_owned).collect();
            Ok((name.clone(), items))
        })
        .collect()
}

fn short(name: &str) -> &str {
    name.strip_prefix("rkube-").unwrap_or(name)
}

/// Compares the edges between our crates with `hack/layers.toml`, both ways.
fn check_edges(metadata: &Value, layers: &toml::Table, findings: &mut Vec<String>) -> Result<()> {
    let allowed = strings(layers, "edges")?;
    let owners = strings(layers, "owners")?;
    let packages = metadata["packages"].as_array().context("packages")?;
    let ours: BTreeSet<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut seen = BTreeSet::new();
    for package in packages {
        let name = short(package["name"].as_str().context("package name")?);
        seen.insert(name.to_owned());
        let Some(may_use) = allowed.get(name) else {
            findings.push(format!("hack/layers.toml: no line for crate {name}"));
            continue;
        };
        let mut uses = BTreeSet::new();
        for dependency in package["dependencies"].as_array().context("dependencies")? {
            let full = dependency["name"].as_str().context("dependency name")?;
            let target = short(full);
            let is_dev = dependency["kind"].as_str() == Some("dev");
            if ours.contains(full) && target != name {
                uses.insert(target.to_owned());
                if !is_dev && !may_use.contains(target) {
                    findings.push(format!("{name} depends on {target}, which hack/layers.toml does not allow"));
                }
            }
            if let Some(owner) = owners.get(target)
                && !is_dev
                && !owner.contains(name)
            {
                findings.push(format!("{name} depends on {target}, which belongs to {owner:?}"));
            }
        }
        for unused in may_use.difference(&uses) {
            findings.push(format!("hack/layers.toml allows {name} -> {unused}, which no manifest uses"));
        }
    }
    for name in allowed.keys().filter(|name| !seen.contains(*name)) {
        findings.push(format!("hack/layers.toml: crate {name} does not exist"));
    }
    Ok(())
}

fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("git").args(["ls-files", "*.rs"]).current_dir(root).output().context("running git")?;
    Ok(String::from_utf8(output.stdout)?.lines().map(|line| root.join(line)).filter(|path| path.exists()).collect())
}

/// Every file says what it is; generated files say so; none grows without bound.
fn check_file(root: &Path, file: &Path, findings: &mut Vec<String>) -> Result<()> {
    let name = file.strip_prefix(root)?.display();
    let text = fs::read_to_string(file).with_context(|| format!("reading {name}"))?;
    let generated = text.lines().take(3).any(|line| line.contains("@generated"));
    if generated {
        return Ok(());
    }
    if !text.trim_start().starts_with("//!") {
        findings.push(format!("{name}: does not open with a //! header"));
    }
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        findings.push(format!("{name}: {lines} lines, at most {FILE_LINES_MAX}"));
    }
    let marker = ["FIX", "ME"].concat();
    if text.contains(&marker) {
        findings.push(format!("{name}: has a {marker}"));
    }
    Ok(())
}

/// Every crate takes the workspace's lints, but the two that need `unsafe`.
fn check_lints(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(root.join("pkg"))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let manifest: toml::Table = fs::read_to_string(path.join("Cargo.toml"))?.parse()?;
        let inherits = manifest.get("lints").and_then(|lints| lints.get("workspace")).is_some();
        if !inherits && !UNSAFE_CRATES.contains(&name.as_str()) {
            findings.push(format!("pkg/{name}: does not take the workspace's lints"));
        }
    }
    Ok(())
}
