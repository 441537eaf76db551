//! The pool as the map wants it.

use pageless::metadata::{FrameState, Occupancy};
use pageless::{AllocationId, Pool, Shareability, Stretch};

use crate::map::{CellKind, MapCell, PoolMap};

/// Draws the pool; `guests` are the allocations that have names.
pub(crate) fn draw(pool: &Pool, guests: &[(AllocationId, &'static str)]) -> anyhow::Result<PoolMap> {
    let withdrawn = pool.withdrawn();
    let cells = pool.stretches().into_iter().map(|stretch| {
        let kind = kind(&stretch, guests);
        let note = withdrawn.iter().find(|run| kind.is_withdrawn() && run.frames.overlaps(stretch.frames));
        MapCell { frames: stretch.frames, kind, note: note.map_or_else(String::new, |run| run.cause.to_string()) }
    });
    Ok(PoolMap::new(cells.collect(), guests.iter().map(|(_, name)| (*name).to_owned()).collect())?)
}

/// What a stretch is, in a word: what keeps it from everybody counts most.
fn kind(stretch: &Stretch, guests: &[(AllocationId, &'static str)]) -> CellKind {
    let state = stretch.state;
    let guest = stretch.allocation.and_then(|id| guests.iter().position(|(known, _)| *known == id));
    match (state, guest.and_then(|guest| u16::try_from(guest).ok())) {
        (FrameState { poisoned: true, .. }, _) => CellKind::Poisoned,
        (FrameState { failed: true, .. }, _) => CellKind::Failed,
        (FrameState { quarantined: Some(_), .. }, _) => CellKind::Quarantined,
        (FrameState { converting: Some(_), .. }, _) => CellKind::Converting,
        (FrameState { occupancy: Occupancy::Free, .. }, _) => CellKind::Free,
        (FrameState { occupancy: Occupancy::Allocated, shareability: Shareability::Shared, .. }, Some(guest)) => {
            CellKind::Shared { guest }
        }
        (FrameState { occupancy: Occupancy::Allocated, .. }, Some(guest)) => CellKind::Private { guest },
        _ => CellKind::Released,
    }
}
