//! Every run that was withdrawn during the story, as the pool told it, and what became of it.

use pageless::{PfnRange, Pool, RunSet, Withdrawn};

use crate::report::{Origin, Withdrawal, WithdrawnState};

/// The runs, in the order in which they were lost, and how many of their frames were handed out all the same.
#[derive(Default, Debug)]
pub(crate) struct Losses {
    runs: Vec<Withdrawn>,
    pub(crate) reassigned: u64,
}

impl Losses {
    /// Notes what the pool lists and this does not yet.
    pub(crate) fn note(&mut self, pool: &Pool) {
        let known = |runs: &[Withdrawn], run: &Withdrawn| {
            runs.iter().any(|known| known.state == run.state && known.frames.contains_range(run.frames))
        };
        for run in pool.withdrawn().into_iter().filter(|run| !known(&self.runs, run)).collect::<Vec<_>>() {
            match self.runs.last_mut() {
                // Lost together, but the pool lists each GiB for itself.
                Some(last) if last.frames.end() == run.frames.start() && (last.state, &last.cause) == (run.state, &run.cause) => {
                    last.frames = last.frames.hull(run.frames);
                }
                _ => self.runs.push(run),
            }
        }
    }

    /// All of them, with what the pool lists now as still lost.
    pub(crate) fn report(&self, pool: &Pool) -> Vec<Withdrawal> {
        let now = pool.withdrawn();
        let stands = |run: &Withdrawn| now.iter().any(|other| other.state == run.state && other.frames.overlaps(run.frames));
        self.runs.iter().map(|run| entry(run, !stands(run))).collect()
    }

    /// Looks for withdrawn frames in what a new owner has just got: there must be none.
    pub(crate) fn look(&mut self, pool: &Pool, handed_out: &[PfnRange]) {
        self.reassigned += reassigned(handed_out, &standing(pool));
    }
}

/// The frames that are withdrawn now.
pub(crate) fn standing(pool: &Pool) -> RunSet {
    pool.withdrawn().iter().map(|run| run.frames).collect()
}

/// How many frames of `handed_out` are withdrawn: the count that must be 0.
fn reassigned(handed_out: &[PfnRange], withdrawn: &RunSet) -> u64 {
    handed_out.iter().flat_map(|run| withdrawn.clipped(*run)).map(PfnRange::frames).sum()
}

fn entry(run: &Withdrawn, came_back: bool) -> Withdrawal {
    let state = match run.state {
        pageless::Withdrawal::Quarantined => WithdrawnState::Quarantined,
        pageless::Withdrawal::Failed => WithdrawnState::Failed,
        pageless::Withdrawal::Poisoned => WithdrawnState::Poisoned,
    };
    let origin = match (state, &*run.cause.mapping) {
        (WithdrawnState::Poisoned, _) => Origin::MachineCheck,
        (_, "backing") => Origin::KernelPin,
        _ => Origin::Injected,
    };
    Withdrawal {
        pfn: run.frames.start().get(),
        frames: run.frames.frames(),
        state,
        cause: run.cause.to_string(),
        origin,
        owner: run.owner.as_deref().unwrap_or_default().to_owned(),
        came_back,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use pageless::Pfn;

    #[test]
    fn a_withdrawn_frame_that_was_handed_out_is_counted() {
        let run = |start, end| PfnRange::new(Pfn::new(start), Pfn::new(end)).unwrap();
        let withdrawn: RunSet = [run(5, 7), run(100, 101)].into_iter().collect();
        assert_eq!(reassigned(&[run(0, 5), run(7, 100)], &withdrawn), 0);
        assert_eq!(reassigned(&[run(0, 6), run(90, 200)], &withdrawn), 2);
    }
}
