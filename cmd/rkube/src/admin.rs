//! The commands of an administrator: `token`, `certificate`, `kubeconfig`, `check-config`, `uninstall`, `version`.
//!
//! Each is carried out by `rkube-daemons`; here are its flags and what it prints.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command};
use rkube_apimachinery::clock::{Clock, SystemClock};
use rkube_apimachinery::time;
use rkube_daemons::admin::Duration;
use rkube_daemons::admin::check::{self, Finding, Verdict, Wanted};
use rkube_daemons::admin::kubeconfig::NewKubeconfig;
use rkube_daemons::admin::tokens::{Listed, NewToken, Tokens, USAGES};
use rkube_daemons::admin::{AdminError, certificates, kubeconfig, uninstall};
use rkube_daemons::version;
use serde_json::json;

use crate::arguments::setting_argument;
use crate::settings::Roles;
use crate::values::{SettingsError, Values};
use crate::{config, values};

/// Why a command failed. Settings that are wrong are told apart: they have an exit code of their own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("starting the runtime")]
    Runtime(#[source] std::io::Error),
    #[error("writing {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// What a command says, and whether all is well.
pub(crate) struct Said {
    pub(crate) text: String,
    pub(crate) is_well: bool,
}

impl Said {
    fn well(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_well: true }
    }
}

// === flags ===

/// The commands, for `arguments::command`.
pub(crate) fn commands() -> Vec<Command> {
    vec![token(), certificate(), kubeconfig_command(), check_config(), uninstall_command(), version_command()]
}

fn group(name: &'static str, about: &'static str) -> Command {
    Command::new(name).about(about).subcommand_required(true).arg_required_else_help(true)
}

fn output() -> Arg {
    Arg::new("output")
        .short('o')
        .long("output")
        .value_name("FORMAT")
        .value_parser(["text", "json"])
        .default_value("text")
        .help("How to print")
}

