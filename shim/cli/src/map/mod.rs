//! The pool as a picture: what every frame is, in runs, and what a stretch of it looks like from afar.

mod text;

use pageless::{Order, PfnRange};

pub use text::render;

/// What a frame is, in one word, as the map shows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum CellKind {
    /// Nobody's, and sound.
    Free,
    /// A guest's, and out of the host's reach.
    Private {
        /// The guest, as an index into [`PoolMap::guests`].
        guest: u16,
    },
    /// A guest's, and within the host's reach.
    Shared {
        /// The guest, as an index into [`PoolMap::guests`].
        guest: u16,
    },
    /// Given up by its owner, not yet proven unreachable.
    Released,
    /// An operation is under way.
    Converting,
    /// An operation ended without proof; later proof brings it back.
    Quarantined,
    /// An invalidation failed for good.
    Failed,
    /// Hardware reported an uncorrectable error.
    Poisoned,
}

impl CellKind {
    /// The state in a word, without the owner.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Private { .. } => "private",
            Self::Shared { .. } => "shared",
            Self::Released => "released",
            Self::Converting => "converting",
            Self::Quarantined => "quarantined",
            Self::Failed => "failed",
            Self::Poisoned => "poisoned",
        }
    }

    /// Whose it is, where it is a guest's.
    #[must_use]
    pub const fn guest(self) -> Option<u16> {
        match self {
            Self::Private { guest } | Self::Shared { guest } => Some(guest),
            _ => None,
        }
    }

    /// Whether such a frame is kept from everybody for lack of proof or for broken hardware.
    #[must_use]
    pub const fn is_withdrawn(self) -> bool {
        matches!(self, Self::Quarantined | Self::Failed | Self::Poisoned)
    }

    /// How much a single such frame matters in a stretch of others: 0 for the ordinary states, whose majority wins.
    const fn alarm(self) -> u8 {
        match self {
            Self::Free | Self::Private { .. } | Self::Shared { .. } => 0,
            Self::Released => 1,
            Self::Converting => 2,
            Self::Quarantined => 3,
            Self::Failed => 4,
            Self::Poisoned => 5,
        }
    }

    /// The character for a stretch of such frames where there is no colour, and on top of the colour for the alarming ones.
    #[must_use]
    pub fn symbol(self) -> char {
        let letter = |first: u8, guest: u16| char::from(first + u8::try_from(guest % 26).unwrap_or(0));
        match self {
            Self::Free => '.',
            Self::Private { guest } => letter(b'a', guest),
            Self::Shared { guest } => letter(b'A', guest),
            Self::Released => '~',
            Self::Converting => '%',
            Self::Quarantined => '?',
            Self::Failed => '!',
            Self::Poisoned => '#',
        }
    }
}

/// A run of frames that are all the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapCell {
    /// The run.
    pub frames: PfnRange,
    /// What they are.
    pub kind: CellKind,
    /// More about it, for instance the cause of a withdrawal; may be empty.
    pub note: String,
}

impl MapCell {
    /// A run about which there is no more to say.
    #[must_use]
    pub const fn new(frames: PfnRange, kind: CellKind) -> Self {
        Self { frames, kind, note: String::new() }
    }
}

/// Why runs do not make a map. A map that leaves out or doubles a frame would be a lie.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MapError {
    /// No runs at all.
    #[error("a map needs at least one run of frames")]
    Empty,
    /// Two runs overlap, or frames between them are missing.
    #[error("the map's runs {before} and {after} do not adjoin: every frame belongs to exactly one")]
    Seam {
        /// The run with the smaller start.
        before: PfnRange,
        /// The next run.
        after: PfnRange,
    },
    /// A run names a guest that has no name.
    #[error("the map's run {frames} belongs to guest {guest}, which has no name")]
    Nameless {
        /// The run.
        frames: PfnRange,
        /// The index of its guest.
        guest: u16,
    },
}

/// Every frame of a pool, in runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolMap {
    frames: PfnRange,
    cells: Vec<MapCell>,
    guests: Vec<String>,
}

impl PoolMap {
    /// The map made of `cells`, in any order, which cover a run of frames without gap or overlap, with the guests' names.
    pub fn new(mut cells: Vec<MapCell>, guests: Vec<String>) -> Result<Self, MapError> {
        cells.sort_by_key(|cell| cell.frames.start());
        for pair in cells.windows(2) {
            if let [before, after] = pair
                && before.frames.end() != after.frames.start()
            {
                return Err(MapError::Seam { before: before.frames, after: after.frames });
            }
        }
        let nameless = cells.iter().find_map(|cell| {
            let guest = cell.kind.guest().filter(|guest| usize::from(*guest) >= guests.len())?;
            Some(MapError::Nameless { frames: cell.frames, guest })
        });
        match (nameless, cells.first(), cells.last()) {
            (Some(error), ..) => Err(error),
            (None, Some(first), Some(last)) => Ok(Self { frames: first.frames.hull(last.frames), cells, guests }),
            _ => Err(MapError::Empty),
        }
    }

