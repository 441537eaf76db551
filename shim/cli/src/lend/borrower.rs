//! [`Borrower`]: a command that was lent memory, and everything it started, as a mapping.
//!
//! A process that opened the memory's file can map it whenever it likes, and nobody can take that back while it lives. So
//! the only proof is its death: it was this process's child and has been reaped, and so has every process that descends from
//! it. Orphans among those become children of this process (`PR_SET_CHILD_SUBREAPER`, prctl(2)), so none gets away. What a
//! descendant passed to a stranger over a socket, nothing here sees.
//!
//! Every child of this process counts as the borrower's: whoever has a borrower starts no other children.

use std::io;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use pageless::{Cause, Mapping, Operation, PfnRange, Refusal, Stuck, Verdict};

/// When to ask again whether the processes have ended.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// A command, and what descends from it.
#[derive(Debug, Default)]
pub struct Borrower(Mutex<Life>);

#[derive(Debug, Default)]
enum Life {
    /// Nothing has been started, so nothing reaches the memory.
    #[default]
    Before,
    /// The command runs, or has ended and is not reaped yet.
    Running(Child),
    /// The command has been reaped; what it started may live on.
    Survived,
    /// No descendant is left.
    Over,
}

impl Borrower {
    /// Starts the command, once.
    pub fn start(&self, command: &mut Command) -> io::Result<()> {
        let mut life = self.life();
        if !matches!(*life, Life::Before) {
            return Err(io::Error::other("a borrower starts one command"));
        }
        set_child_subreaper(true)?;
        *life = Life::Running(command.spawn()?);
        Ok(())
    }

    /// Waits until the command has ended, and reaps it. What it started may live on.
    pub fn wait(&self) -> io::Result<ExitStatus> {
        let Some(pid) = self.pid() else { return Err(io::Error::other("no command runs")) };
        // Without reaping and without the lock, so that others may ask, and signal, meanwhile.
        while let Err(errno) = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            if errno != Errno::EINTR {
                return Err(errno.into());
            }
        }
        let mut life = self.life();
        let Life::Running(child) = &mut *life else { return Err(io::Error::other("somebody else has waited")) };
        let status = child.wait()?;
        *life = Life::Survived;
        Ok(status)
    }

    /// Waits until no descendant is left, after the command itself has ended; `waiting` is called once if there is one.
    pub fn wait_for_the_rest(&self, waiting: impl FnOnce()) -> io::Result<()> {
        if self.look(&mut self.life())? {
            return Ok(());
        }
        waiting();
        loop {
            match waitpid(None, None) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::ECHILD) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        self.look(&mut self.life()).map(drop)
    }

    /// Passes a signal on to the command, if it still runs.
    pub fn signal(&self, signal: Signal) {
        let life = self.life();
        // Under the lock it cannot be reaped, so the number is still its own.
        if let Life::Running(child) = &*life
            && let Ok(pid) = i32::try_from(child.id())
        {
            let _ended = kill(Pid::from_raw(pid), signal);
        }
    }

    fn pid(&self) -> Option<Pid> {
        match &*self.life() {
            Life::Running(child) => i32::try_from(child.id()).ok().map(Pid::from_raw),
            _ => None,
        }
    }

    /// Whether nobody is left, reaping whoever has ended.
    fn look(&self, life: &mut Life) -> io::Result<bool> {
        if matches!(life, Life::Running(_)) {
            return Ok(false); // also when it has ended: who waits for it reaps it, and wants its status
        }
        while matches!(life, Life::Survived) {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return Ok(false),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::ECHILD) => *life = Life::Over,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(true)
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mapping for Borrower {
    fn prepare(&self, _op: &Operation) -> Result<(), Refusal> {
        Ok(())
    }

    /// Proven when the command and every process that descends from it has ended and been reaped; transient before.
    fn invalidate(&self, _op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        let mut life = self.life();
        let (status, meaning) = match self.look(&mut life) {
            Ok(true) => return Ok(()),
            Ok(false) if matches!(*life, Life::Running(_)) => (0, "the command has the memory's file and still runs".to_owned()),
            Ok(false) => (0, "processes that the command started still run".to_owned()),
            Err(error) => (error.raw_os_error().unwrap_or_default(), error.to_string()),
        };
        let cause = Cause::new("waitpid", u64::try_from(status).unwrap_or_default(), meaning);
        Err(Stuck { at: frames, verdict: Verdict::Retry { after: RETRY_AFTER }, cause })
    }
}
