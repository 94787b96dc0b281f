//! From collected settings to the configuration of a role: types, defaults that depend on the machine,
//! and contradictions.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use rkube_daemons::config::{AgentConfig, Datastore, NetworkBackend, NodeConfig, Secret, ServerConfig, read_text};

use crate::values::{self, SettingsError, Values};

const DNS_PORT: u16 = 53;

/// The configuration of `rkube server`.
pub(crate) fn server(values: &Values) -> Result<ServerConfig, SettingsError> {
    let service_cidr = network(values, "service-cidr");
    let cluster_dns = address(values, "cluster-dns");
    if let (Some(service_cidr), Some(cluster_dns)) = (&service_cidr, cluster_dns)
        && !service_cidr.contains(cluster_dns)
    {
        return contradiction(format!("cluster-dns {cluster_dns} is outside service-cidr {service_cidr}"));
    }
    let cluster_cidr = network(values, "cluster-cidr");
    if let (Some(pods), Some(services)) = (&cluster_cidr, &service_cidr)
        && (pods.contains(services.address) || services.contains(pods.address))
    {
        return contradiction(format!("cluster-cidr {pods} and service-cidr {services} overlap"));
    }
    let disable_agent = values.switch("disable-agent");
    if disable_agent {
        for name in ["node-name", "node-ip", "node-label", "node-taint", "stub-domain"] {
            if let Some(origin) = values.origin(name) {
                return contradiction(format!("{origin} sets {name}, but disable-agent leaves no node to have it"));
            }
        }
    }
    Ok(ServerConfig {
        data_dir: path(values, "data-dir"),
        bind_address: required(address(values, "bind-address"), "bind-address")?,
        https_listen_port: port(values, "https-listen-port"),
        advertise_address: address(values, "advertise-address"),
        tls_sans: values.list("tls-san").to_vec(),
        token: token(values)?,
        agent_token: values.one("agent-token").map(Secret::new),
        cluster_cidr: required(cluster_cidr, "cluster-cidr")?,
        service_cidr: required(service_cidr, "service-cidr")?,
        cluster_dns: required(cluster_dns, "cluster-dns")?,
        cluster_domain: text(values, "cluster-domain").trim_end_matches('.').to_owned(),
        service_node_ports: required(
            values.one("service-node-port-range").and_then(values::port_range),
            "service-node-port-range",
        )?,
        write_kubeconfig: path(values, "write-kubeconfig"),
        write_kubeconfig_mode: u32::from_str_radix(&text(values, "write-kubeconfig-mode"), 8).unwrap_or(0o600),
        datastore: datastore(values)?,
        scheduler_config: values.one("scheduler-config").map(PathBuf::from),
        controller_args: values.list("kube-controller-manager-arg").to_vec(),
        disable: values.list("disable").to_vec(),
        agent: if disable_agent { None } else { Some(node(values)?) },
    })
}

/// The configuration of `rkube agent`.
pub(crate) fn agent(values: &Values) -> Result<AgentConfig, SettingsError> {
    let Some(join) = values.one("join") else {
        return contradiction("join is required: --join https://SERVER:6443".to_owned());
    };
    if !join.starts_with("https://") {
        return contradiction(format!("join must be an https:// URL, not {join:?}"));
    }
    let Some(token) = token(values)? else {
        return contradiction(
            "a token is required: --token-file, or RKUBE_TOKEN; `rkube token create` on the server makes one"
                .to_owned(),
        );
    };
    Ok(AgentConfig {
        data_dir: path(values, "data-dir"),
        join: join.to_owned(),
        token,
        lb_server_port: port(values, "lb-server-port"),
        node: node(values)?,
    })
}

/// The node half of either role.
pub(crate) fn node(values: &Values) -> Result<NodeConfig, SettingsError> {
    let node_name = match values.one("node-name") {
        Some(name) => name.to_ascii_lowercase(),
        None => host_name()?,
    };
    let mut node_labels = Vec::new();
    for label in values.list("node-label") {
        let Some((key, value)) = label.split_once('=') else {
            return contradiction(format!("node-label {label:?} is not key=value"));
        };
        node_labels.push((key.to_owned(), value.to_owned()));
    }
    for taint in values.list("node-taint") {
        let effect = taint.rsplit_once(':').map(|(_, effect)| effect);
        if !matches!(effect, Some("NoSchedule" | "PreferNoSchedule" | "NoExecute")) {
            return contradiction(format!(
                "node-taint {taint:?} is not key=value:Effect with NoSchedule, PreferNoSchedule or NoExecute"
            ));
        }
    }
    Ok(NodeConfig {
        node_name,
        node_ip: address(values, "node-ip"),
        node_labels,
        node_taints: values.list("node-taint").to_vec(),
        container_runtime_endpoint: values.one("container-runtime-endpoint").map(str::to_owned),
        network_backend: match values.one("network-backend") {
            Some("host-gw") => NetworkBackend::HostGw,
            Some("none") => NetworkBackend::None,
            _ => NetworkBackend::Vxlan,
        },
        kubelet_root_dir: path(values, "kubelet-root-dir"),
        cni_bin_dir: path(values, "cni-bin-dir"),
        cni_conf_dir: path(values, "cni-conf-dir"),
        resolv_conf: path(values, "resolv-conf"),
        stub_domains: stub_domains(values)?,
        pod_logs_dir: path(values, "pod-logs-dir"),
        cgroup_root: text(values, "cgroup-root"),
        private_registry: path(values, "private-registry"),
        kubelet_args: values.list("kubelet-arg").to_vec(),
    })
}

