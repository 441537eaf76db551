//! Who has which frames of a GiB: the occupancy axis for frames that are not free.
//!
//! A GiB that one allocation has whole costs 16 bytes; anything else is an ordered map of intervals. Frames without an
//! interval are free, or withdrawn before anybody had them.

use std::collections::BTreeMap;

use crate::{AllocationId, Span};

/// One allocation's frames, and whether it has given them up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tenant {
    /// Whose they are, or were.
    pub allocation: AllocationId,
    /// Whether they are released: given up, and not yet proven unreachable.
    pub released: bool,
}

/// The tenants of one GiB.
#[derive(Debug, Default)]
pub struct Tenure(Kind);

#[derive(Debug, Default)]
enum Kind {
    #[default]
    Vacant,
    /// One tenant has all frames. The released flag is the top bit, which allocation ids leave free.
    Whole(u64),
    /// Intervals by start; the value holds the end. Neighbours of one tenant are merged. Boxed to keep the record small.
    #[allow(clippy::box_collection, reason = "the map itself is three words, the record has room for one")]
    Parts(Box<BTreeMap<u32, (u32, Tenant)>>),
}

const RELEASED: u64 = 1 << 63;

impl Tenure {
    /// Nobody has any frame.
    #[must_use]
    pub const fn new() -> Self {
        Self(Kind::Vacant)
    }

    /// The tenants of the frames in `span`, with their part of it, ascending. Frames without a tenant are left out.
    pub fn in_span(&self, span: Span) -> impl Iterator<Item = (Span, Tenant)> + '_ {
        let whole = match self.0 {
            Kind::Whole(word) => Some((span, unpack(word))),
            _ => None,
        };
        let parts = match &self.0 {
            Kind::Parts(parts) => Some(overlapping(parts, span)),
            _ => None,
        };
        whole.into_iter().chain(parts.into_iter().flatten())
    }

    /// The allocation that has every frame of the GiB and has released none of them.
    #[must_use]
    #[inline]
    pub const fn live_owner_of_all(&self) -> Option<AllocationId> {
        match self.0 {
            Kind::Whole(word) if word & RELEASED == 0 => Some(AllocationId::new(word)),
            _ => None,
        }
    }

    /// The one tenant of all frames of the GiB.
    #[must_use]
    #[inline]
    pub const fn tenant_of_all(&self) -> Option<Tenant> {
        match self.0 {
            Kind::Whole(word) => Some(unpack(word)),
            _ => None,
        }
    }

    /// Whether `allocation` has every frame of `span` and has released none of them.
    #[must_use]
    #[inline]
    pub fn is_live(&self, span: Span, allocation: AllocationId) -> bool {
        match &self.0 {
            Kind::Vacant => false,
            Kind::Whole(word) => *word == allocation.get(),
            Kind::Parts(parts) => is_live_in(parts, span, allocation),
        }
    }

    /// The one tenant of all frames of `span`, if there is one.
    #[must_use]
    #[inline]
    pub fn sole(&self, span: Span) -> Option<Tenant> {
        if let Kind::Whole(word) = self.0 {
            return Some(unpack(word));
        }
        let mut tenants = self.in_span(span);
        let (part, tenant) = tenants.next()?;
        (part == span).then_some(tenant)
    }

    /// Makes `tenant` the tenant of `span`, whoever had it before.
    pub fn assign(&mut self, span: Span, tenant: Tenant) {
        if span.is_whole() {
            self.0 = Kind::Whole(pack(tenant));
            return;
        }
        self.edit(|parts| {
            cut(parts, span);
            insert_merged(parts, span, tenant);
        });
    }

    /// Nobody has `span` any more.
    pub fn vacate(&mut self, span: Span) {
        match &mut self.0 {
            Kind::Vacant => {}
            Kind::Whole(_) if span.is_whole() => self.0 = Kind::Vacant,
            _ => self.edit(|parts| cut(parts, span)),
        }
    }

    /// Frames that somebody has and has not released, and frames that are released.
    #[must_use]
    pub fn counts(&self) -> (u32, u32) {
        self.in_span(Span::WHOLE).fold((0, 0), |(live, released), (part, tenant)| {
            if tenant.released { (live, released + part.frames()) } else { (live + part.frames(), released) }
        })
    }

    /// An estimate of the bytes on the heap: the entries of the ordered map, at its usual fill of three quarters.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        match &self.0 {
            Kind::Parts(parts) => {
                let entry = size_of::<(u32, (u32, Tenant))>();
                size_of::<BTreeMap<u32, (u32, Tenant)>>() + parts.len() * entry * 4 / 3
            }
            _ => 0,
        }
    }

    /// Lets `edit` work on the intervals, and keeps the simplest form of what comes out.
    fn edit(&mut self, edit: impl FnOnce(&mut BTreeMap<u32, (u32, Tenant)>)) {
        let mut parts = match std::mem::take(&mut self.0) {
            Kind::Vacant => Box::default(),
            Kind::Whole(word) => Box::new(BTreeMap::from([(0, (Span::WHOLE.end(), unpack(word)))])),
            Kind::Parts(parts) => parts,
        };
        edit(&mut parts);
        self.0 = match parts.first_key_value() {
            None => Kind::Vacant,
            Some((0, (end, tenant))) if *end == Span::WHOLE.end() => Kind::Whole(pack(*tenant)),
            Some(_) => Kind::Parts(parts),
        };
    }
}

