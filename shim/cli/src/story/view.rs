//! Who can reach a guest's memory, as a mapping: really mapped in this process, and able to fail as a platform does.
//!
//! A view's translations are entries of this process's page tables, made under map guards and undone by `invalidate`. The
//! guest's view stands in for its stage 2: where the story wants a removal to fail, it answers with a TDX status word and
//! leaves the translation standing, as the real table would.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use pageless::{Cause, HolderId, Mapping, Operation, Pfn, PfnRange, Refusal, Stuck, Verdict};
use pageless_host::{HostMapping, PageSize};

use std::sync::{Mutex, PoisonError};

/// How a removal fails: names and numbers of the TDX module (Intel TDX module ABI; the low word names the operand).
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// Somebody else works on the TD: passes.
    OperandBusy,
    /// A device's DMA keeps the page: passes when the device lets go.
    Device(HolderId),
    /// The page's metadata contradicts the table: permanent.
    MetadataIncorrect,
    /// The entry is in a state that no removal expects: permanent.
    EntryStateIncorrect,
}

impl Fault {
    fn verdict(&self) -> Verdict {
        match self {
            Self::OperandBusy => Verdict::Retry { after: Duration::from_millis(1) },
            Self::Device(holder) => Verdict::Held { by: holder.clone() },
            Self::MetadataIncorrect | Self::EntryStateIncorrect => Verdict::Never,
        }
    }

    fn cause(&self) -> Cause {
        let (step, status, meaning) = match self {
            Self::OperandBusy => ("TDH.MEM.RANGE.BLOCK", 0x8000_0200_0000_0080, "OPERAND_BUSY".to_owned()),
            Self::Device(holder) => {
                ("TDH.MEM.RANGE.BLOCK", 0x8000_0200_0000_0093, format!("OPERAND_BUSY: {holder} still has the page for DMA"))
            }
            Self::MetadataIncorrect => ("TDH.MEM.PAGE.REMOVE", 0xC000_0300_0000_0001, "PAGE_METADATA_INCORRECT".to_owned()),
            Self::EntryStateIncorrect => ("TDH.MEM.PAGE.REMOVE", 0xC000_0B0D_0000_0093, "EPT_ENTRY_STATE_INCORRECT".to_owned()),
        };
        Cause::new(step, status, meaning)
    }
}

/// Addresses of this process that show an allocation's frames.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) mapping: HostMapping,
    page: PageSize,
    faults: Mutex<Vec<(Pfn, Fault)>>,
    pause: Mutex<Option<Pause>>,
}

/// Makes the next invalidation of a frame wait.
#[derive(Debug)]
struct Pause {
    at: Pfn,
    entered: Sender<()>,
    leave: Receiver<()>,
}

/// The longest that a paused invalidation waits, whatever becomes of the one who paused it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

impl View {
    pub(crate) fn new(mapping: HostMapping, page: PageSize) -> Self {
        Self { mapping, page, faults: Mutex::default(), pause: Mutex::default() }
    }

    /// From now on the removal of this frame fails.
    pub(crate) fn break_at(&self, pfn: Pfn, fault: Fault) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push((pfn, fault));
    }

    /// The removal of this frame succeeds again.
    pub(crate) fn mend(&self, pfn: Pfn) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).retain(|(at, _)| *at != pfn);
    }

    /// The next invalidation of this frame says that it began, and goes on when it is told to.
    pub(crate) fn pause_at(&self, at: Pfn) -> (Receiver<()>, Sender<()>) {
        let ((entered, begun), (go, leave)) = (channel(), channel());
        *self.pause.lock().unwrap_or_else(PoisonError::into_inner) = Some(Pause { at, entered, leave });
        (begun, go)
    }

    fn first_fault(&self, frames: PfnRange) -> Option<(Pfn, Fault)> {
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.iter().filter(|(pfn, _)| frames.contains(*pfn)).min_by_key(|(pfn, _)| *pfn).cloned()
    }

    fn wait_if_paused(&self, frames: PfnRange) {
        let mut pause = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(paused) = pause.take_if(|pause| frames.contains(pause.at)) else { return };
        drop(pause);
        if paused.entered.send(()).is_ok() {
            // Told to go on, left alone, or forgotten: in each case it goes on.
            let _told = paused.leave.recv_timeout(PATIENCE);
        }
    }

    /// Unmaps `frames`. A huge page goes as a whole: whoever needs the rest of it maps it again under a guard.
    fn unmap(&self, frames: PfnRange) -> Result<(), Stuck> {
        let order = self.page.order();
        let pages = PfnRange::new(frames.start().align_down(order), frames.end().align_up(order)).unwrap_or(frames);
        self.mapping.unmap(pages).map_err(|stuck| Stuck { at: stuck.at.intersect(frames).unwrap_or(frames), ..stuck })
    }
}

impl Mapping for View {
    fn prepare(&self, _op: &Operation) -> Result<(), Refusal> {
        Ok(())
    }

    fn invalidate(&self, _op: &Operation, frames: PfnRange) -> Result<(), Stuck> {
        self.wait_if_paused(frames);
        let Some((pfn, fault)) = self.first_fault(frames) else { return self.unmap(frames) };
        if let Ok(before) = PfnRange::new(frames.start(), pfn) {
            self.unmap(before)?;
        }
        Err(Stuck { at: PfnRange::single(pfn), verdict: fault.verdict(), cause: fault.cause() })
    }
}
