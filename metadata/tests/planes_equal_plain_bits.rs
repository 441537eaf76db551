//! Both planes against one plain bool per frame: every return value, after every step.
#![allow(clippy::unwrap_used)]

use pageless_metadata::{GIB_FRAMES, SharePlane, Span, SparsePlane, Uniformity};
use proptest::prelude::*;

/// Places where something begins or ends in one of the forms: blocks, words of the block maps, containers of roaring.
const BORDERS: [u32; 10] = [0, 64, 512, 1024, 32_768, 65_536, 131_072, 196_608, 261_632, GIB_FRAMES];

fn border() -> impl Strategy<Value = u32> {
    prop_oneof![prop::sample::select(&BORDERS), (0..=512_u32).prop_map(|block| block * 512)]
}

fn frame() -> impl Strategy<Value = u32> {
    prop_oneof![0..GIB_FRAMES, (border(), -2..=2_i32).prop_map(|(at, by)| at.saturating_add_signed(by).min(GIB_FRAMES - 1))]
}

fn span() -> impl Strategy<Value = Span> {
    let short = (frame(), 1..600_u32).prop_map(|(from, frames)| (from, from + frames));
    let two = (frame(), frame()).prop_map(|(a, b)| (a.min(b), a.max(b)));
    let single = frame().prop_map(|from| (from, from + 1));
    let block = (0..512_u32).prop_map(|block| (block * 512, block * 512 + 512));
    let whole = Just((0, GIB_FRAMES));
    prop_oneof![6 => single, 4 => short, 3 => two, 3 => block, 1 => whole]
        .prop_map(|(from, to)| Span::new(from.min(GIB_FRAMES - 1), to.clamp(from.min(GIB_FRAMES - 1) + 1, GIB_FRAMES)).unwrap())
}

#[derive(Clone, Debug)]
enum Step {
    Set(Span, bool),
    /// Every second frame of the span, or every 512th: what makes blocks mixed in bulk.
    Comb(Span, u32, bool),
    Reserve(Span),
    Unreserve(prop::sample::Index),
    SetReserved(prop::sample::Index, bool),
    /// Reserved only if all of it is the other way round.
    ReserveChange(Span, bool),
    Compact,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (span(), any::<bool>()).prop_map(|(span, value)| Step::Set(span, value)),
        1 => (span(), prop::sample::select(&[2, 3, 100, 511, 512, 513]), any::<bool>()).prop_map(|(span, by, value)| Step::Comb(span, by, value)),
        2 => span().prop_map(Step::Reserve),
        2 => (span(), any::<bool>()).prop_map(|(span, shared)| Step::ReserveChange(span, shared)),
        2 => any::<prop::sample::Index>().prop_map(Step::Unreserve),
        4 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(which, shared)| Step::SetReserved(which, shared)),
        3 => Just(Step::Compact),
    ]
}

struct Plain(Vec<bool>);

impl Plain {
    fn new() -> Self {
        Self(vec![false; GIB_FRAMES as usize])
    }

    fn of(&self, span: Span) -> &[bool] {
        &self.0[span.start() as usize..span.end() as usize]
    }

    fn set(&mut self, span: Span, value: bool) -> u32 {
        let frames = &mut self.0[span.start() as usize..span.end() as usize];
        let changed = frames.iter().filter(|is| **is != value).count();
        frames.fill(value);
        u32::try_from(changed).unwrap()
    }

    fn run(&self, span: Span, value: bool) -> Option<Span> {
        let frames = self.of(span);
        let from = frames.iter().position(|is| *is == value)?;
        let len = frames[from..].iter().position(|is| *is != value).unwrap_or(frames.len() - from);
        let start = span.start() + u32::try_from(from).unwrap();
        Span::new(start, start + u32::try_from(len).unwrap())
    }

    fn only_run(&self, span: Span, value: bool) -> Option<Span> {
        let run = self.run(span, value)?;
        let rest = Span::new(run.end(), span.end());
        rest.is_none_or(|rest| self.run(rest, value).is_none()).then_some(run)
    }

    fn uniformity(&self, span: Span) -> Uniformity {
        let frames = self.of(span);
        match frames.iter().filter(|is| **is).count() {
            0 => Uniformity::AllPrivate,
            n if n == frames.len() => Uniformity::AllShared,
            _ => Uniformity::Mixed,
        }
    }

    fn ones(&self) -> impl Iterator<Item = u32> + '_ {
        (0..GIB_FRAMES).filter(|frame| self.0[*frame as usize])
    }
}

