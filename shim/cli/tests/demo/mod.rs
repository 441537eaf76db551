//! A made-up tour for the tests of how a tour is told: none of its numbers was measured.

use pageless::{Pfn, PfnRange};
use pageless_cli::map::{CellKind, MapCell, PoolMap};
use pageless_cli::refcount::{Comparison, Cost};
use pageless_cli::report::{
    CheckNs, GuestNote, Origin, Outcome, ProofNote, Snapshot, Step, TourReport, Withdrawal, WithdrawnState,
};

const GIB: u64 = 1 << 18;
const MIB: u64 = 1 << 8;

/// A text that would break a page that forgets to escape it.
pub(crate) const HOSTILE: &str = "vm-<script>alert(\"1\")</script> & 'co' \u{0}]]>";

fn range(start: u64, end: u64) -> PfnRange {
    PfnRange::new(Pfn::new(start), Pfn::new(end)).unwrap()
}

/// Lays runs over a pool that is otherwise free, later ones over earlier ones.
pub(crate) fn painted(frames: u64, runs: &[(u64, u64, CellKind, &str)]) -> Vec<MapCell> {
    let mut cells = vec![MapCell::new(range(0, frames), CellKind::Free)];
    for &(start, length, kind, note) in runs {
        let fresh = MapCell { frames: range(start, start + length), kind, note: note.to_owned() };
        let mut next = Vec::with_capacity(cells.len() + 2);
        for cell in cells {
            next.extend(
                cell.frames.subtract(fresh.frames).into_iter().flatten().map(|frames| MapCell { frames, ..cell.clone() }),
            );
        }
        next.push(fresh);
        cells = next;
    }
    cells
}

/// The pool of the story: two guests with a bounce buffer and scattered shared frames each, and what failed.
pub(crate) fn pool(gib: u64, ended: bool) -> PoolMap {
    let private = |guest| CellKind::Private { guest };
    let shared = |guest| CellKind::Shared { guest };
    let mut runs = vec![
        (0, 2 * GIB, private(0), ""),
        (2 * GIB, 3 * GIB, private(1), ""),
        (GIB / 2, 123 * MIB, shared(0), ""),
        (2 * GIB + 100 * MIB, 184 * MIB, shared(1), ""),
    ];
    let mut state = 7_u64;
    for index in 0..600_u64 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let guest = u16::from(index % 2 == 1);
        let place = if guest == 0 { (state >> 33) % (2 * GIB) } else { 2 * GIB + (state >> 33) % (3 * GIB) };
        runs.push((place, 1 + (state >> 20) % 3, shared(guest), ""));
    }
    let cause = "ept: TDH.MEM.PAGE.REMOVE gave 0xc0000b0d00000000, EPT_ENTRY_STATE_INCORRECT";
    runs.push((GIB / 4 + 37, 1, CellKind::Failed, cause));
    runs.push((3 * GIB + 5000, 3, CellKind::Failed, cause));
    runs.push((4 * GIB + 900, 1, CellKind::Poisoned, "machine check at 0x100384000"));
    if ended {
        runs.push((5 * GIB, (gib - 5) * GIB, private(0), ""));
    } else {
        runs.push((5 * GIB, GIB / 2, CellKind::Released, ""));
        runs.push((5 * GIB + 64 * MIB, 64 * MIB, CellKind::Quarantined, "backing: F_ADD_SEALS(F_SEAL_WRITE) gave 0x10, EBUSY"));
    }
    PoolMap::new(painted(gib * GIB, &runs), vec!["vm-a".into(), HOSTILE.into()]).unwrap()
}

fn outcome(situation: &str, vmm_sees: &str, errno: &str, vmm_does: &str) -> Outcome {
    let own = str::to_owned;
    Outcome { situation: own(situation), vmm_sees: own(vmm_sees), errno: own(errno), vmm_does: own(vmm_does) }
}

