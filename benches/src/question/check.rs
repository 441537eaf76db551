//! May this GiB be converted or promoted? How large may a mapping be?

use std::rc::Rc;

use pageless::Order;

use crate::bench::Bench;
use crate::contest::{Contest, batch, hot};
use crate::dice::Dice;
use crate::guest::Guest;

/// See [`super::Question::tasks`].
pub const TASKS: &[&str] = &["check.1g_hot", "check.order_hot", "check.1g_cold"];

/// Asks all of it that is wanted.
pub fn ask(bench: &mut Bench) -> anyhow::Result<()> {
    let guest = Guest::new(bench.scale.tib_gibs)?;
    let promotable = |gib: u64| guest.ram.promotable(gib * Order::GIB1.bytes(), Order::GIB1).is_ok();
    if bench.wants("check.1g_hot") {
        let contest =
            Contest::new("may this GiB be converted or promoted?", "1 TiB, one GiB again and again").key("check.1g_hot");
        bench.run(contest.entry("pageless", hot(|| promotable(std::hint::black_box(1)))))?;
    }
    if bench.wants("check.order_hot") {
        let ask = || guest.ram.max_mapping_order(std::hint::black_box(3 << 30)).is_ok_and(|order| order == Order::GIB1);
        let contest = Contest::new("max_mapping_order", "1 TiB, one GiB again and again").key("check.order_hot");
        bench.run(contest.entry("pageless", hot(ask)))?;
    }
    if bench.wants("check.1g_cold") {
        let (mut dice, sweeper, gibs) = (Dice::new(31), Rc::clone(&bench.sweeper), bench.scale.tib_gibs);
        let prepare = || {
            let mut list: Vec<u64> = (0..gibs).collect();
            dice.shuffle(&mut list);
            list.truncate(64);
            sweeper.sweep();
            Ok(list)
        };
        let trial = batch(prepare, |list| list.iter().filter(|gib| !promotable(**gib)).count() as u64);
        let state = "1 TiB, caches swept, 64 random GiBs asked about once, mean";
        let contest = Contest::new("may this GiB be converted or promoted?", state).key("check.1g_cold");
        bench.run(contest.entry("pageless", trial))?;
    }
    Ok(())
}
