//! vfuctl: the command line of vfu's agent.
//!
//! One command, a few calls, one result. It knows the API and no model of a device: what a model's
//! configuration looks like it learns from the agent.

mod args;
mod client;
mod cmd;
mod config;
mod endpoint;
mod error;
mod output;
mod refusal;
mod schema;
#[cfg(test)]
mod tests;
mod tls;
mod yaml;

use std::{
    ffi::OsString,
    io::{IsTerminal, Write},
    process::ExitCode,
};

use clap::{ArgMatches, CommandFactory, FromArgMatches, error::ErrorKind};

use crate::{
    args::{Cli, Command, Early},
    client::Client,
    error::Error,
    output::Output,
    schema::Schema,
};

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return Error::Output(error).report(),
    };
    let (mut sink, mut notes) = (std::io::stdout(), std::io::stderr());
    let terminal = notes.is_terminal();
    match runtime.block_on(run(&words, &mut sink, &mut notes, terminal)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

/// Runs the command line `words`, which begin with the program's name, and writes its result to `sink`, and what else is to
/// be said to `notes`, which is or is no `terminal`.
async fn run(
    words: &[OsString],
    sink: &mut dyn Write,
    notes: &mut dyn Write,
    terminal: bool,
) -> Result<(), Error> {
    let (matches, schema) = parse(words).await?;
    let Cli { globals, command } = Cli::from_arg_matches(&matches)?;
    let mut output = Output {
        format: globals.output,
        sink,
        notes,
        terminal,
    };
    let output = &mut output;
    if let Command::Completion(args) = &command {
        return cmd::completion::run(args, output);
    }
    let client = Client::connect(&globals.endpoint, &globals.tls, globals.timeout).await;
    // These two have something to say even without an agent.
    let command = match command {
        Command::Version(_) => return cmd::version::run(client, output).await,
        Command::Probe(args) => {
            return cmd::probe::run(args, client, globals.timeout, output).await;
        }
        command => command,
    };
    let client = &client?;
    match command {
        Command::Create(args) => {
            let schema = schema.unwrap_or_default();
            let flags = matches.subcommand_matches("create");
            let flags = flags.map(|flags| config::from_flags(flags, &schema));
            let flags = flags.transpose()?.unwrap_or_default();
            cmd::create::run(args, flags, &schema, client, output).await
        }
        Command::Get(args) => cmd::get::run(args, client, output).await,
        Command::List(args) => cmd::get::list(args, client, output).await,
        Command::Update(args) => cmd::update::run(args, client, output).await,
        Command::Delete(args) => cmd::delete::run(args, client, output).await,
        Command::Reset(args) => cmd::reset::run(args, client, output).await,
        Command::Restart(args) => cmd::restart::run(args, client, output).await,
        Command::Plug(args) => cmd::plug::run(args, client, output).await,
        Command::Unplug(args) => cmd::plug::unplug(args, client, output).await,
        Command::Doctor(args) => cmd::doctor::run(args, client, output).await,
        Command::Wait(args) => cmd::wait::run(args, client, output).await,
        Command::Watch(args) => cmd::watch::run(args, client, output).await,
        Command::Logs(args) => cmd::logs::run(args, client, output).await,
        Command::Events(args) => cmd::events::run(args, client, output).await,
        Command::Stats(args) => cmd::stats::run(args, client, output).await,
        Command::Agent(_) => cmd::agent::show(client, output).await,
        Command::Drain(args) => cmd::agent::drain(args, client, output).await,
        Command::Undrain(_) => cmd::agent::undrain(client, output).await,
        Command::ShutdownDevices(args) => cmd::agent::shut_down(args, client, output).await,
        Command::Models(args) => cmd::models::run(args, client, output).await,
        Command::Version(_) | Command::Probe(_) | Command::Completion(_) => Ok(()),
        Command::Cmdline(args) => cmd::cmdline::run(args, client, output).await,
    }
}

/// Reads the command line; for `create MODEL` with the flags of the model, whose schema comes along.
async fn parse(words: &[OsString]) -> Result<(ArgMatches, Option<Schema>), Error> {
    let cli = Cli::command();
    let Some(early) = Early::find(words)? else {
        return Ok((cli.try_get_matches_from(words)?, None));
    };
    match schema(&early).await {
        Ok(schema) => {
            let cli = cli.mut_subcommand("create", |it| config::add_flags(it, &schema));
            Ok((cli.try_get_matches_from(words)?, Some(schema)))
        }
        Err(error) => {
            // Help is for those for whom things do not work yet.
            let note = format!("The flags of model {} are not shown: {error}", early.model);
            let cli = cli.mut_subcommand("create", |it| it.before_help(note));
            match cli.try_get_matches_from(words) {
                Err(help) if help.kind() == ErrorKind::DisplayHelp => Err(help.into()),
                _ => Err(error),
            }
        }
    }
}

async fn schema(early: &Early) -> Result<Schema, Error> {
    let globals = &early.globals;
    let client = Client::connect(&globals.endpoint, &globals.tls, globals.timeout).await?;
    Ok(cmd::models::schema(&client.model(&early.model).await?))
}
