//! The frame layer against a plain vector of "is it free": every answer must be the same.
#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_possible_truncation)]

use pageless::frames::{Buildable, Frames, PutError, TakeAtError};
use pageless::{Order, Pfn, PfnRange, RunSet};
use proptest::prelude::*;

/// The plain twin: one truth value per frame, every question answered by looking at all of them.
struct Model {
    span: PfnRange,
    free: Vec<bool>,
}

impl Model {
    fn new(span: PfnRange) -> Self {
        Self { span, free: vec![true; span.frames() as usize] }
    }

    fn at(&self, pfn: Pfn) -> usize {
        (pfn.get() - self.span.start().get()) as usize
    }

    fn slice(&mut self, range: PfnRange) -> &mut [bool] {
        let (from, to) = (self.at(range.start()), self.at(range.end()));
        &mut self.free[from..to]
    }

    fn first(&mut self, range: PfnRange, free: bool) -> Option<Pfn> {
        let at = self.slice(range).iter().position(|&is| is == free)?;
        Some(range.start().add(at as u64))
    }

    fn outside(&self, range: PfnRange) -> Option<Pfn> {
        range.iter().find(|pfn| !self.span.contains(*pfn))
    }

    fn runs(&self) -> RunSet {
        let mut runs = Vec::new();
        let mut at = 0;
        for chunk in self.free.chunk_by(|a, b| a == b) {
            if chunk[0] {
                runs.push(PfnRange::from_len(self.span.start().add(at), chunk.len() as u64).unwrap());
            }
            at += chunk.len() as u64;
        }
        runs.into_iter().collect()
    }

    fn fits(&self, frames: u64, align: Order) -> bool {
        self.runs().into_iter().any(|run| run.start().align_up(align).get() + frames <= run.end().get())
    }

