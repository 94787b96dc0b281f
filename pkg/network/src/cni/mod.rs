//! `rkube` as a CNI plugin, called by the container runtime under the name [`PLUGIN`].
//!
//! Inputs: the `CNI_*` environment, the configuration on standard input. Outputs: a result or an error as
//! JSON on standard output, and the exit status.
//! Behaves as the CNI specification, 1.1.0 and down to 0.3.0.

mod attach;
mod types;

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::Path;

use serde_json::json;

pub(crate) use attach::mac_of;
pub use attach::{Context, ensure_bridge};
pub use types::{Code, Environment, Failure, NetConf};

/// The name of the plugin's file in the runtime's plugin directory, and its `type` in the configuration.
pub const PLUGIN: &str = "rkube-cni";
/// Some runtimes call this to bring up `lo` of a new pod, and have it from the same directory.
pub const LOOPBACK_PLUGIN: &str = "loopback";
/// Begins the names of the host's ends of pods' devices.
pub(crate) const DEVICE_PREFIX: &str = "veth";

pub(crate) const VERSIONS: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A configuration is a few hundred bytes, and with GC some hundred per pod.
const INPUT_BYTES_MAX: u64 = 4 << 20;

/// Whether the process was started as the plugin.
pub fn is_plugin(argv0: &OsStr) -> bool {
    Path::new(argv0).file_name().is_some_and(|name| name == PLUGIN || name == LOOPBACK_PLUGIN)
}

/// Does what the runtime asked for and returns the exit status. `environment` looks a variable up.
pub fn main(argv0: &OsStr, environment: impl Fn(&str) -> Option<String>) -> i32 {
    let mut input = Vec::new();
    let read = std::io::stdin().take(INPUT_BYTES_MAX).read_to_end(&mut input);
    let outcome = match read {
        Ok(_) => call(argv0, &environment, &input),
        Err(error) => Err(Failure::new(Code::Io, "reading the configuration").because(&error)),
    };
    let (text, status) = match outcome {
        Ok(text) => (text, 0),
        Err(failure) => (failure.to_json(&input), 1),
    };
    // Whoever does not read the answer cannot be told about it either.
    let _ = std::io::stdout().write_all(text.as_bytes());
    status
}

/// One call of the plugin: what it answers on standard output.
pub fn call(argv0: &OsStr, environment: &impl Fn(&str) -> Option<String>, input: &[u8]) -> Result<String, Failure> {
    let command = environment("CNI_COMMAND").unwrap_or_default();
    if command == "VERSION" {
        return Ok(json!({"cniVersion": "1.1.0", "supportedVersions": VERSIONS}).to_string());
    }
    if Path::new(argv0).file_name().is_some_and(|name| name == LOOPBACK_PLUGIN) {
        let version = types::version_of(input)?;
        return attach::loopback(&command, environment, &version);
    }
    let config = NetConf::parse(input)?;
    let context = Context::new(config);
    match command.as_str() {
        "ADD" => context.add(&Environment::new(environment, true)?),
        "DEL" => context.delete(&Environment::new(environment, false)?).map(|()| String::new()),
        "CHECK" => context.check(&Environment::new(environment, true)?).map(|()| String::new()),
        "GC" => context.collect_garbage().map(|()| String::new()),
        "STATUS" => context.status().map(|()| String::new()),
        other => Err(Failure::new(Code::InvalidEnvironment, format!("unknown CNI_COMMAND: {other}"))),
    }
}
