//! `rkube check-config`: whether this machine can run rkube, each finding with its remedy.
//!
//! Inputs: `/proc`, `/sys`, sockets, and what the role is configured with. Outputs: findings; nothing is changed.
//!
//! Invariant: everything under the root folder is only read, so tests give it another root.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rkube_apimachinery::chain::chain;
use rkube_apimachinery::names::name_is_dns_subdomain;
use rkube_cri::v1::VersionRequest;
use rkube_cri::{Remote, RuntimeService};
use rkube_pki::{PkiError, tree};
use serde::Serialize;

use crate::config::{NetworkBackend, NodeConfig, Paths, ServerConfig};

/// The oldest kernel the node network and cgroups are known to work with.
const KERNEL_MIN: (u32, u32) = (5, 4);
const DISK_MIN: u64 = 512 * MEBIBYTE;
const DISK_LOW: u64 = 2048 * MEBIBYTE;
const MEMORY_LOW: u64 = 512 * MEBIBYTE;
const MEBIBYTE: u64 = 1024 * 1024;
const RUNTIME_TIMEOUT: Duration = Duration::from_secs(5);
const VXLAN_PORT: u16 = 8472;
const KUBELET_PORT: u16 = 10250;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    Warning,
    Failed,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub verdict: Verdict,
    pub check: &'static str,
    pub detail: String,
    /// What to do; empty where nothing is to be done.
    pub remedy: String,
}

/// What is to run here.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub data_dir: PathBuf,
    /// Where the API server listens.
    pub api: Option<SocketAddr>,
    /// Where an agent's parts reach the servers.
    pub balancer: Option<SocketAddr>,
    pub node: Option<NodeConfig>,
}

impl Wanted {
    pub fn server(config: &ServerConfig) -> Self {
        Self {
            data_dir: config.data_dir.clone(),
            api: Some(SocketAddr::new(config.bind_address, config.https_listen_port)),
            balancer: None,
            node: config.agent.clone(),
        }
    }

    pub fn agent(data_dir: &Path, lb_server_port: u16, node: &NodeConfig) -> Self {
        let balancer = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, lb_server_port)));
        Self { data_dir: data_dir.to_owned(), api: None, balancer, node: Some(node.clone()) }
    }
}

/// Runs every check. `root` is `/`.
pub async fn run(wanted: &Wanted, root: &Path, now: Timestamp) -> Vec<Finding> {
    let host = Host { root: root.to_owned() };
    let mut findings = vec![host.root_user(wanted.node.is_some()), host.kernel()];
    if let Some(node) = &wanted.node {
        findings.push(host.cgroups());
        findings.extend(host.features(node.network_backend));
        findings.push(host.memory());
    }
    findings.push(host.host_name(wanted.node.as_ref()));
    findings.extend(ports(wanted));
    findings.push(clock(&wanted.data_dir, now));
    findings.push(disk("disk for --data-dir", &wanted.data_dir));
    if let Some(node) = &wanted.node {
        findings.push(disk("disk for --kubelet-root-dir", &node.kubelet_root_dir));
        findings.push(runtime(node.container_runtime_endpoint.as_deref()).await);
    }
    findings
}

/// What makes it useless to start at all; the rest is said by what does not work then.
pub(crate) fn obstacle(is_node: bool, root: &Path) -> Option<Finding> {
    let host = Host { root: root.to_owned() };
    let mut findings = vec![host.root_user(is_node), host.kernel()];
    if is_node {
        findings.push(host.cgroups());
    }
    findings.into_iter().find(|finding| finding.verdict == Verdict::Failed)
}

fn ok(check: &'static str, detail: impl Into<String>) -> Finding {
    Finding { verdict: Verdict::Ok, check, detail: detail.into(), remedy: String::new() }
}

fn warning(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { verdict: Verdict::Warning, check, detail: detail.into(), remedy: remedy.into() }
}

fn failed(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { verdict: Verdict::Failed, check, detail: detail.into(), remedy: remedy.into() }
}

