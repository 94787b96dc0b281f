//! The files of a server's trust, laid out as kubeadm lays out `/etc/kubernetes/pki`.
//!
//! Inputs: the folder, and the names and addresses the server is reached by.
//! Outputs: files under the folder, made where missing; see [`Tree`].
//!
//! Invariant: an authority or a key that exists is never written. A leaf is made again only if our own
//! authority signed it and it is expired, about to, or lacks a name it needs. A leaf of another
//! authority is the administrator's and is used as it is.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;

use crate::service_account::ServiceAccountKeys;
use crate::{CertificateAuthority, CertifiedKey, Leaf, PkiError, authority, files};

/// A leaf is made again when less than this share of its lifetime is left: four months of a year.
const RENEW_SHARE: i64 = 3;

/// How the server is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub dns_names: Vec<String>,
    pub ip_addresses: Vec<IpAddr>,
}

impl Names {
    /// What every API server answers to: `kubernetes` in all its lengths, and localhost.
    pub fn api_server(cluster_domain: &str, host_name: &str, service_ip: IpAddr) -> Self {
        let mut dns_names: Vec<String> =
            ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"].map(str::to_owned).into();
        dns_names.push(format!("kubernetes.default.svc.{cluster_domain}"));
        let loopback = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
        let mut names = Self { dns_names, ip_addresses: loopback.into() };
        names.add(host_name);
        names.add(&service_ip.to_string());
        names
    }

    /// Adds a host name or an address, once.
    pub fn add(&mut self, name: &str) {
        match name.parse::<IpAddr>() {
            Ok(address) if !self.ip_addresses.contains(&address) => self.ip_addresses.push(address),
            Err(_) if !name.is_empty() && !self.dns_names.iter().any(|known| known == name) => {
                self.dns_names.push(name.to_owned());
            }
            _ => {}
        }
    }
}

/// The authorities and keys of a server, loaded.
#[derive(Clone, Debug)]
pub struct Tree {
    folder: PathBuf,
    pub cluster: CertificateAuthority,
    pub front_proxy: CertificateAuthority,
    pub etcd: CertificateAuthority,
    pub service_accounts: ServiceAccountKeys,
}

impl Tree {
    /// Loads what is in `folder` and makes what is missing.
    pub fn open(folder: &Path, now: Timestamp) -> Result<Self, PkiError> {
        let authority = |name: &str, common_name: &str| {
            let (certificate, key) = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
            let authority = CertificateAuthority::load_or_generate(&certificate, &key, common_name, now);
            let remedy = |source| PkiError::Authority { path: certificate.clone(), source };
            let authority = authority.map_err(with_remedy(remedy))?;
            check_time(authority.certificate_pem(), &certificate, now)?;
            Ok::<_, PkiError>(authority)
        };
        Ok(Self {
            cluster: authority("ca", "kubernetes")?,
            front_proxy: authority("front-proxy-ca", "front-proxy-ca")?,
            etcd: authority("etcd/ca", "etcd-ca")?,
            service_accounts: ServiceAccountKeys::load_or_generate(&folder.join("sa.key"), &folder.join("sa.pub"))?,
            folder: folder.to_owned(),
        })
    }

    /// The API server's serving certificate.
    pub fn serving(&self, names: &Names, now: Timestamp) -> Result<CertifiedKey, PkiError> {
        let leaf = Leaf::server("kube-apiserver", names.dns_names.clone(), names.ip_addresses.clone());
        self.leaf("apiserver", &self.cluster, &leaf, now)
    }

    /// What the API server shows to kubelets.
    pub fn kubelet_client(&self, now: Timestamp) -> Result<CertifiedKey, PkiError> {
        let leaf = Leaf::client("kube-apiserver-kubelet-client", &["kubeadm:cluster-admins"]);
        self.leaf("apiserver-kubelet-client", &self.cluster, &leaf, now)
    }

    /// What the API server shows to aggregated API servers.
    pub fn front_proxy_client(&self, now: Timestamp) -> Result<CertifiedKey, PkiError> {
        self.leaf("front-proxy-client", &self.front_proxy, &Leaf::client("front-proxy-client", &[]), now)
    }

    /// A client of the cluster, in `<name>.crt` and `<name>.key`: `admin`, `scheduler`, ...
    pub fn client(
        &self,
        name: &str,
        common_name: &str,
        organizations: &[&str],
        now: Timestamp,
    ) -> Result<CertifiedKey, PkiError> {
        self.leaf(name, &self.cluster, &Leaf::client(common_name, organizations), now)
    }

