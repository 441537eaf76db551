//! What the VMM tells, and what must be so.
//!
//! The numbers that guest and host write are those of `shim/kvm/examples/private_vm/guest.rs`.

use pageless_e2e::skip;
use serde::Deserialize;

const FROM_GUEST: u32 = 0x5ec2_e700;
const TO_HOST: u32 = 0x0be1_1e70;
const FROM_HOST: u32 = 0x4057_4057;
/// Two vCPUs' worth of memory: 16 MiB.
const FRAMES: u64 = 4096;
/// The window that the host writes for the second guest is the only memory that guest does not look at.
const WINDOW: u64 = 5;
/// -EINVAL and -EIO, as a guest gets them.
const EINVAL: i32 = -22;
const EIO: i32 = -5;
/// Requests that no guest should make, and how many of them KVM refuses by itself: it looks at alignment and at zero pages.
const HOSTILE: usize = 13;
const REFUSED_BY_KVM: u64 = 2;
/// Rounds of the second vCPU, which converts two pages there and back in each.
const ROUNDS: u64 = 100;

#[derive(Deserialize)]
pub(crate) struct Story {
    first: Testimony,
    exits: Vec<Exits>,
    attributes: Attributes,
    between: Between,
}

#[derive(Deserialize)]
struct Testimony {
    at_home_answer: i32,
    code_host: Option<u32>,
    stepped: Stepped,
    hostile: Hostile,
    torn: Torn,
    implied: Implied,
    left_over: u32,
    hypercalls: u64,
}

/// How a page looks from the host.
#[derive(Deserialize, PartialEq, Eq, Debug)]
struct Page {
    mapped: Option<u32>,
    shared_side: u32,
    is_shared: bool,
}

impl Page {
    /// No address leads there, and the file of the shared side holds nothing.
    const OUT_OF_REACH: Self = Self { mapped: None, shared_side: 0, is_shared: false };

    const fn shared(value: u32) -> Self {
        Self { mapped: Some(value), shared_side: value, is_shared: true }
    }
}

#[derive(Deserialize)]
struct Stepped {
    private_read: u32,
    private_host: Page,
    share_answer: i32,
    shared_read: u32,
    shared_host: Page,
    guest_reads_host: u32,
    unshare_answer: i32,
    unshared_read: u32,
    unshared_host: Page,
}

#[derive(Deserialize)]
struct Hostile {
    answers: Vec<i32>,
    refused_here: u64,
    changed: usize,
}

#[derive(Deserialize)]
struct Torn {
    answer: i32,
    answer_again: i32,
    frames_done: u64,
    frames_lost: u64,
    lost_cause: String,
    lost_read: u32,
    behind_read: u32,
    lost_host: Page,
    behind_host: Page,
}

#[derive(Deserialize)]
struct Implied {
    to_private: u64,
    to_shared: u64,
}

#[derive(Deserialize)]
struct Exits {
    hypercall: u64,
    memory_fault_private: u64,
    memory_fault_shared: u64,
    halt: u64,
}

#[derive(Deserialize)]
struct Attributes {
    to_private: u64,
    to_shared: u64,
}

#[derive(Deserialize)]
struct Between {
    frames: u64,
    freed: u64,
    free: u64,
    failed: u64,
    withdrawn_is_the_lost_one: bool,
    handed_out_again: bool,
    one_more: bool,
    scanned: u64,
    not_zero: u64,
}

impl Story {
    pub(crate) fn holds(&self) {
        let first = &self.first;
        assert_eq!((first.at_home_answer, first.code_host), (0, None), "the guest took its code into private memory");
        first.stepped.holds();
        first.hostile.holds();
        first.torn.holds();
        assert_eq!(first.left_over, 0, "nothing is left of the other state, in {ROUNDS} rounds beside the other vCPU");
        self.exits_hold();
        self.between.holds();
    }

    /// The guest's count, KVM's exits and the changes of attributes agree.
    fn exits_hold(&self) {
        let sum = |count: fn(&Exits) -> u64| self.exits.iter().map(count).sum::<u64>();
        let calls = sum(|exits| exits.hypercall);
        assert_eq!(self.exits.len(), 2);
        assert_eq!(self.first.hypercalls, calls + REFUSED_BY_KVM, "each hypercall of the guest's is an exit");
        assert!(self.exits[1].hypercall == 2 * ROUNDS, "the second vCPU's");
        assert_eq!(sum(|exits| exits.halt), 2);

        let implied = &self.first.implied;
        if std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1) {
            assert!(implied.to_private > 0, "KVM never met a touch of private memory in the middle of a conversion");
        } else {
            skip("a touch in the middle of a conversion", "two vCPUs meet only on two processors");
        }
        assert!(implied.to_private <= sum(|exits| exits.memory_fault_private), "each is a memory fault with PRIVATE");
        assert!(implied.to_shared <= sum(|exits| exits.memory_fault_shared), "each is one without");
        // Beside the rounds: the page that steps, the code, the four pages, and at least one block there and back.
        let Attributes { to_private, to_shared } = self.attributes;
        assert!(to_private > ROUNDS + implied.to_private && to_shared > ROUNDS, "{to_private} and {to_shared} changes");
    }
}

impl Stepped {
    fn holds(&self) {
        assert_eq!(self.private_read, FROM_GUEST, "the guest reads its private page");
        assert_eq!(self.private_host, Page::OUT_OF_REACH, "while the page is private");
        assert_eq!((self.share_answer, self.shared_read), (0, 0), "a shared page begins empty");
        assert_eq!(self.shared_host, Page::shared(TO_HOST), "the host reads what the guest writes");
        assert_eq!(self.guest_reads_host, FROM_HOST, "and the guest what the host writes");
        assert_eq!((self.unshare_answer, self.unshared_read), (0, 0), "a private page begins empty, too");
        assert_eq!(self.unshared_host, Page::OUT_OF_REACH, "the host has lost it again");
    }
}

impl Hostile {
    fn holds(&self) {
        assert_eq!(self.answers, [EINVAL; HOSTILE]);
        assert_eq!(self.refused_here, HOSTILE as u64 - REFUSED_BY_KVM);
        assert_eq!(self.changed, 0, "a refusal is free");
    }
}

impl Torn {
    fn holds(&self) {
        assert_eq!((self.answer, self.answer_again), (EIO, EIO), "the guest is told, each time");
        assert_eq!((self.frames_done, self.frames_lost), (3, 1), "one bad frame costs one frame");
        assert_eq!(self.lost_cause, "device: IOTLB invalidation gave 0xdead, the device does not answer");
        assert_eq!(self.lost_read, FROM_GUEST, "the guest goes on and still has the page");
        assert_eq!(self.lost_host, Page::OUT_OF_REACH, "and the host does not");
        assert_eq!((self.behind_read, &self.behind_host), (0, &Page::shared(0)), "the page behind it is shared");
    }
}

impl Between {
    fn holds(&self) {
        assert_eq!((self.frames, self.freed, self.free, self.failed), (FRAMES, FRAMES - 1, FRAMES - 1, 1));
        assert!(self.withdrawn_is_the_lost_one && !self.handed_out_again && !self.one_more, "the lost frame is nobody's");
        assert_eq!((self.scanned, self.not_zero), (FRAMES - 1 - WINDOW, 0), "the next guest finds nothing of the first");
    }
}
