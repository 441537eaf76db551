//! A virtual machine under Debian's QEMU, as a child of the suite that cannot outlive it.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};

use crate::{Debian, Missing, Package, Qmp, Tree};

/// The first number that a descriptor gets in QEMU: beyond those that Rust and the shell use between fork and exec.
const FIRST_FD: i32 = 100;
/// Obeys the shell's parent being gone already: then nobody would ever end the machine.
const IF_PARENT_LIVES: &str = r#"parent=$1; shift; [ "$PPID" = "$parent" ] && exec "$@""#;
/// How much of the console an error shows, in characters.
const TAIL: usize = 2000;

/// What went wrong with a machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Trouble {
    /// The console never said it.
    #[error("{wanted:?} was not said within {time:?}; the console ends with:\n{tail}")]
    TimedOut {
        /// What was waited for.
        wanted: String,
        /// For how long.
        time: Duration,
        /// The end of what the console and QEMU said.
        tail: String,
    },
    /// QEMU ended first.
    #[error("QEMU ended before {wanted:?} was said; the console ends with:\n{tail}")]
    Ended {
        /// What was waited for.
        wanted: String,
        /// The end of what the console and QEMU said.
        tail: String,
    },
    /// QEMU goes on.
    #[error("QEMU did not end within {time:?}; the console ends with:\n{tail}")]
    Running {
        /// How long was waited.
        time: Duration,
        /// The end of what the console and QEMU said.
        tail: String,
    },
    /// The control socket.
    #[error("QMP: {0}")]
    Qmp(String),
    /// The system refused something.
    #[error("the machine's process or its pipes")]
    System(#[from] std::io::Error),
    /// Two descriptors were given one number.
    #[error("descriptors for QEMU")]
    Descriptors(#[from] command_fds::FdMappingCollision),
}

/// Debian's QEMU for x86-64, of a version that takes memory at an offset of a file.
#[derive(Clone, Debug)]
pub struct Qemu {
    tree: Tree,
}

impl Qemu {
    /// `memory-backend-file,offset=` came with 8.1 (QEMU's qapi/qom.json).
    const AT_LEAST: &str = "8.2";

    /// From the release, or from its backports if the release's is too old.
    pub fn of(debian: &Debian) -> Result<Self, Missing> {
        let suite = debian.suite_with("qemu-system-x86", Self::AT_LEAST)?;
        Ok(Self { tree: debian.unpack("qemu", suite, &[Package::whole("qemu-system-x86")])? })
    }

    /// Where it lies, for suites that take it into a guest.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// A machine to be described and started: without default devices and display, its first serial port being the console.
    pub fn machine(&self) -> Result<MachineBuilder, Missing> {
        let mut words = self.tree.program("usr/bin/qemu-system-x86_64")?;
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            words.extend(["-L".to_owned(), self.tree.file(firmware)?.display().to_string()]);
        }
        let words =
            words.into_iter().chain("-nodefaults -no-user-config -display none -serial stdio".split(' ').map(str::to_owned));
        Ok(MachineBuilder { words: words.collect(), fds: Vec::new() })
    }
}

/// A machine that is being described, in QEMU's own words.
#[derive(Debug)]
#[must_use]
pub struct MachineBuilder {
    words: Vec<String>,
    fds: Vec<OwnedFd>,
}

impl MachineBuilder {
    /// Adds words of the command line, separated by spaces.
    pub fn words(mut self, words: &str) -> Self {
        self.words.extend(words.split_whitespace().map(str::to_owned));
        self
    }

    /// Adds one word that may contain spaces.
    pub fn word(mut self, word: impl Into<String>) -> Self {
        self.words.push(word.into());
        self
    }

    /// Adds a descriptor, and answers the number that it will have in QEMU.
    pub fn fd(&mut self, fd: OwnedFd) -> i32 {
        self.fds.push(fd);
        FIRST_FD + i32::try_from(self.fds.len()).unwrap_or(0) - 1
    }

    /// Starts it. The machine ends when the value is dropped, and when the thread that started it ends, however it ends.
    pub fn start(mut self) -> Result<Machine, Trouble> {
        let (ours, theirs) = UnixStream::pair()?;
        let control = self.fd(theirs.into());
        let this = self.words(&format!("-chardev socket,id=control,fd={control} -mon chardev=control,mode=control"));
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "sh", "-c", IF_PARENT_LIVES, "sh", &std::process::id().to_string()]);
        command.args(&this.words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let numbered = this.fds.into_iter().zip(FIRST_FD..);
        command.fd_mappings(numbered.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd }).collect())?;
        let mut process = command.spawn()?;
        drop(command); // and with it the copies of the descriptors
        let console = Console::of(&mut process);
        let mut machine = Machine { process, console, qmp: None };
        match Qmp::over(ours) {
            Ok(qmp) => machine.qmp = Some(qmp),
            // A QEMU that does not like its command line has said why on its standard error.
            Err(error) => return Err(machine.console.wait_for("QMP greeting", Duration::from_secs(5)).err().unwrap_or(error)),
        }
        Ok(machine)
    }
}

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    process: Child,
    console: Console,
    qmp: Option<Qmp>,
}