    /// A server certificate of the cluster, in `<name>.crt` and `<name>.key`.
    pub fn server(
        &self,
        name: &str,
        common_name: &str,
        names: &Names,
        now: Timestamp,
    ) -> Result<CertifiedKey, PkiError> {
        let leaf = Leaf::server(common_name, names.dns_names.clone(), names.ip_addresses.clone());
        self.leaf(name, &self.cluster, &leaf, now)
    }

    fn leaf(
        &self,
        name: &str,
        authority: &CertificateAuthority,
        leaf: &Leaf,
        now: Timestamp,
    ) -> Result<CertifiedKey, PkiError> {
        let (certificate, key) = self.paths(name);
        if let (Some(certificate_pem), Some(key_pem)) = (files::read(&certificate)?, files::read(&key)?) {
            let pair = CertifiedKey { certificate_pem, key_pem };
            let kept = is_kept(&pair, &certificate, &key, authority, leaf, now);
            let remedy = |source| PkiError::Leaf { path: certificate.clone(), source };
            if kept.map_err(with_remedy(remedy))? {
                return Ok(pair);
            }
        }
        if !authority.can_sign() {
            return Err(PkiError::ExternalAuthority { leaf: certificate, authority: self.file_of(authority) });
        }
        self.issue(name, authority, leaf, now)
    }

    /// The certificate last: whoever watches for it finds its key.
    fn issue(
        &self,
        name: &str,
        authority: &CertificateAuthority,
        leaf: &Leaf,
        now: Timestamp,
    ) -> Result<CertifiedKey, PkiError> {
        let (certificate, key) = self.paths(name);
        let pair = authority.issue(leaf, now)?;
        files::write(&key, pair.key_pem.as_bytes(), files::PRIVATE)?;
        files::write(&certificate, pair.certificate_pem.as_bytes(), files::PUBLIC)?;
        Ok(pair)
    }

    fn authorities(&self) -> [(&'static str, &CertificateAuthority); 3] {
        [("ca.crt", &self.cluster), ("front-proxy-ca.crt", &self.front_proxy), ("etcd/ca.crt", &self.etcd)]
    }

    fn file_of(&self, authority: &CertificateAuthority) -> &'static str {
        let same = |other: &CertificateAuthority| other.certificate_pem() == authority.certificate_pem();
        self.authorities().into_iter().find(|(_, other)| same(other)).map_or("ca.crt", |(file, _)| file)
    }

    /// The pair on disk, if both files are there and belong together: not so in the middle of a renewal.
    pub fn read(&self, name: &str) -> Result<Option<CertifiedKey>, PkiError> {
        let (certificate, key) = self.paths(name);
        let (Some(certificate_pem), Some(key_pem)) = (files::read(&certificate)?, files::read(&key)?) else {
            return Ok(None);
        };
        let what = certificate.display().to_string();
        let chain = authority::certificates(&certificate_pem, &what)?;
        let belongs = key_belongs(&parse(&chain[0], &what)?, &key_pem);
        Ok(belongs.then_some(CertifiedKey { certificate_pem, key_pem }))
    }

    /// Makes a leaf anew, with the names and usages it has, whatever time it has left.
    pub fn rotate(&self, name: &str, now: Timestamp) -> Result<CertifiedKey, PkiError> {
        let (certificate, _) = self.paths(name);
        let pem = files::read(&certificate)?.ok_or_else(|| PkiError::Missing { path: certificate.clone() })?;
        let what = certificate.display().to_string();
        let chain = authority::certificates(&pem, &what)?;
        let leaf = leaf_of(&parse(&chain[0], &what)?, &what)?;
        let mut ours = self.authorities().into_iter().map(|(_, authority)| authority);
        let authority = ours
            .find(|authority| authority.can_sign() && is_signed_by(&pem, authority.certificate_pem()))
            .ok_or(PkiError::NotOurs { path: certificate })?;
        self.issue(name, authority, &leaf, now)
    }

