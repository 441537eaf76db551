//! May this GiB be converted or promoted? How large may a mapping be?

use std::rc::Rc;

use pageless::Order;

use crate::bench::Bench;
use crate::contest::{Contest, batch, hot_list};
use crate::dice::Dice;
use crate::guest::Guest;

/// See [`super::Question::tasks`].
pub const TASKS: &[&str] = &["check.1g_hot", "check.order_hot", "check.1g_cold"];

const HOT: &str = "1 TiB, sixteen GiBs asked about in random order, again and again";

/// Offsets of GiBs to ask about, few enough that all of them stay in the nearest cache.
#[must_use]
pub fn hot_gibs(guest: &Guest) -> Vec<u64> {
    let (gibs, mut dice) = (guest.frames / Order::GIB1.frames(), Dice::new(32));
    (0..1024).map(|_| dice.below(gibs.min(16)) * Order::GIB1.bytes()).collect()
}

/// May the GiB at this offset be converted or promoted as a whole? The question of a VMM before it does either.
#[inline]
#[must_use]
pub fn promotable(guest: &Guest, offset: u64) -> bool {
    guest.ram.promotable(offset, Order::GIB1).is_ok()
}

/// Whether one leaf may map the GiB at this offset. The question of a VMM at a fault.
#[inline]
#[must_use]
pub fn is_one_leaf(guest: &Guest, offset: u64) -> bool {
    guest.ram.max_mapping_order(offset).is_ok_and(|order| order == Order::GIB1)
}

/// Asks all of it that is wanted.
pub fn ask(bench: &mut Bench) -> anyhow::Result<()> {
    let guest = Guest::new(bench.scale.tib_gibs)?;
    if bench.wants("check.1g_hot") {
        let trial = hot_list(hot_gibs(&guest), |offset| promotable(&guest, *offset));
        let contest = Contest::new("may this GiB be converted or promoted?", HOT).key("check.1g_hot");
        bench.run(contest.entry("pageless", trial))?;
    }
    if bench.wants("check.order_hot") {
        let trial = hot_list(hot_gibs(&guest), |offset| is_one_leaf(&guest, *offset));
        bench.run(Contest::new("max_mapping_order", HOT).key("check.order_hot").entry("pageless", trial))?;
    }
    if bench.wants("check.1g_cold") {
        let (mut dice, sweeper, gibs) = (Dice::new(31), Rc::clone(&bench.sweeper), bench.scale.tib_gibs);
        let prepare = || {
            let mut list: Vec<u64> = (0..gibs).collect();
            dice.shuffle(&mut list);
            list.truncate(64);
            list.iter_mut().for_each(|gib| *gib *= Order::GIB1.bytes());
            sweeper.sweep();
            Ok(list)
        };
        let trial = batch(prepare, |list| list.iter().filter(|offset| !promotable(&guest, **offset)).count() as u64);
        let state = "1 TiB, caches swept, 64 random GiBs asked about once, mean";
        let contest = Contest::new("may this GiB be converted or promoted?", state).key("check.1g_cold");
        bench.run(contest.entry("pageless", trial))?;
    }
    Ok(())
}
