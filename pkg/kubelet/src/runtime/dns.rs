//! resolv.conf, host name and hosts file of pods.
//!
//! Behaves as pkg/kubelet/network/dns/dns.go and pkg/kubelet/{kubelet_network,kubelet_pods}.go, v1.36.

use std::fmt::Write as _;

use rkube_api::k8s::core::v1::{HostAlias, Pod};
use rkube_cri::v1::DnsConfig;

use crate::pod::PodExt;

/// Linux' limit for host names.
const HOSTNAME_MAX: usize = 63;
/// What a resolver reads of resolv.conf.
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_CHARS_MAX: usize = 2048;

/// The cluster's part of name resolution.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsSettings {
    pub cluster_dns: Vec<String>,
    pub cluster_domain: String,
    /// The node's own resolv.conf, parsed by [`parse`].
    pub host: DnsConfig,
}

/// Reads a resolv.conf. Lines it does not know are skipped, as resolvers do.
pub fn parse(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_owned)),
            // The last one counts.
            Some("search") => {
                config.searches =
                    words.map(|word| word.trim_end_matches('.').to_owned()).filter(|word| !word.is_empty()).collect();
            }
            Some("options") => config.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    config
}

/// The configuration of a pod's resolver, and what had to be left out of it, as an event says it.
pub fn pod_dns(pod: &Pod, settings: &DnsSettings) -> (DnsConfig, Option<String>) {
    let spec = pod.pod_spec();
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "None" => None,
        "Default" => Some(false),
        "ClusterFirstWithHostNet" => Some(true),
        _ => Some(!pod.is_host_network()),
    };
    let mut config = match cluster {
        None => DnsConfig::default(),
        Some(true) if !settings.cluster_dns.is_empty() => {
            let domain = &settings.cluster_domain;
            let mut searches =
                vec![format!("{}.svc.{domain}", pod.namespace()), format!("svc.{domain}"), domain.clone()];
            searches.extend(settings.host.searches.iter().cloned());
            let options = vec!["ndots:5".to_owned()];
            DnsConfig { servers: settings.cluster_dns.clone(), searches, options }
        }
        Some(_) => settings.host.clone(),
    };
    if let Some(own) = &spec.dns_config {
        merge(&mut config.servers, own.nameservers.as_deref().unwrap_or_default());
        merge(&mut config.searches, own.searches.as_deref().unwrap_or_default());
        let own = own.options.as_deref().unwrap_or_default();
        // A pod's option replaces the node's of the same name.
        config.options.retain(|option| {
            let name = option.split(':').next().unwrap_or_default();
            !own.iter().any(|own| own.name.as_deref() == Some(name))
        });
        config.options.extend(own.iter().filter_map(|option| {
            let name = option.name.clone()?;
            Some(option.value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}:{value}")))
        }));
    }
    let omitted = limit(&mut config);
    (config, omitted)
}

fn merge(into: &mut Vec<String>, from: &[String]) {
    for item in from {
        if !into.contains(item) {
            into.push(item.clone());
        }
    }
}

fn limit(config: &mut DnsConfig) -> Option<String> {
    let mut omitted = None;
    if config.servers.len() > NAMESERVERS_MAX {
        config.servers.truncate(NAMESERVERS_MAX);
        omitted = Some(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            config.servers.join(" ")
        ));
    }
    let mut chars = 0;
    let fitting = config.searches.iter().take(SEARCHES_MAX).take_while(|search| {
        chars += search.len() + 1;
        chars <= SEARCH_CHARS_MAX
    });
    let fitting = fitting.count();
    if fitting < config.searches.len() {
        config.searches.truncate(fitting);
        omitted = Some(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            config.searches.join(" ")
        ));
    }
    omitted
}

/// A pod's host name and the domain below which it is known.
pub fn hostname_and_domain(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let spec = pod.pod_spec();
    if let Some(name) = spec.hostname_override.as_deref().filter(|name| !name.is_empty()) {
        return (name.to_owned(), String::new());
    }
    let given = spec.hostname.as_deref().filter(|name| !name.is_empty());
    let mut name = given.unwrap_or(pod.name());
    if name.len() > HOSTNAME_MAX {
        name = name.get(..HOSTNAME_MAX).unwrap_or(name).trim_end_matches(['-', '.']);
    }
    let domain = match spec.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty()) {
        Some(subdomain) => format!("{subdomain}.{}.svc.{cluster_domain}", pod.namespace()),
        None => String::new(),
    };
    (name.to_owned(), domain)
}

/// What the kernel's host name is set to.
pub fn node_hostname(pod: &Pod, cluster_domain: &str) -> String {
    let (name, domain) = hostname_and_domain(pod, cluster_domain);
    if pod.pod_spec().set_hostname_as_fqdn == Some(true) && !domain.is_empty() {
        format!("{name}.{domain}")
    } else {
        name
    }
}

