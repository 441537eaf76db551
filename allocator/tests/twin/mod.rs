//! A pool and its model twin, side by side: every action is done to both, and everything they say is compared.

pub(crate) mod action;
pub(crate) mod compare;
pub(crate) mod perform;
pub(crate) mod resize;
pub(crate) mod script;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use pageless::metadata::HoldId;
use pageless::metadata::model::Model;
use pageless::{Allocation, AllocationId, FRAME_BYTES, Hold, NodeFrames, Pfn, PfnRange, Policy, Pool, RetryPolicy};
use script::{ScriptedBacking, ScriptedMapping, Stage, lock};

/// The shape of a world.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) nodes: Vec<NodeFrames>,
    pub(crate) granule: u64,
    /// Whether `reclaim` asks again about quarantined frames; if not, only `retry` does.
    pub(crate) asks_again: bool,
}

impl Shape {
    pub(crate) fn new(nodes: &[(u32, u64, u64)], granule: u64, asks_again: bool) -> Self {
        let frames = |start, end| PfnRange::new(Pfn::new(start), Pfn::new(end)).unwrap();
        let nodes = nodes.iter().map(|(node, start, end)| NodeFrames { node: *node, frames: frames(*start, *end) }).collect();
        Self { nodes, granule, asks_again }
    }
}

/// A pool, its model, and what they share.
pub(crate) struct World {
    pub(crate) shape: Shape,
    pub(crate) pool: Pool,
    pub(crate) model: Mutex<Model>,
    pub(crate) stage: Arc<Stage>,
    pub(crate) handles: Mutex<Vec<Arc<Allocation>>>,
    /// The slots of the mappings ever attached, in order.
    pub(crate) slots: Mutex<BTreeMap<AllocationId, Vec<usize>>>,
    pub(crate) holds: Mutex<Vec<(HoldId, Hold)>>,
    pub(crate) next_hold: Mutex<u64>,
    /// Steps that were compared before are only repeated.
    pub(crate) repeats: AtomicBool,
    /// Verbs that did something, so that a test can tell that it tests.
    pub(crate) told: Mutex<BTreeMap<&'static str, u64>>,
}

impl World {
    pub(crate) fn new(shape: Shape) -> Arc<Self> {
        quiet_scripted_panics();
        let stage = Arc::new(Stage::default());
        let backing = ScriptedBacking { nodes: shape.nodes.clone(), granule: shape.granule, stage: Arc::clone(&stage) };
        let later = if shape.asks_again { u32::MAX } else { 0 };
        let retry = RetryPolicy { at_once: 2, pause: Duration::ZERO, later, later_after: Duration::ZERO };
        let policy = Policy { retry, guard_drain: Duration::ZERO, ..Policy::default() };
        let pool = Pool::builder().backing(backing).policy(policy).build().unwrap();
        stage.knows(&pool);
        let nodes: Vec<(u32, PfnRange)> = shape.nodes.iter().map(|node| (node.node, node.frames)).collect();
        let model = Mutex::new(Model::new(&nodes, shape.granule));
        Arc::new(Self {
            shape,
            pool,
            model,
            stage,
            handles: Mutex::default(),
            slots: Mutex::default(),
            holds: Mutex::default(),
            next_hold: Mutex::default(),
            repeats: AtomicBool::new(false),
            told: Mutex::default(),
        })
    }

    pub(crate) fn tell(&self, what: &'static str) {
        *lock(&self.told).entry(what).or_default() += 1;
    }

    /// The allocation that a number stands for.
    pub(crate) fn handle(&self, number: u8) -> Option<Arc<Allocation>> {
        let handles = lock(&self.handles);
        let at = usize::from(number).checked_rem(handles.len())?;
        handles.get(at).cloned()
    }

    pub(crate) fn mapping(&self, slot: usize) -> Arc<ScriptedMapping> {
        Arc::new(ScriptedMapping { slot, stage: Arc::clone(&self.stage) })
    }

    /// The frame of the pool that a number stands for.
    pub(crate) fn pfn(&self, number: u16) -> Pfn {
        let total: u64 = self.shape.nodes.iter().map(|node| node.frames.frames()).sum();
        let mut at = u64::from(number) % total;
        for node in &self.shape.nodes {
            if at < node.frames.frames() {
                return node.frames.start().add(at);
            }
            at -= node.frames.frames();
        }
        unreachable!()
    }

    /// Everything agrees.
    pub(crate) fn compare(&self) {
        if self.repeats.load(Ordering::Relaxed) {
            return;
        }
        let handles = lock(&self.handles).clone();
        let handles: Vec<&Allocation> = handles.iter().map(|handle| &**handle).collect();
        compare::same_state(&self.pool, &lock(&self.model), &handles);
        assert_eq!(self.stage.violations(), Vec::<String>::new());
    }
}

/// The bytes that numbers stand for in an allocation.
pub(crate) fn bytes(handle: &Allocation, at: action::Where) -> std::ops::Range<u64> {
    let frames = handle.bytes() / FRAME_BYTES;
    let from = u64::from(at.from) % frames;
    let len = u64::from(at.frames.saturating_sub(1)) % (frames - from) + 1;
    from * FRAME_BYTES..(from + len) * FRAME_BYTES
}

/// Panics that a script asks for are not worth a message.
fn quiet_scripted_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.payload().is::<script::Scripted>() {
                loud(info);
            }
        }));
    });
}
