//! The map on a terminal: one row per GiB, one character per stretch, in colour or in letters.

use std::fmt::Write;

use super::{CellKind, Look, PoolMap};
use crate::figures;
use crate::paint::Paint;
use pageless::FRAME_BYTES;

/// Colours of a guest's private and shared memory, of the 256 that terminals know; guests take turns.
const GUESTS: [(u8, u8); 4] = [(25, 117), (29, 121), (91, 183), (60, 152)];

/// Draws the map, as wide as `columns` characters allow, with a legend below it.
#[must_use]
pub fn render(map: &PoolMap, paint: Paint, columns: usize) -> String {
    let row = map.row_frames();
    let marks = [64_u64, 32, 16].into_iter().find(|&marks| columns as u64 >= marks + 14).unwrap_or(8);
    let per_mark = (row / marks).max(1);
    let mut text = format!(
        "The pool: {} from {}, {} a row, {} a character.\n",
        figures::bytes(map.frames().bytes()),
        map.frames().start(),
        figures::bytes(row * FRAME_BYTES),
        figures::bytes(per_mark * FRAME_BYTES),
    );
    let looks: Vec<Look> = map.stretches(per_mark).map(|stretch| stretch.look()).collect();
    for (index, looks) in looks.chunks(usize::try_from(marks).unwrap_or(64)).enumerate() {
        let offset = index as u64 * row * FRAME_BYTES;
        let _ = write!(text, "{:>9} ", if index == 0 { "0".to_owned() } else { figures::bytes(offset) });
        for alike in looks.chunk_by(|a, b| a == b) {
            if let Some(look) = alike.first() {
                text.push_str(&mark(*look, paint, alike.len()));
            }
        }
        text.push('\n');
    }
    let blend = looks.iter().any(|look| matches!(look, Look::Blend { .. }));
    text.push('\n');
    legend(map, paint, blend, &mut text);
    text
}

/// `times` characters for as many stretches that look alike, in their colour.
fn mark(look: Look, paint: Paint, times: usize) -> String {
    let colours = |guest: u16| GUESTS[usize::from(guest) % GUESTS.len()];
    let (sgr, shade) = match look {
        Look::Blend { guest, quarters } => {
            let (private, shared) = colours(guest);
            (format!("38;5;{shared};48;5;{private}"), ['░', '░', '▒', '▓'][usize::from(quarters) % 4])
        }
        Look::Of(kind) => match kind {
            CellKind::Free => ("2".to_owned(), '·'),
            CellKind::Private { guest } => (format!("38;5;{}", colours(guest).0), '█'),
            CellKind::Shared { guest } => (format!("38;5;{}", colours(guest).1), '█'),
            CellKind::Released => ("38;5;232;48;5;245".to_owned(), kind.symbol()),
            CellKind::Converting => ("38;5;232;48;5;44".to_owned(), kind.symbol()),
            CellKind::Quarantined => ("1;38;5;232;48;5;214".to_owned(), kind.symbol()),
            CellKind::Failed => ("1;38;5;231;48;5;160".to_owned(), kind.symbol()),
            CellKind::Poisoned => ("1;38;5;231;48;5;127".to_owned(), kind.symbol()),
        },
    };
    let character = match (paint, look) {
        (Paint::Ansi, _) => shade,
        (Paint::Plain, Look::Of(kind)) => kind.symbol(),
        (Paint::Plain, Look::Blend { .. }) => '+',
    };
    paint.sgr(&sgr, &character.to_string().repeat(times))
}

/// What the characters mean, and how much there is of each.
fn legend(map: &PoolMap, paint: Paint, blend: bool, text: &mut String) {
    let widest = map.totals().iter().map(|(kind, _)| map.describe(*kind).chars().count()).max().unwrap_or(0);
    for (kind, frames) in map.totals() {
        let amount = format!("{:>10}  {}", figures::bytes(frames * FRAME_BYTES), figures::counted(frames, "frame"));
        let _ = writeln!(text, "{:>9} {} {:<widest$}{amount}", "", mark(Look::Of(kind), paint, 1), map.describe(kind));
    }
    if blend {
        let marks = match paint {
            Paint::Plain => "+".to_owned(),
            Paint::Ansi => [1, 2, 3].map(|quarters| mark(Look::Blend { guest: 0, quarters }, paint, 1)).concat(),
        };
        let _ = writeln!(text, "{:>9} {marks} private and shared frames of one guest side by side", "");
    }
    if map.totals().iter().any(|(kind, _)| kind.is_withdrawn()) {
        let _ = writeln!(text, "{:>9} One withdrawn frame marks its whole character.", "");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::map::MapCell;
    use pageless::{Pfn, PfnRange};

    fn sample() -> PoolMap {
        let cell = |start: u64, end: u64, kind| MapCell::new(PfnRange::new(Pfn::new(start), Pfn::new(end)).unwrap(), kind);
        let gib = 1 << 18;
        let cells = vec![
            cell(0, 100, CellKind::Private { guest: 0 }),
            cell(100, 101, CellKind::Failed),
            cell(101, gib, CellKind::Private { guest: 0 }),
            cell(gib, gib + 5000, CellKind::Shared { guest: 1 }),
            cell(gib + 5000, 2 * gib, CellKind::Private { guest: 1 }),
            cell(2 * gib, 3 * gib, CellKind::Quarantined),
            cell(3 * gib, 4 * gib + 1, CellKind::Free),
        ];
        PoolMap::new(cells, vec!["vm-a".into(), "vm-b".into()]).unwrap()
    }

    #[test]
    fn letters_show_every_row_and_the_one_failed_frame() {
        let text = render(&sample(), Paint::Plain, 100);
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows[0], "The pool: 4 GiB from pfn:0x0, 1 GiB a row, 16 MiB a character.");
        assert_eq!(rows[1].trim_end(), format!("        0 !{}", "a".repeat(63)));
        assert_eq!(rows[2], format!("    1 GiB B+{}", "b".repeat(62)));
        assert_eq!(rows[3], format!("    2 GiB {}", "?".repeat(64)));
        assert_eq!(rows[5], "    4 GiB .");
        assert!(text.contains("! failed            4 KiB  1 frame\n"), "{text}");
        assert!(text.contains("private, vm-b") && text.contains("+ private and shared"), "{text}");
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn colour_keeps_the_symbols_of_what_is_withdrawn() {
        let text = render(&sample(), Paint::Ansi, 100);
        assert!(text.contains("\x1b[1;38;5;231;48;5;160m!\x1b[0m"));
        assert!(text.contains('░') && text.contains('█'));
    }

    #[test]
    fn a_narrow_terminal_gets_shorter_rows() {
        for columns in [0, 20, 40, 60, 79] {
            let text = render(&sample(), Paint::Plain, columns);
            let widest = text.lines().skip(1).take(4).map(|row| row.chars().count()).max().unwrap();
            assert!(widest <= columns.max(18), "{columns}: {widest}");
        }
    }
}
