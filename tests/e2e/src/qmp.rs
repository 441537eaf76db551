//! QEMU's control socket: commands, answers and events as JSON, one on a line, and descriptors beside them
//! (docs/interop/qmp-spec.rst of QEMU).

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

use crate::Trouble;

/// How long QEMU may take for an answer.
const ANSWER: Duration = Duration::from_secs(30);

/// A connection to QEMU, past its greeting.
#[derive(Debug)]
pub struct Qmp {
    socket: BufReader<UnixStream>,
    partial: String,
    events: VecDeque<Value>,
}

impl Qmp {
    pub(crate) fn over(socket: UnixStream) -> Result<Self, Trouble> {
        let mut this = Self { socket: BufReader::new(socket), partial: String::new(), events: VecDeque::new() };
        this.receive(Instant::now() + ANSWER)?; // the greeting
        this.execute("qmp_capabilities", json!({}))?;
        Ok(this)
    }

    /// Has QEMU execute a command, and answers what it returned.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Trouble> {
        self.ask(command, arguments, &[])
    }

    /// Gives QEMU a copy of a descriptor (`add-fd`), and answers its number there and the set it is in, for `remove-fd`.
    pub fn add_fd(&mut self, fd: BorrowedFd<'_>) -> Result<(i64, i64), Trouble> {
        let answer = self.ask("add-fd", json!({}), &[fd.as_raw_fd()])?;
        let number = |key: &str| answer[key].as_i64().ok_or_else(|| Trouble::Qmp(format!("add-fd answered {answer}")));
        Ok((number("fd")?, number("fdset-id")?))
    }

    /// Waits for an event of this name, and answers its data.
    pub fn event(&mut self, name: &str, time: Duration) -> Result<Value, Trouble> {
        let until = Instant::now() + time;
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return Ok(self.events.remove(at).map(|event| event["data"].clone()).unwrap_or_default());
            }
            let message = self.receive(until)?;
            self.events.push_back(message);
        }
    }

    fn ask(&mut self, command: &str, arguments: Value, fds: &[i32]) -> Result<Value, Trouble> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        let rights = [ControlMessage::ScmRights(fds)];
        let rights = if fds.is_empty() { &rights[..0] } else { &rights[..] };
        let socket = self.socket.get_ref().as_raw_fd();
        let sent = sendmsg::<()>(socket, &[IoSlice::new(line.as_bytes())], rights, MsgFlags::MSG_NOSIGNAL, None);
        match sent {
            Ok(bytes) if bytes == line.len() => {}
            other => return Err(Trouble::Qmp(format!("{command} was not sent: {other:?}"))),
        }
        let until = Instant::now() + ANSWER;
        loop {
            let message = self.receive(until)?;
            if let Some(error) = message.get("error") {
                return Err(Trouble::Qmp(format!("{command}: {}", error["desc"].as_str().unwrap_or("no reason"))));
            }
            match message.get("return") {
                Some(answer) => return Ok(answer.clone()),
                None => self.events.push_back(message),
            }
        }
    }

    fn receive(&mut self, until: Instant) -> Result<Value, Trouble> {
        loop {
            let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.socket.get_ref().set_read_timeout(Some(left))?;
            match self.socket.read_line(&mut self.partial) {
                Ok(0) => return Err(Trouble::Qmp("QEMU closed its control socket".to_owned())),
                Ok(_) => {
                    let line = std::mem::take(&mut self.partial);
                    return serde_json::from_str(&line).map_err(|error| Trouble::Qmp(format!("{error} in {line:?}")));
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Err(Trouble::Qmp("no answer or event in time".to_owned()));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
