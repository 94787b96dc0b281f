//! Tokens of service accounts that live in Secrets of type `kubernetes.io/service-account-token`: they are filled,
//! go with their account, and auto-generated ones go when nobody uses them any more.
//!
//! Behaves as  pkg/controller/serviceaccount, pkg/controlplane/controller/legacytokentracking, v1.36

mod cleaner;
mod controller;
mod tracking;

use jiff::Timestamp;
use jiff::civil::Date;
use rkube_api::k8s::core::v1::Secret;
use rkube_client::{Informer, InformerFactory};

pub(crate) use cleaner::LEGACY_SERVICEACCOUNT_TOKEN_CLEANER;
pub(crate) use controller::SERVICEACCOUNT_TOKEN;
pub(crate) use tracking::LEGACY_TOKEN_TRACKING;

const TYPE: &str = "kubernetes.io/service-account-token";
const NAME_ANNOTATION: &str = "kubernetes.io/service-account.name";
const UID_ANNOTATION: &str = "kubernetes.io/service-account.uid";

/// Since when uses of such tokens are written down.
const TRACKING_NAMESPACE: &str = "kube-system";
const TRACKING_CONFIG_MAP: &str = "kube-apiserver-legacy-service-account-token-tracking";
const SINCE: &str = "since";

/// Only such Secrets: all others are none of our business, nor of our memory.
fn secrets(informers: &InformerFactory) -> Informer<Secret> {
    informers.scoped("", "", &format!("type={TYPE}"))
}

fn annotation<'a>(secret: &'a Secret, name: &str) -> &'a str {
    secret.metadata.annotations.as_ref().and_then(|all| all.get(name)).map(String::as_str).unwrap_or_default()
}

/// The day in UTC, as labels and the tracking have it.
fn day(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d").to_string()
}

fn parse_day(text: &str) -> Option<Date> {
    Date::strptime("%Y-%m-%d", text).ok().filter(|date| date.to_string() == text)
}