/// The machine, as its file systems tell of it.
struct Host {
    root: PathBuf,
}

impl Host {
    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok()
    }

    fn root_user(&self, needs_root: bool) -> Finding {
        const CHECK: &str = "root";
        let status = self.read("proc/self/status").unwrap_or_default();
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1)?.parse().ok());
        match (uid, needs_root) {
            (Some(0_u32), _) => ok(CHECK, "running as root"),
            (_, true) => {
                failed(CHECK, "not running as root", "run it with sudo; a node mounts, and makes network links")
            }
            (_, false) => warning(
                CHECK,
                "not running as root",
                "fine for a control plane alone, if --data-dir and --write-kubeconfig are writable",
            ),
        }
    }

    fn release(&self) -> String {
        self.read("proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
    }

    fn kernel(&self) -> Finding {
        const CHECK: &str = "kernel";
        let release = self.release();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok());
        let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
            return warning(CHECK, format!("release {release:?} is not known"), "check that it is Linux 5.4 or newer");
        };
        if (major, minor) < KERNEL_MIN {
            return failed(CHECK, format!("Linux {release} is too old"), "upgrade to Linux 5.4 or newer");
        }
        ok(CHECK, format!("Linux {release}"))
    }

    fn cgroups(&self) -> Finding {
        const CHECK: &str = "cgroups";
        const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];
        let remedy = |missing: &[&str]| {
            format!("enable {} (on a Raspberry Pi: cgroup_enable=memory in cmdline.txt) and reboot", missing.join(", "))
        };
        let missing = |have: &[&str]| NEEDED.into_iter().filter(|name| !have.contains(name)).collect::<Vec<_>>();
        if let Some(controllers) = self.read("sys/fs/cgroup/cgroup.controllers") {
            let have: Vec<&str> = controllers.split_whitespace().collect();
            return match missing(&have).as_slice() {
                [] => ok(CHECK, "version 2 with cpu, memory, pids"),
                missing => failed(CHECK, format!("version 2 without {}", missing.join(", ")), remedy(missing)),
            };
        }
        // name, hierarchy, number of groups, enabled
        let table = self.read("proc/cgroups").unwrap_or_default();
        let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let enabled: Vec<String> =
            rows.filter(|row| row.get(3) == Some(&"1")).filter_map(|row| Some((*row.first()?).to_owned())).collect();
        let mounted = |name: &&String| self.root.join("sys/fs/cgroup").join(name.as_str()).is_dir();
        let have: Vec<&str> = enabled.iter().filter(mounted).map(String::as_str).collect();
        match missing(&have).as_slice() {
            [] => ok(CHECK, "version 1 with cpu, memory, pids"),
            missing if have.is_empty() => {
                failed(CHECK, "not mounted", format!("mount cgroups at /sys/fs/cgroup; {}", remedy(missing)))
            }
            missing => failed(CHECK, format!("version 1 without {}", missing.join(", ")), remedy(missing)),
        }
    }

    fn features(&self, backend: NetworkBackend) -> Vec<Finding> {
        let mut wanted = vec![
            ("kernel overlay", "overlay", "container images are layered with it"),
            ("kernel nf_tables", "nf_tables", "Services are rules of it"),
            ("kernel nf_conntrack", "nf_conntrack", "Services follow connections with it"),
        ];
        if backend != NetworkBackend::None {
            wanted.push(("kernel bridge", "bridge", "pods of one node are joined by one"));
            wanted.push(("kernel veth", "veth", "pods are wired with it"));
            wanted.push((
                "kernel br_netfilter",
                "br_netfilter",
                "pods of one node reach one another through Services by it",
            ));
        }
        if backend == NetworkBackend::Vxlan {
            wanted.push((
                "kernel vxlan",
                "vxlan",
                "pods of different nodes are joined by it; --network-backend=host-gw does without",
            ));
        }
        let modules = format!("lib/modules/{}", self.release());
        let builtin = self.read(&format!("{modules}/modules.builtin"));
        let loadable = self.read(&format!("{modules}/modules.dep"));
        let file_systems = self.read("proc/filesystems").unwrap_or_default();
        let listed = |text: &Option<String>, module: &str| {
            let file = format!("/{module}.ko");
            text.as_ref().is_some_and(|text| {
                text.lines().any(|line| line.split(':').next().is_some_and(|path| path.contains(&file)))
            })
        };
        let check = |(check, module, why): (&'static str, &str, &str)| {
            let in_use = self.root.join("sys/module").join(module).is_dir()
                || file_systems.split_whitespace().any(|name| name == module);
            if in_use {
                ok(check, "there")
            } else if listed(&builtin, module) {
                ok(check, "built in")
            } else if listed(&loadable, module) {
                ok(check, "a module, loaded when it is needed")
            } else if builtin.is_none() && loadable.is_none() {
                warning(check, "not loaded, and this machine lists no modules", format!("{why}; try modprobe {module}"))
            } else {
                failed(check, "missing", format!("{why}; install a kernel that has {module}"))
            }
        };
        wanted.into_iter().map(check).collect()
    }

    fn memory(&self) -> Finding {
        const CHECK: &str = "memory";
        let info = self.read("proc/meminfo").unwrap_or_default();
        let total =
            info.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
        let Some(total) = total.map(|kibibytes: u64| kibibytes * 1024) else {
            return warning(CHECK, "unknown", "check that /proc/meminfo can be read");
        };
        let detail = format!("{} MiB", total / MEBIBYTE);
        if total < MEMORY_LOW {
            return warning(CHECK, detail, "pods will have little room; 512 MiB and more are comfortable");
        }
        ok(CHECK, detail)
    }

    fn host_name(&self, node: Option<&NodeConfig>) -> Finding {
        const CHECK: &str = "host name";
        let own = self.read("proc/sys/kernel/hostname").unwrap_or_default().trim().to_ascii_lowercase();
        let name = node.map_or(own, |node| node.node_name.clone());
        let remedy = "set one with hostnamectl, or name the node with --node-name";
        if name == "localhost" || name == "(none)" {
            return failed(CHECK, format!("{name:?} names every machine"), remedy);
        }
        match name_is_dns_subdomain(&name, false).first() {
            Some(fault) => failed(CHECK, format!("{name:?}: {fault}"), remedy),
            None => ok(CHECK, name),
        }
    }
}

