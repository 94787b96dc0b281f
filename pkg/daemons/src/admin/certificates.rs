//! The certificates of a server or an agent: how long they last, and making new ones.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rkube_pki::tree::{self, Tree};
use serde::Serialize;

use super::AdminError;
use crate::config::Paths;

/// How a certificate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Health {
    Ok,
    /// A server that runs renews it by itself; one that is stopped does when it starts.
    DueForRenewal,
    Expired,
    Unreadable,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub path: PathBuf,
    pub health: Health,
    pub is_authority: bool,
    pub subject: String,
    pub issuer: String,
    pub not_after: Option<Timestamp>,
    pub days_left: u64,
    /// Why it is unreadable.
    pub problem: String,
}

/// Every certificate under the data directory, authorities last.
pub fn check(data_dir: &Path, now: Timestamp) -> Result<Vec<Report>, AdminError> {
    let paths = Paths::new(data_dir);
    let mut files = Vec::new();
    for folder in [paths.tls(), paths.agent()] {
        certificates_in(&folder, &mut files)?;
    }
    if files.is_empty() {
        return Err(AdminError::NoCertificates { path: data_dir.to_owned() });
    }
    let mut reports: Vec<_> = files.into_iter().map(|path| report(path, now)).collect();
    reports.sort_by(|a, b| (a.is_authority, &a.path).cmp(&(b.is_authority, &b.path)));
    Ok(reports)
}

/// `*.crt` in the folder and one below it: that is how deep the tree is.
fn certificates_in(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), AdminError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(AdminError::Read { path: folder.to_owned(), source }),
    };
    for entry in entries {
        let path = entry.map_err(|source| AdminError::Read { path: folder.to_owned(), source })?.path();
        if path.file_name().is_some_and(|name| name == "etcd") {
            certificates_in(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "crt") {
            files.push(path);
        }
    }
    Ok(())
}

fn report(path: PathBuf, now: Timestamp) -> Report {
    match tree::inspect(&path, now) {
        Ok(found) => {
            let health = match (found.left.is_zero(), found.is_due && !found.is_authority) {
                (true, _) => Health::Expired,
                (false, true) => Health::DueForRenewal,
                (false, false) => Health::Ok,
            };
            Report {
                path,
                health,
                is_authority: found.is_authority,
                subject: found.subject,
                issuer: found.issuer,
                not_after: Some(found.not_after),
                days_left: found.left.as_secs() / (24 * 3600),
                problem: String::new(),
            }
        }
        Err(error) => Report {
            path,
            health: Health::Unreadable,
            is_authority: false,
            subject: String::new(),
            issuer: String::new(),
            not_after: None,
            days_left: 0,
            problem: error.to_string(),
        },
    }
}

/// A leaf that was made anew, or why it was left alone.
#[derive(Debug)]
pub struct Rotation {
    pub name: String,
    pub outcome: Result<(), rkube_pki::PkiError>,
}

/// Makes server leaves anew: those named, or all. A server that runs takes them up by itself. What others signed
/// is left alone.
pub fn rotate(data_dir: &Path, names: &[String], now: Timestamp) -> Result<Vec<Rotation>, AdminError> {
    let folder = Paths::new(data_dir).tls();
    let mut files = Vec::new();
    certificates_in(&folder, &mut files)?;
    // `Tree::open` makes what is missing, and a wrong --data-dir misses everything.
    if !folder.join("ca.crt").exists() {
        return Err(AdminError::NoCertificates { path: folder });
    }
    let known: Vec<String> = files
        .iter()
        .filter(|file| file.parent() == Some(folder.as_path()))
        .filter(|file| !tree::inspect(file, now).is_ok_and(|found| found.is_authority))
        .filter_map(|file| Some(file.file_stem()?.to_str()?.to_owned()))
        .collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        let text = format!("there is no certificate {unknown:?} to rotate; there are {}", known.join(", "));
        return Err(AdminError::Invalid(text));
    }
    let tree = Tree::open(&folder, now)?;
    let mut chosen = if names.is_empty() { known } else { names.to_vec() };
    chosen.sort();
    let rotate = |name: String| Rotation { outcome: tree.rotate(&name, now).map(drop), name };
    Ok(chosen.into_iter().map(rotate).collect())
}
