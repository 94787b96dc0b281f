//! The command line, built from the settings table.

use clap::{Arg, ArgAction, Command};

use crate::admin;
use crate::settings::{self, Form, Roles, Setting};

const OVERVIEW: &str = "First steps:\n  rkube check-config                          can this machine run it?\n  \
    rkube server                                a control plane and a node\n  \
    kubectl --kubeconfig /etc/rkube/rkube.yaml get nodes\n  \
    rkube token create --print-join-command     what to run on the next machine\n  \
    rkube certificate check                     how long certificates last\n\n\
    `rkube COMMAND --help` explains each with examples.";

const AFTER_HELP: &str = "Every flag is also a key of the configuration file (`/etc/rkube/config.yaml`, then \
`/etc/rkube/config.yaml.d/*.yaml`; `key+:` appends to a list) and an environment variable: --some-flag is \
`some-flag:` and RKUBE_SOME_FLAG. Flags win over the environment, the environment over files.";

/// The whole command line.
pub(crate) fn command() -> Command {
    Command::new("rkube")
        .about("A complete Kubernetes distribution in one binary")
        .after_help(OVERVIEW)
        .version(rkube_daemons::version::BUILD)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(role(
            "server",
            "Run a control plane, and by default a node on the same machine",
            "Examples:\n  rkube server\n  rkube server --disable-agent --data-dir /srv/rkube --tls-san api.example.com\n  \
             rkube server --datastore-endpoint https://etcd-1:2379,https://etcd-2:2379 --datastore-cafile ca.pem",
            Roles::Server,
        ))
        .subcommand(role(
            "agent",
            "Run a worker node that joins a server",
            "Examples:\n  rkube agent --join https://192.0.2.1:6443 --token-file /etc/rkube/token\n  \
             RKUBE_TOKEN=K10... rkube agent --join https://192.0.2.1:6443 --node-label disk=ssd\n\n\
             The token comes from `rkube token create` on the server, or from its file server/token.",
            Roles::Agent,
        ))
        .subcommands(admin::commands())
        .subcommand(
            Command::new("completion")
                .about("Print a completion script")
                .after_help(
                    "Examples:\n  rkube completion bash > /etc/bash_completion.d/rkube\n  \
                     rkube completion zsh > \"${fpath[1]}/_rkube\"\n  \
                     rkube completion fish > ~/.config/fish/completions/rkube.fish",
                )
                .arg(
                Arg::new("shell")
                    .required(true)
                    .value_parser(clap::value_parser!(clap_complete::Shell))
                    .help("bash, zsh, fish, elvish or powershell"),
            ),
        )
        .subcommand(Command::new("reference").about("Print the configuration reference in Markdown").hide(true))
}

fn role(name: &'static str, about: &'static str, examples: &str, role: Roles) -> Command {
    let command = Command::new(name).about(about).after_help(format!("{examples}\n\n{AFTER_HELP}"));
    settings::of(role).fold(command, |command, setting| command.arg(argument(setting)))
}

/// The flag of a setting.
///
/// # Panics
/// If there is no such setting: names are written in this crate.
pub(crate) fn setting_argument(name: &str) -> Arg {
    let setting = settings::SETTINGS.iter().find(|setting| setting.name == name);
    argument(setting.expect("the setting is in the table"))
}

fn argument(setting: &'static Setting) -> Arg {
    let mut help = setting.help.to_owned();
    match setting.default {
        // A default of ours is shown here and applied when settings are collected, after file and environment.
        Some(default) if setting.form != Form::Switch => help.push_str(&format!(" [default: {default}]")),
        _ => {}
    }
    let argument = Arg::new(setting.name).long(setting.name).help(help).help_heading(setting.group);
    let argument = match setting.alias {
        Some(alias) => argument.visible_alias(alias),
        None => argument,
    };
    match setting.form {
        Form::Switch => {
            argument.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("true|false")
        }
        Form::List => argument.action(ArgAction::Append).value_name("LIST"),
        Form::Repeated => argument.action(ArgAction::Append).value_name("TEXT"),
        form => argument.value_name(value_name(form)),
    }
}

