//! The process that gives back: started for each loan, and gone with it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

const SCRIPT: &str = include_str!("guardian.sh");

/// Who else may have a loan at the same time: the kinds of lock that flock(1) takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lock {
    Shared,
    Alone,
}

/// A running guardian. Dropped, it gives back, and the drop returns when it has.
#[derive(Debug)]
pub(crate) struct Guardian {
    process: Child,
    /// Open as long as the loan lasts, and closed by the kernel when this process is killed.
    until: Option<ChildStdin>,
    said: u64,
}

impl Guardian {
    /// Adds `pages` pages to the pool in `folder`. [`said`](Self::said) answers how many came.
    pub(crate) fn adding(folder: &Path, lock: Lock, pages: u64) -> std::io::Result<Self> {
        Self::start("pages", folder, lock, &pages.to_string())
    }

    /// Chooses `value` in `file`. [`said`](Self::said) answers 1 if the kernel took it.
    pub(crate) fn choosing(file: &Path, value: &str) -> std::io::Result<Self> {
        Self::start("value", file, Lock::Alone, value)
    }

    /// What it answered when it had done its work.
    pub(crate) fn said(&self) -> u64 {
        self.said
    }

    fn start(what: &str, place: &Path, lock: Lock, wanted: &str) -> std::io::Result<Self> {
        let lock = if lock == Lock::Alone { "-x" } else { "-s" };
        // A session of its own: nothing that ends the borrower's terminal, process group or shell ends it.
        let mut process = Command::new("setsid")
            .args(["sh", "-c", SCRIPT, "guardian", what])
            .arg(place)
            .args([lock, wanted])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let until = process.stdin.take();
        let answer = process.stdout.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
        let mut this = Self { process, until, said: 0 };
        let mut line = String::new();
        BufReader::new(answer).read_line(&mut line)?;
        this.said = line.trim().parse().map_err(|_| std::io::Error::other(format!("the guardian said {line:?}")))?;
        Ok(this)
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.until.take());
        let _ = self.process.wait();
    }
}