fn file_flags(command: Command, names: &[&'static str]) -> Command {
    names.iter().fold(command, |command, name| command.arg(setting_argument(name)))
}

fn token() -> Command {
    let connected = |command: Command| {
        let kubeconfig = Arg::new("kubeconfig")
            .long("kubeconfig")
            .value_name("PATH")
            .help("Kubeconfig to reach the cluster with; KUBECONFIG, or the one the server wrote, if not given");
        file_flags(command.arg(kubeconfig), &["config"])
    };
    let create = Command::new("create")
        .about("Make a token that nodes join with")
        .long_about(
            "Make a token that nodes join with.\n\nA token is a Secret in kube-system that expires by itself. It is printed once, with \
             the hash of the cluster's authority before it, so that a node knows the right server from a wrong one. \
             Deleting it later does no harm to nodes that have joined.",
        )
        .after_help(
            "Examples:\n  rkube token create\n  rkube token create --ttl 15m --description 'node edge-7' --print-join-command\n  \
             rkube token create --ttl 0 --groups system:bootstrappers:edge",
        )
        .arg(
            Arg::new("ttl")
                .long("ttl")
                .value_name("DURATION")
                .default_value("24h")
                .help("How long the token can be used, such as 15m, 24h or 7d; 0 for ever"),
        )
        .arg(
            Arg::new("usages")
                .long("usages")
                .value_name("LIST")
                .value_delimiter(',')
                .default_values(USAGES)
                .help("What the token is for: authentication (to join), signing (to know the cluster by)"),
        )
        .arg(
            Arg::new("groups")
                .long("groups")
                .value_name("LIST")
                .value_delimiter(',')
                .help("Groups of whoever comes with the token, beside system:bootstrappers"),
        )
        .arg(Arg::new("description").long("description").value_name("TEXT").default_value("").help("What it is for"))
        .arg(
            Arg::new("print-join-command")
                .long("print-join-command")
                .action(ArgAction::SetTrue)
                .help("Print the command that joins a node, instead of the token alone"),
        );
    let list = Command::new("list")
        .about("List tokens, without their secrets")
        .after_help("Examples:\n  rkube token list\n  rkube token list -o json")
        .arg(output());
    let delete = Command::new("delete")
        .about("Delete tokens, so that nobody joins with them any more")
        .after_help("Examples:\n  rkube token delete abcdef\n  rkube token delete abcdef ghijkl")
        .arg(
            Arg::new("token")
                .required(true)
                .num_args(1..)
                .value_name("TOKEN")
                .help("The token's id: the six characters before the dot"),
        );
    group("token", "Make, list and delete the tokens nodes join with")
        .subcommand(connected(create))
        .subcommand(connected(list))
        .subcommand(connected(delete))
}

fn certificate() -> Command {
    let check = Command::new("check")
        .about("Show how long certificates last")
        .long_about(
            "Show every certificate of this machine's server or agent, what it is for and how long it lasts. The exit code is 1 if \
             one has expired or cannot be read.",
        )
        .after_help("Examples:\n  rkube certificate check\n  rkube certificate check --data-dir /srv/rkube -o json")
        .arg(output());
    let rotate = Command::new("rotate")
        .about("Make certificates anew")
        .long_about(
            "Make the certificates of this machine's server anew, with new keys: those named, or all. A server that runs takes them \
             up by itself and breaks off no connection. Authorities are never made anew, nor certificates that another \
             authority signed.",
        )
        .after_help("Examples:\n  rkube certificate rotate\n  rkube certificate rotate apiserver client-admin")
        .arg(Arg::new("name").num_args(0..).value_name("NAME").help("The file's name without .crt"));
    group("certificate", "Check and renew certificates")
        .subcommand(file_flags(check, &["data-dir", "config"]))
        .subcommand(file_flags(rotate, &["data-dir", "config"]))
}

fn kubeconfig_command() -> Command {
    let create = Command::new("create")
        .about("Make a kubeconfig for a user")
        .long_about(
            "Make a kubeconfig for a user, with a certificate that the cluster's authority signs. What the user may do is given by \
             RoleBindings and ClusterRoleBindings for the user or its groups. A certificate cannot be taken back: keep its time short.",
        )
        .after_help(
            "Examples:\n  rkube kubeconfig create --user jane --group developers --ttl 30d --output jane.yaml\n  \
             kubectl create rolebinding devs --clusterrole edit --group developers",
        )
        .arg(Arg::new("user").long("user").required(true).value_name("NAME").help("Name of the user"))
        .arg(
            Arg::new("group")
                .long("group")
                .alias("groups")
                .value_name("LIST")
                .value_delimiter(',')
                .action(ArgAction::Append)
                .help("Groups of the user"),
        )
        .arg(
            Arg::new("ttl")
                .long("ttl")
                .value_name("DURATION")
                .default_value("365d")
                .help("How long the certificate lasts, such as 8h or 30d"),
        )
        .arg(
            Arg::new("server")
                .long("server")
                .value_name("URL")
                .help("Where the user reaches the server; as in the administrator's kubeconfig if not given"),
        )
        .arg(
            Arg::new("output")
                .short('o')
                .long("output")
                .value_name("PATH")
                .help("File to write, mode 0600; standard output if not given"),
        );
    group("kubeconfig", "Make kubeconfigs for users")
        .subcommand(file_flags(create, &["data-dir", "write-kubeconfig", "config"]))
}

fn check_config() -> Command {
    let command = Command::new("check-config")
        .about("Check the configuration and whether this machine can run it")
        .long_about(
            "Read the configuration as `rkube server` would, and check that this machine can run it: kernel, cgroups, host name, \
             ports, clock, disk, container runtime. One line per check, with its remedy where there is something to do. The exit code \
             is 1 if something failed. Nothing is changed.",
        )
        .after_help(
            "Examples:\n  rkube check-config\n  rkube check-config --disable-agent --https-listen-port 7443\n  \
             rkube check-config --agent -o json",
        )
        .arg(Arg::new("agent").long("agent").action(ArgAction::SetTrue).help("Check for `rkube agent` instead"))
        .arg(output());
    crate::settings::SETTINGS.iter().fold(command, |command, setting| command.arg(setting_argument(setting.name)))
}

fn uninstall_command() -> Command {
    let network = Command::new("network")
        .about("Take away what the node's network put on this machine")
        .long_about(
            "Take away what the node's network put on this machine: its CNI configuration and plugin, routes, pods' devices, bridge and \
             tunnel, the address of cluster DNS, the nftables table, the records of pods' addresses. Nothing else is touched, and IP \
             forwarding stays on. Pods that still run are cut off, so stop them before, and rkube, too.",
        )
        .after_help("Examples:\n  rkube uninstall network --dry-run\n  rkube uninstall network --data-dir /srv/rkube")
        .arg(
            Arg::new("dry-run")
                .long("dry-run")
                .action(ArgAction::SetTrue)
                .help("Only show what would be removed, in that order"),
        );
    group("uninstall", "Take rkube off this machine")
        .subcommand(file_flags(network, &["data-dir", "cni-bin-dir", "cni-conf-dir", "config"]))
}

fn version_command() -> Command {
    Command::new("version")
        .about("Show the version")
        .after_help("Examples:\n  rkube version\n  rkube version -o json")
        .arg(output())
}

// === what they do ===

/// Carries out the command of these matches; `None` if it is none of this module's.
pub(crate) fn run(name: &str, matches: &ArgMatches) -> Option<Result<Said, CommandError>> {
    // Commands with subcommands require one.
    let inner = || matches.subcommand().unwrap_or(("", matches));
    Some(match name {
        "token" => run_token(inner()),
        "certificate" => run_certificate(inner()),
        "kubeconfig" => run_kubeconfig(inner().1),
        "check-config" => run_check(matches),
        "uninstall" => run_uninstall(inner().1),
        "version" => Ok(Said::well(version_text(is_json(matches)))),
        _ => return None,
    })
}

fn environment() -> BTreeMap<OsString, OsString> {
    std::env::vars_os().collect()
}

fn settings(matches: &ArgMatches) -> Result<Values, SettingsError> {
    Values::collect(Roles::Server, matches, &environment())
}

fn is_json(matches: &ArgMatches) -> bool {
    one(matches, "output") == Some("json")
}

fn one<'a>(matches: &'a ArgMatches, name: &str) -> Option<&'a str> {
    matches.get_one::<String>(name).map(String::as_str)
}

