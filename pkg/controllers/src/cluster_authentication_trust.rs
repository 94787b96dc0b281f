//! Cluster authentication trust: the ConfigMap `kube-system/extension-apiserver-authentication`, by which extension API
//! servers know users by certificate and believe the front proxy.
//!
//! Every server runs it beside its API. What other servers wrote stays, as long as their authorities have not
//! expired: an extension server must believe each of them.
//!
//! Watches  v1 ConfigMap of that name
//! Writes   it (create, update)
//! Behaves as  pkg/controlplane/controller/clusterauthenticationtrust/cluster_authentication_trust_controller.go, v1.36

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rkube_api::k8s::core::v1::ConfigMap;
use rkube_api::meta::pkg::apis::meta::v1::ObjectMeta;
use rkube_apimachinery::chain::chain;
use rkube_client::{Client, Lister, Reconciler, Requeue, SyncError, WorkQueue};
use rkube_pki::bundle;

use crate::context::{ControllerContext, Descriptor, Running};

const NAME: &str = "cluster-authentication-trust-controller";
const NAMESPACE: &str = "kube-system";
const CONFIG_MAP: &str = "extension-apiserver-authentication";
/// Authorities expire without an event.
const RECHECK_INTERVAL: Duration = Duration::from_secs(3600);

pub(crate) const CLUSTER_AUTHENTICATION_TRUST: Descriptor = Descriptor::new(NAME, NAME, start);

/// By what this server knows its users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthenticationTrust {
    /// PEM of the authority of client certificates.
    pub client_ca: String,
    /// PEM of the authority of the front proxy's certificate.
    pub request_header_ca: String,
    pub allowed_names: Vec<String>,
    pub username_headers: Vec<String>,
    pub uid_headers: Vec<String>,
    pub group_headers: Vec<String>,
    pub extra_headers_prefix: Vec<String>,
}

struct Publisher {
    client: Client,
    trust: AuthenticationTrust,
    config_maps: Lister<ConfigMap>,
}

fn start(context: &ControllerContext) -> Running {
    let Some(trust) = context.config.authentication_trust.clone() else {
        return Box::pin(std::future::ready(()));
    };
    let config_maps = context.informers.scoped::<ConfigMap>(NAMESPACE, "", &format!("metadata.name={CONFIG_MAP}"));
    let queue: WorkQueue<()> = context.queue("cluster_authentication_trust_controller");
    let keys = queue.clone();
    config_maps.core().add_handler(move |_| keys.add(()));
    queue.add(());
    let client = context.client_for(NAME);
    let controller = Arc::new(Publisher { client, trust, config_maps: config_maps.lister() });
    context.run(NAME, &queue, &controller, 1)
}

impl Publisher {
    /// What is there and what this server has, as one.
    fn combined(&self, there: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, SyncError> {
        let broken = |error: &(dyn std::error::Error + 'static)| {
            SyncError::other(format!("{NAMESPACE}/{CONFIG_MAP} cannot be read: {}", chain(error)))
        };
        let now = self.client.clock().now();
        let text = |key: &str| there.get(key).map(String::as_str).unwrap_or_default();
        let certificates = |key: &str, ours: &str| bundle::combine(&[text(key), ours], now);
        let names = |key: &str, ours: &[String]| -> Result<String, serde_json::Error> {
            let mut all: Vec<String> = match text(key) {
                "" => Vec::new(),
                list => serde_json::from_str(list)?,
            };
            for name in ours {
                if !all.contains(name) {
                    all.push(name.clone());
                }
            }
            serde_json::to_string(&all)
        };
        let trust = &self.trust;
        let mut data = BTreeMap::new();
        for (key, ours) in
            [("client-ca-file", &trust.client_ca), ("requestheader-client-ca-file", &trust.request_header_ca)]
        {
            let bundle = certificates(key, ours).map_err(|error| broken(&error))?;
            if !bundle.is_empty() {
                data.insert(key.to_owned(), bundle);
            }
        }
        for (key, ours) in [
            ("requestheader-allowed-names", &trust.allowed_names),
            ("requestheader-username-headers", &trust.username_headers),
            ("requestheader-uid-headers", &trust.uid_headers),
            ("requestheader-group-headers", &trust.group_headers),
            ("requestheader-extra-headers-prefix", &trust.extra_headers_prefix),
        ] {
            data.insert(key.to_owned(), names(key, ours).map_err(|error| broken(&error))?);
        }
        Ok(data)
    }
}

impl Reconciler<()> for Publisher {
    async fn sync(&self, (): &()) -> Result<Requeue, SyncError> {
        let failed = SyncError::during("publishing what extension API servers trust");
        let api = self.client.namespaced::<ConfigMap>(NAMESPACE);
        match self.config_maps.get_named(NAMESPACE, CONFIG_MAP) {
            Some(current) => {
                let data = self.combined(current.data.as_ref().unwrap_or(&BTreeMap::new()))?;
                if current.data.as_ref() != Some(&data) {
                    let updated = ConfigMap { data: Some(data), ..(*current).clone() };
                    api.update(&updated).await.map_err(failed)?;
                }
            }
            None => {
                let metadata = ObjectMeta { name: Some(CONFIG_MAP.to_owned()), ..ObjectMeta::default() };
                let data = Some(self.combined(&BTreeMap::new())?);
                match api.create(&ConfigMap { metadata, data, ..ConfigMap::default() }).await {
                    // Another server was first; its event brings us back.
                    Err(error) if !error.is_already_exists() => return Err(failed(error)),
                    _ => {}
                }
            }
        }
        Ok(Requeue::After(RECHECK_INTERVAL))
    }
}

#[cfg(test)]
mod tests {
    use rkube_pki::CertificateAuthority;