    /// Where the certificate and the key of `name` are.
    pub fn paths(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.folder.join(format!("{name}.crt")), self.folder.join(format!("{name}.key")))
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Says what to do about a file that cannot be read as what it is to be.
fn with_remedy(remedy: impl FnOnce(Box<PkiError>) -> PkiError) -> impl FnOnce(PkiError) -> PkiError {
    move |error| match error {
        PkiError::Certificate { .. } | PkiError::Key { .. } | PkiError::Mismatch { .. } => remedy(Box::new(error)),
        other => other,
    }
}

/// Whether a leaf on disk serves on. A pair of ours that does not match is what a crash between two
/// writes leaves, and is made again; one of an administrator is an error. So is one that has expired and cannot be
/// made again here.
fn is_kept(
    pair: &CertifiedKey,
    certificate: &Path,
    key: &Path,
    authority: &CertificateAuthority,
    leaf: &Leaf,
    now: Timestamp,
) -> Result<bool, PkiError> {
    let what = certificate.display().to_string();
    let chain = authority::certificates(&pair.certificate_pem, &what)?;
    let parsed = parse(&chain[0], &what)?;
    let is_ours = authority.can_sign() && is_signed_by(&pair.certificate_pem, authority.certificate_pem());
    let belongs = key_belongs(&parsed, &pair.key_pem);
    match (is_ours, belongs) {
        (true, true) => Ok(!expires_soon(&parsed, now) && has_names(&parsed, leaf)),
        (true, false) => Ok(false),
        (false, true) => check_time(&pair.certificate_pem, certificate, now).map(|()| true),
        (false, false) => Err(PkiError::Mismatch { certificate: certificate.to_owned(), key: key.to_owned() }),
    }
}

/// A certificate that is used as it is must be valid now.
fn check_time(pem: &str, path: &Path, now: Timestamp) -> Result<(), PkiError> {
    let what = path.display().to_string();
    let chain = authority::certificates(pem, &what)?;
    let parsed = parse(&chain[0], &what)?;
    let time = |seconds: i64| Timestamp::from_second(seconds).unwrap_or(now);
    let (from, until) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    if now.as_second() > until {
        return Err(PkiError::Expired { path: path.to_owned(), at: time(until) });
    }
    if now.as_second() < from {
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        return Err(PkiError::NotYetValid { path: path.to_owned(), from: time(from), now });
    }
    Ok(())
}

/// Whether the certificate at `path` is valid now. One that is not there has nothing to say.
pub fn check_time_of(path: &Path, now: Timestamp) -> Result<(), PkiError> {
    files::read(path)?.map_or(Ok(()), |pem| check_time(&pem, path, now))
}

/// What a certificate says, to be said again.
fn leaf_of(certificate: &X509Certificate<'_>, what: &str) -> Result<Leaf, PkiError> {
    let subject = crate::subject::subject_of(certificate, what)?;
    let usage = certificate.extended_key_usage().ok().flatten();
    let mut leaf = Leaf {
        organizations: subject.organizations,
        server: usage.as_ref().is_some_and(|usage| usage.value.server_auth),
        client: usage.as_ref().is_some_and(|usage| usage.value.client_auth),
        ..Leaf::client(&subject.common_name, &[])
    };
    if let Ok(Some(names)) = certificate.subject_alternative_name() {
        for name in &names.value.general_names {
            match name {
                GeneralName::DNSName(name) => leaf.dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => leaf.ip_addresses.extend(address(bytes)),
                _ => {}
            }
        }
    }
    Ok(leaf)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let ipv4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    ipv4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn parse<'a>(der: &'a [u8], what: &str) -> Result<X509Certificate<'a>, PkiError> {
    let parsed = x509_parser::parse_x509_certificate(der);
    let bad =
        |error: &dyn std::fmt::Display| PkiError::Certificate { what: what.to_owned(), detail: error.to_string() };
    parsed.map(|(_, certificate)| certificate).map_err(|error| bad(&error))
}

fn key_belongs(certificate: &X509Certificate<'_>, key_pem: &str) -> bool {
    use rcgen::PublicKeyData;
    rcgen::KeyPair::from_pem(key_pem).is_ok_and(|key| key.subject_public_key_info() == certificate.public_key().raw)
}

fn expires_soon(certificate: &X509Certificate<'_>, now: Timestamp) -> bool {
    let validity = certificate.validity();
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    // A clock that was wrong when the certificate was made leaves one that is not valid yet.
    now.as_second() < from || until - now.as_second() < (until - from) / RENEW_SHARE
}