    /// All frames.
    #[must_use]
    pub const fn frames(&self) -> PfnRange {
        self.frames
    }

    /// The runs, in order.
    #[must_use]
    pub fn cells(&self) -> &[MapCell] {
        &self.cells
    }

    /// The guests' names.
    #[must_use]
    pub fn guests(&self) -> &[String] {
        &self.guests
    }

    /// The state of such a frame with its owner: `private, vm-a`.
    #[must_use]
    pub fn describe(&self, kind: CellKind) -> String {
        match kind.guest().and_then(|guest| self.guests.get(usize::from(guest))) {
            Some(guest) => format!("{}, {guest}", kind.name()),
            None => kind.name().to_owned(),
        }
    }

    /// Frames of every kind that occurs, in the order of [`CellKind`].
    #[must_use]
    pub fn totals(&self) -> Vec<(CellKind, u64)> {
        tally(self.cells.iter().map(|cell| (cell.kind, cell.frames.frames())))
    }

    /// The part of the map within `window`; runs are cut at its edges.
    pub fn within(&self, window: PfnRange) -> impl Iterator<Item = (PfnRange, &MapCell)> {
        let first = self.cells.partition_point(|cell| cell.frames.end() <= window.start());
        let rest = self.cells.get(first..).unwrap_or_default().iter();
        rest.map_while(move |cell| cell.frames.intersect(window).map(|part| (part, cell)))
    }

    /// The pool cut into stretches of `frames` frames, the last one possibly shorter, each with what lies in it.
    pub fn stretches(&self, frames: u64) -> impl Iterator<Item = Stretch> {
        let (whole, step) = (self.frames, frames.max(1));
        (0..whole.frames().div_ceil(step)).filter_map(move |index| {
            let window = PfnRange::from_len(whole.start().add(index * step), step).ok()?.intersect(whole)?;
            let parts = tally(self.within(window).map(|(part, cell)| (cell.kind, part.frames())));
            Some(Stretch { frames: window, parts })
        })
    }

    /// How many frames make a row of the picture: a power of two so that there are from 4 to 32 rows, 1 GiB where that fits.
    #[must_use]
    pub fn row_frames(&self) -> u64 {
        let total = self.frames.frames();
        let mut row = Order::GIB1.frames();
        while total.div_ceil(row) > 32 {
            row *= 2;
        }
        while total.div_ceil(row) < 4 && row > 32 * Order::MIB2.frames() {
            row /= 2;
        }
        row
    }
}

/// Sums frames by kind, in the order of [`CellKind`].
fn tally(parts: impl Iterator<Item = (CellKind, u64)>) -> Vec<(CellKind, u64)> {
    let mut sums: Vec<(CellKind, u64)> = Vec::new();
    for (kind, frames) in parts {
        match sums.binary_search_by_key(&kind, |(kind, _)| *kind) {
            Ok(found) => sums[found].1 += frames,
            Err(place) => sums.insert(place, (kind, frames)),
        }
    }
    sums
}

/// A stretch of the pool that the picture shows as one mark.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stretch {
    /// Which frames.
    pub frames: PfnRange,
    /// How many of them are of each kind.
    pub parts: Vec<(CellKind, u64)>,
}

/// What a stretch looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// As if all its frames were of this kind.
    Of(CellKind),
    /// One guest's private and shared frames.
    Blend {
        /// The guest.
        guest: u16,
        /// How many quarters of it are shared, rounded so that 1 to 3 are told: never 0, never 4.
        quarters: u8,
    },
}

