//! The settings of `rkube server` and `rkube agent`, as one table.
//!
//! A row is a flag `--some-flag`, a key `some-flag` in the configuration file and an environment
//! variable `RKUBE_SOME_FLAG`. Parsing, help, checking and the configuration reference read it.

use Form::{Address, Choice, Cidr, List, Mode, Path, Port, PortRange, Repeated, Switch, Text};
use Roles::{Agent, Both, Server};

/// One setting.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    /// An older or shorter name, accepted everywhere the name is.
    pub(crate) alias: Option<&'static str>,
    pub(crate) roles: Roles,
    pub(crate) form: Form,
    /// Shown in help and used when the setting is not given.
    pub(crate) default: Option<&'static str>,
    /// The value is never shown in help, logs or errors, and not accepted where others can read it.
    pub(crate) secret: bool,
    pub(crate) group: &'static str,
    pub(crate) help: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Roles {
    Server,
    Agent,
    Both,
}

impl Roles {
    pub(crate) fn includes(self, role: Roles) -> bool {
        self == Roles::Both || self == role
    }
}

/// What a value looks like. Checked when the setting is read, with a message that names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    /// Given several times or comma-separated.
    List,
    /// Given several times; a value keeps its commas.
    Repeated,
    /// Present, or `true`/`false`.
    Switch,
    Path,
    Port,
    PortRange,
    Address,
    Cidr,
    /// Octal file mode.
    Mode,
    Choice(&'static [&'static str]),
}

const fn setting(name: &'static str, roles: Roles, form: Form, group: &'static str, help: &'static str) -> Setting {
    Setting { name, alias: None, roles, form, default: None, secret: false, group, help }
}

impl Setting {
    const fn default(mut self, value: &'static str) -> Self {
        self.default = Some(value);
        self
    }

    const fn alias(mut self, alias: &'static str) -> Self {
        self.alias = Some(alias);
        self
    }

    const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// `RKUBE_SOME_FLAG`
    pub(crate) fn environment(&self) -> String {
        format!("RKUBE_{}", self.name.replace('-', "_").to_ascii_uppercase())
    }

    pub(crate) fn is_named(&self, name: &str) -> bool {
        self.name == name || self.alias == Some(name)
    }
}

const LISTENER: &str = "Listener";
const CLUSTER: &str = "Cluster";
const ACCESS: &str = "Access";
const DATA: &str = "Data";
const NODE: &str = "Node";
const LOGGING: &str = "Logging";

pub(crate) const CONFIG_FILE: &str = "/etc/rkube/config.yaml";

