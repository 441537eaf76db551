//! Attaching mappings to an allocation, and detaching them: the second only with proof (invariant I2).

use std::sync::Arc;

use pageless_metadata::{Intent, RunSet};

use crate::allocation::Allocation;
use crate::asking::Losses;
use crate::extents::{Extent, Runs};
use crate::ledger::Entry;
use crate::locked::Lists;
use crate::mapping::Mapping;
use crate::mappings::{Attached, Mappings};
use crate::operation::{Begun, OpenOperation, Partition, pieces_of};
use crate::outcome::{Blocked, Refused};
use crate::withdrawal::Lost;

/// A mapping that was detached: it proved every sound frame of the allocation unreachable. Only [`Allocation::detach`] makes
/// one, so having one is having the proof.
pub struct Detached {
    mapping: Arc<dyn Mapping>,
    still_asked_about: RunSet,
}

impl Detached {
    /// The mapping.
    #[must_use]
    pub fn into_mapping(self) -> Arc<dyn Mapping> {
        self.mapping
    }

    /// Frames that were released or withdrawn before: the pool keeps the mapping to ask it about these.
    #[must_use]
    pub const fn still_asked_about(&self) -> &RunSet {
        &self.still_asked_about
    }
}

impl std::fmt::Debug for Detached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a detached mapping, still asked about {}", self.still_asked_about)
    }
}

/// Why a mapping was not detached. It stays attached.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
pub enum Detach {
    /// Nothing changed.
    #[error(transparent)]
    Blocked(#[from] Blocked),
    /// Some frames could not be proven unreachable through it: they are withdrawn, the others are as before. Frames that are
    /// poisoned while the mapping proves them do not keep it attached.
    #[error("{} runs stayed reachable, first {}", .lost.len(), .lost.first().map_or_else(String::new, ToString::to_string))]
    Torn {
        /// The withdrawn frames.
        lost: Vec<Lost>,
    },
    /// The owner released the allocation while it was detached: nothing can be mapped any more.
    #[error("the allocation was released meanwhile; {} runs were lost", .lost.len())]
    OwnerGone {
        /// The withdrawn frames.
        lost: Vec<Lost>,
    },
}

impl From<Refused> for Detach {
    fn from(refused: Refused) -> Self {
        Self::Blocked(refused.into())
    }
}

impl Allocation {
    /// Attaches a mapping under a name. Mappings are asked in the order of attachment: IOMMU, stage 2, host.
    ///
    /// From now on nothing of the allocation is converted or reclaimed without this mapping's proof.
    pub fn attach(&self, name: &str, mapping: Arc<dyn Mapping>) -> Result<(), Refused> {
        if name.is_empty() {
            return Err(Refused::NoName { what: "mapping" });
        }
        if self.owned.answer(name, &mapping) {
            return Ok(());
        }
        let _editing = self.owned.editing.lock();
        let mut mappings = Mappings::clone(&self.owned.mappings.load());
        if mappings.iter().any(|attached| attached.is_attached() && &*attached.name == name) {
            return Err(Refused::NameTaken { name: name.to_owned() });
        }
        // Durable before it can map anything: after a crash somebody must answer for it.
        let entry = || Entry::Attached { allocation: self.owned.id, mapping: name.into() };
        let undo = || Entry::Detached { allocation: self.owned.id, mapping: name.into() };
        self.pool.commit_entries(|| vec![entry()]).inspect_err(|_| self.pool.submit_entry(undo))?;
        mappings.push(Attached { name: name.into(), mapping, retired: None, unanswered: false });
        self.owned.mappings.store(Arc::new(mappings));
        Ok(())
    }

    /// The names of the attached mappings, in the order in which they are asked.
    #[must_use]
    pub fn mappings(&self) -> Vec<Arc<str>> {
        self.owned
            .mappings
            .load()
            .iter()
            .filter(|attached| attached.is_attached())
            .map(|attached| Arc::clone(&attached.name))
            .collect()
    }

