//! Collects the descriptions of types and fields for `kubectl explain` out of the sources of the k8s-openapi
//! dependency, so that none of that text is in this repository.
//!
//! In   the folder of the dependency, as `cargo metadata` names it
//! Out  `descriptions.json.zz` in `OUT_DIR`: `{definition: {field: text}}`, deflated; the type's own text is field `""`

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

type Outcome<T> = Result<T, Box<dyn Error>>;
type Descriptions = BTreeMap<String, BTreeMap<String, String>>;

const DEPENDENCY: &str = "k8s-openapi";
const VERSION_FOLDER: &str = "v1_36";
/// Fewer definitions than this, and the sources are no longer written as this script reads them.
const DEFINITIONS_MIN: usize = 600;

fn main() -> Outcome<()> {
    println!("cargo::rerun-if-changed=build.rs");
    // Another version of the dependency is another line there.
    println!("cargo::rerun-if-changed=../../Cargo.lock");
    let sources = dependency_folder()?.join("src").join(VERSION_FOLDER);
    let mut found = Descriptions::new();
    walk(&sources, &mut found)?;
    if found.len() < DEFINITIONS_MIN {
        return Err(format!("only {} descriptions in {}", found.len(), sources.display()).into());
    }
    let out = PathBuf::from(env::var("OUT_DIR")?).join("descriptions.json.zz");
    let mut encoder = flate2::write::ZlibEncoder::new(fs::File::create(out)?, flate2::Compression::best());
    encoder.write_all(&serde_json::to_vec(&found)?)?;
    encoder.finish()?;
    Ok(())
}

fn dependency_folder() -> Outcome<PathBuf> {
    let output = Command::new(env::var("CARGO")?)
        .args(["metadata", "--format-version", "1", "--filter-platform", &env::var("TARGET")?])
        .output()?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata names no packages")?;
    let package = packages.iter().find(|package| package["name"] == DEPENDENCY);
    let manifest = package.and_then(|package| package["manifest_path"].as_str());
    let manifest = manifest.ok_or_else(|| format!("{DEPENDENCY} is not among the packages"))?;
    Ok(Path::new(manifest).parent().ok_or("a manifest has a folder")?.to_owned())
}

fn walk(folder: &Path, found: &mut Descriptions) -> Outcome<()> {
    for entry in fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, found)?;
        } else {
            read(&fs::read_to_string(&path)?, found).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(())
}

/// Reads the JSON schemas that the generated sources spell out. Their indentation says what belongs to what.
fn read(source: &str, found: &mut Descriptions) -> Outcome<()> {
    const TYPE_INDENT: usize = 12;
    const FIELD_INDENT: usize = 16;
    let mut lines = source.lines();
    let Some(name) = lines.find(|line| line.contains("fn schema_name()")).and_then(|_| lines.next()) else {
        return Ok(());
    };
    let Some(name) = name.trim().strip_suffix(".into()") else { return Ok(()) };
    let fields = found.entry(literal(name)?).or_default();
    let mut field = String::new();
    for line in lines {
        let indent = line.len() - line.trim_start().len();
        let line = line.trim();
        if indent == FIELD_INDENT
            && let Some(name) = line.strip_suffix(": {").or_else(|| line.strip_suffix(": ({"))
        {
            field = literal(name)?;
            continue;
        }
        let plain = line.strip_prefix("\"description\": ").and_then(|rest| rest.strip_suffix(','));
        let inserted = line
            .strip_prefix("schema_obj.ensure_object().insert(\"description\".into(), ")
            .and_then(|rest| rest.strip_suffix(".into());"));
        let Some(text) = plain.or(inserted) else { continue };
        let owner = if indent == TYPE_INDENT { String::new() } else { field.clone() };
        // The field's own text comes before those of schemas within it.
        fields.entry(owner).or_insert(literal(text)?);
    }
    Ok(())
}

/// The text of a string literal.
fn literal(text: &str) -> Outcome<String> {
    let inner = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let mut characters = inner.ok_or_else(|| format!("no string literal: {text}"))?.chars();
    let mut out = String::with_capacity(text.len());
    while let Some(character) = characters.next() {
        if character != '\\' {
            out.push(character);
            continue;
        }
        match characters.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some('u') => {
                let code: String = characters.by_ref().take_while(|character| *character != '}').collect();
                let code = u32::from_str_radix(code.trim_start_matches('{'), 16)?;
                out.push(char::from_u32(code).ok_or("an escape that is no character")?);
            }
            Some(plain @ ('"' | '\'' | '\\')) => out.push(plain),
            other => return Err(format!("unknown escape {other:?} in {text}").into()),
        }
    }
    Ok(out)
}
