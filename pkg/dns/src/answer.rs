//! From a question about the cluster to the records of its reply. Pure.

use std::net::IpAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::zone::{Endpoint, Owner, Port, ServiceKind, ServiceRecord, Zone, undashed};

/// Seconds an answer may be kept. Short: endpoints move.
pub const TTL: u32 = 5;
const SPECIFICATION: &str = "1.1.0";
const SRV_PRIORITY: u16 = 0;
/// Shared among the records of one answer.
const SRV_WEIGHT_TOTAL: u16 = 100;

/// What to reply.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Records {
        answers: Vec<Record>,
        additionals: Vec<Record>,
    },
    /// The name exists and has no records of the type (`NoError`), or does not exist (`NXDomain`).
    Negative(ResponseCode),
    /// An alias of a name outside the cluster: the records of `target` follow.
    Alias {
        alias: Box<Record>,
        target: Name,
    },
    /// Not about the cluster.
    NotOurs,
}

/// Answers for one cluster domain.
#[derive(Clone, Debug)]
pub struct Authority {
    domain: Name,
    domain_labels: Vec<String>,
    /// Where the domain is answered.
    name_servers: Vec<IpAddr>,
}

impl Authority {
    /// # Errors
    /// If `domain` is not a domain name.
    pub fn new(domain: &str, name_servers: Vec<IpAddr>) -> Result<Self, hickory_proto::ProtoError> {
        let mut domain = Name::from_ascii(domain)?.to_lowercase();
        domain.set_fqdn(true);
        let domain_labels = labels(&domain);
        Ok(Self { domain, domain_labels, name_servers })
    }

    /// The SOA record that goes with negative answers.
    pub fn soa(&self, serial: u32) -> Record {
        let child = |label: &str| self.child(&[label]);
        let name_server = self.child(&["ns", "dns"]);
        let data = SOA::new(name_server, child("hostmaster"), serial, 7200, 1800, 86400, TTL);
        Record::from_rdata(self.domain.clone(), TTL, RData::SOA(data))
    }

    /// Answers a question. `name` is echoed with the case it came in.
    pub fn answer(&self, zone: &Zone, name: &Name, kind: RecordType) -> Reply {
        let lower = labels(&name.to_lowercase());
        if let Some(rest) = lower.strip_suffix(self.domain_labels.as_slice()) {
            return self.forward_lookup(zone, name, &rest.iter().map(String::as_str).collect::<Vec<_>>(), kind);
        }
        let arpa =
            matches!(lower.as_slice(), [.., zone, arpa] if arpa == "arpa" && (zone == "in-addr" || zone == "ip6"));
        if arpa { self.reverse_lookup(zone, name, kind) } else { Reply::NotOurs }
    }

