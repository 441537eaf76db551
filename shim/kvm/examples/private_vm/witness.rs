//! The witness: looks at the host's side whenever the guest says something, and writes down both.
//!
//! It judges nothing. What should be in the [`Testimony`] is the end-to-end suite's to say.

use std::sync::mpsc::Sender;

use anyhow::{Context, Result};
use pageless::{Convert, Converted, FRAME_BYTES, Lost, Shareability};
use pageless_kvm::Guest;
use parking_lot::Mutex;
use serde::Serialize;

use crate::guest::{CODE, FROM_HOST, LOST, OWN, OWN_BYTES, STEPPED, Told};
use crate::machine::{Change, Machine};

/// Touches that converted, each way, after which the witness has seen enough.
const ENOUGH_IMPLIED: u64 = 5;
/// How often the guest may ask before the witness has seen enough of it all the same.
const PATIENCE: u32 = 1000;

/// How a page looks from outside.
#[derive(Clone, Copy, Default, Debug, Serialize)]
pub(crate) struct HostSees {
    /// What the host reads at the guest's address; nothing where it has no such address.
    mapped: Option<u32>,
    /// What the file of the shared side holds at that place.
    shared_side: u32,
    /// Whether pageless has the frame as shared.
    is_shared: bool,
}

/// The page that goes from private to shared and back.
#[derive(Clone, Default, Debug, Serialize)]
pub(crate) struct Stepped {
    private_read: u32,
    private_host: HostSees,
    share_answer: i32,
    shared_read: u32,
    shared_host: HostSees,
    guest_reads_host: u32,
    unshare_answer: i32,
    unshared_read: u32,
    unshared_host: HostSees,
}

/// The requests that no guest should make.
#[derive(Clone, Default, Debug, Serialize)]
pub(crate) struct Hostile {
    answers: Vec<i32>,
    /// How many of them reached the VMM and were no conversion.
    refused_here: u64,
    /// Changes of attributes, and frames of another shareability than before; the second vCPU's own are left out.
    changed: usize,
}

/// The four pages of which one is lost.
#[derive(Clone, Default, Debug, Serialize)]
pub(crate) struct Torn {
    answer: i32,
    answer_again: i32,
    frames_done: u64,
    frames_lost: u64,
    lost_cause: String,
    /// What the guest reads from the lost page and from the one behind it.
    lost_read: u32,
    behind_read: u32,
    lost_host: HostSees,
    behind_host: HostSees,
}

/// Conversions that a touch implied.
#[derive(Clone, Copy, Default, Debug, Serialize)]
pub(crate) struct Implied {
    to_private: u64,
    to_shared: u64,
}

/// What was seen and heard.
#[derive(Clone, Default, Debug, Serialize)]
pub(crate) struct Testimony {
    at_home_answer: i32,
    /// What the host reads of the code after the guest has taken it.
    code_host: Option<u32>,
    stepped: Stepped,
    hostile: Hostile,
    torn: Torn,
    implied: Implied,
    /// What the second vCPU found of the other state, or was refused.
    left_over: u32,
    /// As the guest counts them.
    hypercalls: u64,
    /// Words that are not zero, as a later guest counts them.
    #[serde(skip)]
    pub(crate) not_zero: u64,
    #[serde(skip)]
    asked: u32,
    #[serde(skip)]
    before: Option<Before>,
}

/// What was so before the hostile requests.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Before {
    shareability: Vec<Shareability>,
    changes: Vec<Change>,
}

pub(crate) struct Witness<'a> {
    machine: &'a Machine,
    guest: &'a Guest,
    at_home: Option<Sender<()>>,
    testimony: Mutex<Testimony>,
}

impl<'a> Witness<'a> {
    /// `at_home` hears that the guest's code runs in private memory.
    pub(crate) fn new(machine: &'a Machine, guest: &'a Guest, at_home: Option<Sender<()>>) -> Self {
        Self { machine, guest, at_home, testimony: Mutex::default() }
    }

    pub(crate) fn testimony(self) -> Testimony {
        self.testimony.into_inner()
    }

