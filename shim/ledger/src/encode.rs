//! Rows as bytes, format 1. What is written here is read for ever: a change makes a new format.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pageless::ledger::{AllocationRow, HoldRow, Landmark, LandmarkKind, MarkRow, PastMark, PoolFacts, RequestId};
use pageless::metadata::HoldId;
use pageless::{
    AllocationId, Cause, Contents, Extent, HolderId, Identity, Intent, NodeFrames, Pfn, PfnRange, RunSet, Withdrawal, Withdrawn,
};

use crate::words::{Bad, Reader, Writer};

/// A row of a table.
pub(crate) trait Row: Sized {
    fn write(&self, to: &mut Writer);
    fn read(from: &mut Reader<'_>) -> Result<Self, Bad>;

    fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::default();
        self.write(&mut to);
        to.0
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Bad> {
        let mut from = Reader(bytes);
        let row = Self::read(&mut from)?;
        from.end()?;
        Ok(row)
    }
}

fn write_range(to: &mut Writer, range: PfnRange) {
    to.u64(range.start().get());
    to.u64(range.end().get());
}

fn read_range(from: &mut Reader<'_>) -> Result<PfnRange, Bad> {
    let (start, end) = (from.u64()?, from.u64()?);
    if end > Pfn::LIMIT.get() {
        return Err("a frame number is too large");
    }
    PfnRange::new(Pfn::new(start), Pfn::new(end)).map_err(|_| "a run ends before it starts")
}

fn write_runs(to: &mut Writer, runs: &[PfnRange]) {
    to.list(runs.iter(), |to, run| write_range(to, *run));
}

fn read_runs(from: &mut Reader<'_>) -> Result<Vec<PfnRange>, Bad> {
    from.list(read_range)
}

fn read_set(from: &mut Reader<'_>) -> Result<RunSet, Bad> {
    Ok(read_runs(from)?.into_iter().collect())
}

fn write_extent(to: &mut Writer, extent: Extent) {
    to.u64(extent.offset);
    write_range(to, extent.frames);
}

fn read_extent(from: &mut Reader<'_>) -> Result<Extent, Bad> {
    Ok(Extent { offset: from.u64()?, frames: read_range(from)? })
}

fn write_time(to: &mut Writer, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    to.u64(since.as_secs());
    to.u32(since.subsec_nanos());
}

fn read_time(from: &mut Reader<'_>) -> Result<SystemTime, Bad> {
    let (seconds, nanos) = (from.u64()?, from.u32()?);
    UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .map(|time| time + Duration::from_nanos(nanos.into()))
        .ok_or("a time is too late")
}

fn read_arc(from: &mut Reader<'_>) -> Result<Arc<str>, Bad> {
    from.text().map(Into::into)
}

const INTENTS: [Intent; 5] = [Intent::Share, Intent::Unshare, Intent::Reclaim, Intent::Detach, Intent::Resize];
const STATES: [Withdrawal; 3] = [Withdrawal::Quarantined, Withdrawal::Failed, Withdrawal::Poisoned];

/// The number of a value in its list. The lists are part of the format.
fn number<T: PartialEq>(list: &[T], value: &T) -> u8 {
    u8::try_from(list.iter().position(|other| other == value).unwrap_or(list.len())).unwrap_or(u8::MAX)
}

fn nth<T: Copy>(list: &[T], number: u8) -> Result<T, Bad> {
    list.get(usize::from(number)).copied().ok_or("a number names nothing")
}

impl Row for AllocationRow {
    fn write(&self, to: &mut Writer) {
        to.u64(self.id.get());
        to.text(&self.owner);
        to.u64(self.bytes);
        to.u8(u8::from(self.contents == Contents::Keep));
        to.option(self.request, |to, request| to.u128(request.0));
        to.u128(self.secret);
        to.list(self.extents.iter(), |to, extent| write_extent(to, *extent));
        write_runs(to, self.live.runs());
        to.list(self.released.iter(), |to, extent| write_extent(to, *extent));
        to.list(self.mappings.iter(), |to, name| to.text(name));
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Bad> {
        Ok(Self {
            id: AllocationId::new(from.u64()?),
            owner: read_arc(from)?,
            bytes: from.u64()?,
            contents: nth(&[Contents::Zero, Contents::Keep], from.u8()?)?,
            request: from.option(Reader::u128)?.map(RequestId),
            secret: from.u128()?,
            extents: from.list(read_extent)?,
            live: read_set(from)?,
            released: from.list(read_extent)?,
            mappings: from.list(read_arc)?,
        })
    }
}

impl Row for HoldRow {
    fn write(&self, to: &mut Writer) {
        to.u64(self.id.0);
        to.u64(self.allocation.get());
        write_runs(to, &self.frames);
        to.text(self.holder.name());
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Bad> {
        Ok(Self {
            id: HoldId(from.u64()?),
            allocation: AllocationId::new(from.u64()?),
            frames: read_runs(from)?,
            holder: HolderId::new(from.text()?),
        })
    }
}

fn write_cause(to: &mut Writer, cause: &Cause) {
    to.text(&cause.mapping);
    to.text(&cause.step);
    to.u64(cause.status);
    to.text(&cause.meaning);
}

fn read_cause(from: &mut Reader<'_>) -> Result<Cause, Bad> {
    let (mapping, step) = (from.text()?.to_owned(), from.text()?.to_owned());
    let (status, meaning) = (from.u64()?, from.text()?.to_owned());
    Ok(Cause { mapping: mapping.into(), step: step.into(), status, meaning: meaning.into() })
}

impl Row for MarkRow {
    fn write(&self, to: &mut Writer) {
        let told = &self.told;
        write_range(to, told.frames);
        to.u8(number(&STATES, &told.state));
        to.option(told.intent, |to, intent| to.u8(number(&INTENTS, &intent)));
        write_cause(to, &told.cause);
        to.option(told.allocation, |to, id| to.u64(id.get()));
        to.option(told.owner.as_deref(), Writer::text);
        to.u64(told.offset);
        to.option(told.holder.as_ref(), |to, holder| to.text(holder.name()));
        write_time(to, told.since);
        to.u32(told.attempts);
        to.text(&self.boot);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Bad> {
        let told = Withdrawn {
            frames: read_range(from)?,
            state: nth(&STATES, from.u8()?)?,
            intent: from.option(|from| nth(&INTENTS, from.u8()?))?,
            cause: read_cause(from)?,
            allocation: from.option(Reader::u64)?.map(AllocationId::new),
            owner: from.option(read_arc)?,
            offset: from.u64()?,
            holder: from.option(|from| from.text().map(HolderId::new))?,
            since: read_time(from)?,
            attempts: from.u32()?,
        };
        Ok(Self { told, boot: read_arc(from)? })
    }
}

impl Row for PastMark {
    fn write(&self, to: &mut Writer) {
        self.mark.write(to);
        write_time(to, self.until);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Bad> {
        Ok(Self { mark: MarkRow::read(from)?, until: read_time(from)? })
    }
}

impl Row for Landmark {
    fn write(&self, to: &mut Writer) {
        write_time(to, self.at);
        to.text(&self.boot);
        match &self.kind {
            LandmarkKind::Opened => to.u8(0),
            LandmarkKind::MemoryGone { instance, withdrawn } => {
                to.u8(1);
                to.text(instance);
                to.u64(*withdrawn);
            }
            LandmarkKind::PlatformReset { frames, evidence } => write_lift(to, 2, frames, evidence),
            LandmarkKind::HardwareReplaced { frames, evidence } => write_lift(to, 3, frames, evidence),
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Bad> {
        let (at, boot) = (read_time(from)?, read_arc(from)?);
        let kind = match from.u8()? {
            0 => LandmarkKind::Opened,
            1 => LandmarkKind::MemoryGone { instance: from.text()?.to_owned(), withdrawn: from.u64()? },
            2 => LandmarkKind::PlatformReset { frames: read_set(from)?, evidence: read_arc(from)? },
            3 => LandmarkKind::HardwareReplaced { frames: read_set(from)?, evidence: read_arc(from)? },
            _ => return Err("a number names no event"),
        };
        Ok(Self { at, boot, kind })
    }
}

fn write_lift(to: &mut Writer, number: u8, frames: &RunSet, evidence: &str) {
    to.u8(number);
    write_runs(to, frames.runs());
    to.text(evidence);
}

impl Row for PoolFacts {
    fn write(&self, to: &mut Writer) {
        to.list(self.nodes.iter(), |to, node| {
            to.u32(node.node);
            write_range(to, node.frames);
        });
        to.u8(u8::from(self.identity == Identity::Synthetic));
        to.option(self.instance.as_deref(), Writer::text);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, Bad> {
        Ok(Self {
            nodes: from.list(|from| Ok(NodeFrames { node: from.u32()?, frames: read_range(from)? }))?,
            identity: nth(&[Identity::Physical, Identity::Synthetic], from.u8()?)?,
            instance: from.option(|from| from.text().map(str::to_owned))?,
        })
    }
}
