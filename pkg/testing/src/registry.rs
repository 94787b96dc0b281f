//! A registry of images of one's own, for tests against the real thing: Debian's `docker-registry` on a port of the
//! loopback interface (`hack/install-deps test` installs it; it panics without).
//!
//! Images are put straight into the registry's folder, in its own layout, so that no test depends on pushing.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::containerd::BUSYBOX;

const PROGRAM: &str = "/usr/bin/docker-registry";
/// The last words of its line about the port it was given.
const LISTENING: &str = "listening on ";
/// Who may pull where a password is asked for.
pub const USER: &str = "me";
pub const PASSWORD: &str = "secret";
/// bcrypt of [`PASSWORD`], the only form it reads.
const HTPASSWD: &str = "me:$2y$05$m2m8T./p1suCSQu.Gn0cLeRq9k8raCYrNBYg8sKZdBi6THFfj.hRa\n";

/// How a registry meets its callers.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Files of a certificate for 127.0.0.1 and its key; plain HTTP without.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Whether it asks for [`USER`] and [`PASSWORD`].
    pub password: bool,
}

/// A running registry. Dropping it ends it.
pub struct Registry {
    folder: PathBuf,
    process: Child,
    pub address: SocketAddr,
}

impl Registry {
    /// Starts one whose files are in `folder`, and waits until it listens.
    pub fn start(folder: &Path, options: &Options) -> Self {
        assert!(Path::new(PROGRAM).exists(), "{PROGRAM} is missing: run hack/install-deps test");
        std::fs::create_dir_all(folder.join("storage")).expect("the folder is writable");
        let mut config = json!({
            "version": "0.1",
            "log": {"accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": folder.join("storage")}},
            "http": {"addr": "127.0.0.1:0"},
        });
        if let Some((certificate, key)) = &options.tls {
            config["http"]["tls"] = json!({"certificate": certificate, "key": key});
        }
        if options.password {
            let path = folder.join("htpasswd");
            std::fs::write(&path, HTPASSWD).expect("the folder is writable");
            config["auth"] = json!({"htpasswd": {"realm": "images", "path": path}});
        }
        // JSON is YAML.
        let path = folder.join("config.yml");
        std::fs::write(&path, config.to_string()).expect("the folder is writable");
        let mut process = Command::new(PROGRAM)
            .arg("serve")
            .arg(&path)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the registry starts");
        let mut output = BufReader::new(process.stderr.take().expect("the output is a pipe"));
        let mut said = String::new();
        let address = loop {
            let from = said.len();
            let more = output.read_line(&mut said).expect("the registry's output is text");
            assert!(more > 0, "the registry did not start: {said}");
            let word = said[from..].split_once(LISTENING).map(|(_, rest)| rest);
            let word = word.and_then(|rest| rest.split([',', '"', ' ', '\n']).next());
            if let Some(address) = word.and_then(|word| word.parse().ok()) {
                break address;
            }
        };
        // Read on, or the registry blocks when the pipe is full.
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        Self { folder: folder.to_owned(), process, address }
    }

    /// Puts an image into it that has a busybox and nothing else.
    pub fn put_busybox(&self, repository: &str, tag: &str) {
        let root = self.folder.join("image/bin");
        std::fs::create_dir_all(&root).expect("the folder is writable");
        std::fs::copy(BUSYBOX, root.join("busybox")).expect("busybox is installed");
        let layer = Command::new("tar")
            .args(["--create", "--owner=0", "--group=0", "--mtime=@0", "--file=-", "--directory"])
            .arg(self.folder.join("image"))
            .arg("bin")
            .output()
            .expect("tar runs")
            .stdout;
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {"Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        });
        let config = config.to_string().into_bytes();
        let describe = |kind: &str, bytes: &[u8]| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest(bytes), "size": bytes.len()});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe("config.v1+json", &config),
            "layers": [describe("layer.v1.tar", &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let home = self.folder.join("storage/docker/registry/v2/repositories").join(repository);
        for bytes in [&layer, &config] {
            self.put_blob(bytes);
            link(&home.join("_layers"), bytes);
        }
        self.put_blob(&manifest);
        let manifests = home.join("_manifests");
        link(&manifests.join("revisions"), &manifest);
        link(&manifests.join("tags").join(tag).join("index"), &manifest);
        write(&manifests.join("tags").join(tag).join("current/link"), digest(&manifest).as_bytes());
    }

    fn put_blob(&self, bytes: &[u8]) {
        let digest = digest(bytes);
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self.folder.join("storage/docker/registry/v2/blobs/sha256");
        write(&blobs.join(&hex[..2]).join(hex).join("data"), bytes);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn link(folder: &Path, bytes: &[u8]) {
    let digest = digest(bytes);
    write(&folder.join(digest.replace(':', "/")).join("link"), digest.as_bytes());
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().expect("the path has a folder")).expect("the folder is writable");
    std::fs::write(path, bytes).expect("the folder is writable");
}
