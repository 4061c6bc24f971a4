//! `vfuctl completion`

use clap::CommandFactory;

use crate::{
    args::{Cli, Completion},
    error::Error,
    output::Output,
};

/// Prints the script. What comes from the agent, such as ids and the flags of a model, is not in it.
pub(crate) fn run(args: &Completion, output: &mut Output<'_>) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "vfuctl", &mut script);
    output.text(&String::from_utf8_lossy(&script))
}
