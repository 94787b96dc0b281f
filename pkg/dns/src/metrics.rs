//! CoreDNS's metric names, for the dashboards that know them.

use hickory_proto::op::ResponseCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) requests: Counter,
    pub(crate) responses: Family<Rcode, Counter>,
    pub(crate) forwards: Counter,
    pub(crate) cache_hits: Counter,
    pub(crate) malformed: Counter,
    pub(crate) refused_connections: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Rcode {
    pub(crate) rcode: &'static str,
}

impl Rcode {
    pub(crate) fn of(code: ResponseCode) -> Self {
        let rcode = match code {
            ResponseCode::NoError => "NOERROR",
            ResponseCode::FormErr => "FORMERR",
            ResponseCode::ServFail => "SERVFAIL",
            ResponseCode::NXDomain => "NXDOMAIN",
            ResponseCode::NotImp => "NOTIMP",
            ResponseCode::Refused => "REFUSED",
            ResponseCode::BADVERS => "BADVERS",
            _ => "other",
        };
        Self { rcode }
    }
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("coredns_dns_requests", "DNS requests received", self.requests.clone());
        registry.register("coredns_dns_responses", "DNS responses sent, by code", self.responses.clone());
        registry.register("coredns_forward_requests", "Requests sent to other servers", self.forwards.clone());
        registry.register("coredns_cache_hits", "Requests answered from the cache", self.cache_hits.clone());
        registry.register("rkube_dns_malformed", "Messages that are not questions", self.malformed.clone());
        registry.register(
            "rkube_dns_refused_connections",
            "TCP connections closed because their client has too many",
            self.refused_connections.clone(),
        );
    }
}
