//! [`Guest`]: a guest's memory with everything that translates to it, and the carrying out of what the guest asks.
//!
//! Conversions are the pool's; what is here is the order around them. After a success, or for what a torn conversion did
//! convert, the translations of the new state are made under map guards: the guest's stage 2 for both states, the host's view
//! for shared frames alone. A vCPU that touches a place where nothing is mapped comes here too, and gets it mapped, or waits
//! while it converts.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pageless::{
    Allocation, Blocked, Convert, Converted, FRAME_BYTES, Mapping, Order, Pfn, PfnRange, Refusal, Refused, Replaced, Shareability,
};
use pageless_host::{GuestMemfd, HostMapping, MapError};

use crate::answer::Answer;
use crate::request::Request;
use crate::stage2::{Privacy, Stage2, Stage2Error};

/// The name that the guest's second stage is attached under.
pub const STAGE2: &str = "stage2";
/// The name that the host's own view is attached under.
pub const HOST: &str = "host";

/// How long a vCPU waits for somebody else's operation on its range before the guest is told to ask again.
const PATIENCE: Duration = Duration::from_millis(500);

/// A guest's memory. vCPU threads share it: everything takes `&self`.
pub struct Guest {
    ram: Allocation,
    stage2: Arc<Stage2>,
    host: Arc<HostMapping>,
    beside: Option<GuestMemfd>,
    patience: Duration,
}