/// Every setting, by subject.
pub(crate) static SETTINGS: &[Setting] = &[
    setting("config", Both, Path, LOGGING, "Configuration file; files in `<file>.d` are read after it")
        .default(CONFIG_FILE),
    setting("debug", Both, Switch, LOGGING, "Log what happens and why, for every component"),
    setting(
        "log-level",
        Both,
        List,
        LOGGING,
        "Log level as `level` or `component=level`: error, warn, info, debug or trace",
    ),
    setting("log-format", Both, Choice(&["text", "json"]), LOGGING, "How log lines are written").default("text"),
    setting("data-dir", Both, Path, DATA, "Folder for everything rkube keeps").default("/var/lib/rkube"),
    setting(
        "datastore-endpoint",
        Server,
        Text,
        DATA,
        "etcd endpoints, comma-separated URLs; without it the embedded datastore is used",
    ),
    setting("datastore-cafile", Server, Path, DATA, "Authority that signed the certificates of etcd"),
    setting("datastore-certfile", Server, Path, DATA, "Client certificate for etcd"),
    setting("datastore-keyfile", Server, Path, DATA, "Key of the client certificate for etcd"),
    setting("bind-address", Server, Address, LISTENER, "Address the API server listens on").default("0.0.0.0"),
    setting("https-listen-port", Server, Port, LISTENER, "Port the API server listens on").default("6443"),
    setting(
        "advertise-address",
        Server,
        Address,
        LISTENER,
        "Address other machines reach this server by; that of the default route if not given",
    ),
    setting(
        "tls-san",
        Server,
        List,
        LISTENER,
        "More host names and addresses the API server's certificate is valid for",
    ),
    setting("cluster-cidr", Server, Cidr, CLUSTER, "Network pods get their addresses from").default("10.42.0.0/16"),
    setting("service-cidr", Server, Cidr, CLUSTER, "Network Services get their addresses from").default("10.43.0.0/16"),
    setting("cluster-dns", Server, Address, CLUSTER, "Address of cluster DNS, inside the service network")
        .default("10.43.0.10"),
    setting("cluster-domain", Server, Text, CLUSTER, "Domain of cluster names").default("cluster.local"),
    setting("service-node-port-range", Server, PortRange, CLUSTER, "Ports for Services of type NodePort")
        .default("30000-32767"),
    setting(
        "scheduler-config",
        Server,
        Path,
        CLUSTER,
        "KubeSchedulerConfiguration: profiles, plugins, weights, back-off",
    ),
    setting(
        "kube-controller-manager-arg",
        Server,
        Repeated,
        CLUSTER,
        "Settings of the controllers by the names of kube-controller-manager's flags, as name=value",
    ),
    setting("disable", Server, List, CLUSTER, "Components not to run and packaged manifests not to deploy"),
    setting("disable-agent", Server, Switch, CLUSTER, "Run the control plane without a node on this machine"),
    setting("join", Agent, Text, ACCESS, "Server to join, as https://host:6443").alias("server"),
    setting(
        "token",
        Both,
        Text,
        ACCESS,
        "Server: secret that servers on the same datastore and agents join with, generated if not given. Agent: token to join with, from \
         `<data-dir>/server/token` or `rkube token create`",
    )
    .secret(),
    setting("token-file", Both, Path, ACCESS, "File that holds the token"),
    setting("agent-token", Server, Text, ACCESS, "Secret for agents only, beside --token, which is then for servers").secret(),
    setting("write-kubeconfig", Server, Path, ACCESS, "Where to write the admin kubeconfig")
        .default("/etc/rkube/rkube.yaml"),
    setting("write-kubeconfig-mode", Server, Mode, ACCESS, "Mode of the admin kubeconfig").default("0600"),
    setting("node-name", Both, Text, NODE, "Name of the node; the host name if not given"),
    setting("node-ip", Both, Address, NODE, "Address of the node; that of the default route if not given"),
    setting("node-label", Both, List, NODE, "Labels the node registers with, as key=value"),
    setting("node-taint", Both, List, NODE, "Taints the node registers with, as key=value:Effect"),
    setting(
        "container-runtime-endpoint",
        Both,
        Text,
        NODE,
        "CRI socket of the container runtime, as unix:///path; found at the usual places if not given",
    ),
    setting(
        "network-backend",
        Both,
        Choice(&["vxlan", "host-gw", "none"]),
        NODE,
        "How pods on different nodes reach each other; `none` leaves the pod network to another CNI plugin",
    )
    .default("vxlan"),
    setting("kubelet-root-dir", Both, Path, NODE, "Folder for pods and their volumes").default("/var/lib/kubelet"),
    setting("pod-logs-dir", Both, Path, NODE, "Folder for the logs of pods").default("/var/log/pods"),
    setting(
        "private-registry",
        Both,
        Path,
        NODE,
        "Mirrors, authorities and credentials of image registries, for containerd's config_path \
         `<data-dir>/agent/etc/containerd/certs.d`",
    )
    .default("/etc/rkube/registries.yaml"),
    setting("kubelet-arg", Both, Repeated, NODE, "Settings of the kubelet by its upstream flag names, as name=value"),
    setting("cgroup-root", Both, Path, NODE, "Cgroup that pods are made under").default("/"),
    setting("cni-bin-dir", Both, Path, NODE, "Folder the container runtime finds CNI plugins in")
        .default("/opt/cni/bin"),
    setting("cni-conf-dir", Both, Path, NODE, "Folder the container runtime finds the CNI configuration in")
        .default("/etc/cni/net.d"),
    setting("resolv-conf", Both, Path, NODE, "DNS configuration for names outside the cluster")
        .default("/etc/resolv.conf"),
    setting(
        "stub-domain",
        Both,
        List,
        NODE,
        "Name servers for the names of one domain, as domain=address or domain=address:port; several for one domain are \
         asked in turn",
    ),
    setting(
        "lb-server-port",
        Agent,
        Port,
        NODE,
        "Local port through which this agent reaches whichever server of the cluster answers",
    )
    .default("6444"),
];

/// The settings of one role, in the table's order.
pub(crate) fn of(role: Roles) -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().filter(move |setting| setting.roles.includes(role))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_help_is_a_sentence_without_a_full_stop() {
        let mut names = BTreeSet::new();
        for setting in SETTINGS {
            assert!(names.insert(setting.name), "{} is listed twice", setting.name);
            assert!(!setting.help.ends_with('.') && !setting.help.is_empty(), "{}", setting.name);
        }
    }
}
