//! A worker process with several threads that convert and fail is killed by SIGKILL at random moments, again and again on one
//! ledger: whatever it had told before is found.
//!
//! `PAGELESS_KILLS=N` says how often; the default is 200.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod cast;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use cast::{NOT_NOW, Sticky, pages, pool_on, run};
use pageless::{AllocationId, Convert, FRAME_BYTES, Mapping, Pfn, Request, Verdict, Withdrawal};
use pageless_ledger::{RedbLedger, inspect};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const FRAMES: u64 = 4096;
const THREADS: u64 = 3;
const PATH: &str = "PAGELESS_KILLED_WORKER";
const SEED: &str = "PAGELESS_KILLED_SEED";

/// One line, in one write: what the parent reads was told before the kill.
fn tell(line: String) {
    std::io::stdout().lock().write_all((line + "\n").as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
}

/// The worker, which is a test only when the parent runs it.
#[test]
fn worker() {
    let Ok(path) = std::env::var(PATH) else { return };
    let seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    let pool = pool_on(Arc::new(RedbLedger::at(Path::new(&path)).unwrap()), FRAMES);
    let mapping: Arc<dyn Mapping> = Sticky::new();
    pool.answer_for("ept", &mapping);
    tell("open".to_owned());
    std::thread::scope(|threads| {
        for thread in 0..THREADS {
            let pool = &pool;
            threads.spawn(move || {
                let mut dice = StdRng::seed_from_u64(seed * THREADS + thread);
                loop {
                    let Ok(ram) = pool.allocate(Request::bytes(64 * FRAME_BYTES).owner("vm")) else {
                        pool.reclaim();
                        continue;
                    };
                    tell(format!("has {}", ram.id().get()));
                    let ept = Sticky::new();
                    ram.attach("ept", ept.clone()).unwrap();
                    for _ in 0..dice.random_range(1..4) {
                        let at = dice.random_range(0..64);
                        let frame = ram.frame(at * FRAME_BYTES).unwrap().get();
                        ept.sticks(frame, if dice.random() { Verdict::Never } else { NOT_NOW });
                        for verdict in [ram.share(pages(0, 64)), ram.unshare(pages(0, 64))] {
                            let Err(Convert::Torn { lost, .. }) = verdict else { continue };
                            for lost in lost.iter().filter(|lost| lost.state() == Withdrawal::Failed && lost.recorded()) {
                                lost.frames().iter().for_each(|pfn| tell(format!("failed {}", pfn.get())));
                            }
                        }
                        ept.heals();
                    }
                    tell(format!("drops {}", ram.id().get()));
                    drop(ram);
                    pool.reclaim();
                    pool.retry(run(0, FRAMES));
                }
            });
        }
    });
}

#[derive(Default)]
struct Heard {
    failed: BTreeSet<u64>,
    /// Allocations whose handles were had: false once they may have been dropped.
    owned: BTreeMap<u64, bool>,
}

/// Runs the worker, kills it a moment after it opened the ledger (or in the middle of that), and adds what it had told.
fn one_life(path: &Path, seed: u64, moment: Duration, heard: &mut Heard) {
    let mut worker = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "worker", "--nocapture", "--test-threads=1"])
        .env(PATH, path)
        .env(SEED, seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(worker.stdout.take().unwrap()).lines();
    let (opened, open) = std::sync::mpsc::channel();
    let hear = move |line: &String| {
        // Behind what the test harness has begun to print.
        if line.ends_with("open") {
            opened.send(()).unwrap_or_default();
        }
    };
    let reader = std::thread::spawn(move || lines.map_while(Result::ok).inspect(hear).collect::<Vec<String>>());
    if !seed.is_multiple_of(8) {
        open.recv_timeout(Duration::from_secs(20)).unwrap();
    }
    std::thread::sleep(moment);
    // SIGKILL.
    worker.kill().unwrap();
    worker.wait().unwrap();
    heard.owned.clear();
    for line in reader.join().unwrap() {
        let number = |text: &str| text.parse::<u64>().ok();
        match line.split_once(' ') {
            Some(("failed", frame)) => heard.failed.extend(number(frame)),
            Some(("has", id)) => heard.owned.extend(number(id).map(|id| (id, true))),
            Some(("drops", id)) => heard.owned.extend(number(id).map(|id| (id, false))),
            _ => {}
        }
    }
}

#[test]
fn a_killed_process_has_told_nothing_that_is_forgotten() {
    let kills: u64 = std::env::var("PAGELESS_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool.ledger");
    drop(RedbLedger::at(&path).unwrap());
    let (mut heard, mut dice, mut failures, mut allocations) = (Heard::default(), StdRng::seed_from_u64(1), 0, 0);
    for life in 0..kills {
        one_life(&path, life, Duration::from_micros(dice.random_range(500..90_000)), &mut heard);
        let found = inspect(&path).unwrap_or_else(|error| panic!("life {life}: {error}"));
        let failed = found.book.marked(Withdrawal::Failed);
        let forgotten: Vec<&u64> = heard.failed.iter().filter(|frame| !failed.contains(Pfn::new(**frame))).collect();
        assert!(forgotten.is_empty(), "life {life}: the failed frames {forgotten:?} are forgotten");
        for (id, _) in heard.owned.iter().filter(|(_, kept)| **kept) {
            assert!(found.book.allocations.contains_key(&AllocationId::new(*id)), "life {life}: alloc:{id} is forgotten");
        }
        allocations += heard.owned.len();
        let pool = pool_on(Arc::new(RedbLedger::at(&path).unwrap()), FRAMES);
        let verified = pool.verify();
        assert!(verified.is_sound(), "life {life}: {:?}", verified.faults);
        assert!(heard.failed.iter().all(|frame| !pool.is_free(Pfn::new(*frame))), "life {life}: a failed frame is free");
        if heard.failed.len() as u64 > FRAMES / 4 {
            failures += heard.failed.len();
            heard.failed.clear();
            pool.platform_reset("the test says so").unwrap();
        }
    }
    failures += heard.failed.len();
    println!("{kills} kills, {failures} failed frames and {allocations} allocations told");
    assert!(failures as u64 > kills / 4 && allocations as u64 > kills, "the workers did too little: {failures}, {allocations}");
}
