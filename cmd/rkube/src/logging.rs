//! Log lines: structured, with a component, in text or JSON, on standard error.

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, reload};

use crate::values::{SettingsError, Values};

const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// Changes levels while the process runs.
pub(crate) type LevelHandle = reload::Handle<EnvFilter, tracing_subscriber::Registry>;

/// Starts logging as configured.
pub(crate) fn start(values: &Values) -> Result<LevelHandle, SettingsError> {
    let (filter, handle) = reload::Layer::new(filter(values)?);
    let registry = tracing_subscriber::registry().with(filter);
    if values.one("log-format") == Some("json") {
        registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).init();
    } else {
        registry.with(fmt::layer().with_writer(std::io::stderr).with_ansi(false)).init();
    }
    Ok(handle)
}

/// Sets the levels as the settings have them now.
pub(crate) fn change(handle: &LevelHandle, values: &Values) -> Result<(), SettingsError> {
    let failed = |error: reload::Error| SettingsError::Contradiction(format!("log-level: {error}"));
    handle.reload(filter(values)?).map_err(failed)
}

/// `level` for everything, `component=level` for one crate: `kubelet=debug` is `rkube_kubelet=debug`.
fn filter(values: &Values) -> Result<EnvFilter, SettingsError> {
    let base = if values.switch("debug") { "debug" } else { "info" };
    // What the libraries below say at info and debug is about them, not about the cluster.
    let mut directives = format!("warn,rkube={base}");
    for component in COMPONENTS {
        directives.push_str(&format!(",rkube_{component}={base}"));
    }
    for entry in values.list("log-level") {
        let (component, level) = match entry.split_once('=') {
            Some((component, level)) => (Some(component), level),
            None => (None, entry.as_str()),
        };
        if !LEVELS.contains(&level) {
            let text = format!("log-level {entry:?}: the level must be one of {}", LEVELS.join(", "));
            return Err(SettingsError::Contradiction(text));
        }
        match component {
            None => COMPONENTS.iter().for_each(|name| directives.push_str(&format!(",rkube_{name}={level}"))),
            Some(name) if COMPONENTS.contains(&name) => directives.push_str(&format!(",rkube_{name}={level}")),
            Some(name) => {
                let text = format!("log-level {entry:?}: {name:?} is not one of {}", COMPONENTS.join(", "));
                return Err(SettingsError::Contradiction(text));
            }
        }
    }
    EnvFilter::try_new(directives).map_err(|error| SettingsError::Contradiction(format!("log-level: {error}")))
}

/// The parts of the process that log, as in `--log-level part=debug`.
const COMPONENTS: [&str; 16] = [
    "apimachinery",
    "apiserver",
    "client",
    "codec",
    "controllers",
    "cri",
    "daemons",
    "dns",
    "http",
    "kubelet",
    "network",
    "pki",
    "proxy",
    "registry",
    "scheduler",
    "storage",
];