/// Why a vCPU's touch could not be served. The frames are as they were.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    /// The pool gives no guard: the frames convert and did not stop in time, or are withdrawn or given up.
    #[error(transparent)]
    Blocked(#[from] Blocked),
    /// The guest's second stage could not take the frame.
    #[error(transparent)]
    Stage2(#[from] Stage2Error),
    /// The host's view could not take the frame.
    #[error(transparent)]
    Host(#[from] MapError),
}

impl From<Refused> for FaultError {
    fn from(refused: Refused) -> Self {
        Self::Blocked(refused.into())
    }
}

impl Guest {
    /// Attaches the mappings in the order in which they will be asked: `devices` by their names, then the second stage, then
    /// the host's view, then `last`, which may look at what is left. On an error the allocation is released.
    pub fn new(
        ram: Allocation,
        devices: impl IntoIterator<Item = (String, Arc<dyn Mapping>)>,
        stage2: Arc<Stage2>,
        host: Arc<HostMapping>,
        last: impl IntoIterator<Item = (String, Arc<dyn Mapping>)>,
    ) -> Result<Self, Refused> {
        devices.into_iter().try_for_each(|(name, mapping)| ram.attach(&name, mapping))?;
        ram.attach(STAGE2, stage2.clone())?;
        ram.attach(HOST, host.clone())?;
        last.into_iter().try_for_each(|(name, mapping)| ram.attach(&name, mapping))?;
        Ok(Self { ram, stage2, host, beside: None, patience: PATIENCE })
    }

    /// How long a vCPU waits for somebody else's operation on its range. 500 ms unless told.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The memory has a shared side beside the private one: its pages are given back once the frames are private.
    #[must_use]
    pub fn shared_beside(mut self, memory: GuestMemfd) -> Self {
        self.beside = Some(memory);
        self
    }

    /// The allocation.
    pub fn ram(&self) -> &Allocation {
        &self.ram
    }

    /// The guest's second stage.
    #[must_use]
    pub fn stage2(&self) -> &Arc<Stage2> {
        &self.stage2
    }

    /// The host's view: shared frames only.
    #[must_use]
    pub fn host(&self) -> &Arc<HostMapping> {
        &self.host
    }

    /// Carries out a conversion that the guest asked for, and makes the translations of the new state.
    ///
    /// The answer is what the guest is told ([`answer`](crate::Answer)); the outcome beside it is for the VMM, with every
    /// receipt of lost frames in it.
    pub fn convert(&self, request: &Request) -> (Answer, Result<Converted, Convert>) {
        let until = Instant::now() + self.patience;
        let outcome = loop {
            let outcome = match request.to {
                Shareability::Private => self.ram.unshare(request.offsets.clone()),
                Shareability::Shared => self.ram.share(request.offsets.clone()),
                // No guest can ask for this, and a VMM that does shall not have its memory opened.
                Shareability::Unknown => Err(Refused::Mapping {
                    mapping: STAGE2.to_owned(),
                    refusal: Refusal::Other("memory becomes private or shared, never unknown".into()),
                }
                .into()),
            };
            match Answer::from(&outcome) {
                Answer::Again { after } if Instant::now() < until => std::thread::sleep(after),
                _ => break outcome,
            }
        };
        match &outcome {
            Ok(_) => self.establish(request.offsets.clone()),
            Err(Convert::Torn { lost, .. }) => {
                let mut at = request.offsets.start;
                let mut gone: Vec<Range<u64>> =
                    lost.iter().map(|lost| lost.offset()..lost.offset() + lost.frames().bytes()).collect();
                gone.sort_unstable_by_key(|range| range.start);
                for range in gone {
                    self.establish(at..range.start);
                    at = at.max(range.end);
                }
                self.establish(at..request.offsets.end);
            }
            Err(_) => {}
        }
        (Answer::from(&outcome), outcome)
    }

    /// Makes what translations it can. Whatever is missing is made when somebody touches it; if another operation has the
    /// range by now, its own caller does this.
    fn establish(&self, offsets: Range<u64>) {
        if offsets.is_empty() {
            return;
        }
        if let Err(error) = self.map(offsets.clone()) {
            tracing::debug!(start = offsets.start, end = offsets.end, %error, "not mapped after a conversion");
        }
    }

    /// Maps a range of the allocation, aligned to 4 KiB, for the guest, and its shared frames for the host.
    pub fn map(&self, offsets: Range<u64>) -> Result<(), FaultError> {
        self.map_for_guest(offsets.clone())?;
        let guard = self.ram.map_guard(HOST, offsets)?;
        for extent in guard.extents() {
            for (_, frames, shareability) in self.by_shareability(extent.offset, extent.frames)? {
                if shareability == Shareability::Shared {
                    self.host.map(&guard, frames)?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn map_for_guest(&self, offsets: Range<u64>) -> Result<(), FaultError> {
        let guard = self.ram.map_guard(STAGE2, offsets)?;
        for extent in guard.extents() {
            for (offset, frames, shareability) in self.by_shareability(extent.offset, extent.frames)? {
                self.stage2.map(&guard, offset, frames, shareability)?;
                let beside = self.beside.as_ref().filter(|_| shareability == Shareability::Private);
                // Under the guard, so that nobody shares them meanwhile.
                if let Some(Err(stuck)) = beside.map(|memory| memory.drop_shared_side(frames)) {
                    tracing::debug!(%frames, %stuck, "private frames keep the pages of their shared side");
                }
            }
        }
        Ok(())
    }

    /// A vCPU touched `offset` and nothing was there: maps the frame for the guest under a guard, waiting while somebody else's
    /// operation has it. `Ok` means: let the vCPU try again.
    pub fn fault(&self, offset: u64) -> Result<(), FaultError> {
        let start = offset - offset % FRAME_BYTES;
        // As much as one page of the memory behind it: huge pages are mapped whole.
        let page = self.stage2.view().page().bytes();
        let around = start - start % page;
        let offsets = around..around.saturating_add(page).min(self.ram.bytes());
        let until = Instant::now() + self.patience;
        loop {
            match self.map_for_guest(offsets.clone()) {
                Err(FaultError::Blocked(Blocked::Busy { after })) if Instant::now() < until => std::thread::sleep(after),
                other => return other,
            }
        }
    }

    /// Carries out a write that KVM emulated up to the access itself and handed over, because the host's address was not
    /// mapped at that moment. The frame is mapped first, so that the next one does not come here.
    pub fn finish_write(&self, offset: u64, bytes: &[u8]) -> Result<(), FaultError> {
        self.finish(offset, |view| view.write(offset, bytes))
    }

    /// The same for a read.
    pub fn finish_read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), FaultError> {
        self.finish(offset, |view| view.read(offset, bytes))
    }

    fn finish(&self, offset: u64, mut access: impl FnMut(&HostMapping) -> Result<(), MapError>) -> Result<(), FaultError> {
        let until = Instant::now() + self.patience;
        loop {
            self.fault(offset)?;
            match access(self.stage2.view()) {
                // It converted between the two; a single access lies in one frame, so nothing was done of it.
                Err(MapError::Unmapped { .. }) if Instant::now() < until => {}
                other => return Ok(other?),
            }
        }
    }

    /// Puts a sound frame in the place of the lost one at `offset`, in bytes, aligned to 4 KiB, and maps it for the guest: private,
    /// zeroed. Not where slots are bound to a guest_memfd, since they would go on naming the lost frame's place in it, nor
    /// on huge pages, which are mapped whole; then nothing has changed.
    pub fn replace(&self, offset: u64) -> Result<Replaced, FaultError> {
        let view = self.stage2.view();
        if self.stage2.privacy() != Privacy::None || view.page().is_huge() {
            let why = "a frame behind a bound slot or a huge page cannot be replaced alone";
            let refusal = Refusal::Other(why.into());
            return Err(Refused::Mapping { mapping: STAGE2.to_owned(), refusal }.into());
        }
        let replaced = self.ram.replace(offset)?;
        view.replaced(offset, replaced.frame)?;
        self.host.replaced(offset, replaced.frame)?;
        self.establish(offset..offset + FRAME_BYTES); // the replacement is done, whether or not somebody converts it by now
        Ok(replaced)
    }

    /// The parts of `frames`, which begin at `offset`, that are of one shareability each. Under a guard that does not change.
    fn by_shareability(&self, offset: u64, frames: PfnRange) -> Result<Vec<(u64, PfnRange, Shareability)>, Refused> {
        let mut parts: Vec<(u64, PfnRange, Shareability)> = Vec::new();
        let mut rest = Some(frames);
        while let Some(run) = rest {
            let at = offset + (run.start().get() - frames.start().get()) * FRAME_BYTES;
            let (part, after) = run.split_at(self.uniform_frames(at, run.start()));
            rest = after;
            let Some(part) = part else { break };
            let shareability = self.ram.shareability(at)?;
            match parts.last_mut() {
                Some((_, run, same)) if *same == shareability => *run = run.hull(part),
                _ => parts.push((at, part, shareability)),
            }
        }
        Ok(parts)
    }

    /// How many frames from `pfn` on, which lies at `offset`, are certainly of one shareability. Larger leaves are asked for
    /// only where one may begin, so a range of GiBs takes a few questions and a mixed one little more than one for each frame.
    fn uniform_frames(&self, offset: u64, pfn: Pfn) -> u64 {
        if !pfn.is_aligned(Order::MIB2) {
            return 1;
        }
        let largest = self.ram.max_mapping_order(offset).unwrap_or(Order::BASE);
        let begins = |order: &Order| *order <= largest && pfn.is_aligned(*order);
        Order::DESCENDING.into_iter().find(begins).unwrap_or(Order::BASE).frames()
    }
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("owner", &self.ram.owner()).field("stage2", &self.stage2).finish_non_exhaustive()
    }
}