/// The hosts file of a pod. One on the host's network gets the host's file with its aliases added.
pub fn hosts_file(pod: &Pod, ips: &[String], cluster_domain: &str, host_file: &str) -> String {
    let aliases = pod.pod_spec().host_aliases.as_deref().unwrap_or_default();
    let mut text = String::new();
    if pod.is_host_network() {
        text.push_str("# Kubernetes-managed hosts file (host network).\n");
        text.push_str(host_file);
    } else {
        text.push_str("# Kubernetes-managed hosts file.\n");
        text.push_str("127.0.0.1\tlocalhost\n");
        text.push_str("::1\tlocalhost ip6-localhost ip6-loopback\n");
        text.push_str("fe00::0\tip6-localnet\n");
        text.push_str("fe00::0\tip6-mcastprefix\n");
        text.push_str("fe00::1\tip6-allnodes\n");
        text.push_str("fe00::2\tip6-allrouters\n");
        let (name, domain) = hostname_and_domain(pod, cluster_domain);
        for ip in ips {
            // Writing to a string cannot fail.
            let _ = match domain.is_empty() {
                true => writeln!(text, "{ip}\t{name}"),
                false => writeln!(text, "{ip}\t{name}.{domain}\t{name}"),
            };
        }
    }
    add_aliases(&mut text, aliases);
    text
}

fn add_aliases(text: &mut String, aliases: &[HostAlias]) {
    if aliases.is_empty() {
        return;
    }
    text.push_str("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        let _ = writeln!(text, "{}\t{names}", alias.ip);
    }
}

#[cfg(test)]
mod tests {
    use rkube_api::k8s::core::v1::{PodDNSConfig, PodDNSConfigOption, PodSpec};

    use super::*;

    fn settings() -> DnsSettings {
        DnsSettings {
            cluster_dns: vec!["10.43.0.10".into()],
            cluster_domain: "cluster.local".into(),
            host: parse("# x\nnameserver 1.1.1.1\nsearch a.b. c\noptions ndots:2 rotate\n"),
        }
    }

    fn pod(spec: PodSpec) -> Pod {
        let mut pod = Pod { spec: Some(spec), ..Pod::default() };
        pod.metadata.name = Some("web-0".into());
        pod.metadata.namespace = Some("ns".into());
        pod
    }

    fn check(spec: PodSpec, expected: &str) {
        let (dns, omitted) = pod_dns(&pod(spec), &settings());
        let line = format!("{} | {} | {}", dns.servers.join(" "), dns.searches.join(" "), dns.options.join(" "));
        assert_eq!(line, expected);
        assert_eq!(omitted, None);
    }

    #[test]
    fn policies_choose_the_resolver() {
        let cluster = "10.43.0.10 | ns.svc.cluster.local svc.cluster.local cluster.local a.b c | ndots:5";
        let host = "1.1.1.1 | a.b c | ndots:2 rotate";
        let policy = |policy: &str, host_network| PodSpec {
            dns_policy: Some(policy.into()),
            host_network: Some(host_network),
            ..PodSpec::default()
        };
        check(policy("ClusterFirst", false), cluster);
        check(policy("ClusterFirst", true), host);
        check(policy("ClusterFirstWithHostNet", true), cluster);
        check(policy("Default", false), host);
        let option = PodDNSConfigOption { name: Some("ndots".into()), value: Some("1".into()) };
        let config = PodDNSConfig {
            nameservers: Some(vec!["9.9.9.9".into()]),
            searches: Some(vec!["x".into()]),
            options: Some(vec![option]),
        };
        check(PodSpec { dns_config: Some(config.clone()), ..policy("None", false) }, "9.9.9.9 | x | ndots:1");
        check(
            PodSpec { dns_config: Some(config), ..policy("Default", false) },
            "1.1.1.1 9.9.9.9 | a.b c x | rotate ndots:1",
        );
    }

    #[test]
    fn too_many_servers_are_left_out_and_said() {
        let config =
            PodDNSConfig { nameservers: Some((1..6).map(|n| format!("1.1.1.{n}")).collect()), ..Default::default() };
        let (dns, omitted) = pod_dns(
            &pod(PodSpec { dns_policy: Some("None".into()), dns_config: Some(config), ..Default::default() }),
            &settings(),
        );
        assert_eq!(dns.servers.len(), 3);
        assert!(omitted.unwrap().ends_with("the applied nameserver line is: 1.1.1.1 1.1.1.2 1.1.1.3"));
    }

    #[test]
    fn the_hosts_file_names_the_pod_below_its_subdomain() {
        let alias = HostAlias { ip: "5.5.5.5".into(), hostnames: Some(vec!["a".into(), "b".into()]) };
        let spec = PodSpec { subdomain: Some("db".into()), host_aliases: Some(vec![alias]), ..Default::default() };
        let text = hosts_file(&pod(spec), &["10.42.0.5".into()], "cluster.local", "");
        assert!(text.contains("10.42.0.5\tweb-0.db.ns.svc.cluster.local\tweb-0\n"), "{text}");
        assert!(text.ends_with("\n# Entries added by HostAliases.\n5.5.5.5\ta\tb\n"), "{text}");
    }
}