fn has_names(certificate: &X509Certificate<'_>, leaf: &Leaf) -> bool {
    let names = match certificate.subject_alternative_name() {
        Ok(Some(extension)) => extension.value.general_names.as_slice(),
        _ => &[],
    };
    let has_dns =
        |wanted: &String| names.iter().any(|name| matches!(name, GeneralName::DNSName(have) if have == wanted));
    let has_ip = |wanted: &IpAddr| {
        names.iter().any(|name| matches!(name, GeneralName::IPAddress(have) if address(have) == Some(*wanted)))
    };
    leaf.dns_names.iter().all(has_dns) && leaf.ip_addresses.iter().all(has_ip)
}

/// Whether the first certificate of a PEM text is valid for all of these names.
pub fn is_for(pem: &str, names: &Names) -> bool {
    let Ok(chain) = authority::certificates(pem, "certificate") else { return false };
    let leaf = Leaf::server("", names.dns_names.clone(), names.ip_addresses.clone());
    parse(&chain[0], "certificate").is_ok_and(|parsed| has_names(&parsed, &leaf))
}

/// Whether a key is that of the first certificate of a PEM text: not so in the middle of a renewal.
pub fn belongs(certificate_pem: &str, key_pem: &str) -> bool {
    let Ok(chain) = authority::certificates(certificate_pem, "certificate") else { return false };
    parse(&chain[0], "certificate").is_ok_and(|parsed| key_belongs(&parsed, key_pem))
}

/// Whether the first certificate of a chain carries the signature of an authority.
pub fn is_signed_by(chain_pem: &str, authority_pem: &str) -> bool {
    let (Ok(chain), Ok(authorities)) = (
        authority::certificates(chain_pem, "certificate"),
        authority::certificates(authority_pem, "certificate authority"),
    ) else {
        return false;
    };
    let (Ok(leaf), Ok(issuer)) = (parse(&chain[0], "certificate"), parse(&authorities[0], "certificate authority"))
    else {
        return false;
    };
    leaf.verify_signature(Some(issuer.public_key())).is_ok()
}

/// When the first certificate of a PEM text begins and ends to be valid; `None` if there is none that can be read.
pub fn validity(pem: &[u8]) -> Option<(Timestamp, Timestamp)> {
    let chain = authority::certificates(std::str::from_utf8(pem).ok()?, "certificate").ok()?;
    let parsed = parse(chain.first()?, "certificate").ok()?;
    let time = |seconds: i64| Timestamp::from_second(seconds).ok();
    Some((time(parsed.validity().not_before.timestamp())?, time(parsed.validity().not_after.timestamp())?))
}

/// When the first certificate of a PEM text expires; `None` if there is none that can be read.
pub fn not_after(pem: &[u8]) -> Option<Timestamp> {
    validity(pem).map(|(_, until)| until)
}

/// When a leaf is to be made anew; `None` if it cannot be read.
pub fn renewal(pem: &[u8]) -> Option<Timestamp> {
    let (from, until) = validity(pem)?;
    until.checked_sub(until.duration_since(from) / i32::try_from(RENEW_SHARE).ok()?).ok()
}

/// What `rkube certificate check` shows of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    pub subject: String,
    pub issuer: String,
    pub not_after: Timestamp,
    pub is_authority: bool,
    /// Until expiry; zero when past.
    pub left: Duration,
    /// Less is left than a leaf of ours is renewed at.
    pub is_due: bool,
}

