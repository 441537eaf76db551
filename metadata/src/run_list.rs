//! A short list of runs of frames: how a plane with few marks keeps them.

use crate::span::Span;

/// Ascending runs that neither overlap nor touch.
#[derive(Default)]
pub(crate) struct RunList {
    runs: Vec<Span>,
}

impl RunList {
    /// Number of runs.
    pub(crate) fn len(&self) -> usize {
        self.runs.len()
    }

    /// Adds the frames of `span`, and counts those that were not in.
    pub(crate) fn insert(&mut self, span: Span) -> u32 {
        // Everything that overlaps or touches becomes one run.
        let from = self.runs.partition_point(|run| run.end() < span.start());
        let to = self.runs.partition_point(|run| run.start() <= span.end());
        let known = self.known(from, to, span);
        let (first, last) = (self.runs[from..to].first(), self.runs[from..to].last());
        let start = first.map_or(span.start(), |run| run.start().min(span.start()));
        let end = last.map_or(span.end(), |run| run.end().max(span.end()));
        self.replace(from, to, [Span::new(start, end), None]);
        span.frames() - known
    }

    /// Takes the frames of `span` out, and counts those that were in.
    pub(crate) fn remove(&mut self, span: Span) -> u32 {
        let from = self.runs.partition_point(|run| run.end() <= span.start());
        let to = self.runs.partition_point(|run| run.start() < span.end());
        let known = self.known(from, to, span);
        let before = self.runs[from..to].first().and_then(|run| run.subtract(span)[0]);
        let after = self.runs[from..to].last().and_then(|run| run.subtract(span)[1]);
        self.replace(from, to, [before, after]);
        known
    }

    /// The first run within `span` of frames that are in (or are not).
    pub(crate) fn next_run(&self, span: Span, within: bool) -> Option<Span> {
        let at = self.runs.partition_point(|run| run.end() <= span.start());
        let run = self.runs.get(at).and_then(|run| run.intersect(span));
        if within {
            return run;
        }
        let gap = match run {
            // Runs never touch, so a gap follows, unless the span is over.
            Some(run) if run.start() == span.start() => run.end(),
            _ => span.start(),
        };
        let next = self.runs[at..].iter().find(|run| run.start() >= gap).map_or(span.end(), |run| run.start().min(span.end()));
        Span::new(gap, next)
    }

    /// The runs, ascending.
    pub(crate) fn runs(&self) -> &[Span] {
        &self.runs
    }

    /// The bytes behind this value, without its own.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.runs.capacity() * size_of::<Span>()
    }

    fn known(&self, from: usize, to: usize, span: Span) -> u32 {
        self.runs[from..to].iter().filter_map(|run| run.intersect(span)).map(Span::frames).sum()
    }

    /// Puts `pieces` in the place of the runs `from..to`.
    fn replace(&mut self, from: usize, to: usize, pieces: [Option<Span>; 2]) {
        let mut at = from;
        for piece in pieces.into_iter().flatten() {
            if at < to {
                self.runs[at] = piece;
            } else {
                // Exactly, so that `heap_bytes` is what was asked for and the bound holds while both buffers live.
                if self.runs.len() == self.runs.capacity() {
                    self.runs.reserve_exact(self.runs.len().max(4));
                }
                self.runs.insert(at, piece);
            }
            at += 1;
        }
        if at < to {
            self.runs.drain(at..to);
        }
    }
}
