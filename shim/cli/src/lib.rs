//! The command `pageless`: its arguments, the tour, and how the tour is told.
//!
//! Read in this order: [`args`] is what may be said; [`tour`] is the story, a chapter in each file of `story`; [`narrate`] tells it as it happens and remembers it;
//! [`refcount`] measures the comparison; [`report`] is what was found; [`deliver`] prints it, with the [`map`] and the
//! page of [`html`].
#![forbid(unsafe_code)]

pub mod args;
pub mod deliver;
pub mod figures;
pub mod html;
pub mod ledger;
pub mod lend;
pub mod map;
pub mod narrate;
pub mod paint;
pub mod refcount;
pub mod report;
mod story;
pub mod tour;
pub mod window;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use args::{Cli, Command, TourSettings};
use narrate::Narrator;
use paint::Paint;

/// Everything went well.
const DONE: u8 = 0;
/// It was refused, or did not hold.
const REFUSED: u8 = 1;
/// The arguments make no sense.
const USAGE: u8 = 2;

/// Runs the command with these arguments, the first of which is its own name. Exit codes: 0 done, 1 refused, 2 usage.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return complain(&error),
    };
    let arguments = match &cli.command {
        Command::Ledger(command) => return ledger::perform(command),
        Command::Lend(arguments) => return lend::perform(arguments).unwrap_or_else(|error| complain(&usage("lend", &error))),
        Command::TourWorker { file, frames } => {
            let done = story::killed::work(file, frames);
            return ExitCode::from(if done.is_ok() { DONE } else { REFUSED });
        }
        Command::Tour(arguments) => arguments,
    };
    let code = match arguments.settings() {
        Err(error) => return complain(&usage("tour", &error)),
        Ok(settings) => match perform_and_deliver(&settings, cli.color.for_stdout()) {
            Ok(true) => DONE,
            Ok(false) => REFUSED,
            Err(error) => {
                eprintln!("pageless: {error:#}");
                REFUSED
            }
        },
    };
    ExitCode::from(code)
}

/// The tour from beginning to end; whether it kept what pageless promises.
fn perform_and_deliver(settings: &TourSettings, paint: Paint) -> anyhow::Result<bool> {
    deliver::check_target(&settings.html)?;
    let mut narrator = Narrator::new(settings.voice, paint);
    let mut report = tour::perform(settings, &mut narrator)?;
    deliver::deliver(&mut report, settings, narrator).context("the tour was made, but not all of it could be told")?;
    Ok(report.holds())
}

/// The error in the form that clap gives its own, with the usage of this subcommand.
fn usage(subcommand: &str, error: &impl std::fmt::Display) -> clap::Error {
    let mut command = Cli::command();
    command.build();
    match command.find_subcommand_mut(subcommand) {
        Some(command) => command.error(ErrorKind::ValueValidation, error),
        None => command.error(ErrorKind::ValueValidation, error),
    }
}

/// Prints what clap says: help on standard output, errors on standard error.
fn complain(error: &clap::Error) -> ExitCode {
    // There is nobody left to tell if this cannot be printed.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { USAGE } else { DONE })
}