fn many(matches: &ArgMatches, name: &str) -> Vec<String> {
    matches.get_many::<String>(name).into_iter().flatten().filter(|text| !text.is_empty()).cloned().collect()
}

/// Go's durations, and days.
fn duration(matches: &ArgMatches, name: &str) -> Result<Duration, CommandError> {
    let text = one(matches, name).unwrap_or_default();
    let days = text.strip_suffix('d').and_then(|days| days.parse::<i64>().ok()).and_then(|days| days.checked_mul(24));
    match days {
        Some(hours) => Ok(Duration::from_hours(hours)),
        None => time::parse_duration(text).map_err(|_| {
            let text = format!("--{name} {text:?} is not a duration such as 15m, 24h or 7d");
            CommandError::Settings(SettingsError::Contradiction(text))
        }),
    }
}

fn on_runtime<T>(work: impl Future<Output = Result<T, CommandError>>) -> Result<T, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CommandError::Runtime)?;
    runtime.block_on(work)
}

fn run_token((name, matches): (&str, &ArgMatches)) -> Result<Said, CommandError> {
    let from_environment = || std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
    let given = one(matches, "kubeconfig").map(PathBuf::from).or_else(from_environment);
    let path = match given {
        Some(path) => path,
        None => PathBuf::from(settings(matches)?.one("write-kubeconfig").unwrap_or_default()),
    };
    on_runtime(async {
        let tokens = Tokens::connect(&path, SystemClock::shared())?;
        match name {
            "create" => {
                let ttl = duration(matches, "ttl")?;
                let wanted = NewToken {
                    ttl: (!ttl.is_zero()).then_some(ttl),
                    usages: many(matches, "usages"),
                    groups: many(matches, "groups"),
                    description: one(matches, "description").unwrap_or_default().to_owned(),
                };
                let created = tokens.create(&wanted).await?;
                let token = created.token.reveal();
                Ok(Said::well(match matches.get_flag("print-join-command") {
                    true => format!("rkube agent --join {} --token {token}\n", created.server),
                    false => format!("{token}\n"),
                }))
            }
            "delete" => {
                let mut said = String::new();
                for token in many(matches, "token") {
                    let id = tokens.delete(&token).await?;
                    let _ = writeln!(said, "bootstrap token {id:?} deleted");
                }
                Ok(Said::well(said))
            }
            _ => {
                let listed = tokens.list().await?;
                Ok(Said::well(if is_json(matches) { pretty(&json!(listed)) } else { token_table(&listed) }))
            }
        }
    })
}