    /// The guest said something.
    pub(crate) fn hear(&self, told: Told, value: u32) -> Result<()> {
        let answer = value.cast_signed();
        let mut said = self.testimony.lock();
        match told {
            Told::AtHome => {
                said.at_home_answer = answer;
                said.code_host = self.host_reads(CODE)?;
                self.at_home.as_ref().map_or(Ok(()), |at_home| at_home.send(()))?;
            }
            Told::PrivateRead => (said.stepped.private_read, said.stepped.private_host) = (value, self.host_sees(STEPPED)?),
            Told::ShareAnswer => said.stepped.share_answer = answer,
            Told::SharedRead => said.stepped.shared_read = value,
            Told::SharedWritten => {
                said.stepped.shared_host = self.host_sees(STEPPED)?;
                self.guest.host().write(self.offset(STEPPED)?, &FROM_HOST.to_le_bytes())?;
            }
            Told::HostWrote => said.stepped.guest_reads_host = value,
            Told::UnshareAnswer => said.stepped.unshare_answer = answer,
            Told::UnsharedRead => said.stepped.unshared_read = value,
            Told::UnsharedWritten => said.stepped.unshared_host = self.host_sees(STEPPED)?,
            Told::HostileBegin => said.before = Some(self.now()?),
            Told::HostileAnswer => said.hostile.answers.push(answer),
            Told::HostileEnd => said.hostile.changed = self.differences(said.before.take().context("no beginning")?)?,
            Told::TornAnswer => said.torn.answer = answer,
            Told::LostRead => (said.torn.lost_read, said.torn.lost_host) = (value, self.host_sees(LOST)?),
            Told::TornRead => {
                (said.torn.behind_read, said.torn.behind_host) = (value, self.host_sees(LOST + FRAME_BYTES)?);
            }
            Told::LostAnswer => said.torn.answer_again = answer,
            Told::Hypercalls => said.hypercalls += u64::from(value),
            Told::LeftOver => said.left_over = value,
            Told::NotZero => said.not_zero += u64::from(value),
        }
        Ok(())
    }

    /// A conversion that the guest asked for came to this.
    pub(crate) fn converted(&self, outcome: Option<Result<Converted, Convert>>) {
        let mut said = self.testimony.lock();
        match outcome {
            Some(Err(Convert::Torn { done, lost })) => {
                said.torn.frames_done = done.frames();
                said.torn.frames_lost = lost.iter().map(|lost| lost.frames().frames()).sum();
                said.torn.lost_cause = lost.first().map(|lost: &Lost| lost.cause().to_string()).unwrap_or_default();
            }
            None => said.hostile.refused_here += 1,
            _ => {}
        }
    }

    /// A touch converted a page.
    pub(crate) fn implied(&self, to_private: bool) {
        let implied = &mut self.testimony.lock().implied;
        *(if to_private { &mut implied.to_private } else { &mut implied.to_shared }) += 1;
    }

    /// Whether the guest may stop converting what it reads.
    pub(crate) fn has_seen_enough(&self) -> bool {
        let mut said = self.testimony.lock();
        said.asked += 1;
        said.implied.to_private >= ENOUGH_IMPLIED || said.asked >= PATIENCE
    }

    fn offset(&self, gpa: u64) -> Result<u64> {
        Ok(self.guest.stage2().offsets(gpa, 4)?.start)
    }

    fn host_reads(&self, gpa: u64) -> Result<Option<u32>> {
        let mut bytes = [0; 4];
        Ok(self.guest.host().read(self.offset(gpa)?, &mut bytes).is_ok().then(|| u32::from_le_bytes(bytes)))
    }

    fn host_sees(&self, gpa: u64) -> Result<HostSees> {
        let offset = self.offset(gpa)?;
        Ok(HostSees {
            mapped: self.host_reads(gpa)?,
            shared_side: self.machine.shared_side(self.guest.ram(), offset)?,
            is_shared: self.guest.ram().shareability(offset)? == Shareability::Shared,
        })
    }

    /// Everything that a request could change, without the second vCPU's pages, which it converts meanwhile.
    fn now(&self) -> Result<Before> {
        let own = OWN..OWN + OWN_BYTES;
        let offsets =
            (0..self.guest.ram().bytes() / FRAME_BYTES).map(|frame| frame * FRAME_BYTES).filter(|offset| !own.contains(offset));
        let shareability = offsets.map(|offset| self.guest.ram().shareability(offset)).collect::<Result<_, _>>()?;
        let changes = self.machine.vm.changes().into_iter().filter(|change| !own.contains(&change.gpa)).collect();
        Ok(Before { shareability, changes })
    }

    fn differences(&self, before: Before) -> Result<usize> {
        let now = self.now()?;
        let frames = before.shareability.iter().zip(&now.shareability).filter(|(before, now)| before != now).count();
        Ok(frames + now.changes.len() - before.changes.len())
    }
}