impl Stretch {
    /// The most alarming state in the stretch if there is one, however few its frames; else what most of it is.
    #[must_use]
    pub fn look(&self) -> Look {
        let loudest = self.parts.iter().map(|(kind, _)| *kind).max_by_key(|kind| kind.alarm());
        if let Some(kind) = loudest.filter(|kind| kind.alarm() > 0) {
            return Look::Of(kind);
        }
        let of = |kind: CellKind| self.parts.iter().find(|(part, _)| *part == kind).map_or(0, |(_, frames)| *frames);
        let guests = self.parts.iter().filter_map(|(kind, _)| kind.guest());
        let held = |guest: u16| (of(CellKind::Private { guest }), of(CellKind::Shared { guest }));
        let largest = guests.max_by_key(|&guest| held(guest).0 + held(guest).1);
        let Some(guest) = largest.filter(|&guest| held(guest).0 + held(guest).1 >= of(CellKind::Free)) else {
            return Look::Of(CellKind::Free);
        };
        match held(guest) {
            (_, 0) => Look::Of(CellKind::Private { guest }),
            (0, _) => Look::Of(CellKind::Shared { guest }),
            (private, shared) => {
                let quarters = (shared * 4 + (private + shared) / 2) / (private + shared);
                Look::Blend { guest, quarters: u8::try_from(quarters.clamp(1, 3)).unwrap_or(3) }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use pageless::Pfn;

    const PRIVATE: CellKind = CellKind::Private { guest: 0 };
    const SHARED: CellKind = CellKind::Shared { guest: 0 };

    fn range(start: u64, end: u64) -> PfnRange {
        PfnRange::new(Pfn::new(start), Pfn::new(end)).unwrap()
    }

    fn map(runs: &[(u64, u64, CellKind)]) -> Result<PoolMap, MapError> {
        let cells = runs.iter().map(|&(start, end, kind)| MapCell::new(range(start, end), kind)).collect();
        PoolMap::new(cells, vec!["vm-a".into(), "vm-b".into()])
    }

    #[test]
    fn a_map_that_leaves_out_or_doubles_a_frame_is_refused() {
        assert_eq!(map(&[]), Err(MapError::Empty));
        assert!(matches!(map(&[(0, 10, PRIVATE), (11, 12, SHARED)]), Err(MapError::Seam { .. })));
        assert!(matches!(map(&[(0, 10, PRIVATE), (9, 12, SHARED)]), Err(MapError::Seam { .. })));
        assert!(matches!(map(&[(0, 10, CellKind::Shared { guest: 2 })]), Err(MapError::Nameless { guest: 2, .. })));
        assert_eq!(map(&[(10, 12, SHARED), (0, 10, PRIVATE)]).unwrap().frames(), range(0, 12));
    }

    #[test]
    fn one_failed_frame_shows_through_a_gibibyte_of_others() {
        let gib = Order::GIB1.frames();
        let map = map(&[(0, 77, CellKind::Free), (77, 78, CellKind::Failed), (78, gib, PRIVATE)]).unwrap();
        let stretch = map.stretches(gib).next().unwrap();
        assert_eq!(stretch.look(), Look::Of(CellKind::Failed));
        assert_eq!(map.totals(), [(CellKind::Free, 77), (PRIVATE, gib - 78), (CellKind::Failed, 1)]);
    }

    #[test]
    fn the_worse_of_two_alarms_wins() {
        let map = map(&[(0, 9, CellKind::Quarantined), (9, 10, CellKind::Poisoned), (10, 20, CellKind::Released)]).unwrap();
        assert_eq!(map.stretches(20).next().unwrap().look(), Look::Of(CellKind::Poisoned));
    }

    #[test]
    fn private_and_shared_blend_in_quarters() {
        let look =
            |shared: u64| map(&[(0, shared, SHARED), (shared, 512, PRIVATE)]).unwrap().stretches(512).next().unwrap().look();
        assert_eq!(look(1), Look::Blend { guest: 0, quarters: 1 });
        assert_eq!(look(256), Look::Blend { guest: 0, quarters: 2 });
        assert_eq!(look(511), Look::Blend { guest: 0, quarters: 3 });
    }

    #[test]
    fn stretches_cover_every_frame_once() {
        let map = map(&[(3, 10, PRIVATE), (10, 25, CellKind::Free), (25, 40, SHARED)]).unwrap();
        let stretches: Vec<_> = map.stretches(8).collect();
        assert_eq!(stretches.len(), 5);
        assert_eq!(stretches.iter().flat_map(|stretch| &stretch.parts).map(|(_, frames)| frames).sum::<u64>(), 37);
        assert_eq!(stretches.last().unwrap().frames, range(35, 40));
    }

    #[test]
    fn rows_are_gibibytes_where_that_makes_a_picture() {
        let rows = |gib: u64| map(&[(0, gib << 18, CellKind::Free)]).unwrap().row_frames() >> 9;
        assert_eq!((rows(1), rows(8), rows(32), rows(33), rows(1024)), (128, 512, 512, 1024, 16_384));
    }
}