fn value_name(form: Form) -> &'static str {
    match form {
        Form::Text => "TEXT",
        Form::Path => "PATH",
        Form::Port => "PORT",
        Form::PortRange => "FIRST-LAST",
        Form::Address => "IP",
        Form::Cidr => "CIDR",
        Form::Mode => "MODE",
        Form::Choice(_) => "CHOICE",
        Form::List | Form::Repeated | Form::Switch => "",
    }
}

/// The configuration reference: `docs/configuration.md` is this text.
pub(crate) fn reference() -> String {
    let mut out = String::from(
        "# Configuration\n\n<!-- Made by `rkube reference`; a test compares. -->\n\n\
         Every setting is a flag `--some-flag`, a key `some-flag` in `/etc/rkube/config.yaml` and an environment variable \
         `RKUBE_SOME_FLAG`. Files in `/etc/rkube/config.yaml.d/` are read after it in alphabetical order; a key that ends in \
         `+` appends to a list. Flags win over the environment, the environment over files. Unknown keys are errors.\n\n",
    );
    let mut group = "";
    for setting in settings::SETTINGS {
        if setting.group != group {
            group = setting.group;
            out.push_str(&format!("## {group}\n\n| setting | for | default | meaning |\n| --- | --- | --- | --- |\n"));
        }
        let roles = match setting.roles {
            Roles::Server => "server",
            Roles::Agent => "agent",
            Roles::Both => "both",
        };
        let default = setting.default.map(|text| format!("`{text}`")).unwrap_or_default();
        let alias = setting.alias.map(|alias| format!(" (`{alias}`)")).unwrap_or_default();
        let help = match setting.form {
            Form::Choice(choices) => format!("{}: {}", setting.help, choices.join(", ")),
            _ => setting.help.to_owned(),
        };
        out.push_str(&format!("| `{}`{alias} | {roles} | {default} | {help} |\n", setting.name));
        let next = settings::SETTINGS.iter().skip_while(|other| other.name != setting.name).nth(1);
        if next.is_none_or(|next| next.group != group) {
            out.push('\n');
        }
    }
    out.push_str("# Commands\n\n");
    for command in command().get_subcommands().filter(|command| !command.is_hide_set()) {
        describe(&mut out, command, "rkube");
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

/// A command with its own flags; those of settings are listed above.
fn describe(out: &mut String, command: &Command, parent: &str) {
    let name = format!("{parent} {}", command.get_name());
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    out.push_str(&format!("## `{name}`\n\n{}\n\n", about.trim_end_matches('.').to_owned() + "."));
    let is_own = |argument: &&Arg| !settings::SETTINGS.iter().any(|setting| argument.get_id() == setting.name);
    let own: Vec<&Arg> = command.get_arguments().filter(is_own).collect();
    if !own.is_empty() {
        out.push_str("| flag | default | meaning |\n| --- | --- | --- |\n");
    }
    for argument in &own {
        let flag = match (argument.get_short(), argument.get_long()) {
            (Some(short), Some(long)) => format!("-{short}, --{long}"),
            (_, Some(long)) => format!("--{long}"),
            _ => argument.get_id().as_str().to_ascii_uppercase(),
        };
        let defaults: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let default = if argument.get_action().takes_values() { defaults.join(",") } else { String::new() };
        let default = if default.is_empty() { default } else { format!("`{default}`") };
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        out.push_str(&format!("| `{flag}` | {default} | {help} |\n"));
    }
    if !own.is_empty() {
        out.push('\n');
    }
    if let Some(examples) = command.get_after_help() {
        let examples = examples.to_string();
        let lines =
            examples.lines().skip_while(|line| *line != "Examples:").skip(1).take_while(|line| line.starts_with("  "));
        let lines: Vec<_> = lines.map(str::trim_start).collect();
        if !lines.is_empty() {
            out.push_str(&format!("```sh\n{}\n```\n\n", lines.join("\n")));
        }
    }
    for inner in command.get_subcommands() {
        describe(out, inner, &name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn the_configuration_reference_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == reference(),
            "docs/configuration.md is old: run `rkube reference > docs/configuration.md`"
        );
    }
}
