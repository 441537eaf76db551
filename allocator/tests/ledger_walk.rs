//! Long random lives of a pool: after every step its book agrees with it, and whenever it crashes it comes back as the book
//! says, with nothing forgotten that was told.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod ledger;
mod scripted;

use std::sync::Arc;

use ledger::{Flaky, after_a_crash, facts_of_book, facts_of_pool, pool_with};
use pageless::ledger::Kept;
use pageless::{Allocation, Cause, FRAME_BYTES, Hold, Mapping, Pool, Request, Verdict};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use scripted::{NOT_NOW, Scripted, books, pages, run};

const FRAMES: u64 = 96;

struct Life {
    dice: StdRng,
    ledger: Arc<Flaky>,
    pool: Pool,
    owned: Vec<(Allocation, Arc<Scripted>)>,
    holds: Vec<Hold>,
}

impl Life {
    fn new(seed: u64) -> Self {
        let ledger = Flaky::new();
        let pool = pool_with(&ledger, FRAMES);
        Self { dice: StdRng::seed_from_u64(seed), ledger, pool, owned: Vec::new(), holds: Vec::new() }
    }

    fn step(&mut self) {
        let dice = &mut self.dice;
        let who = if self.owned.is_empty() { 0 } else { dice.random_range(0..self.owned.len()) };
        let what = dice.random_range(0..100);
        if let Some((ram, ept)) = self.owned.get(who) {
            let frames = ram.bytes() / FRAME_BYTES;
            let from = dice.random_range(0..frames);
            let range = pages(from, dice.random_range(from + 1..=frames));
            let at = dice.random_range(0..FRAMES);
            match what {
                0..=14 => drop(ram.share(range)),
                15..=29 => drop(ram.unshare(range)),
                30..=37 => ept.sticks(run(at, at + 1), if dice.random() { NOT_NOW } else { Verdict::Never }),
                38..=43 => ept.heals(),
                44..=50 => drop(ram.release_range(range)),
                51..=55 => self.holds.extend(ram.hold(range, "dma").ok()),
                56..=60 => drop(ram.replace(from * FRAME_BYTES)),
                61..=64 => drop(self.owned.swap_remove(who).0.release()),
                65..=67 => drop(self.owned.swap_remove(who)),
                _ => {}
            }
        }
        match what {
            68..=77 => {
                let frames = self.dice.random_range(1..12);
                let request = Request::bytes(frames * FRAME_BYTES).owner("vm");
                if let Ok(ram) = self.pool.allocate(request) {
                    let ept = Scripted::new();
                    if ram.attach("ept", ept.clone()).is_ok() {
                        self.owned.push((ram, ept));
                    }
                }
            }
            78..=83 => drop(self.pool.reclaim()),
            84..=87 => drop(self.pool.retry(run(0, FRAMES))),
            88 => drop(self.pool.poison(run(7, 8), Cause::new("MCE", 1, ""))),
            89 => drop(self.pool.platform_reset("a reset")),
            90 => drop(self.pool.hardware_replaced(run(0, FRAMES), "a replacement")),
            91..=95 if !self.holds.is_empty() => drop(self.holds.pop()),
            96..=97 => self.crash(),
            98 => self.ledger.fails(false),
            99 => self.ledger.heals(),
            _ => {}
        }
    }

    /// What the ledger has when everything submitted is written. While it fails, the pool is ahead of it.
    fn compare(&self) {
        books(&self.pool);
        if self.pool.record_pending().is_err() {
            assert!(!self.pool.unrecorded().is_empty());
            return;
        }
        if self.ledger.is_failing() {
            return;
        }
        pageless::ledger::Ledger::commit(&*self.ledger, Vec::new()).unwrap();
        let book = self.ledger.book();
        assert_eq!(book.faults(&run(0, FRAMES).into()), Vec::<String>::new());
        assert_eq!(facts_of_pool(&self.pool), facts_of_book(&book));
    }

    fn crash(&mut self) {
        let (told, book) = (facts_of_pool(&self.pool), self.ledger.book());
        let unrecorded = self.pool.unrecorded();
        let holds = book.holds.len();
        self.owned.clear();
        self.holds.clear();
        self.ledger = Flaky::over(Kept::holding(None, book.clone()));
        self.pool = pool_with(&self.ledger, FRAMES);
        assert_eq!(facts_of_pool(&self.pool), after_a_crash(facts_of_book(&book)));
        let marks = |facts: &ledger::Facts| facts.marked_frames();
        let forgotten = marks(&told).difference(&unrecorded).difference(&marks(&facts_of_pool(&self.pool)));
        assert!(forgotten.is_empty(), "marks that were told as recorded are forgotten: {forgotten}");
        assert_eq!(self.pool.orphaned_holds().len(), holds);
        books(&self.pool);
        let mapping: Arc<dyn Mapping> = Scripted::new();
        self.pool.answer_for("ept", &mapping);
        self.pool.holder_done("dma");
    }
}

#[test]
fn a_pool_and_its_book_agree_through_many_lives() {
    for seed in 0..60 {
        let mut life = Life::new(seed);
        for _ in 0..400 {
            life.step();
            life.compare();
        }
    }
}