fn steps() -> Vec<Step> {
    let lines = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect();
    vec![
        Step {
            title: "Two guests get memory and boot".into(),
            lines: lines(&[
                "vm-a got 2 GiB and vm-b 3 GiB, in frames of 1 GiB. Nothing is mapped yet.",
                "Each shares its bounce buffer with the host, 6 % of its memory, and then single frames wherever its drivers want them.",
            ]),
            outcomes: vec![outcome("share of the bounce buffer", "Ok(123 MiB shared)", "0", "answers the guest")],
        },
        Step {
            title: "An unmap fails, and so does not stay a secret".into(),
            lines: lines(&["The page-table model answers one removal with a status word that the table lists as permanent."]),
            outcomes: vec![
                outcome("converting elsewhere", "Err(Busy { after: 2ms })", "EAGAIN", "asks again after 2 ms"),
                outcome("a device holds frames", "Err(Held { holder: \"vfio:0000:01:00.0\" })", "EBUSY", "asks the holder"),
                outcome(
                    "one frame stuck for good",
                    "Err(Torn { done: 511 frames, lost: 1 frame })",
                    "EIO",
                    "maps the 511, replaces the one",
                ),
                outcome("shared already", "Ok(already so)", "0", "answers the guest"),
                outcome(HOSTILE, HOSTILE, "EUCLEAN", HOSTILE),
            ],
        },
        Step {
            title: "A page is really pinned".into(),
            lines: lines(&[
                "A vmsplice holds one page of vm-b's last segment. vm-b dies, and the segment cannot be proven free.",
            ]),
            outcomes: vec![],
        },
    ]
}

fn withdrawals() -> Vec<Withdrawal> {
    let status = "ept: TDH.MEM.PAGE.REMOVE gave 0xc0000b0d00000000, EPT_ENTRY_STATE_INCORRECT";
    let lost = |pfn, frames, cause: &str, owner: &str| Withdrawal {
        pfn,
        frames,
        state: WithdrawnState::Failed,
        cause: cause.to_owned(),
        origin: Origin::Injected,
        owner: owner.to_owned(),
        came_back: false,
    };
    let pinned = lost(5 * GIB + 64 * MIB, 64 * MIB, "backing: F_ADD_SEALS(F_SEAL_WRITE) gave 0x10, EBUSY", "vm-b");
    let poisoned = lost(4 * GIB + 900, 1, "machine check at 0x100384000", "");
    vec![
        Withdrawal { state: WithdrawnState::Quarantined, origin: Origin::KernelPin, came_back: true, ..pinned },
        lost(GIB / 4 + 37, 1, status, "vm-a"),
        lost(3 * GIB + 5000, 3, status, HOSTILE),
        Withdrawal { state: WithdrawnState::Poisoned, origin: Origin::MachineCheck, ..poisoned },
    ]
}

fn snapshots() -> Vec<Snapshot> {
    let snapshot = |title: &str, caption: &str, ended| Snapshot {
        title: title.to_owned(),
        caption: caption.to_owned(),
        map: pool(8, ended),
    };
    vec![
        snapshot(
            "while the pin holds",
            "vm-b is dead. Its released frames wait for proof; the pinned segment is quarantined as a whole, because memfd proves only whole segments.",
            false,
        ),
        snapshot(
            "at the end",
            "The pin is gone and the segment came back by proof. Then everything was allocated: only the failed and poisoned frames were left out.",
            true,
        ),
    ]
}

/// What such a tour found.
pub(crate) fn report() -> TourReport {
    let cost = |hot_ns, cold_ns| Cost { hot_ns, cold_ns };
    let comparison = Comparison {
        pageless: cost(1.3, 212.0),
        refcount_scan: cost(562_000.0, 963_000.0),
        packed_scan: cost(9_800.0, 24_000.0),
        unsplit_head: cost(0.9, 188.0),
        gibs: 8,
        allocated_bytes: 128 << 20,
        swept_bytes: 64 << 20,
        hot_rounds: 31,
        cold_rounds: 9,
    };
    let own = str::to_owned;
    TourReport {
        version: own("0.1.0"),
        kernel: own("6.18.0"),
        backing: own("memfd"),
        backing_reason: own("no huge pages are reserved on this host"),
        window: None,
        kernel_has_struct_pages: true,
        proof: ProofNote {
            identity: own("synthetic"),
            method: own("F_ADD_SEALS(F_SEAL_WRITE) on the segment's memfd"),
            covers: own("no writable mapping and no pin at that instant"),
            blind_to: own("read-only mappings"),
            granule_bytes: 64 << 20,
        },
        pool_bytes: 8 << 30,
        seed: 1,
        zeroing: true,
        elapsed_ms: 11_400,
        guests: vec![
            GuestNote { name: own("vm-a"), bytes: 2 << 30, conversions: 4_800 },
            GuestNote { name: own(HOSTILE), bytes: 3 << 30, conversions: 5_212 },
        ],
        conversions: 10_012,
        withdrawn: withdrawals(),
        reassigned_withdrawn_frames: 0,
        reopened_withdrawn_frames: 5,
        lost_after_crash: 0,
        stale_bytes_seen: 0,
        bytes_checked: 7 << 30,
        metadata_bytes: 311_296,
        struct_page_bytes: 128 << 20,
        check_1g_ns: CheckNs::from(&comparison),
        comparison,
        steps: steps(),
        snapshots: snapshots(),
        html: None,
    }
}