fn comb(span: Span, by: u32) -> impl Iterator<Item = Span> {
    (span.start()..span.end()).step_by(by as usize).map(Span::single)
}

fn same_shareability(plane: &SharePlane, plain: &Plain, probes: &[Span]) {
    plane.check().unwrap();
    assert_eq!(plane.shared_frames() as usize, plain.0.iter().filter(|is| **is).count());
    for probe in probes.iter().chain([&Span::WHOLE]) {
        assert_eq!(plane.uniformity(*probe), plain.uniformity(*probe), "{probe:?}");
        assert_eq!(plane.is_shared(probe.start()), plain.0[probe.start() as usize], "{probe:?}");
        for shared in [false, true] {
            assert_eq!(plane.next_run(*probe, shared), plain.run(*probe, shared), "{probe:?} {shared}");
            assert_eq!(plane.only_run(*probe, shared), plain.only_run(*probe, shared), "{probe:?} {shared}");
        }
    }
}

fn same_marks(plane: &SparsePlane, plain: &Plain, probes: &[Span]) {
    plane.check().unwrap();
    let frames = plain.0.iter().filter(|is| **is).count();
    assert_eq!((plane.frames() as usize, plane.is_empty()), (frames, frames == 0));
    for probe in probes.iter().chain([&Span::WHOLE]) {
        assert_eq!(plane.contains(probe.start()), plain.0[probe.start() as usize], "{probe:?}");
        assert_eq!(plane.first_run_in(*probe), plain.run(*probe, true), "{probe:?}");
        assert_eq!(plane.overlaps(*probe), plain.run(*probe, true).is_some(), "{probe:?}");
        assert_eq!(plane.covers(*probe), plain.run(*probe, false).is_none(), "{probe:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_share_plane_equals_one_bool_per_frame(steps in prop::collection::vec((step(), prop::collection::vec(span(), 3)), 1..40)) {
        let (mut plane, mut plain, mut reserved) = (SharePlane::new(), Plain::new(), Vec::new());
        for (step, probes) in steps {
            match step {
                Step::Set(span, shared) => prop_assert_eq!(plane.set(span, shared), plain.set(span, shared)),
                Step::Comb(span, by, shared) => {
                    for tooth in comb(span, by) {
                        prop_assert_eq!(plane.set(tooth, shared), plain.set(tooth, shared));
                    }
                }
                Step::Reserve(span) => {
                    plane.reserve(span).unwrap();
                    reserved.push(span);
                }
                Step::Unreserve(which) if !reserved.is_empty() => plane.unreserve(reserved.swap_remove(which.index(reserved.len()))),
                Step::SetReserved(which, shared) if !reserved.is_empty() => {
                    let span = reserved.swap_remove(which.index(reserved.len()));
                    prop_assert_eq!(plane.set_reserved(span, shared), plain.set(span, shared));
                }
                Step::Unreserve(_) | Step::SetReserved(..) => {}
                Step::ReserveChange(span, shared) => {
                    let run = plain.only_run(span, !shared);
                    prop_assert_eq!(plane.reserve_change(span, shared), run);
                    reserved.extend(run.map(|_| span));
                }
                Step::Compact => {
                    let (before, open) = (plane.heap_bytes(), reserved.iter().any(|span| !span.is_whole()));
                    let changed = plane.compact();
                    prop_assert!(!(open && changed), "compacted under a reservation");
                    prop_assert_eq!(changed, plane.heap_bytes() < before);
                    prop_assert!(plane.heap_bytes() <= before);
                    prop_assert!(!plane.compact(), "a second time changed something");
                }
            }
            same_shareability(&plane, &plain, &probes);
        }
        prop_assert!(plane.to_roaring().iter().eq(plain.ones()));
    }

    #[test]
    fn a_sparse_plane_equals_one_bool_per_frame(steps in prop::collection::vec((step(), prop::collection::vec(span(), 3)), 1..40)) {
        let (mut plane, mut plain) = (SparsePlane::new(), Plain::new());
        for (step, probes) in steps {
            let (teeth, value): (Vec<Span>, bool) = match step {
                Step::Set(span, value) => (vec![span], value),
                Step::Comb(span, by, value) => (comb(span, by).collect(), value),
                _ => continue,
            };
            for span in teeth {
                let changed = if value { plane.insert(span) } else { plane.remove(span) };
                prop_assert_eq!(changed, plain.set(span, value));
            }
            same_marks(&plane, &plain, &probes);
        }
        prop_assert!(plane.to_roaring().iter().eq(plain.ones()));
        prop_assert!(plane.runs().flat_map(|run| run.start()..run.end()).eq(plain.ones()));
    }
}
