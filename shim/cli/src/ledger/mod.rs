//! `pageless ledger`: what a pool's ledger holds, looked at while no service has it open.

mod args;
mod told;

use std::process::ExitCode;

use pageless::RunSet;
use pageless_ledger::{Inspection, inspect, replace_hardware};
use serde::Serialize;

pub use args::{LedgerCommand, RangeError};
use told::{Export, Marks, Overview, Verdict};

/// Does what was asked. Exit codes: 0 done, 1 refused or something was found.
#[must_use]
pub fn perform(command: &LedgerCommand) -> ExitCode {
    match answer(command) {
        Ok(sound) => ExitCode::from(u8::from(!sound)),
        Err(error) => {
            eprintln!("pageless: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn answer(command: &LedgerCommand) -> anyhow::Result<bool> {
    match command {
        LedgerCommand::Show(file) => say(file.json, &Overview::of(&inspect(&file.file)?)).map(|()| true),
        LedgerCommand::Withdrawn(file) => say(file.json, &Marks::of(&inspect(&file.file)?)).map(|()| true),
        LedgerCommand::Export(file) => print_json(&Export::of(&inspect(&file.file)?)).map(|()| true),
        LedgerCommand::Verify(file) => {
            let verdict = Verdict::of(&file.file, inspect(&file.file));
            say(file.json, &verdict)?;
            Ok(verdict.clean)
        }
        LedgerCommand::HardwareReplaced(replaced) => {
            let frames: RunSet = replaced.frames.iter().copied().collect();
            let lifted = replace_hardware(&replaced.file.file, &frames, &replaced.evidence)?;
            say(replaced.file.json, &told::Lifted::of(&lifted, &replaced.evidence)).map(|()| true)
        }
    }
}

fn say<T: Serialize + std::fmt::Display>(json: bool, what: &T) -> anyhow::Result<()> {
    if json {
        print_json(what)
    } else {
        print!("{what}");
        Ok(())
    }
}

fn print_json(what: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(what)?);
    Ok(())
}

/// Frames that are withdrawn in a ledger, each once.
pub(crate) fn withdrawn_frames(found: &Inspection) -> u64 {
    found.book.withdrawn().frames()
}
