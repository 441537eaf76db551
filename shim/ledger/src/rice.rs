//! Sets of frames of one GiB in few bits: Golomb-Rice codes of the gaps between them.
//!
//! A set is coded in the cheapest of four ways, each a sequence of numbers: the gaps before set frames, the gaps before clear
//! ones, or the lengths of runs, clear and set in turn. A number `n` with parameter `k` is `n >> k` ones, a zero, and the low
//! `k` bits. For a random set of density 0.1 that comes to 1.014 times its entropy.

use crate::words::{Bad, Reader, Writer};

/// The code is the gaps before set frames.
const SET: u8 = 0;
/// The code is the gaps before clear frames.
const CLEAR: u8 = 1;
/// The code is the lengths of clear and set runs in turn, with a parameter for each.
const RUNS: u8 = 2;

/// Runs `start..end` within `0..frames`, ascending and apart.
pub(crate) type Spans = Vec<(u32, u32)>;

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    /// Bits in use of the last byte; 0 means that it is full.
    used: u8,
}

impl Bits {
    fn push(&mut self, bit: bool) {
        if self.used == 0 {
            self.bytes.push(0);
        }
        if let Some(last) = self.bytes.last_mut() {
            *last |= u8::from(bit) << self.used;
        }
        self.used = (self.used + 1) % 8;
    }

    fn number(&mut self, number: u32, k: u8) {
        (0..number >> k).for_each(|_| self.push(true));
        self.push(false);
        (0..k).for_each(|bit| self.push(number >> bit & 1 == 1));
    }
}

struct Taken<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Taken<'_> {
    fn bit(&mut self) -> Result<bool, Bad> {
        let byte = self.bytes.get(self.at / 8).ok_or("a plane ends too early")?;
        self.at += 1;
        Ok(byte >> ((self.at - 1) % 8) & 1 == 1)
    }

    fn number(&mut self, k: u8) -> Result<u32, Bad> {
        let mut high = 0u32;
        while self.bit()? {
            high += 1;
        }
        let mut number = high.checked_shl(k.into()).filter(|number| number >> k == high).ok_or("a gap is too large")?;
        for bit in 0..k {
            number |= u32::from(self.bit()?) << bit;
        }
        Ok(number)
    }
}

/// The gaps before each frame of the runs.
fn gaps(spans: &[(u32, u32)]) -> Vec<u32> {
    let mut at = 0;
    let mut gaps = Vec::new();
    for (start, end) in spans {
        for frame in *start..*end {
            gaps.push(frame - at);
            at = frame + 1;
        }
    }
    gaps
}

fn inverted(spans: &[(u32, u32)], frames: u32) -> Spans {
    let ends = spans.iter().copied().chain([(frames, frames)]);
    let mut at = 0;
    let between = ends.map(|(start, end)| (std::mem::replace(&mut at, end), start));
    between.filter(|(start, end)| start < end).collect()
}

/// Bits that the numbers take with parameter `k`.
fn cost(numbers: &[u32], k: u8) -> u64 {
    numbers.iter().map(|number| u64::from(number >> k) + 1 + u64::from(k)).sum()
}

fn best(numbers: &[u32]) -> (u64, u8) {
    (0..18).map(|k| (cost(numbers, k), k)).min().unwrap_or((0, 0))
}

/// Writes a set of frames of `0..frames`.
pub(crate) fn write(to: &mut Writer, spans: &[(u32, u32)], frames: u32) {
    let rest = inverted(spans, frames);
    let set = gaps(spans);
    // Runs are never coded frame by frame when that is the longer list by far.
    let clear = if rest.iter().map(|(start, end)| end - start).sum::<u32>() <= frames / 2 { Some(gaps(&rest)) } else { None };
    let mut at = 0;
    let (mut between, mut within) = (Vec::new(), Vec::new());
    for (start, end) in spans {
        between.push(start - at);
        within.push(end - start - 1);
        at = *end;
    }
    let (set_bits, set_k) = best(&set);
    let (clear_bits, clear_k) = clear.as_deref().map_or((u64::MAX, 0), best);
    let ((between_bits, between_k), (within_bits, within_k)) = (best(&between), best(&within));
    let mut bits = Bits::default();
    let (mode, count, k, second) = if between_bits + within_bits <= set_bits.min(clear_bits) {
        for (gap, length) in between.iter().zip(&within) {
            bits.number(*gap, between_k);
            bits.number(*length, within_k);
        }
        (RUNS, between.len(), between_k, within_k)
    } else if set_bits <= clear_bits {
        set.iter().for_each(|gap| bits.number(*gap, set_k));
        (SET, set.len(), set_k, 0)
    } else {
        let clear = clear.unwrap_or_default();
        clear.iter().for_each(|gap| bits.number(*gap, clear_k));
        (CLEAR, clear.len(), clear_k, 0)
    };
    to.u8(mode);
    to.u8(k);
    to.u8(second);
    to.u32(u32::try_from(count).unwrap_or(u32::MAX));
    to.u32(u32::try_from(bits.bytes.len()).unwrap_or(u32::MAX));
    to.0.extend(bits.bytes);
}

