//! Whatever becomes of the borrowers, the host's count of huge pages is at the end what it was.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pageless_hugepages::{Borrowed, HUGE_2M, skip, total};

/// The tests of this file count pages, so they run one after another.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The count now, if pages can be added here.
fn ground(test: &str) -> Option<(MutexGuard<'static, ()>, u64)> {
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let before = total(HUGE_2M).unwrap_or(0);
    match Borrowed::pages(HUGE_2M, 1) {
        Ok(_one) if total(HUGE_2M) == Some(before + 1) => {}
        Ok(_) => {
            skip(test, "no huge page can be added here: root can");
            return None;
        }
        Err(why) => {
            skip(test, &why.to_string());
            return None;
        }
    }
    Some((guard, before))
}

/// Another process that has borrowed `pages` pages.
fn borrower(pages: u64) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_borrow-hugepages"))
        .args([HUGE_2M.to_string(), pages.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, format!("borrowed {pages}\n"));
    child
}

fn within(time: Duration, count: u64) -> bool {
    let began = Instant::now();
    while total(HUGE_2M) != Some(count) {
        if began.elapsed() > time {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

#[test]
fn a_killed_borrower_leaves_the_count_as_it_was() {
    let Some((_guard, before)) = ground("a_killed_borrower_leaves_the_count_as_it_was") else { return };
    let mut child = borrower(5);
    assert_eq!(total(HUGE_2M), Some(before + 5));
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    assert!(within(Duration::from_secs(2), before), "{:?} pages instead of {before}", total(HUGE_2M));
}

#[test]
fn nested_and_concurrent_borrowers_end_with_the_first_count_in_any_order() {
    let Some((_guard, before)) = ground("nested_and_concurrent_borrowers_end_with_the_first_count_in_any_order") else { return };
    let outer = Borrowed::pages(HUGE_2M, 2).unwrap();
    let mut children: Vec<Child> = (1..=3).map(borrower).collect();
    let inner = Borrowed::pages(HUGE_2M, 4).unwrap();
    assert_eq!(total(HUGE_2M), Some(before + 2 + 1 + 2 + 3 + 4));
    drop(outer); // before what is nested in it
    children.iter_mut().for_each(|child| child.kill().unwrap());
    children.iter_mut().for_each(|child| assert!(!child.wait().unwrap().success()));
    assert!(within(Duration::from_secs(2), before + 4), "{:?} pages instead of {}", total(HUGE_2M), before + 4);
    drop(inner);
    assert_eq!(total(HUGE_2M), Some(before));
}

#[test]
fn whoever_is_alone_waits_for_the_others() {
    let Some((_guard, before)) = ground("whoever_is_alone_waits_for_the_others") else { return };
    let shared = Borrowed::pages(HUGE_2M, 1).unwrap();
    let (done, is_done) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn(move || {
        let _pages = Borrowed::alone(HUGE_2M, 1).unwrap();
        done.send(total(HUGE_2M)).unwrap();
    });
    assert!(is_done.recv_timeout(Duration::from_millis(300)).is_err(), "it did not wait");
    drop(shared);
    assert_eq!(is_done.recv_timeout(Duration::from_secs(10)).unwrap(), Some(before + 1));
    waiter.join().unwrap();
    assert_eq!(total(HUGE_2M), Some(before));
}
