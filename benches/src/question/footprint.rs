//! What a TiB of shareability costs in memory.

use pageless::Order;

use crate::bench::Bench;
use crate::contest::{Contest, as_f64};
use crate::counting::count;
use crate::guest::Guest;

/// See [`super::Question::tasks`].
pub const TASKS: &[&str] =
    &["footprint.uniform", "footprint.random_2m", "footprint.random_4k", "footprint.random_4k_rest", "footprint.worst"];

const GIB: u64 = Order::GIB1.frames();
const RECORDS: &str = "bytes per TiB, by Pool::footprint().records";

/// Asks all of it that is wanted.
pub fn ask(bench: &mut Bench) -> anyhow::Result<()> {
    let cases = [
        ("footprint.uniform", "uniform", Order::GIB1, 0.0, false),
        ("footprint.random_2m", "1 % random 2M shared, in use", Order::MIB2, 0.01, false),
        ("footprint.random_4k", "10 % random 4K shared, in use", Order::BASE, 0.1, false),
        ("footprint.random_4k_rest", "1 % random 4K shared, at rest", Order::BASE, 0.01, true),
    ];
    for (key, state, order, probability, rest) in cases {
        if !bench.wants(key) {
            continue;
        }
        let (gibs, mut result) = (bench.scale.tib_gibs, Guest::new(1));
        let ((), counted) = count(|| result = filled(gibs, order, probability, rest));
        let guest = result?;
        let records = as_f64(guest.pool.footprint().records as u64) * 1024.0 / as_f64(gibs);
        bench.bytes(Contest::new(RECORDS, state).key(key), "pageless", records);
        let all = "bytes per TiB of the whole pool, by a counting allocator";
        bench.bytes_per_tib(Contest::new(all, state), "pageless", counted, gibs);
    }
    if bench.wants("footprint.worst") {
        let peak = worst()?;
        let state = "the highest of hostile sequences at any step, one GiB by a counting allocator, times 1,024";
        bench.bytes(Contest::new("bytes per TiB", state).key("footprint.worst"), "pageless", as_f64(peak) * 1024.0);
    }
    Ok(())
}

/// A guest of so many GiBs of which random blocks are shared, and folded back to rest if asked for.
pub fn filled(gibs: u64, order: Order, probability: f64, rest: bool) -> anyhow::Result<Guest> {
    let guest = Guest::new(gibs)?;
    if probability > 0.0 {
        guest.share_random(order, probability, 51);
    }
    if rest {
        guest.pool.compact();
    }
    Ok(guest)
}

/// The most bytes that one GiB's metadata has at once under sequences that a guest may choose, its record included.
pub fn worst() -> anyhow::Result<u64> {
    let guest = Guest::new(1)?;
    let mut peak = 0;
    let mut play = |steps: &mut dyn Iterator<Item = (u64, u64, bool)>, compact: bool| {
        guest.convert(0, GIB, false);
        let before = guest.pool.footprint().records as u64;
        let ((), counted) = count(|| {
            steps.for_each(|(frame, frames, share)| {
                guest.convert(frame, frames, share);
            });
            if compact {
                guest.pool.compact();
                // Woken again: for a moment both forms may be there.
                guest.convert(1, 1, true);
            }
        });
        peak = peak.max(before + counted.peak);
    };
    let second = |share: bool, odd: u64| (0..GIB / 2).map(move |nth| (nth * 2 + odd, 1, share));
    let scattered = |share: bool| (0..GIB / 2).map(move |nth| (nth * 0x9e35 % (GIB / 2) * 2, 1, share));
    play(&mut second(true, 0), false);
    play(&mut scattered(true), true);
    play(&mut std::iter::once((0, GIB, true)).chain(scattered(false)), false);
    play(&mut std::iter::once((0, GIB, true)).chain(second(false, 1)), true);
    for values in [1_024, 3_100, 4_095, 4_096, 4_097] {
        let fill = (0..values).map(|nth| (nth * 16, 1, true));
        play(&mut fill.chain((0..64).map(|nth| (5, 1, nth % 2 == 0))), true);
    }
    Ok(peak)
}