fn stub_domains(values: &Values) -> Result<BTreeMap<String, Vec<SocketAddr>>, SettingsError> {
    let mut domains = BTreeMap::<_, Vec<_>>::new();
    for text in values.list("stub-domain") {
        let read = || {
            let (domain, server) = text.split_once('=')?;
            let alone = || server.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, DNS_PORT));
            let server = server.parse().ok().or_else(alone)?;
            let is_name = !domain.is_empty() && domain.split('.').all(|label| (1..=63).contains(&label.len()));
            is_name.then(|| (domain.to_ascii_lowercase(), server))
        };
        let Some((domain, server)) = read() else {
            return contradiction(format!("stub-domain {text:?} is not domain=address or domain=address:port"));
        };
        domains.entry(domain).or_default().push(server);
    }
    Ok(domains)
}

fn datastore(values: &Values) -> Result<Datastore, SettingsError> {
    let file = |name: &str| values.one(name).map(PathBuf::from);
    let (ca_file, cert_file, key_file) =
        (file("datastore-cafile"), file("datastore-certfile"), file("datastore-keyfile"));
    let Some(endpoints) = values.one("datastore-endpoint") else {
        if ca_file.is_some() || cert_file.is_some() || key_file.is_some() {
            return contradiction("datastore-cafile, -certfile and -keyfile need datastore-endpoint".to_owned());
        }
        return Ok(Datastore::Embedded);
    };
    let endpoints: Vec<String> = endpoints.split(',').map(|endpoint| endpoint.trim().to_owned()).collect();
    for endpoint in &endpoints {
        // A password would go wherever the endpoint is shown; this text shows neither.
        if endpoint.contains('@') {
            return contradiction(
                "datastore-endpoint holds a user name or password, by which etcd is not asked here: use datastore-certfile and \
                 -keyfile"
                    .to_owned(),
            );
        }
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return contradiction(format!(
                "datastore-endpoint {endpoint:?} is not an http:// or https:// URL of etcd; other datastores are not supported"
            ));
        }
    }
    if cert_file.is_some() != key_file.is_some() {
        return contradiction("datastore-certfile and datastore-keyfile belong together".to_owned());
    }
    Ok(Datastore::Etcd { endpoints, ca_file, cert_file, key_file })
}

fn token(values: &Values) -> Result<Option<Secret>, SettingsError> {
    match (values.one("token"), values.one("token-file")) {
        (Some(_), Some(_)) => contradiction("token and token-file are both set".to_owned()),
        (Some(token), None) => Ok(Some(Secret::new(token))),
        (None, Some(file)) => {
            let read = |source| SettingsError::Read { path: PathBuf::from(file), source };
            Ok(Some(Secret::new(read_text(Path::new(file)).map_err(read)?.trim())))
        }
        (None, None) => Ok(None),
    }
}

fn host_name() -> Result<String, SettingsError> {
    let path = PathBuf::from("/proc/sys/kernel/hostname");
    let name = fs::read_to_string(&path).map_err(|source| SettingsError::Read { path, source })?;
    Ok(name.trim().to_ascii_lowercase())
}

fn contradiction<T>(text: String) -> Result<T, SettingsError> {
    Err(SettingsError::Contradiction(text))
}

fn required<T>(value: Option<T>, name: &str) -> Result<T, SettingsError> {
    value.ok_or_else(|| SettingsError::Contradiction(format!("{name} is required")))
}

fn text(values: &Values, name: &str) -> String {
    values.one(name).unwrap_or_default().to_owned()
}

fn path(values: &Values, name: &str) -> PathBuf {
    PathBuf::from(text(values, name))
}

/// The values were checked when they were collected; only absence is left.
fn address(values: &Values, name: &str) -> Option<IpAddr> {
    values.one(name)?.parse().ok()
}

fn network(values: &Values, name: &str) -> Option<rkube_daemons::config::Cidr> {
    values::cidr(values.one(name)?)
}

pub(crate) fn port(values: &Values, name: &str) -> u16 {
    values.one(name).and_then(|text| text.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments;
    use crate::settings::Roles;

    fn stub_domains_of(given: &[&str]) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut words = vec!["rkube".to_owned(), "agent".to_owned(), format!("--config={}", file.path().display())];
        words.extend(given.iter().map(|text| format!("--stub-domain={text}")));
        let matches = arguments::command().try_get_matches_from(words).unwrap();
        let (_, flags) = matches.subcommand().unwrap();
        let values = Values::collect(Roles::Agent, flags, &[].into()).map_err(|error| error.to_string())?;
        stub_domains(&values).map(|domains| format!("{domains:?}")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_stub_domain_has_servers() {
        assert_eq!(
            stub_domains_of(&["Corp.example=192.0.2.1", "corp.example=192.0.2.2:5353", "lab=[2001:db8::1]:53"])
                .unwrap(),
            r#"{"corp.example": [192.0.2.1:53, 192.0.2.2:5353], "lab": [[2001:db8::1]:53]}"#
        );
        for wrong in ["corp", "corp=", "=192.0.2.1", "a..b=192.0.2.1", "corp=ns.example"] {
            let expected = format!("stub-domain {wrong:?} is not domain=address or domain=address:port");
            assert_eq!(stub_domains_of(&[wrong]).unwrap_err(), expected);
        }
    }
}
