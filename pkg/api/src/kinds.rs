//! [`Kind`] for the built-in kinds, and with it the one place where their (de)serialization is instantiated.

use k8s_openapi::api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use crate::kind::{DecodeError, Kind};

macro_rules! kinds {
    ($($type:ty: $group:literal, $version:literal, $kind:literal, $plural:literal, $namespaced:literal;)*) => {$(
        impl Kind for $type {
            const GROUP: &'static str = $group;
            const VERSION: &'static str = $version;
            const KIND: &'static str = $kind;
            const PLURAL: &'static str = $plural;
            const NAMESPACED: bool = $namespaced;

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }

            fn decode(json: &[u8]) -> Result<Self, DecodeError> {
                serde_json::from_slice(json).map_err(|source| DecodeError { kind: $kind, source })
            }

            fn from_value(value: Value) -> Result<Self, DecodeError> {
                serde_json::from_value(value).map_err(|source| DecodeError { kind: $kind, source })
            }

            fn to_value(&self) -> Value {
                serde_json::to_value(self).expect("the types serialize without fail: their maps have string keys")
            }

            fn encode(&self) -> Vec<u8> {
                serde_json::to_vec(self).expect("the types serialize without fail: their maps have string keys")
            }
        }
    )*};
}

kinds! {
    api::core::v1::Pod: "", "v1", "Pod", "pods", true;
    api::core::v1::Event: "", "v1", "Event", "events", true;
    api::core::v1::Node: "", "v1", "Node", "nodes", false;
    api::core::v1::Service: "", "v1", "Service", "services", true;
    api::core::v1::Namespace: "", "v1", "Namespace", "namespaces", false;
    api::core::v1::ConfigMap: "", "v1", "ConfigMap", "configmaps", true;
    api::core::v1::Secret: "", "v1", "Secret", "secrets", true;
    api::core::v1::ServiceAccount: "", "v1", "ServiceAccount", "serviceaccounts", true;
    api::core::v1::Endpoints: "", "v1", "Endpoints", "endpoints", true;
    api::core::v1::ReplicationController: "", "v1", "ReplicationController", "replicationcontrollers", true;
    api::core::v1::PersistentVolume: "", "v1", "PersistentVolume", "persistentvolumes", false;
    api::core::v1::PersistentVolumeClaim: "", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", true;
    api::core::v1::ResourceQuota: "", "v1", "ResourceQuota", "resourcequotas", true;
    api::core::v1::LimitRange: "", "v1", "LimitRange", "limitranges", true;
    api::core::v1::PodTemplate: "", "v1", "PodTemplate", "podtemplates", true;
    api::apps::v1::ReplicaSet: "apps", "v1", "ReplicaSet", "replicasets", true;
    api::apps::v1::Deployment: "apps", "v1", "Deployment", "deployments", true;
    api::apps::v1::DaemonSet: "apps", "v1", "DaemonSet", "daemonsets", true;
    api::apps::v1::StatefulSet: "apps", "v1", "StatefulSet", "statefulsets", true;
    api::apps::v1::ControllerRevision: "apps", "v1", "ControllerRevision", "controllerrevisions", true;
    api::batch::v1::Job: "batch", "v1", "Job", "jobs", true;
    api::batch::v1::CronJob: "batch", "v1", "CronJob", "cronjobs", true;
    api::coordination::v1::Lease: "coordination.k8s.io", "v1", "Lease", "leases", true;
    api::discovery::v1::EndpointSlice: "discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", true;
    api::policy::v1::PodDisruptionBudget: "policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", true;
    api::autoscaling::v2::HorizontalPodAutoscaler: "autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", true;
    api::certificates::v1::CertificateSigningRequest: "certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests", false;
    api::rbac::v1::Role: "rbac.authorization.k8s.io", "v1", "Role", "roles", true;
    api::rbac::v1::RoleBinding: "rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", true;
    api::rbac::v1::ClusterRole: "rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", false;
    api::rbac::v1::ClusterRoleBinding: "rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", false;
    api::networking::v1::ServiceCIDR: "networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs", false;
    api::networking::v1::IPAddress: "networking.k8s.io", "v1", "IPAddress", "ipaddresses", false;
    api::networking::v1::NetworkPolicy: "networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", true;
    api::networking::v1::Ingress: "networking.k8s.io", "v1", "Ingress", "ingresses", true;
    api::networking::v1::IngressClass: "networking.k8s.io", "v1", "IngressClass", "ingressclasses", false;
    api::scheduling::v1::PriorityClass: "scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", false;
    api::node::v1::RuntimeClass: "node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", false;
    api::storage::v1::StorageClass: "storage.k8s.io", "v1", "StorageClass", "storageclasses", false;
    api::storage::v1::CSINode: "storage.k8s.io", "v1", "CSINode", "csinodes", false;
    api::storage::v1::CSIDriver: "storage.k8s.io", "v1", "CSIDriver", "csidrivers", false;
    api::storage::v1::CSIStorageCapacity: "storage.k8s.io", "v1", "CSIStorageCapacity", "csistoragecapacities", true;
    api::storage::v1::VolumeAttachment: "storage.k8s.io", "v1", "VolumeAttachment", "volumeattachments", false;
    api::storage::v1::VolumeAttributesClass: "storage.k8s.io", "v1", "VolumeAttributesClass", "volumeattributesclasses", false;
}