/// Reads a set of frames of `0..frames`.
pub(crate) fn read(from: &mut Reader<'_>, frames: u32) -> Result<Spans, Bad> {
    let (mode, k, second) = (from.u8()?, from.u8()?, from.u8()?);
    let (count, length) = (from.u32()?, from.u32()?);
    if k > 18 || second > 18 || count > frames {
        return Err("a plane has a parameter that cannot be");
    }
    let bytes = from.bytes(usize::try_from(length).map_err(|_| "a plane is too long")?)?;
    let mut taken = Taken { bytes, at: 0 };
    let mut spans = Spans::new();
    let mut at = 0u32;
    for _ in 0..count {
        let start = at.checked_add(taken.number(k)?).ok_or("a gap is too large")?;
        let more = if mode == RUNS { taken.number(second)? } else { 0 };
        let end = start.checked_add(more).and_then(|last| last.checked_add(1)).filter(|end| *end <= frames);
        let end = end.ok_or("a plane reaches beyond its GiB")?;
        match spans.last_mut() {
            Some((_, last)) if *last == start => *last = end,
            _ => spans.push((start, end)),
        }
        at = end;
    }
    match mode {
        SET | RUNS => Ok(spans),
        CLEAR => Ok(inverted(&spans, frames)),
        _ => Err("a plane has no known code"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const GIB: u32 = 1 << 18;

    fn random(dice: &mut StdRng, density: f64) -> Spans {
        let mut spans = Spans::new();
        for frame in (0..GIB).filter(|_| dice.random_bool(density)) {
            match spans.last_mut() {
                Some((_, end)) if *end == frame => *end += 1,
                _ => spans.push((frame, frame + 1)),
            }
        }
        spans
    }

    #[test]
    fn every_set_is_read_as_it_was_written_and_random_ones_near_their_entropy() {
        let mut dice = StdRng::seed_from_u64(1);
        for density in [0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.99, 1.0] {
            let spans = random(&mut dice, density);
            let mut to = Writer::default();
            write(&mut to, &spans, GIB);
            assert_eq!(read(&mut Reader(&to.0), GIB).unwrap(), spans, "{density}");
            let p = density;
            let entropy = if p == 0.0 || p == 1.0 { 0.0 } else { -(p * p.log2() + (1.0 - p) * (1.0 - p).log2()) };
            let limit = entropy * f64::from(GIB) / 8.0;
            #[allow(clippy::cast_precision_loss)]
            let ratio = to.0.len() as f64 / limit.max(16.0);
            println!("density {density}: {} bytes, {ratio:.3} times the entropy", to.0.len());
            assert!(ratio < 1.1, "{density}: {ratio}");
        }
    }

    #[test]
    fn damaged_planes_are_refused_or_read_as_some_set_and_never_more() {
        let mut dice = StdRng::seed_from_u64(2);
        let spans = random(&mut dice, 0.01);
        let mut to = Writer::default();
        write(&mut to, &spans, GIB);
        for _ in 0..2000 {
            let mut bytes = to.0.clone();
            let at = dice.random_range(0..bytes.len());
            bytes[at] ^= 1 << dice.random_range(0..8);
            if let Ok(read) = read(&mut Reader(&bytes), GIB) {
                assert!(read.iter().all(|(start, end)| start < end && *end <= GIB));
            }
        }
    }
}
