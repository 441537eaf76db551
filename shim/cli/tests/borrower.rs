//! A borrower's death as a proof. Alone in its process, where every child is the borrower's.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, pipe};
use std::process::Command;
use std::sync::Arc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pageless::{MetadataOnly, Pool, Request, RetryPolicy, Withdrawal};
use pageless_cli::lend::borrower::Borrower;

#[test]
fn only_the_death_of_the_command_and_of_all_it_started_is_a_proof() {
    let never_alone = RetryPolicy { at_once: 0, ..RetryPolicy::default() };
    let pool = Pool::builder().backing(MetadataOnly::of_bytes(1 << 20)).retry(never_alone).build().unwrap();
    let ram = pool.allocate(Request::bytes(1 << 20).owner("lend")).unwrap();
    let frames = ram.extents()[0].frames;
    let borrower = Arc::new(Borrower::default());
    ram.attach("the command", borrower.clone()).unwrap();

    // It leaves a process behind when it ends, and ends when its input does.
    let ((its_input, input), (output, its_output)) = (pipe().unwrap(), pipe().unwrap());
    let mut command = Command::new("sh");
    command.args(["-c", "sleep 1000 >/dev/null 2>&1 & echo $!; read line"]).stdin(its_input).stdout(its_output);
    borrower.start(&mut command).unwrap();
    drop(command);
    assert!(borrower.start(&mut Command::new("true")).is_err(), "one command");
    let mut left_behind = String::new();
    BufReader::new(output).read_line(&mut left_behind).unwrap();

    drop(ram);
    let told = pool.reclaim();
    assert_eq!((told.freed.frames(), told.lost[0].state()), (0, Withdrawal::Quarantined));
    assert!(told.lost[0].cause().meaning.contains("still runs") && told.lost[0].retry_after().is_some());
    assert!(pool.retry(frames).freed.is_empty(), "asking again kills nobody");

    drop(input);
    assert!(!borrower.wait().unwrap().success());
    let told = pool.retry(frames);
    assert!(told.freed.is_empty());
    assert!(pool.withdrawn()[0].cause.meaning.contains("the command started"), "{}", pool.withdrawn()[0].cause);

    let left_behind = Pid::from_raw(left_behind.trim().parse().unwrap());
    kill(left_behind, Signal::SIGKILL).unwrap();
    borrower.wait_for_the_rest(|| ()).unwrap();
    assert!(kill(left_behind, None).is_err(), "dead and reaped");
    assert_eq!(pool.retry(frames).freed.frames(), 256);
}