/// Reads the first certificate of a PEM file.
pub fn inspect(path: &Path, now: Timestamp) -> Result<Inspection, PkiError> {
    let what = path.display().to_string();
    let pem = files::read(path)?.ok_or_else(|| PkiError::Missing { path: path.to_owned() })?;
    let chain = authority::certificates(&pem, &what)?;
    let parsed = parse(&chain[0], &what)?;
    let until = parsed.validity().not_after.timestamp();
    let not_after = Timestamp::from_second(until)
        .map_err(|error| PkiError::Certificate { what: what.clone(), detail: error.to_string() })?;
    Ok(Inspection {
        subject: parsed.subject().to_string(),
        issuer: parsed.issuer().to_string(),
        not_after,
        is_authority: parsed.is_ca(),
        left: Duration::from_secs(u64::try_from(until - now.as_second()).unwrap_or(0)),
        is_due: expires_soon(&parsed, now),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn names() -> Names {
        Names::api_server("cluster.local", "host", IpAddr::from([10, 43, 0, 1]))
    }

    fn contents(folder: &Path) -> BTreeMap<PathBuf, String> {
        let mut all = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    all.insert(path.clone(), std::fs::read_to_string(path).unwrap());
                }
            }
        }
        all
    }

    fn start(folder: &Path, names: &Names, now: Timestamp) -> CertifiedKey {
        let tree = Tree::open(folder, now).unwrap();
        tree.kubelet_client(now).unwrap();
        tree.front_proxy_client(now).unwrap();
        tree.serving(names, now).unwrap()
    }

    #[test]
    fn a_second_start_changes_no_file_and_keys_are_private() {
        let folder = tempfile::tempdir().unwrap();
        start(folder.path(), &names(), now());
        let first = contents(folder.path());
        start(folder.path(), &names(), now());
        assert_eq!(contents(folder.path()), first);
        for path in first.keys().filter(|path| path.extension().is_some_and(|extension| extension == "key")) {
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
        }
    }

    #[test]
    fn a_new_address_or_an_old_certificate_makes_a_new_leaf_and_no_new_authority() {
        let folder = tempfile::tempdir().unwrap();
        let before = start(folder.path(), &names(), now());
        let authority = std::fs::read_to_string(folder.path().join("ca.crt")).unwrap();
        let mut moved = names();
        moved.add("192.0.2.7");
        let after = start(folder.path(), &moved, now());
        assert_ne!(before.certificate_pem, after.certificate_pem);
        let later = now() + Duration::from_secs(300 * 24 * 3600);
        assert_ne!(start(folder.path(), &moved, later).certificate_pem, after.certificate_pem);
        assert_eq!(std::fs::read_to_string(folder.path().join("ca.crt")).unwrap(), authority);
    }

    #[test]
    fn a_leaf_of_an_administrators_authority_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        start(folder.path(), &names(), now());
        let (theirs, _) = CertificateAuthority::generate("corporate", now()).unwrap();
        let pair =
            theirs.issue(&Leaf::server("api.example", vec!["api.example".to_owned()], Vec::new()), now()).unwrap();
        std::fs::write(folder.path().join("apiserver.crt"), &pair.certificate_pem).unwrap();
        std::fs::write(folder.path().join("apiserver.key"), &pair.key_pem).unwrap();
        assert_eq!(start(folder.path(), &names(), now()).certificate_pem, pair.certificate_pem);
    }

    #[test]
    fn half_written_files_of_a_crash_are_completed() {
        let folder = tempfile::tempdir().unwrap();
        start(folder.path(), &names(), now());
        let key = std::fs::read_to_string(folder.path().join("ca.key")).unwrap();
        std::fs::remove_file(folder.path().join("ca.crt")).unwrap();
        std::fs::remove_file(folder.path().join("apiserver.crt")).unwrap();
        start(folder.path(), &names(), now());
        assert_eq!(std::fs::read_to_string(folder.path().join("ca.key")).unwrap(), key);
    }

    #[test]
    fn an_authority_without_its_key_makes_nothing_and_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let pair = start(folder.path(), &names(), now());
        std::fs::remove_file(folder.path().join("ca.key")).unwrap();
        let first = contents(folder.path());
        // What it signed elsewhere is used as it is, until it expires.
        let mut moved = names();
        moved.add("192.0.2.7");
        assert_eq!(start(folder.path(), &moved, now()).certificate_pem, pair.certificate_pem);
        assert_eq!(contents(folder.path()), first);
        let tree = Tree::open(folder.path(), now()).unwrap();
        assert!(!tree.cluster.can_sign());
        let error = |result: Result<CertifiedKey, PkiError>| {
            result.unwrap_err().to_string().replace(&folder.path().display().to_string(), "D")
        };
        assert_eq!(
            error(tree.client("client-new", "someone", &[], now())),
            "D/client-new.crt cannot be made, because the key of its authority is not here: put the key beside ca.crt, \
             or a certificate and key that this authority signed at D/client-new.crt"
        );
        assert_eq!(
            error(tree.serving(&names(), now() + Duration::from_secs(366 * 24 * 3600))),
            "D/apiserver.crt expired on 2027-01-01T00:00:00Z: replace it and its key, or remove both to have new ones made"
        );
        assert_eq!(
            error(tree.rotate("apiserver", now())),
            "D/apiserver.crt was signed by an authority whose key is not here; whoever made it must renew it"
        );
        assert_eq!(contents(folder.path()), first);
    }

    #[test]
    fn a_clock_that_is_wrong_is_told_from_a_certificate_that_is() {
        let folder = tempfile::tempdir().unwrap();
        start(folder.path(), &names(), now());
        let first = contents(folder.path());
        let at = |time: &str| {
            let error = Tree::open(folder.path(), time.parse().unwrap()).unwrap_err().to_string();
            error.replace(&folder.path().display().to_string(), "D")
        };
        assert_eq!(
            at("2020-01-01T00:00:00Z"),
            "D/ca.crt is not valid before 2025-12-31T23:55:00Z and the clock says 2020-01-01T00:00:00Z: set the clock"
        );
        assert_eq!(
            at("2040-01-01T00:00:00Z"),
            "D/ca.crt expired on 2035-12-30T00:00:00Z: replace it and its key, or remove both to have new ones made"
        );
        assert_eq!(contents(folder.path()), first);
    }

    #[test]
    fn a_rotated_leaf_says_what_the_old_one_said() {
        let folder = tempfile::tempdir().unwrap();
        let old = start(folder.path(), &names(), now());
        let tree = Tree::open(folder.path(), now()).unwrap();
        let later = now() + Duration::from_secs(24 * 3600);
        let new = tree.rotate("apiserver", later).unwrap();
        assert_ne!((&old.certificate_pem, &old.key_pem), (&new.certificate_pem, &new.key_pem));
        assert_eq!(tree.serving(&names(), later).unwrap().certificate_pem, new.certificate_pem);
        assert_eq!(tree.read("apiserver").unwrap().unwrap().key_pem, new.key_pem);
        let client = tree.client("client-admin", "kubernetes-admin", &["a", "b"], now()).unwrap();
        let told = |pair: &CertifiedKey| {
            let chain = pair.chain().unwrap();
            let subject = crate::subject(&chain[0]).unwrap();
            (subject.common_name, subject.organizations)
        };
        assert_eq!(told(&tree.rotate("client-admin", later).unwrap()), told(&client));
        tree.front_proxy_client(now()).unwrap();
        let front = tree.rotate("front-proxy-client", later).unwrap();
        assert!(is_signed_by(&front.certificate_pem, tree.front_proxy.certificate_pem()));
    }

    #[test]
    fn a_request_keeps_every_organization_and_name_and_gets_only_the_signers_usages() {
        let (authority, _) = CertificateAuthority::generate("kubernetes", now()).unwrap();
        let leaf =
            Leaf { dns_names: vec!["node-1".to_owned()], ..Leaf::client("system:node:node-1", &["system:nodes"]) };
        let made = crate::csr::request(&leaf).unwrap();
        let request = crate::csr::SigningRequest::parse(made.request_pem.as_bytes()).unwrap();
        assert_eq!(
            (request.common_name.as_str(), request.organizations.as_slice()),
            ("system:node:node-1", &["system:nodes".to_owned()][..])
        );
        assert_eq!(request.dns_names, ["node-1"]);
        let usages = crate::Usages { digital_signature: true, key_encipherment: false, server: false, client: true };
        let signed = authority.sign(&request, usages, Duration::from_secs(3600), now()).unwrap();
        let chain = authority::certificates(&signed, "signed").unwrap();
        let parsed = parse(&chain[0], "signed").unwrap();
        let issuers = authority::certificates(authority.certificate_pem(), "ca").unwrap();
        parsed.verify_signature(Some(parse(&issuers[0], "ca").unwrap().public_key())).unwrap();
        assert!(!parsed.is_ca());
        let usage = parsed.extended_key_usage().unwrap().unwrap();
        assert!(usage.value.client_auth && !usage.value.server_auth);
        assert!(key_belongs(&parsed, &made.key_pem));
    }

    #[test]
    fn several_organizations_survive_in_a_certificate() {
        let (authority, _) = CertificateAuthority::generate("kubernetes", now()).unwrap();
        let pair = authority.issue(&Leaf::client("alice", &["dev", "ops"]), now()).unwrap();
        let chain = pair.chain().unwrap();
        let parsed = parse(&chain[0], "leaf").unwrap();
        let organizations: Vec<&str> = parsed.subject().iter_organization().map(|o| o.as_str().unwrap()).collect();
        assert_eq!(organizations, ["dev", "ops"]);
    }
}
