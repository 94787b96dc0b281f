//! The command line, built from the settings table.

use clap::{Arg, ArgAction, Command};

use crate::settings::{self, Form, Roles, Setting};

const AFTER_HELP: &str = "Every flag is also a key of the configuration file (`/etc/rkube/config.yaml`, then \
`/etc/rkube/config.yaml.d/*.yaml`; `key+:` appends to a list) and an environment variable: --some-flag is \
`some-flag:` and RKUBE_SOME_FLAG. Flags win over the environment, the environment over files.";

/// The whole command line.
pub(crate) fn command() -> Command {
    Command::new("rkube")
        .about("A complete Kubernetes distribution in one binary")
        .version(rkube_daemons::version::BUILD)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(role("server", "Run a control plane, and by default a node on the same machine", Roles::Server))
        .subcommand(role("agent", "Run a worker node that joins a server", Roles::Agent))
        .subcommand(Command::new("version").about("Show the version"))
        .subcommand(
            Command::new("completion").about("Print a completion script").arg(
                Arg::new("shell")
                    .required(true)
                    .value_parser(clap::value_parser!(clap_complete::Shell))
                    .help("bash, zsh, fish, elvish or powershell"),
            ),
        )
        .subcommand(Command::new("reference").about("Print the configuration reference in Markdown").hide(true))
}

fn role(name: &'static str, about: &'static str, role: Roles) -> Command {
    let command = Command::new(name).about(about).after_help(AFTER_HELP);
    settings::of(role).fold(command, |command, setting| command.arg(argument(setting)))
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
        Form::List | Form::Switch => "",
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
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
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
