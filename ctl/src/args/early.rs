//! What is read before clap reads the command line: the model of a `create`, and where its agent is.
//!
//! The flags of `vfuctl create MODEL` come from the model, and the model from the agent, whose address is on the command
//! line too. So the words are read twice: [`Early`] finds the model and the agent among words it does not all know, and
//! clap reads them all once the model's flags are added.

use std::ffi::OsString;

use clap::{ColorChoice, CommandFactory, Parser, error::ErrorKind};

use super::{Cli, Globals};

/// The flags that say how to reach the agent.
const CONNECTING: [&str; 6] = [
    "--endpoint",
    "--timeout",
    "--tls-ca",
    "--tls-cert",
    "--tls-key",
    "--tls-server-name",
];

/// What has to be known of a `vfuctl create MODEL` before the model's flags are.
#[derive(Debug)]
pub(crate) struct Early {
    /// The model.
    pub(crate) model: String,
    /// Where and how long to ask for it.
    pub(crate) globals: Globals,
}

impl Early {
    /// Finds them in `words`, the command line with the program's name. None when this is no `create` with a model:
    /// then clap alone reads it. Flags of the model may only follow it, because whether they take a value is unknown.
    pub(crate) fn find(words: &[OsString]) -> Result<Option<Self>, clap::Error> {
        #[derive(Parser)]
        #[command(name = "vfuctl", color = ColorChoice::Never)]
        struct OnlyGlobals {
            #[command(flatten)]
            globals: Globals,
        }

        let cli = Cli::command();
        let known: Vec<_> = cli
            .get_arguments()
            .chain(
                cli.find_subcommand("create")
                    .into_iter()
                    .flat_map(|it| it.get_arguments()),
            )
            .collect();
        let is = |arg: &clap::Arg, flag: &str| {
            let long = arg.get_long().map(|long| format!("--{long}"));
            let short = arg.get_short().map(|short| format!("-{short}"));
            long.as_deref() == Some(flag) || short.as_deref() == Some(flag)
        };
        let takes_value = |flag: &str| {
            let mut arguments = known.iter();
            arguments.any(|arg| is(arg, flag) && arg.get_action().takes_values())
        };

        let mut positionals = Vec::new();
        let mut globals = vec![OsString::from("vfuctl")];
        let mut words = words.iter().skip(1);
        while let Some(word) = words.next() {
            let Some(text) = word.to_str() else { continue };
            if text == "--" {
                break;
            }
            let flag = match text.starts_with("--") {
                true => text.split('=').next().unwrap_or_default(),
                // A short flag's value may stick to it, as in `-ojson`.
                false => text.get(..2).unwrap_or(text),
            };
            if text.starts_with('-') && text != "-" {
                let ours =
                    known.iter().any(|arg| is(arg, flag)) || ["-h", "--help"].contains(&flag);
                if positionals == ["create"] && !ours && !text.contains('=') {
                    let why =
                        format!("{flag} comes before MODEL; flags of a model are given after it");
                    return Err(Cli::command().error(ErrorKind::UnknownArgument, why));
                }
                let value = match takes_value(flag) && flag == text {
                    true => words.next(),
                    false => None,
                };
                if CONNECTING.contains(&flag) {
                    globals.push(word.clone());
                    globals.extend(value.cloned());
                }
            } else {
                positionals.push(text);
            }
        }
        match positionals[..] {
            ["create", model, ..] => Ok(Some(Self {
                model: model.to_owned(),
                globals: OnlyGlobals::try_parse_from(globals)?.globals,
            })),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn early(line: &str) -> Option<Early> {
        let words: Vec<_> = line.split(' ').map(OsString::from).collect();
        Early::find(&words).unwrap()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn model_and_agent_are_found_among_unknown_flags() {
        let early = early(
            "vfuctl -o json create -oyaml --label a=b e1000 nic0 --net.tap.ifname vfu0 --endpoint unix:///x.sock --timeout=5",
        )
        .unwrap();
        assert_eq!(early.model, "e1000");
        assert_eq!(early.globals.endpoint.to_string(), "/x.sock");
        assert_eq!(early.globals.timeout, Duration::from_secs(5));
    }

    #[test]
    fn other_commands_have_no_model() {
        assert!(early("vfuctl get nic0").is_none());
        assert!(early("vfuctl create --help").is_none());
        assert!(early("vfuctl help create").is_none());
        assert!(early("vfuctl").is_none());
    }

    #[test]
    fn a_bad_endpoint_is_wrong_usage() {
        let words = ["vfuctl", "create", "e1000", "--endpoint", "tcp"].map(OsString::from);
        assert_eq!(Early::find(&words).unwrap_err().exit_code(), 2);
    }
}