    use super::*;
    use crate::testing::{World, survives_any_crash};

    fn map(world: &World) -> BTreeMap<String, String> {
        let map = world.api.get::<ConfigMap>(NAMESPACE, CONFIG_MAP).expect("it is published");
        map.data.clone().unwrap_or_default()
    }

    #[tokio::test]
    async fn is_published_put_right_and_shared_with_other_servers() {
        let mut world = World::new(&[CLUSTER_AUTHENTICATION_TRUST]);
        let authority =
            |name: &str| CertificateAuthority::generate(name, world.now()).expect("an authority").1.certificate_pem;
        let (ca, proxy, other) = (authority("kubernetes"), authority("front-proxy-ca"), authority("another server's"));
        let list = |name: &str| vec![name.to_owned()];
        world.config.authentication_trust = Some(AuthenticationTrust {
            client_ca: ca.clone(),
            request_header_ca: proxy.clone(),
            allowed_names: list("front-proxy-client"),
            username_headers: list("X-Remote-User"),
            uid_headers: list("X-Remote-Uid"),
            group_headers: list("X-Remote-Group"),
            extra_headers_prefix: list("X-Remote-Extra-"),
        });
        world.start();
        world.settle().await;
        let first = map(&world);
        let expected = [
            ("client-ca-file", ca.as_str()),
            ("requestheader-allowed-names", r#"["front-proxy-client"]"#),
            ("requestheader-client-ca-file", proxy.as_str()),
            ("requestheader-extra-headers-prefix", r#"["X-Remote-Extra-"]"#),
            ("requestheader-group-headers", r#"["X-Remote-Group"]"#),
            ("requestheader-uid-headers", r#"["X-Remote-Uid"]"#),
            ("requestheader-username-headers", r#"["X-Remote-User"]"#),
        ];
        assert_eq!(first, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());

        // What another server trusts stays; what is none of ours goes; what was taken away comes back.
        world.api.edit::<ConfigMap>(NAMESPACE, CONFIG_MAP, |map| {
            let data = map.data.get_or_insert_default();
            data.insert("client-ca-file".to_owned(), other.clone());
            data.insert("requestheader-allowed-names".to_owned(), r#"["corporate-proxy"]"#.to_owned());
            data.insert("stranger".to_owned(), "x".to_owned());
            data.remove("requestheader-client-ca-file");
        });
        world.settle().await;
        let mut merged = first.clone();
        merged.insert("client-ca-file".to_owned(), format!("{other}{ca}"));
        merged
            .insert("requestheader-allowed-names".to_owned(), r#"["corporate-proxy","front-proxy-client"]"#.to_owned());
        assert_eq!(map(&world), merged);
        world.api.remove::<ConfigMap>(NAMESPACE, CONFIG_MAP);
        world.settle().await;
        assert_eq!(map(&world), first);
        world.stays_idle(RECHECK_INTERVAL * 3).await;
    }

    #[tokio::test]
    async fn converges_after_a_crash_at_any_write() {
        let (_, ca) = CertificateAuthority::generate("kubernetes", World::new(&[]).now()).expect("an authority");
        let arrange = || {
            let mut world = World::new(&[CLUSTER_AUTHENTICATION_TRUST]);
            world.config.authentication_trust = Some(AuthenticationTrust {
                client_ca: ca.certificate_pem.clone(),
                request_header_ca: String::new(),
                allowed_names: Vec::new(),
                username_headers: vec!["X-Remote-User".to_owned()],
                uid_headers: Vec::new(),
                group_headers: Vec::new(),
                extra_headers_prefix: Vec::new(),
            });
            world
        };
        let drive = async |world: &mut World| {
            world.settle().await;
            world.api.edit::<ConfigMap>(NAMESPACE, CONFIG_MAP, |map| map.data = None);
            world.run_for(RECHECK_INTERVAL).await;
        };
        survives_any_crash(arrange, drive, |world| format!("{:?}", map(world))).await;
    }
}