    /// Detaches a mapping, once it has proved every sound frame of the allocation unreachable through it.
    ///
    /// Refused as busy while any frame of the allocation converts, and when one is replaced meanwhile. Frames that are released
    /// or withdrawn are not part of the proof: for those the pool keeps asking the mapping.
    pub fn detach(&self, name: &str) -> Result<Detached, Detach> {
        let no_such = || Detach::from(Refused::NoSuchMapping { name: name.to_owned() });
        let mappings = self.owned.mappings.load_full();
        let attached = mappings.iter().find(|attached| attached.is_attached() && &*attached.name == name).ok_or_else(no_such)?;
        let generation = self.owned.extents.generation();
        let (sound, rest) = self.sound_runs();
        let only = vec![attached.clone()];
        let (proven, ended) = match OpenOperation::begin(&self.pool, &self.owned, sound, Intent::Detach)? {
            Begun::AlreadySo(_) => {
                self.has(attached).then_some(()).ok_or_else(no_such)?;
                (self.remove(attached, &rest, generation), Partition::default())
            }
            Begun::Open(mut operation) => {
                if !self.has(attached) {
                    // Somebody else detached it before the mark, and another may have the name now.
                    operation.cancel();
                    return Err(no_such());
                }
                operation.prepare(&only)?;
                let mut losses = Losses::default();
                operation.invalidate(&only, &mut losses);
                // An operation that was declared hung meanwhile proves nothing: the frames may have been given back, and mapped
                // again through this very mapping.
                let marked = operation.runs().iter().all(|run| operation.still_marked(run.frames).is_ok());
                // Removed before the marks go: no guard can be had under this name between the proof and the removal.
                let proven = losses.runs().is_empty() && marked && self.remove(attached, &rest, generation);
                (proven, operation.finish(losses))
            }
        };
        match (proven, ended.lost.is_empty(), ended.released.is_empty()) {
            (_, _, false) => Err(Detach::OwnerGone { lost: ended.lost }),
            (true, ..) => Ok(Detached { mapping: Arc::clone(&attached.mapping), still_asked_about: rest }),
            (false, false, true) => Err(Detach::Torn { lost: ended.lost }),
            (false, true, true) => Err(Blocked::Busy { after: self.pool.policy.busy_after }.into()),
        }
    }

    /// Takes a mapping off the list, or keeps it for the frames of `rest` only; false when it is not attached any more, or when
    /// a frame was replaced since `generation`: the new frame bore no mark, so it may be mapped and nobody asked about it.
    fn remove(&self, gone: &Attached, rest: &RunSet, generation: u64) -> bool {
        let editing = self.owned.editing.lock();
        if self.owned.extents.generation() != generation {
            return false;
        }
        let mut mappings = Mappings::clone(&self.owned.mappings.load());
        let Some(at) = mappings.iter().position(|attached| attached.is_the_same(gone)) else { return false };
        if rest.is_empty() {
            mappings.remove(at);
            self.pool.submit_entry(|| Entry::Detached { allocation: self.owned.id, mapping: Arc::clone(&gone.name) });
        } else {
            mappings[at].retired = Some(rest.clone());
            // The name is free for another; the old one keeps it only as a label in causes.
            mappings[at].name = format!("{} (detached)", gone.name).into();
        }
        self.owned.mappings.store(Arc::new(mappings));
        // The lists that conversions left in the records would keep the mapping alive. No such list is in use: a quick conversion
        // has its frames marked, and so has this detach.
        let pieces = self.owned.extents.with(|extents| pieces_of(&self.pool, extents));
        let left: Lists = pieces.iter().filter_map(|piece| self.pool.records.record(piece.record).lock().take_list()).collect();
        drop(editing);
        drop(left);
        true
    }

    fn has(&self, attached: &Attached) -> bool {
        self.owned.mappings.load().iter().any(|other| other.is_the_same(attached))
    }

    /// The live, sound runs of the allocation, and all other frames that it has or had and are not proven.
    fn sound_runs(&self) -> (Runs, RunSet) {
        let mut rest: RunSet = self.owned.released.lock().iter().map(|extent| extent.frames).collect();
        let mut sound = RunSet::new();
        let extents = self.extents();
        for piece in pieces_of(&self.pool, &extents) {
            let gib = self.pool.records.record(piece.record).lock();
            for (span, withdrawn) in gib.live_runs(piece.span, self.owned.id) {
                let frames = span.in_gib_of(piece.frames.start());
                if withdrawn { rest.insert(frames) } else { sound.insert(frames) }
            }
        }
        let in_guest_order =
            |extent: &Extent| -> Vec<Extent> { sound.clipped(extent.frames).filter_map(|run| extent.clipped(run)).collect() };
        let runs = extents.iter().flat_map(in_guest_order).collect();
        (runs, rest)
    }
}