    /// `rest` is the name without the cluster domain.
    fn forward_lookup(&self, zone: &Zone, name: &Name, rest: &[&str], kind: RecordType) -> Reply {
        match rest {
            [] => self.apex(name, kind),
            ["dns-version"] => match kind {
                RecordType::TXT => one(name, RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()]))),
                _ => NO_DATA,
            },
            ["ns", "dns"] => addresses(name, &self.name_servers, kind),
            ["dns"] | ["svc" | "pod"] => NO_DATA,
            [namespace, "svc" | "pod"] if zone.has_namespace(namespace) => NO_DATA,
            [pod, namespace, "pod"] => match undashed(pod) {
                // The name says the address; whether there is such a pod is not checked.
                Some(address) if zone.has_namespace(namespace) => addresses(name, &[address], kind),
                _ => NX_DOMAIN,
            },
            [.., service, namespace, "svc"] => {
                let Some(record) = zone.service(namespace, service) else { return NX_DOMAIN };
                let inner = &rest[..rest.len() - 3];
                self.service(name, &record, inner, (service, namespace), kind)
            }
            _ => NX_DOMAIN,
        }
    }

    fn apex(&self, name: &Name, kind: RecordType) -> Reply {
        match kind {
            RecordType::NS => one(name, RData::NS(NS(self.child(&["ns", "dns"])))),
            RecordType::SOA => Reply::Records { answers: vec![self.soa(1)], additionals: Vec::new() },
            _ => NO_DATA,
        }
    }

    /// `inner` is what stands before the Service's name: nothing, a host name, or `_port._protocol`.
    fn service(
        &self,
        name: &Name,
        record: &ServiceRecord,
        inner: &[&str],
        (service, namespace): (&str, &str),
        kind: RecordType,
    ) -> Reply {
        if let ServiceKind::External(target) = &record.kind {
            return match (inner, external(target)) {
                ([], Some(target)) => {
                    let alias = Record::from_rdata(name.clone(), TTL, RData::CNAME(CNAME(target.clone())));
                    Reply::Alias { alias: Box::new(alias), target }
                }
                _ => NX_DOMAIN,
            };
        }
        match inner {
            [] if kind == RecordType::SRV => self.srv(name, record, None, (service, namespace)),
            [] => match &record.kind {
                ServiceKind::Cluster(own) => addresses(name, own, kind),
                _ if record.endpoints.is_empty() => NX_DOMAIN,
                _ => addresses(name, &distinct(&record.endpoints), kind),
            },
            [port, protocol] => match (port.strip_prefix('_'), protocol.strip_prefix('_')) {
                (Some(port), Some(protocol)) => {
                    let reply = self.srv(name, record, Some((port, protocol)), (service, namespace));
                    match (reply, kind) {
                        // As CoreDNS, the addresses that the port is served at.
                        (Reply::Records { additionals, .. }, RecordType::A | RecordType::AAAA) => {
                            let all: Vec<IpAddr> =
                                additionals.iter().filter_map(|record| record.data.ip_addr()).collect();
                            addresses(name, &all, kind)
                        }
                        (Reply::Records { .. }, other) if other != RecordType::SRV => NO_DATA,
                        (reply, _) => reply,
                    }
                }
                _ => NX_DOMAIN,
            },
            [hostname] => {
                let matching: Vec<Endpoint> =
                    record.endpoints.iter().filter(|endpoint| endpoint.hostname == *hostname).cloned().collect();
                if matching.is_empty() { NX_DOMAIN } else { addresses(name, &distinct(&matching), kind) }
            }
            _ => NX_DOMAIN,
        }
    }

    /// One record per port, or per endpoint and port of a headless Service, with the targets' addresses.
    fn srv(
        &self,
        name: &Name,
        record: &ServiceRecord,
        wanted: Option<(&str, &str)>,
        (service, namespace): (&str, &str),
    ) -> Reply {
        let is_wanted = |port: &&Port| {
            wanted.is_none_or(|(name, protocol)| port.name.eq_ignore_ascii_case(name) && port.protocol == protocol)
        };
        let mut targets: Vec<(Name, u16, Vec<IpAddr>)> = Vec::new();
        match &record.kind {
            ServiceKind::Cluster(own) => {
                let target = self.child(&[service, namespace, "svc"]);
                targets
                    .extend(record.ports.iter().filter(is_wanted).map(|port| (target.clone(), port.port, own.clone())));
            }
            _ => {
                for endpoint in &record.endpoints {
                    let target = self.child(&[&endpoint.hostname, service, namespace, "svc"]);
                    let ports = endpoint.ports.iter().filter(is_wanted);
                    targets.extend(ports.map(|port| (target.clone(), port.port, vec![endpoint.address])));
                }
            }
        }
        if targets.is_empty() {
            return NX_DOMAIN;
        }
        let count = u16::try_from(targets.len()).unwrap_or(u16::MAX);
        let weight = (SRV_WEIGHT_TOTAL / count).max(1);
        let mut answers = Vec::new();
        let mut additionals: Vec<Record> = Vec::new();
        for (target, port, own) in targets {
            let data = SRV::new(SRV_PRIORITY, weight, port, target.clone());
            answers.push(Record::from_rdata(name.clone(), TTL, RData::SRV(data)));
            for address in own {
                let record = Record::from_rdata(target.clone(), TTL, address_data(address));
                if !additionals.contains(&record) {
                    additionals.push(record);
                }
            }
        }
        Reply::Records { answers, additionals }
    }

    fn reverse_lookup(&self, zone: &Zone, name: &Name, kind: RecordType) -> Reply {
        let Ok(network) = name.parse_arpa_name() else { return Reply::NotOurs };
        let owners = zone.owners(network.addr());
        if owners.is_empty() {
            return Reply::NotOurs;
        }
        if kind != RecordType::PTR {
            return NO_DATA;
        }
        let answers = owners.into_iter().map(|owner| {
            let target = match &owner {
                Owner::Service(key) => self.child(&[&key.name, &key.namespace, "svc"]),
                Owner::Endpoint { service, hostname } => {
                    self.child(&[hostname, &service.name, &service.namespace, "svc"])
                }
            };
            Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target)))
        });
        Reply::Records { answers: answers.collect(), additionals: Vec::new() }
    }

    /// A name under the cluster domain. Labels come from validated objects; one that DNS cannot carry is
    /// left out.
    fn child(&self, labels: &[&str]) -> Name {
        let mut name = Name::new();
        for label in labels {
            if let Ok(longer) = name.clone().append_label(label.as_bytes()) {
                name = longer;
            }
        }
        name.append_domain(&self.domain).unwrap_or_else(|_| self.domain.clone())
    }
}

