//! Every outcome of a conversion has one answer, and no transient one is a permanent one.

use std::time::Duration;

use nix::errno::Errno;
use pageless::metadata::Withdrawal;
use pageless::{Convert, HolderId, Intent, Refusal, Refused, RunSet};
use pageless_kvm::{Answer, BadRequest, Layout};

const AFTER: Duration = Duration::from_micros(7);

fn told(outcome: Convert) -> Answer {
    Answer::from(&Err(outcome))
}

fn refused(refused: Refused) -> Answer {
    told(Convert::Refused(refused))
}

#[test]
fn transient_outcomes_are_asked_again_and_lasting_ones_are_errors() {
    assert_eq!(told(Convert::Busy { after: AFTER }), Answer::Again { after: AFTER });
    let busy = Refused::Mapping { mapping: "ept".into(), refusal: Refusal::Busy { after: AFTER } };
    assert_eq!(refused(busy), Answer::Again { after: AFTER });
    let holder = HolderId::new("vfio");
    assert_eq!(told(Convert::Held { holder, offset: 0 }), Answer::Error(Errno::EBUSY));
    assert_eq!(told(Convert::Torn { done: RunSet::new(), lost: Vec::new() }), Answer::Error(Errno::EIO));
    assert_eq!(told(Convert::OwnerGone { lost: Vec::new() }), Answer::Stop);
}

#[test]
fn every_refusal_is_one_errno() {
    let mapping = |refusal| Refused::Mapping { mapping: "ept".into(), refusal };
    let table = [
        (Refused::Unaligned { value: 1, unit: 4096 }, Errno::EINVAL),
        (Refused::Empty { start: 0, end: 0 }, Errno::EINVAL),
        (Refused::Outside { start: 0, end: 2, size: 1 }, Errno::EINVAL),
        (Refused::NotOwner { offset: 0 }, Errno::EFAULT),
        (Refused::Released { offset: 0 }, Errno::EFAULT),
        (Refused::Withdrawn { offset: 0, frames: 1, state: Withdrawal::Quarantined }, Errno::EIO),
        (Refused::Withdrawn { offset: 0, frames: 1, state: Withdrawal::Failed }, Errno::EIO),
        (Refused::Poisoned { offset: 0, frames: 1 }, Errno::EHWPOISON),
        (mapping(Refusal::NoMemory), Errno::ENOMEM),
        (mapping(Refusal::Unsupported), Errno::EOPNOTSUPP),
        (mapping(Refusal::Other("why".into())), Errno::EOPNOTSUPP),
        (Refused::NoMemory, Errno::ENOMEM),
        (Refused::Unrecorded { offset: 0, frames: 1 }, Errno::EIO),
        (Refused::NotLost { offset: 0 }, Errno::EIO),
        (Refused::NotOneLeaf { offset: 0, bytes: 1, why: "" }, Errno::EIO),
        (Refused::NotAConversion { intent: Intent::Reclaim }, Errno::EIO),
        (Refused::NoSuchMapping { name: String::new() }, Errno::EIO),
        (Refused::NameTaken { name: String::new() }, Errno::EIO),
        (Refused::NoName { what: "mapping" }, Errno::EIO),
        (Refused::NoFrame { offset: 0 }, Errno::EIO),
        (Refused::Ledger(pageless::ledger::LedgerError::TimedOut { place: "a file".into(), bound: AFTER }), Errno::EIO),
    ];
    for (refusal, errno) in table {
        let name = format!("{refusal:?}");
        assert_eq!(refused(refusal), Answer::Error(errno), "{name}");
    }
}

#[test]
fn a_bad_request_is_einval_whatever_is_wrong_with_it() {
    let not_memory = Layout::around(4096, 0..0).unwrap().offsets(4096, 1).unwrap_err();
    for bad in [
        BadRequest::Unaligned { gpa: 1 },
        BadRequest::NoRange { gpa: 0, pages: 0 },
        BadRequest::Attributes { attributes: 1 << 9 },
        BadRequest::NotMemory(not_memory),
    ] {
        assert_eq!(Answer::from(bad), Answer::Error(Errno::EINVAL));
    }
}

#[test]
fn the_guest_reads_a_negative_errno_or_zero() {
    let read = |answer: Answer| answer.hypercall().cast_signed();
    assert_eq!(read(Answer::Done { changed: true }), 0);
    assert_eq!(read(Answer::Done { changed: false }), 0);
    assert_eq!(read(Answer::Again { after: AFTER }), -i64::from(Errno::EAGAIN as i32));
    assert_eq!(read(Answer::Error(Errno::EHWPOISON)), -133);
    assert!(read(Answer::Stop) < 0);
}