const fn pack(tenant: Tenant) -> u64 {
    tenant.allocation.get() | if tenant.released { RELEASED } else { 0 }
}

const fn unpack(word: u64) -> Tenant {
    Tenant { allocation: AllocationId::new(word), released: word & RELEASED != 0 }
}

fn is_live_in(parts: &BTreeMap<u32, (u32, Tenant)>, span: Span, allocation: AllocationId) -> bool {
    let live = Tenant { allocation, released: false };
    overlapping(parts, span).map(|(part, tenant)| if tenant == live { part.frames() } else { 0 }).sum::<u32>() == span.frames()
}

fn overlapping(parts: &BTreeMap<u32, (u32, Tenant)>, span: Span) -> impl Iterator<Item = (Span, Tenant)> + '_ {
    // The interval that began before the span may reach into it.
    let from = parts.range(..=span.start()).next_back().map_or(span.start(), |(start, _)| *start);
    parts
        .range(from..span.end())
        .filter_map(move |(start, (end, tenant))| Some((Span::new(*start, *end)?.intersect(span)?, *tenant)))
}

/// Removes what lies in `span`, keeping the rest of intervals that reach over its edges.
fn cut(parts: &mut BTreeMap<u32, (u32, Tenant)>, span: Span) {
    if let Some((&start, &(end, tenant))) = parts.range(..span.start()).next_back()
        && end > span.start()
    {
        parts.insert(start, (span.start(), tenant));
        if end > span.end() {
            parts.insert(span.end(), (end, tenant));
        }
    }
    while let Some((&start, &(end, tenant))) = parts.range(span.start()..span.end()).next() {
        parts.remove(&start);
        if end > span.end() {
            parts.insert(span.end(), (end, tenant));
        }
    }
}

fn insert_merged(parts: &mut BTreeMap<u32, (u32, Tenant)>, span: Span, tenant: Tenant) {
    let (mut start, mut end) = (span.start(), span.end());
    if let Some((&before, &(edge, other))) = parts.range(..start).next_back()
        && edge == start
        && other == tenant
    {
        start = before;
    }
    if let Some(&(edge, other)) = parts.get(&end)
        && other == tenant
    {
        parts.remove(&end);
        end = edge;
    }
    parts.insert(start, (end, tenant));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::GIB_FRAMES;

    fn tenant(id: u64, released: bool) -> Tenant {
        Tenant { allocation: AllocationId::new(id), released }
    }

    proptest! {
        /// Worlds of a few edges in the GiB, so that intervals meet at their ends often.
        #[test]
        fn tenure_equals_a_plain_array_of_tenants(edits in prop::collection::vec((0u32..8, 1u32..9, prop::option::of((0u64..3, any::<bool>()))), 0..40)) {
            let edge = |n: u32| n * (GIB_FRAMES / 8);
            let (mut tenure, mut plain) = (Tenure::new(), [None; 8]);
            for (from, len, who) in edits {
                let to = (from + len).min(8);
                let span = Span::new(edge(from), edge(to)).unwrap();
                let who = who.map(|(id, released)| tenant(id, released));
                match who { Some(who) => tenure.assign(span, who), None => tenure.vacate(span) }
                plain[from as usize..to as usize].fill(who);
                for n in 0..8u32 {
                    let seen = tenure.sole(Span::new(edge(n), edge(n + 1)).unwrap());
                    prop_assert_eq!(seen, plain[n as usize]);
                }
                let live = plain.iter().flatten().filter(|who| !who.released).count();
                prop_assert_eq!(tenure.counts().0 as usize, live * edge(1) as usize);
                let all_one = plain[0].is_some() && plain.iter().all(|who| *who == plain[0]);
                prop_assert_eq!(matches!(tenure.0, Kind::Whole(_)), all_one);
                prop_assert_eq!(matches!(tenure.0, Kind::Vacant), plain.iter().all(Option::is_none));
            }
        }
    }
}