/// Whether what is to listen could.
fn ports(wanted: &Wanted) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(api) = wanted.api {
        findings.push(tcp_port("port of the API server", api, "stop what listens there, or use --https-listen-port"));
    }
    if let Some(balancer) = wanted.balancer {
        findings.push(tcp_port("port to the servers", balancer, "stop what listens there, or use --lb-server-port"));
    }
    if let Some(node) = &wanted.node {
        let any = IpAddr::from([0, 0, 0, 0]);
        let kubelet = SocketAddr::new(any, KUBELET_PORT);
        findings.push(tcp_port("port of the kubelet", kubelet, "stop what listens there: another kubelet?"));
        if node.network_backend == NetworkBackend::Vxlan {
            let outcome = UdpSocket::bind(SocketAddr::new(any, VXLAN_PORT)).map(drop);
            let remedy = "remove the other overlay network, or use --network-backend=host-gw";
            findings.push(port("port of vxlan", format!("{VXLAN_PORT}/udp"), outcome, remedy));
        }
    }
    findings
}

fn tcp_port(check: &'static str, address: SocketAddr, remedy: &'static str) -> Finding {
    port(check, address.to_string(), TcpListener::bind(address).map(drop), remedy)
}

fn port(check: &'static str, name: String, outcome: io::Result<()>, remedy: &'static str) -> Finding {
    match outcome {
        Ok(()) => ok(check, format!("{name} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => failed(check, format!("{name} is in use"), remedy),
        Err(error) => failed(check, format!("{name} cannot be listened on: {error}"), remedy),
    }
}

/// A clock that went back is known by certificates that are not valid yet.
fn clock(data_dir: &Path, now: Timestamp) -> Finding {
    const CHECK: &str = "clock";
    // The day of the release this program follows.
    const RELEASED: &str = "2026-04-01T00:00:00Z";
    let told = rkube_apimachinery::time::format(now);
    let remedy = "set it, and keep it right with chrony or systemd-timesyncd";
    if RELEASED.parse().is_ok_and(|released: Timestamp| now < released) {
        return failed(CHECK, format!("{told} is before this program was made"), remedy);
    }
    let paths = Paths::new(data_dir);
    for certificate in [paths.tls().join("ca.crt"), paths.agent().join("client-kubelet.crt")] {
        if let Err(error @ PkiError::NotYetValid { .. }) = tree::check_time_of(&certificate, now) {
            return failed(CHECK, error.to_string(), remedy);
        }
    }
    ok(CHECK, told)
}

/// Room where the folder is, or would be made.
fn disk(check: &'static str, folder: &Path) -> Finding {
    let Some(existing) = folder.ancestors().find(|folder| folder.is_dir()) else {
        return failed(check, format!("{} has no parent folder", folder.display()), "create it");
    };
    let room = match rustix::fs::statvfs(existing) {
        Ok(room) => room,
        Err(error) => return warning(check, format!("{}: {error}", existing.display()), "check the file system"),
    };
    let free = room.f_bavail * room.f_frsize;
    let detail = format!("{}: {} MiB free", folder.display(), free / MEBIBYTE);
    let remedy = "free some, or use another file system";
    if room.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return failed(check, format!("{} is read-only", existing.display()), "use a folder that can be written to");
    }
    if room.f_files > 0 && room.f_favail < 1_000 {
        return failed(check, format!("{}: {} inodes free", folder.display(), room.f_favail), remedy);
    }
    match free {
        free if free < DISK_MIN => failed(check, detail, remedy),
        free if free < DISK_LOW => warning(check, detail, remedy),
        _ => ok(check, detail),
    }
}

async fn runtime(endpoint: Option<&str>) -> Finding {
    const CHECK: &str = "container runtime";
    let install = "install and start containerd, or name the socket with --container-runtime-endpoint";
    let Some(endpoint) = endpoint.map(str::to_owned).or_else(|| Remote::discover().map(str::to_owned)) else {
        return failed(CHECK, "no socket at the usual places", install);
    };
    let remote = match Remote::new(&endpoint) {
        Ok(remote) => remote,
        Err(error) => return failed(CHECK, format!("{endpoint}: {}", chain(&error)), install),
    };
    match tokio::time::timeout(RUNTIME_TIMEOUT, remote.version(VersionRequest::default())).await {
        Ok(Ok(version)) => ok(CHECK, format!("{} {} at {endpoint}", version.runtime_name, version.runtime_version)),
        Ok(Err(error)) => failed(
            CHECK,
            format!("{endpoint}: {}", chain(&error)),
            "start it, and enable its CRI plugin (containerd: no \"cri\" in disabled_plugins)",
        ),
        Err(_) => failed(CHECK, format!("{endpoint} does not answer"), "restart the runtime"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of files.
    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let host = Host { root: folder.path().to_owned() };
        (folder, host)
    }

    fn line(finding: &Finding) -> String {
        format!("{:?} {}: {} | {}", finding.verdict, finding.check, finding.detail, finding.remedy)
    }

    #[test]
    fn a_fit_machine_has_nothing_to_remedy() {
        let (_folder, host) = host(&[
            ("proc/self/status", "Name:\tx\nUid:\t0\t0\t0\t0\n"),
            ("proc/sys/kernel/osrelease", "6.1.0-13-amd64\n"),
            ("proc/sys/kernel/hostname", "Edge-1\n"),
            ("proc/meminfo", "MemTotal:        4000000 kB\n"),
            ("proc/filesystems", "nodev\toverlay\n"),
            ("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n"),
            ("sys/module/nf_tables/x", ""),
            ("lib/modules/6.1.0-13-amd64/modules.builtin", "kernel/net/netfilter/nf_conntrack.ko\n"),
            (
                "lib/modules/6.1.0-13-amd64/modules.dep",
                "kernel/drivers/net/veth.ko.xz: kernel/a.ko\nkernel/net/bridge/bridge.ko:\nkernel/net/bridge/br_netfilter.ko:\nkernel/drivers/net/vxlan/vxlan.ko:\n",
            ),
        ]);
        let mut findings =
            vec![host.root_user(true), host.kernel(), host.cgroups(), host.memory(), host.host_name(None)];
        findings.extend(host.features(NetworkBackend::Vxlan));
        let wrong: Vec<_> = findings.iter().filter(|finding| finding.verdict != Verdict::Ok).map(line).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn each_fault_has_its_remedy() {
        let (_folder, host) = host(&[
            ("proc/self/status", "Uid:\t1000\t1000\t1000\t1000\n"),
            ("proc/sys/kernel/osrelease", "4.4.0\n"),
            ("proc/sys/kernel/hostname", "localhost\n"),
            ("proc/meminfo", "MemTotal: 100000 kB\n"),
            (
                "proc/cgroups",
                "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t2\t1\t1\nmemory\t0\t1\t0\npids\t3\t1\t1\n",
            ),
            ("sys/fs/cgroup/cpu/x", ""),
            ("sys/fs/cgroup/pids/x", ""),
            ("lib/modules/4.4.0/modules.builtin", ""),
        ]);
        let mut findings =
            vec![host.root_user(true), host.kernel(), host.cgroups(), host.memory(), host.host_name(None)];
        findings.extend(host.features(NetworkBackend::None));
        let lines: Vec<_> = findings.iter().map(line).collect();
        assert_eq!(
            lines,
            [
                "Failed root: not running as root | run it with sudo; a node mounts, and makes network links",
                "Failed kernel: Linux 4.4.0 is too old | upgrade to Linux 5.4 or newer",
                "Failed cgroups: version 1 without memory | enable memory (on a Raspberry Pi: cgroup_enable=memory in cmdline.txt) and reboot",
                "Warning memory: 97 MiB | pods will have little room; 512 MiB and more are comfortable",
                "Failed host name: \"localhost\" names every machine | set one with hostnamectl, or name the node with --node-name",
                "Failed kernel overlay: missing | container images are layered with it; install a kernel that has overlay",
                "Failed kernel nf_tables: missing | Services are rules of it; install a kernel that has nf_tables",
                "Failed kernel nf_conntrack: missing | Services follow connections with it; install a kernel that has nf_conntrack",
            ]
        );
    }

    #[test]
    fn a_port_in_use_and_a_clock_that_went_back_are_told() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let finding = tcp_port("port", address, "move");
        assert_eq!(line(&finding), format!("Failed port: {address} is in use | move"));
        let folder = tempfile::tempdir().unwrap();
        let made = "2027-01-01T00:00:00Z".parse().unwrap();
        rkube_pki::tree::Tree::open(&Paths::new(folder.path()).tls(), made).unwrap();
        assert_eq!(clock(folder.path(), made).verdict, Verdict::Ok);
        let before = clock(folder.path(), "2026-12-01T00:00:00Z".parse().unwrap());
        assert!(before.verdict == Verdict::Failed && before.detail.contains("is not valid before"), "{before:?}");
        assert_eq!(clock(folder.path(), "1970-01-01T00:00:10Z".parse().unwrap()).verdict, Verdict::Failed);
    }

    #[tokio::test]
    async fn a_missing_runtime_is_told() {
        let finding = runtime(Some("unix:///nowhere/containerd.sock")).await;
        assert_eq!(finding.verdict, Verdict::Failed);
        assert!(finding.detail.starts_with("unix:///nowhere/containerd.sock: "), "{}", finding.detail);
    }
}
