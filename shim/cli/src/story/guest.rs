//! A guest of the story: its allocation, and the two views of it, its own and the host's.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, bail};
use pageless::{Allocation, FRAME_BYTES, Order, Pfn, PfnRange, Pool, Request};
use pageless_host::{HostBacking, HostMapping, PageSize};

use super::view::View;

/// The guest's own view: a stand-in for its stage 2.
pub(crate) const EPT: &str = "s-ept (simulated)";
/// The host's view: only what is shared.
pub(crate) const HOST: &str = "host";

/// Bytes of a frame, for buffers.
pub(crate) const FRAME: usize = 4096;

/// A guest.
pub(crate) struct Guest {
    pub(crate) name: &'static str,
    pub(crate) ram: Allocation,
    pub(crate) ept: Arc<View>,
    pub(crate) host: Arc<View>,
    pub(crate) conversions: u64,
    page: PageSize,
}

impl Guest {
    /// Allocates memory, and attaches both views. Nothing is mapped yet.
    pub(crate) fn arrive(pool: &Pool, memory: &Arc<dyn HostBacking>, name: &'static str, bytes: u64) -> anyhow::Result<Self> {
        let order = [Order::GIB1, Order::MIB2].into_iter().find(|order| bytes.is_multiple_of(order.bytes()));
        let request = Request::bytes(bytes).order(order.unwrap_or(Order::BASE)).owner(name);
        let ram = pool.allocate(request).with_context(|| format!("{name} did not get its memory"))?;
        Self::with(memory, name, ram)
    }

    /// The guest that has `ram`.
    pub(crate) fn with(memory: &Arc<dyn HostBacking>, name: &'static str, ram: Allocation) -> anyhow::Result<Self> {
        let page = memory.page();
        let view = || -> anyhow::Result<Arc<View>> {
            let mapping = HostMapping::of(memory, &ram).with_context(|| format!("no addresses for {name}"))?;
            Ok(Arc::new(View::new(mapping, page)))
        };
        let (ept, host) = (view()?, view()?);
        ram.attach(EPT, ept.clone())?;
        ram.attach(HOST, host.clone())?;
        Ok(Self { name, ram, ept, host, conversions: 0, page })
    }

    /// The frame at an offset.
    pub(crate) fn frame(&self, offset: u64) -> anyhow::Result<Pfn> {
        Ok(self.ram.frame(offset)?)
    }

    /// Maps a range into the guest's own view, as its page faults would.
    pub(crate) fn map(&self, range: Range<u64>) -> anyhow::Result<()> {
        self.map_view(EPT, &self.ept, self.whole_pages(&range))
    }

    /// Maps a shared range into the host's view: on huge pages only those that are shared as a whole.
    pub(crate) fn show_host(&self, range: Range<u64>) -> anyhow::Result<()> {
        let page = self.page.bytes();
        let inside = range.start.next_multiple_of(page)..range.end - range.end % page;
        if inside.is_empty() { Ok(()) } else { self.map_view(HOST, &self.host, inside) }
    }

    /// Whether the host's view can show a single shared frame.
    pub(crate) const fn host_sees_frames(&self) -> bool {
        !self.page.is_huge()
    }

    fn map_view(&self, name: &str, view: &View, range: Range<u64>) -> anyhow::Result<()> {
        let guard = self.ram.map_guard(name, range).with_context(|| format!("{} may not map this now", self.name))?;
        for run in guard.extents() {
            view.mapping.map(&guard, run.frames)?;
        }
        Ok(())
    }

    fn whole_pages(&self, range: &Range<u64>) -> Range<u64> {
        let page = self.page.bytes();
        range.start - range.start % page..range.end.next_multiple_of(page)
    }

    /// What the guest finds in a frame of its own.
    pub(crate) fn read(&self, offset: u64) -> anyhow::Result<[u8; FRAME]> {
        self.map(offset..offset + FRAME_BYTES)?;
        read(&self.ept, offset)
    }

    /// What the host finds in a shared frame. On huge pages it is looked at through the guest's view: the same page.
    pub(crate) fn read_as_host(&self, offset: u64) -> anyhow::Result<[u8; FRAME]> {
        if self.host.mapping.is_mapped(self.frame(offset)?) {
            return read(&self.host, offset);
        }
        if self.host_sees_frames() {
            bail!("the host's view has no translation for the shared frame at {offset:#x}");
        }
        self.read(offset)
    }

    /// The guest fills a frame with its own bytes.
    pub(crate) fn write(&self, offset: u64) -> anyhow::Result<()> {
        self.map(offset..offset + FRAME_BYTES)?;
        self.ept.mapping.write(offset, &self.pattern()).context("a guest could not write its own memory")
    }

    /// What the guest writes: its name, again and again. No byte of it is zero.
    pub(crate) fn pattern(&self) -> [u8; FRAME] {
        let mut frame = [0; FRAME];
        for (byte, letter) in frame.iter_mut().zip(self.name.bytes().chain(*b"'s secret ").cycle()) {
            *byte = letter;
        }
        frame
    }

    /// How many frames the host's view translates now.
    pub(crate) fn frames_of_host(&self) -> u64 {
        let of = |run: PfnRange| self.host.mapping.translations(run).into_iter().map(PfnRange::frames).sum::<u64>();
        self.ram.extents().into_iter().map(|extent| of(extent.frames)).sum()
    }
}

fn read(view: &View, offset: u64) -> anyhow::Result<[u8; FRAME]> {
    let mut bytes = [0; FRAME];
    view.mapping.read(offset, &mut bytes)?;
    Ok(bytes)
}