fn token_table(tokens: &[Listed]) -> String {
    let now = SystemClock::new().now();
    let rows = tokens.iter().map(|token| {
        let (ttl, expires) = match token.expires {
            None => ("<forever>".to_owned(), "<never>".to_owned()),
            Some(at) if at <= now => ("<expired>".to_owned(), time::format(at)),
            Some(at) => (time::human_duration(at.duration_since(now)), time::format(at)),
        };
        [
            token.id.clone(),
            ttl,
            expires,
            token.usages.join(","),
            none_if_empty(&token.description),
            none_if_empty(&token.groups.join(",")),
        ]
    });
    table(&["ID", "TTL", "EXPIRES", "USAGES", "DESCRIPTION", "EXTRA GROUPS"], rows)
}

fn none_if_empty(text: &str) -> String {
    if text.is_empty() { "<none>".to_owned() } else { text.to_owned() }
}

fn run_certificate((name, matches): (&str, &ArgMatches)) -> Result<Said, CommandError> {
    let values = settings(matches)?;
    let data_dir = PathBuf::from(values.one("data-dir").unwrap_or_default());
    let now = SystemClock::new().now();
    if name == "rotate" {
        return rotate(&data_dir, &many(matches, "name"));
    }
    let reports = certificates::check(&data_dir, now)?;
    let is_bad = |report: &certificates::Report| {
        matches!(report.health, certificates::Health::Expired | certificates::Health::Unreadable)
    };
    let is_well = !reports.iter().any(is_bad);
    if is_json(matches) {
        return Ok(Said { text: pretty(&json!(reports)), is_well });
    }
    let rows = reports.iter().map(|report| {
        let path = report.path.strip_prefix(&data_dir).unwrap_or(&report.path).display().to_string();
        let health = match report.health {
            certificates::Health::Ok => "ok".to_owned(),
            certificates::Health::DueForRenewal => "due for renewal".to_owned(),
            certificates::Health::Expired => "EXPIRED".to_owned(),
            certificates::Health::Unreadable => format!("UNREADABLE: {}", report.problem),
        };
        let expires = report.not_after.map(time::format).unwrap_or_default();
        [path, report.subject.clone(), expires, format!("{}d", report.days_left), health]
    });
    Ok(Said { text: table(&["CERTIFICATE", "SUBJECT", "EXPIRES", "LEFT", "STATUS"], rows), is_well })
}

fn rotate(data_dir: &Path, names: &[String]) -> Result<Said, CommandError> {
    let rotations = certificates::rotate(data_dir, names, SystemClock::new().now())?;
    let (mut text, mut is_well) = (String::new(), true);
    for rotation in rotations {
        let _ = match rotation.outcome {
            Ok(()) => writeln!(text, "{} renewed", rotation.name),
            Err(error) => {
                is_well = false;
                writeln!(text, "{} left alone: {error}", rotation.name)
            }
        };
    }
    Ok(Said { text, is_well })
}

fn run_kubeconfig(matches: &ArgMatches) -> Result<Said, CommandError> {
    let values = settings(matches)?;
    let wanted = NewKubeconfig {
        data_dir: PathBuf::from(values.one("data-dir").unwrap_or_default()),
        user: one(matches, "user").unwrap_or_default().to_owned(),
        groups: many(matches, "group"),
        ttl: duration(matches, "ttl")?,
        server: one(matches, "server").map(str::to_owned),
        admin_kubeconfig: PathBuf::from(values.one("write-kubeconfig").unwrap_or_default()),
    };
    let text = kubeconfig::create(&wanted, SystemClock::new().now())?;
    let Some(path) = one(matches, "output").map(PathBuf::from) else { return Ok(Said::well(text)) };
    let write = || {
        // Never through a file that others can read already.
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes())
    };
    write().map_err(|source| CommandError::Write { path: path.clone(), source })?;
    Ok(Said::well(format!("{} written\n", path.display())))
}