const NO_DATA: Reply = Reply::Negative(ResponseCode::NoError);
const NX_DOMAIN: Reply = Reply::Negative(ResponseCode::NXDomain);

fn labels(name: &Name) -> Vec<String> {
    name.iter().map(|label| String::from_utf8_lossy(label).into_owned()).collect()
}

fn one(name: &Name, data: RData) -> Reply {
    Reply::Records { answers: vec![Record::from_rdata(name.clone(), TTL, data)], additionals: Vec::new() }
}

/// An external name, absolute whether or not it ends in a dot.
fn external(target: &str) -> Option<Name> {
    let mut name = Name::from_ascii(target).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn distinct(endpoints: &[Endpoint]) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = endpoints.iter().map(|endpoint| endpoint.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

fn addresses(name: &Name, all: &[IpAddr], kind: RecordType) -> Reply {
    let answers: Vec<Record> = all
        .iter()
        .filter(|address| match kind {
            RecordType::A => address.is_ipv4(),
            RecordType::AAAA => address.is_ipv6(),
            _ => false,
        })
        .map(|address| Record::from_rdata(name.clone(), TTL, address_data(*address)))
        .collect();
    if answers.is_empty() { NO_DATA } else { Reply::Records { answers, additionals: Vec::new() } }
}

#[cfg(test)]
mod tests {
    use rkube_api::Kind;
    use rkube_api::k8s::core::v1::Service;
    use rkube_api::k8s::discovery::v1::EndpointSlice;
    use rkube_apimachinery::key::ObjectKey;
    use serde_json::{Value, json};

    use super::*;
    use crate::zone;

    fn service(zone: &Zone, name: &str, spec: Value, endpoints: Value) {
        let service = Service::from_value(json!({ "metadata": { "name": name }, "spec": spec })).unwrap();
        let slice = EndpointSlice::from_value(json!({
            "addressType": "IPv4", "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }], "endpoints": endpoints
        }));
        let slices = [std::sync::Arc::new(slice.unwrap())];
        zone.set_service(&ObjectKey::new("default", name), zone::record(&service, &slices));
    }

    fn world() -> Zone {
        let zone = Zone::default();
        zone.set_namespace("default", true);
        let ports = json!([{ "name": "http", "port": 80, "protocol": "TCP" }]);
        let web = json!({ "clusterIP": "10.43.0.7", "clusterIPs": ["10.43.0.7"], "ports": ports });
        service(&zone, "web", web, json!([{ "addresses": ["10.42.0.5"] }]));
        let endpoints = json!([
            { "addresses": ["10.42.0.8"], "hostname": "db-0" },
            { "addresses": ["10.42.0.9"], "hostname": "db-1", "conditions": { "ready": false } }
        ]);
        service(&zone, "db", json!({ "clusterIP": "None", "ports": ports }), endpoints.clone());
        let all = json!({ "clusterIP": "None", "publishNotReadyAddresses": true, "ports": ports });
        service(&zone, "all", all, endpoints);
        service(&zone, "empty", json!({ "clusterIP": "None" }), json!([]));
        service(&zone, "out", json!({ "type": "ExternalName", "externalName": "example.org" }), json!([]));
        zone
    }

    fn ask(question: &str) -> String {
        let (name, kind) = question.split_once(' ').unwrap();
        let authority = Authority::new("cluster.local", vec!["10.43.0.10".parse().unwrap()]).unwrap();
        let name = Name::from_ascii(format!("{name}.")).unwrap();
        match authority.answer(&world(), &name, kind.parse().unwrap()) {
            Reply::Records { answers, additionals } => {
                let mut text: Vec<String> =
                    answers.iter().map(|record| format!("{} {}", record.name, record.data)).collect();
                text.extend(additionals.iter().map(|record| format!("+ {} {}", record.name, record.data)));
                text.join("; ")
            }
            Reply::Negative(code) => code.to_string(),
            Reply::Alias { target, .. } => format!("alias {target}"),
            Reply::NotOurs => "not ours".to_owned(),
        }
    }

    #[test]
    fn names_answer_as_the_specification_has_it() {
        let cases = [
            ("web.default.svc.cluster.local A", "web.default.svc.cluster.local. 10.43.0.7"),
            ("WEB.default.SVC.cluster.local A", "WEB.default.SVC.cluster.local. 10.43.0.7"),
            ("web.default.svc.cluster.local AAAA", "No Error"),
            ("db.default.svc.cluster.local A", "db.default.svc.cluster.local. 10.42.0.8"),
            (
                "all.default.svc.cluster.local A",
                "all.default.svc.cluster.local. 10.42.0.8; all.default.svc.cluster.local. 10.42.0.9",
            ),
            ("db-0.db.default.svc.cluster.local A", "db-0.db.default.svc.cluster.local. 10.42.0.8"),
            ("db-1.db.default.svc.cluster.local A", "Non-Existent Domain"),
            ("empty.default.svc.cluster.local A", "Non-Existent Domain"),
            ("out.default.svc.cluster.local A", "alias example.org."),
            ("nothing.default.svc.cluster.local A", "Non-Existent Domain"),
            ("default.svc.cluster.local A", "No Error"),
            ("other.svc.cluster.local A", "Non-Existent Domain"),
            ("svc.cluster.local A", "No Error"),
            ("10-1-2-3.default.pod.cluster.local A", "10-1-2-3.default.pod.cluster.local. 10.1.2.3"),
            ("10-1-2-3.other.pod.cluster.local A", "Non-Existent Domain"),
            ("dns-version.cluster.local TXT", "dns-version.cluster.local. 1.1.0"),
            ("ns.dns.cluster.local A", "ns.dns.cluster.local. 10.43.0.10"),
            ("_http._tcp.web.default.svc.cluster.local A", "_http._tcp.web.default.svc.cluster.local. 10.43.0.7"),
            ("_http._tcp.web.default.svc.cluster.local TXT", "No Error"),
            ("web.default.svc.cluster.local MX", "No Error"),
            ("10-42-0-5.web.default.svc.cluster.local A", "10-42-0-5.web.default.svc.cluster.local. 10.42.0.5"),
            ("www.web.default.svc.cluster.local A", "Non-Existent Domain"),
            ("a.b.c.web.default.svc.cluster.local A", "Non-Existent Domain"),
            ("nonsense.cluster.local A", "Non-Existent Domain"),
            ("cluster.local A", "No Error"),
            ("default.pod.cluster.local A", "No Error"),
            ("10-1-2.default.pod.cluster.local A", "Non-Existent Domain"),
            ("example.org A", "not ours"),
        ];
        for (question, expected) in cases {
            assert_eq!(ask(question), expected, "{question}");
        }
    }

    #[test]
    fn ports_are_found_by_name_with_their_targets() {
        assert_eq!(
            ask("_http._tcp.web.default.svc.cluster.local SRV"),
            "_http._tcp.web.default.svc.cluster.local. 0 100 80 web.default.svc.cluster.local.; \
             + web.default.svc.cluster.local. 10.43.0.7"
        );
        assert_eq!(
            ask("_http._tcp.all.default.svc.cluster.local SRV"),
            "_http._tcp.all.default.svc.cluster.local. 0 50 8080 db-0.all.default.svc.cluster.local.; \
             _http._tcp.all.default.svc.cluster.local. 0 50 8080 db-1.all.default.svc.cluster.local.; \
             + db-0.all.default.svc.cluster.local. 10.42.0.8; + db-1.all.default.svc.cluster.local. 10.42.0.9"
        );
        // Without a port's name all ports.
        assert_eq!(
            ask("web.default.svc.cluster.local SRV"),
            "web.default.svc.cluster.local. 0 100 80 web.default.svc.cluster.local.; \
             + web.default.svc.cluster.local. 10.43.0.7"
        );
        assert_eq!(ask("_other._tcp.web.default.svc.cluster.local SRV"), "Non-Existent Domain");
    }

    #[test]
    fn addresses_lead_back_to_names() {
        assert_eq!(ask("7.0.43.10.in-addr.arpa PTR"), "7.0.43.10.in-addr.arpa. web.default.svc.cluster.local.");
        assert!(ask("8.0.42.10.in-addr.arpa PTR").contains("db-0.db.default.svc.cluster.local."));
        assert_eq!(ask("1.1.1.1.in-addr.arpa PTR"), "not ours");
    }

    #[test]
    fn a_removed_service_leaves_nothing_behind() {
        let zone = world();
        zone.set_service(&ObjectKey::new("default", "web"), None);
        assert!(zone.owners("10.43.0.7".parse().unwrap()).is_empty());
        assert!(zone.service("default", "web").is_none());
    }
}