impl Machine {
    /// QEMU's process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The first serial port.
    pub fn console(&mut self) -> &mut Console {
        &mut self.console
    }

    /// The control socket.
    pub fn qmp(&mut self) -> Result<&mut Qmp, Trouble> {
        self.qmp.as_mut().ok_or_else(|| Trouble::Qmp("there is no connection".to_owned()))
    }

    /// Waits until QEMU has ended by itself.
    pub fn wait(&mut self, time: Duration) -> Result<ExitStatus, Trouble> {
        let until = Instant::now() + time;
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > until {
                return Err(Trouble::Running { time, tail: self.console.tail() });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends QEMU with SIGKILL, and returns when it is gone, memory and all.
    pub fn kill(&mut self) -> Result<ExitStatus, Trouble> {
        self.process.kill()?;
        Ok(self.process.wait()?)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// What a machine says on its serial port, QEMU's own complaints among it, and a way to answer.
#[derive(Debug)]
pub struct Console {
    heard: Arc<Heard>,
    /// How much of it has been waited for already, in bytes.
    seen: usize,
    input: Option<ChildStdin>,
}

#[derive(Debug, Default)]
struct Heard {
    text: Mutex<Transcript>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Transcript {
    text: String,
    /// Pipes that are still open.
    open: usize,
}

impl Console {
    fn of(process: &mut Child) -> Self {
        let heard = Arc::new(Heard::default());
        heard.lock().open = 2;
        let pipes: [Option<Box<dyn Read + Send>>; 2] =
            [process.stdout.take().map(|pipe| Box::new(pipe) as _), process.stderr.take().map(|pipe| Box::new(pipe) as _)];
        for pipe in pipes.into_iter().flatten() {
            let heard = Arc::clone(&heard);
            std::thread::spawn(move || heard.listen(pipe));
        }
        Self { heard, seen: 0, input: process.stdin.take() }
    }

    /// Sends a line to the guest.
    pub fn send(&mut self, line: &str) -> Result<(), Trouble> {
        let input = self.input.as_mut().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
        Ok(input.write_all(format!("{line}\n").as_bytes()).and_then(|()| input.flush())?)
    }

    /// Waits for a line that has `text` in it, after all that was waited for before. Answers what follows it on that line.
    pub fn wait_for(&mut self, text: &str, time: Duration) -> Result<String, Trouble> {
        let until = Instant::now() + time;
        let mut heard = self.heard.lock();
        loop {
            if let Some((rest, end)) = heard.line_with(text, self.seen) {
                self.seen = end;
                return Ok(rest);
            }
            let wanted = text.to_owned();
            if heard.open == 0 {
                return Err(Trouble::Ended { wanted, tail: heard.tail() });
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Trouble::TimedOut { wanted, time, tail: heard.tail() });
            }
            heard = self.heard.more.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Everything said so far.
    #[must_use]
    pub fn transcript(&self) -> String {
        self.heard.lock().text.clone()
    }

    fn tail(&self) -> String {
        self.heard.lock().tail()
    }
}

impl Heard {
    fn lock(&self) -> MutexGuard<'_, Transcript> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(&self, mut pipe: impl Read) {
        let mut bytes = [0; 4096];
        while let Ok(read @ 1..) = pipe.read(&mut bytes) {
            let said = String::from_utf8_lossy(&bytes[..read]).replace('\r', "");
            self.lock().text.push_str(&said);
            self.more.notify_all();
        }
        self.lock().open -= 1;
        self.more.notify_all();
    }
}

impl Transcript {
    /// What follows `text` on a whole line after byte `from`, and where that line ends.
    fn line_with(&self, text: &str, from: usize) -> Option<(String, usize)> {
        let at = from + self.text[from..].find(text)? + text.len();
        let length = self.text[at..].find('\n')?;
        Some((self.text[at..at + length].to_owned(), at + length + 1))
    }

    fn tail(&self) -> String {
        let skip = self.text.chars().count().saturating_sub(TAIL);
        self.text.chars().skip(skip).collect()
    }
}