fn run_check(matches: &ArgMatches) -> Result<Said, CommandError> {
    let wanted = if matches.get_flag("agent") {
        let values = Values::collect(Roles::Agent, matches, &environment())?;
        let data_dir = Path::new(values.one("data-dir").unwrap_or_default());
        Wanted::agent(data_dir, config::port(&values, "lb-server-port"), &config::node(&values)?)
    } else {
        Wanted::server(&config::server(&settings(matches)?)?)
    };
    let findings = on_runtime(async { Ok(check::run(&wanted, Path::new("/"), SystemClock::new().now()).await) })?;
    let is_well = findings.iter().all(|finding| finding.verdict != Verdict::Failed);
    let text = if is_json(matches) { pretty(&json!(findings)) } else { findings.iter().map(finding_line).collect() };
    Ok(Said { text, is_well })
}

fn run_uninstall(matches: &ArgMatches) -> Result<Said, CommandError> {
    let values = settings(matches)?;
    let path = |name| PathBuf::from(values.one(name).unwrap_or_default());
    let folders = uninstall::folders(&path("data-dir"), &path("cni-bin-dir"), &path("cni-conf-dir"));
    if matches.get_flag("dry-run") {
        return Ok(Said::well(uninstall::plan(&folders)?.iter().map(|what| format!("{what}\n")).collect::<String>()));
    }
    let (mut text, mut is_well) = (String::new(), true);
    for removed in uninstall::network(&folders)? {
        is_well &= removed.problem.is_none();
        let _ = match removed.problem {
            None => writeln!(text, "{} removed", removed.what),
            Some(problem) => writeln!(text, "{} NOT removed: {problem}", removed.what),
        };
    }
    Ok(Said { text, is_well })
}

fn finding_line(finding: &Finding) -> String {
    let verdict = match finding.verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::Failed => "FAILED",
    };
    let remedy = if finding.remedy.is_empty() { String::new() } else { format!(" -- {}", finding.remedy) };
    format!("{verdict:<8} {}: {}{remedy}\n", finding.check, finding.detail)
}

fn version_text(json: bool) -> String {
    if !json {
        return format!("rkube {}\n", version::BUILD);
    }
    pretty(&json!({
        "rkubeVersion": version::RKUBE,
        "kubernetesVersion": version::KUBERNETES,
        "platform": format!("{}/{}", std::env::consts::OS, values::go_architecture()),
    }))
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

/// Columns as wide as their widest cell, three spaces apart, as kubectl prints.
fn table<const N: usize>(head: &[&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("   ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = [["a".to_owned(), "long cell".to_owned(), "x".to_owned()]];
        assert_eq!(table(&["ONE", "TWO", "THREE"], rows.into_iter()), "ONE   TWO         THREE\na     long cell   x\n");
    }

    #[test]
    fn durations_are_gos_and_days() {
        let parse = |text: &str| {
            let matches = token().get_matches_from(["token", "create", "--ttl", text]);
            duration(matches.subcommand().unwrap().1, "ttl").map_err(|error| error.to_string())
        };
        assert_eq!(parse("15m").unwrap(), Duration::from_mins(15));
        assert_eq!(parse("7d").unwrap(), Duration::from_hours(168));
        assert_eq!(parse("0").unwrap(), Duration::ZERO);
        assert_eq!(parse("soon").unwrap_err(), "--ttl \"soon\" is not a duration such as 15m, 24h or 7d");
    }

    #[test]
    fn a_finding_is_one_line_with_its_remedy() {
        let finding = Finding {
            verdict: Verdict::Failed,
            check: "root",
            detail: "not running as root".to_owned(),
            remedy: "run it with sudo".to_owned(),
        };
        assert_eq!(finding_line(&finding), "FAILED   root: not running as root -- run it with sudo\n");
    }
}