    fn buildable(&self) -> Buildable {
        let count = |order| {
            self.runs().into_iter().filter_map(|run| run.whole_blocks(order)).map(|run| run.frames() / order.frames()).sum()
        };
        Buildable { gib1: count(Order::GIB1), mib2: count(Order::MIB2), base: count(Order::BASE) }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Take(Order),
    TakeRun {
        frames: u64,
        align: Order,
    },
    /// Frames counted from a little before the span.
    TakeAt {
        offset: u64,
        frames: u64,
    },
    Put {
        offset: u64,
        frames: u64,
    },
    /// Puts back the `nth` taken run of the model, or the part of it that these say.
    PutTaken {
        nth: usize,
        skip: u64,
        frames: u64,
    },
    /// Takes every `stride`-th frame of the span.
    Comb {
        stride: u64,
    },
    PutBatch {
        offsets: Vec<u64>,
    },
    /// Puts everything back in batches of single frames, starting in the middle of the taken ones.
    PutAll,
}

/// How far before and after the span bogus calls may reach.
const MARGIN: u64 = 40;

fn order() -> impl Strategy<Value = Order> {
    prop_oneof![Just(Order::BASE), Just(Order::MIB2), Just(Order::GIB1)]
}

fn length(span: u64) -> impl Strategy<Value = u64> {
    prop_oneof![0..=8u64, 0..=600u64, 500..=520u64, 0..=(span + 3), (0..=(span / 512 + 1)).prop_map(|n| n * 512)]
}

fn step(span: u64) -> impl Strategy<Value = Step> {
    let offset = move || 0..(span + 2 * MARGIN);
    prop_oneof![
        6 => order().prop_map(Step::Take),
        3 => (length(span), order()).prop_map(|(frames, align)| Step::TakeRun { frames, align }),
        3 => (offset(), length(span)).prop_map(|(offset, frames)| Step::TakeAt { offset, frames }),
        2 => (offset(), length(span)).prop_map(|(offset, frames)| Step::Put { offset, frames }),
        6 => (any::<usize>(), length(span), length(span)).prop_map(|(nth, skip, frames)| Step::PutTaken { nth, skip, frames }),
        4 => any::<usize>().prop_map(|nth| Step::PutTaken { nth, skip: 0, frames: u64::MAX }),
        1 => (3..700u64).prop_map(|stride| Step::Comb { stride }),
        1 => prop::collection::vec(offset(), 1..20).prop_map(|offsets| Step::PutBatch { offsets }),
        1 => Just(Step::PutAll),
    ]
}

fn small_world() -> impl Strategy<Value = (PfnRange, Vec<Step>)> {
    let base = prop_oneof![MARGIN..3000u64, 262_144 - 1500..262_144u64, Just(1 << 30)];
    (base, prop_oneof![1..=3u64, 1..=600u64, 1..=5000u64]).prop_flat_map(|(base, frames)| {
        let span = PfnRange::from_len(Pfn::new(base), frames).unwrap();
        (Just(span), prop::collection::vec(step(frames), 1..60))
    })
}

fn large_world() -> impl Strategy<Value = (PfnRange, Vec<Step>)> {
    let base = prop_oneof![Just(262_144u64), MARGIN..600_000u64];
    (base, 262_144..700_000u64).prop_flat_map(|(base, frames)| {
        let span = PfnRange::from_len(Pfn::new(base), frames).unwrap();
        (Just(span), prop::collection::vec(step(frames), 1..30))
    })
}

fn located(model: &Model, offset: u64, frames: u64) -> Option<PfnRange> {
    PfnRange::from_len(Pfn::new(model.span.start().get() + offset - MARGIN), frames).ok()
}

fn put(frames: &Frames, model: &mut Model, range: PfnRange) {
    let expected = match (model.outside(range), model.span.intersect(range)) {
        (Some(pfn), _) => Err(PutError::Foreign { pfn, span: model.span }),
        (None, _) => model.first(range, true).map_or(Ok(()), |pfn| Err(PutError::AlreadyFree { pfn })),
    };
    assert_eq!(frames.put(range), expected, "put {range}");
    if expected.is_ok() {
        model.slice(range).fill(true);
    }
}

fn take_at(frames: &Frames, model: &mut Model, range: PfnRange) {
    let expected = match model.outside(range) {
        Some(pfn) => Err(TakeAtError::Outside { pfn, span: model.span }),
        None => model.first(range, false).map_or(Ok(()), |pfn| Err(TakeAtError::NotFree { pfn })),
    };
    assert_eq!(frames.take_at(range), expected, "take_at {range}");
    if expected.is_ok() {
        model.slice(range).fill(false);
    }
}

fn put_batch(frames: &Frames, model: &mut Model, batch: &[Pfn]) {
    let mut sorted = batch.to_vec();
    sorted.sort();
    let foreign = sorted.iter().find(|pfn| !model.span.contains(**pfn));
    let repeated = |nth: usize| nth > 0 && sorted[nth - 1] == sorted[nth];
    let expected = match foreign {
        Some(&pfn) => Err(PutError::Foreign { pfn, span: model.span }),
        None => match (0..sorted.len()).find(|&nth| repeated(nth) || model.free[model.at(sorted[nth])]) {
            Some(nth) => Err(PutError::AlreadyFree { pfn: sorted[nth] }),
            None => Ok(()),
        },
    };
    assert_eq!(frames.put_batch(batch), expected, "put_batch {batch:?}");
    if expected.is_ok() {
        batch.iter().for_each(|pfn| model.slice(PfnRange::single(*pfn)).fill(true));
    }
}

fn taken_runs(model: &Model) -> RunSet {
    model.runs().gaps_in(model.span)
}

fn took(model: &mut Model, run: PfnRange, align: Order) {
    assert!(run.start().is_aligned(align) && model.span.contains_range(run), "{run}");
    assert_eq!(model.first(run, false), None, "{run} was handed out twice");
    model.slice(run).fill(false);
}

fn apply(frames: &Frames, model: &mut Model, step: Step) {
    match step {
        Step::Take(order) => match frames.take(order) {
            Some(pfn) => took(model, PfnRange::block(pfn, order), order),
            None => assert!(!model.fits(order.frames(), order), "a free {order} block was not found"),
        },
        Step::TakeRun { frames: length, align } => match frames.take_run(length, align) {
            Some(run) => {
                assert_eq!(run.frames(), length);
                took(model, run, align);
            }
            None => assert!(length == 0 || !model.fits(length, align), "a free run of {length} at {align} was not found"),
        },
        Step::TakeAt { offset, frames: length } => {
            if let Some(range) = located(model, offset, length) {
                take_at(frames, model, range);
            }
        }
        Step::Put { offset, frames: length } => {
            if let Some(range) = located(model, offset, length) {
                put(frames, model, range);
            }
        }
        Step::PutTaken { nth, skip, frames: length } => {
            let taken = taken_runs(model);
            if let Some(run) = taken.runs().get(nth % taken.runs().len().max(1)) {
                let (skip, room) = (skip % run.frames(), run.frames() - skip % run.frames());
                put(frames, model, run.sub(skip, length.clamp(1, room)).unwrap());
            }
        }
        Step::Comb { stride } => {
            for pfn in model.span.iter().step_by(stride as usize) {
                take_at(frames, model, PfnRange::single(pfn));
            }
        }
        Step::PutBatch { offsets } => {
            let batch: Vec<_> = offsets.into_iter().map(|offset| Pfn::new(model.span.start().get() + offset - MARGIN)).collect();
            put_batch(frames, model, &batch);
        }
        Step::PutAll => {
            let mut all: Vec<_> = taken_runs(model).into_iter().flat_map(PfnRange::iter).collect();
            let half = all.len() / 2;
            all.rotate_left(half);
            all.chunks(100).for_each(|batch| put_batch(frames, model, batch));
        }
    }
}

fn agree(frames: &Frames, model: &mut Model) {
    assert_eq!(frames.check(), Ok(()));
    assert_eq!(frames.buildable(), model.buildable());
    assert_eq!(frames.free_frames(), model.buildable().base);
    assert_eq!(frames.free_runs(), model.runs());
    let edges = [model.span.start(), model.span.end().add(0), Pfn::new(model.span.start().get() - 1)];
    for pfn in edges.into_iter().chain(model.runs().into_iter().flat_map(|run| [run.start(), run.end()]).take(50)) {
        assert_eq!(frames.is_free(pfn), model.span.contains(pfn) && model.free[model.at(pfn)], "{pfn}");
    }
}

fn play(span: PfnRange, steps: Vec<Step>) {
    let frames = Frames::new(span);
    let mut model = Model::new(span);
    agree(&frames, &mut model);
    for step in steps {
        apply(&frames, &mut model, step);
        agree(&frames, &mut model);
    }
    // Whatever happened, once everything is back the span is as good as new.
    for run in taken_runs(&model).into_iter().collect::<Vec<_>>() {
        put(&frames, &mut model, run);
    }
    agree(&frames, &mut model);
    for order in Order::DESCENDING {
        apply(&frames, &mut model, Step::Take(order));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_of_a_small_span_answer_as_a_plain_vector_does((span, steps) in small_world()) {
        play(span, steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn frames_of_several_gibs_answer_as_a_plain_vector_does((span, steps) in large_world()) {
        play(span, steps);
    }
}
