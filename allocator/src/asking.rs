//! Asking a mapping, or the backing, for a proof, and keeping track of what did not come.
//!
//! What is asked may be wrong, too slow or malicious: an answer about frames that were not asked for is a breach of the
//! contract, and everything that was asked counts as unproven.

use std::time::Duration;

use pageless_metadata::{PfnRange, Span};

use crate::mapping::{Cause, Stuck, Verdict};
use crate::operation::Cut;
use crate::record::Piece;
use crate::withdrawal::RetryPolicy;

/// A run without proof.
#[derive(Clone, Debug)]
pub(crate) struct Loss {
    pub(crate) frames: PfnRange,
    pub(crate) verdict: Verdict,
    pub(crate) cause: Cause,
}

/// Who is asked, and how patiently.
pub(crate) struct Asked<'a> {
    pub(crate) name: &'a str,
    pub(crate) policy: &'a RetryPolicy,
}

/// The runs that left the set, disjoint, ascending.
#[derive(Default, Debug)]
pub(crate) struct Losses(Vec<Loss>);

impl Losses {
    /// Asks for a proof of `frames`, less what is lost already. What gets stuck is added to the losses.
    pub(crate) fn ask(&mut self, asked: &Asked<'_>, frames: PfnRange, mut prove: impl FnMut(PfnRange) -> Result<(), Stuck>) {
        if self.0.is_empty() {
            self.ask_run(asked, frames, &mut prove);
            return;
        }
        let survivors: Vec<PfnRange> = self.survivors(frames).collect();
        survivors.into_iter().for_each(|run| self.ask_run(asked, run, &mut prove));
    }

    fn ask_run(&mut self, asked: &Asked<'_>, run: PfnRange, prove: &mut impl FnMut(PfnRange) -> Result<(), Stuck>) {
        // A mapping that is busy at every frame must not keep the caller for an attempt each.
        let (mut rest, mut attempts, mut patience) = (Some(run), 0, asked.policy.at_once.saturating_mul(8));
        while let Some(frames) = rest {
            let Err(stuck) = prove(frames) else { return };
            let Some(at) = stuck.at.intersect(frames).filter(|at| *at == stuck.at) else {
                self.add(frames, Verdict::Never, breach(asked.name, frames, &stuck));
                return;
            };
            // Everything before the stuck run is proven.
            if let Verdict::Retry { after } = stuck.verdict
                && attempts < asked.policy.at_once.min(patience)
            {
                (attempts, patience) = (attempts + 1, patience - 1);
                pause(after.min(asked.policy.pause));
                rest = PfnRange::new(at.start(), frames.end()).ok();
                continue;
            }
            attempts = 0;
            let cause = if stuck.cause.mapping.is_empty() { stuck.cause.at_mapping(asked.name) } else { stuck.cause };
            self.add(at, stuck.verdict, cause);
            rest = PfnRange::new(at.end(), frames.end()).ok();
        }
    }

    pub(crate) fn add(&mut self, frames: PfnRange, verdict: Verdict, cause: Cause) {
        let at = self.0.partition_point(|loss| loss.frames < frames);
        self.0.insert(at, Loss { frames, verdict, cause });
    }

    /// The parts of `frames` that are not lost, ascending.
    pub(crate) fn survivors(&self, frames: PfnRange) -> impl Iterator<Item = PfnRange> + '_ {
        let mut at = frames.start();
        let from = self.0.partition_point(|loss| loss.frames.end() <= frames.start());
        let gaps = self.0[from..].iter().take_while(move |loss| loss.frames.start() < frames.end());
        let ends = gaps.map(|loss| (loss.frames.start(), loss.frames.end())).chain([(frames.end(), frames.end())]);
        ends.filter_map(move |(start, end)| {
            let before = PfnRange::new(at, start).ok();
            at = end;
            before
        })
    }

    /// The losses.
    pub(crate) fn runs(&self) -> &[Loss] {
        &self.0
    }

    /// Cuts a piece into what survived and what did not, ascending.
    pub(crate) fn cut(&self, piece: Piece) -> Cut<'_> {
        let part = |frames: PfnRange| Piece { record: piece.record, span: Span::head_of(frames), frames };
        if self.0.is_empty() {
            return smallvec::smallvec![(piece, None)];
        }
        let survived = self.survivors(piece.frames).map(|frames| (part(frames), None));
        let lost = self.0.iter().filter_map(|loss| Some((part(loss.frames.intersect(piece.frames)?), Some(loss))));
        let mut cut: Cut<'_> = survived.chain(lost).collect();
        cut.sort_unstable_by_key(|(part, _)| part.frames);
        cut
    }
}

fn breach(name: &str, asked: PfnRange, stuck: &Stuck) -> Cause {
    let meaning = format!("asked about {asked}, it answered about {}: {}", stuck.at, stuck.cause);
    Cause::new("contract", stuck.cause.status, meaning).at_mapping(name)
}

fn pause(time: Duration) {
    if !time.is_zero() {
        crate::sync::sleep(time);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use pageless_metadata::Pfn;

    use super::*;

    fn run(start: u64, end: u64) -> PfnRange {
        PfnRange::new(Pfn::new(start), Pfn::new(end)).unwrap()
    }

    fn stuck(at: PfnRange, verdict: Verdict) -> Result<(), Stuck> {
        Err(Stuck { at, verdict, cause: Cause::new("test", 1, "") })
    }

    const POLICY: RetryPolicy = RetryPolicy { at_once: 2, pause: Duration::ZERO, later: 0, later_after: Duration::ZERO };

    #[test]
    fn a_stuck_run_leaves_the_set_and_the_next_is_asked_without_it() {
        let asked = Asked { name: "ept", policy: &POLICY };
        let mut losses = Losses::default();
        losses.ask(
            &asked,
            run(0, 10),
            |frames| if frames.contains(Pfn::new(4)) { stuck(run(4, 6), Verdict::Never) } else { Ok(()) },
        );
        let mut seen = Vec::new();
        losses.ask(&asked, run(0, 10), |frames| {
            seen.push(frames);
            Ok(())
        });
        assert_eq!(seen, [run(0, 4), run(6, 10)]);
        assert_eq!(losses.runs().iter().map(|loss| loss.frames).collect::<Vec<_>>(), [run(4, 6)]);
    }

    #[test]
    fn a_transient_answer_is_asked_again_from_where_it_stuck_and_only_so_often() {
        let asked = Asked { name: "ept", policy: &POLICY };
        let (mut losses, mut calls) = (Losses::default(), Vec::new());
        losses.ask(&asked, run(0, 10), |frames| {
            calls.push(frames);
            if frames.contains(Pfn::new(3)) { stuck(run(3, 4), Verdict::Retry { after: Duration::ZERO }) } else { Ok(()) }
        });
        assert_eq!(calls, [run(0, 10), run(3, 10), run(3, 10), run(4, 10)]);
        assert_eq!(losses.runs().len(), 1);
    }

    #[test]
    fn an_answer_about_other_frames_loses_everything_that_was_asked() {
        let asked = Asked { name: "ept", policy: &POLICY };
        for at in [run(20, 30), run(0, 11), run(9, 12)] {
            let mut losses = Losses::default();
            losses.ask(&asked, run(5, 10), |_| stuck(at, Verdict::Retry { after: Duration::ZERO }));
            assert_eq!(losses.runs()[0].frames, run(5, 10), "{at}");
            assert_eq!(losses.runs()[0].verdict, Verdict::Never);
        }
    }
}
