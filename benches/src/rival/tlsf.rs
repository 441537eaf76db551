//! `xalloc`: two-level segregated fit, as graphics drivers use it. Constant time, one thread.
#![allow(unsafe_code, reason = "xalloc's quickest form trusts its caller to give back what it got")]

use anyhow::Context;
use pageless::Order;
use xalloc::{SysTlsf, SysTlsfRegion};

use super::taker::Taker;

/// `xalloc`'s TLSF over the system's heap.
pub struct Tlsf {
    tlsf: SysTlsf<u64>,
    /// It wants its own handle back. One is kept, as a caller would keep it beside its block: what was taken last.
    last: Option<(u64, SysTlsfRegion)>,
}

impl Taker for Tlsf {
    const NAME: &'static str = "xalloc 0.2 (TLSF)";

    fn with_taken(frames: u64, taken: &[u64]) -> anyhow::Result<Self> {
        let mut tlsf = SysTlsf::new(frames);
        // Everything is taken in order, and what lies between the taken frames is put back.
        let (mut gaps, mut at) = (Vec::new(), 0);
        for &hole in taken.iter().chain([&frames]) {
            if hole > at {
                let (region, start) = tlsf.alloc(hole - at).context("xalloc refused a run")?;
                anyhow::ensure!(start == at, "xalloc took frame {start} and not {at}");
                gaps.push(region);
            }
            if hole < frames {
                tlsf.alloc(1).context("xalloc refused a frame")?;
            }
            at = hole + 1;
        }
        for gap in gaps {
            // SAFETY: this allocator gave it out, and it is given back once.
            unsafe { tlsf.dealloc_unchecked(gap) };
        }
        Ok(Self { tlsf, last: None })
    }

    #[inline]
    fn take(&mut self, order: Order) -> Option<u64> {
        let (region, start) = self.tlsf.alloc_aligned(order.frames(), order.frames())?;
        self.last = Some((start, region));
        Some(start)
    }

    #[inline]
    fn put(&mut self, frame: u64, _order: Order) -> bool {
        let Some((_, region)) = self.last.take_if(|(start, _)| *start == frame) else { return false };
        // SAFETY: this allocator gave it out, and `take_if` leaves nothing that could be given back twice.
        unsafe { self.tlsf.dealloc_unchecked(region) };
        true
    }
}
