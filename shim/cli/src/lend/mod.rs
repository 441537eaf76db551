//! `pageless lend`: memory from a pool for as long as a command runs.
//!
//! The command finds the memory by a path, an offset and a length, in its arguments or its environment; QEMU takes them as
//! `memory-backend-file,mem-path={path},offset={offset},size={bytes},share=on`. When it has ended, the memory is released and
//! reclaimed: the [`borrower`] proves that nobody of it lives, the backing proves the rest.
//!
//! A lender that is ended by SIGKILL leaves its command behind, with the memory. A ledger remembers that: the next run on
//! the same window finds those frames unproven, and does not lend them. Without a ledger nobody knows.

mod account;
mod args;
pub mod borrower;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use anyhow::{Context, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::Signal;
use pageless::{Allocation, FRAME_BYTES, Order, Pool, Request};
use pageless_host::{HostBacking, HostMapping, HostMemory, SegmentHandle};
use pageless_ledger::RedbLedger;
use signal_hook::iterator::Signals;

use crate::figures;
pub use account::{Account, LostRun};
pub use args::{LendArgs, LendUsage};
use args::{LendSettings, Source, fill};
use borrower::Borrower;

/// The name of the mapping that stands for the command.
const BORROWER: &str = "the command";
/// The name of the mapping that reads what came back.
const READER: &str = "reader";
/// Bytes that are read at a time.
const AT_ONCE: usize = 1 << 20;

/// Lends, waits and takes back. Exit codes: 0 done, 1 the command failed or something was lost. A usage error is the caller's.
pub fn perform(arguments: &LendArgs) -> Result<ExitCode, LendUsage> {
    let settings = arguments.settings()?;
    let held = match lend(&settings) {
        Ok(account) => {
            tell(&account, settings.json);
            account.holds()
        }
        Err(error) => {
            eprintln!("pageless: {error:#}");
            false
        }
    };
    Ok(ExitCode::from(u8::from(!held)))
}

fn tell(account: &Account, json: bool) {
    match serde_json::to_string(account) {
        Ok(line) if json => eprintln!("{line}"),
        _ => eprint!("{account}"),
    }
}

fn lend(settings: &LendSettings) -> anyhow::Result<Account> {
    let (memory, path) = open(settings)?;
    let builder = Pool::builder().backing(memory.clone());
    let pool = match &settings.ledger {
        Some(file) => builder.ledger(Arc::new(RedbLedger::at(file)?)).build()?,
        None => builder.build()?,
    };
    let ram = allocate(&pool, settings.memory.unwrap_or(memory.frames().bytes()))?;
    let first = ram.frame(0)?;
    let segment = memory.segment(first).with_context(|| format!("nothing is committed behind {first}"))?;
    if segment.frames().bytes() < ram.bytes() {
        bail!("the memory is in several pieces, and a command is lent one: {} of {}", segment.frames(), ram.bytes());
    }
    let inherited = if path.is_none() { Some(inheritable(&segment)?) } else { None };
    let path = path.unwrap_or_else(|| inherited.as_ref().map_or_else(String::new, descriptor_path));
    let mut account = Account {
        identity: pool.backing().identity().to_string(),
        path,
        offset: segment.offset(),
        bytes: ram.bytes(),
        pfn: first.get(),
        frames: ram.bytes() / FRAME_BYTES,
        ..Account::default()
    };
    drop(segment);
    let borrower = Arc::new(Borrower::default());
    // Attached before it can reach anything: from here on only its end is a proof.
    ram.attach(BORROWER, borrower.clone())?;
    let hold = ram.hold(0..ram.bytes(), BORROWER)?;
    borrower
        .start(&mut command(settings, &account))
        .with_context(|| format!("{} cannot be started", settings.command[0].display()))?;
    drop(inherited);
    pass_signals_on(&borrower)?;
    account.ended(borrower.wait()?);
    borrower.wait_for_the_rest(|| eprintln!("pageless: the command has ended; waiting for processes that it started"))?;
    drop(hold);
    ram.release()?;
    account.reclaimed(&pool.reclaim());
    read_back(&pool, &memory, &mut account)?;
    Ok(account)
}

/// The memory, and the path under which a process opens it, where it has one.
fn open(settings: &LendSettings) -> anyhow::Result<(Arc<dyn HostBacking>, Option<String>)> {
    match (&settings.source, settings.memory) {
        (Source::Window(spec), _) => {
            let window = spec.builder().build().with_context(|| format!("the window {spec} cannot be had"))?;
            let path = window.device().display().to_string();
            Ok((Arc::new(window), Some(path)))
        }
        (&Source::Pages(page), Some(bytes)) => {
            // One segment: a command is lent one file.
            let segment = bytes.next_power_of_two().max(page.bytes());
            let memory = HostMemory::builder().bytes(bytes).page(page).segment_bytes(segment).build();
            Ok((Arc::new(memory.with_context(|| format!("{} of {page} pages cannot be had", figures::bytes(bytes)))?), None))
        }
        (Source::Pages(_), None) => bail!("neither a window nor a size was given"),
    }
}

/// One run, on 2 MiB where the size has whole ones: what maps it may then use larger leaves.
fn allocate(pool: &Pool, bytes: u64) -> anyhow::Result<Allocation> {
    let order = if bytes.is_multiple_of(Order::MIB2.bytes()) { Order::MIB2 } else { Order::BASE };
    Ok(pool.allocate(Request::bytes(bytes).order(order).contiguous().owner("lend"))?)
}

/// A copy of the descriptor that a child inherits.
fn inheritable(segment: &SegmentHandle) -> anyhow::Result<OwnedFd> {
    let copy = segment.fd().try_clone_to_owned().context("copying the descriptor")?;
    fcntl(copy.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).context("F_SETFD")?;
    Ok(copy)
}

fn descriptor_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn command(settings: &LendSettings, account: &Account) -> Command {
    let (path, offset, bytes) = (account.path.clone(), account.offset.to_string(), account.bytes.to_string());
    let values = [("path", path.clone()), ("offset", offset.clone()), ("bytes", bytes.clone())];
    let mut words = settings.command.iter().map(|word| fill(word, &values));
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command.env("PAGELESS_PATH", path).env("PAGELESS_OFFSET", offset).env("PAGELESS_BYTES", bytes);
    command
}

/// The command decides when it ends, and this process outlives it: what asks this one to end is passed on, what a terminal
/// sends to both is left to the command.
fn pass_signals_on(borrower: &Arc<Borrower>) -> anyhow::Result<()> {
    let mut signals =
        Signals::new([Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT].map(|signal| signal as i32))?;
    let borrower = Arc::downgrade(borrower);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            let Some(borrower) = borrower.upgrade() else { break };
            if let Ok(signal @ (Signal::SIGTERM | Signal::SIGHUP)) = Signal::try_from(signal) {
                borrower.signal(signal);
            }
        }
    })?;
    Ok(())
}

/// Allocates what is free again and reads all of it: the next owner must find zeroes.
fn read_back(pool: &Pool, memory: &Arc<dyn HostBacking>, account: &mut Account) -> anyhow::Result<()> {
    if account.proven_frames == 0 {
        return Ok(());
    }
    let next = pool.allocate(Request::bytes(account.proven_frames * FRAME_BYTES).owner("the next owner"))?;
    let reader = Arc::new(HostMapping::of(memory, &next)?);
    next.attach(READER, reader.clone())?;
    let guard = next.map_guard(READER, 0..next.bytes())?;
    guard.extents().iter().try_for_each(|run| reader.map(&guard, run.frames))?;
    drop(guard);
    let mut bytes = vec![0; AT_ONCE];
    while account.bytes_checked < next.bytes() {
        let left = usize::try_from(next.bytes() - account.bytes_checked).unwrap_or(AT_ONCE).min(AT_ONCE);
        let piece = &mut bytes[..left];
        reader.read(account.bytes_checked, piece)?;
        account.stale_bytes += piece.iter().filter(|byte| **byte != 0).count() as u64;
        account.bytes_checked += left as u64;
    }
    next.release()?;
    pool.reclaim();
    Ok(())
}
