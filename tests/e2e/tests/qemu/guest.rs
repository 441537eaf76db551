//! The other side: a stock kernel under a stock QEMU, and what a process in it does with its pages.

use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use pageless_e2e::{Debian, Initramfs, Kernel, Machine, MachineBuilder, Missing, Qemu, Suite, answer, pattern};
use serde_json::json;

use crate::stand::{EXTENTS, Ram, SEGMENT, Stand};

/// Pages that a process has in each NUMA node. A few MiB, scattered as the guest's kernel likes.
const PAGES: u64 = 512;
/// A boot under emulation takes 3 s; a busy host more.
const BOOT: Duration = Duration::from_secs(120);
/// Anything else that a guest does.
const SOON: Duration = Duration::from_secs(60);

/// Bus error, signal(7) on x86 and Arm.
const SIGBUS: i32 = 7;

/// Reads commands from the console and obeys them. cgroups are there to have a process take its memory from one node.
const SCRIPT: &str = r#"
mkdir /nodes && mount -t cgroup2 nodes /nodes && echo +cpuset >/nodes/cgroup.subtree_control
on_node() { # NODE COMMAND...
  mkdir -p /nodes/$1; echo $1 >/nodes/$1/cpuset.mems; node=$1; shift
  sh -c 'echo 0 >/nodes/'$node'/cgroup.procs; exec "$@"' sh "$@"
}
echo "ready $(uname -r)"
while read -r line; do eval "$line"; echo "done $?"; done
"#;

/// What is fetched, once for all tests.
pub(crate) struct Software {
    qemu: Qemu,
    kernel: Kernel,
    initramfs: String,
    accelerator: &'static str,
}

impl Software {
    /// Debian's, or a line that says why the test does nothing.
    pub(crate) fn or_skip(test: &str) -> Option<&'static Self> {
        static FETCHED: OnceLock<Result<Software, String>> = OnceLock::new();
        match FETCHED.get_or_init(|| Self::fetch().map_err(|why| why.to_string())) {
            Ok(software) => Some(software),
            Err(why) => {
                pageless_e2e::skip(test, why);
                None
            }
        }
    }

    fn fetch() -> Result<Self, Missing> {
        let debian = Debian::beside(env!("CARGO_TARGET_TMPDIR"))?;
        let (qemu, kernel) = (Qemu::of(&debian)?, Kernel::cloud(&debian, Suite::Release)?);
        let mut initramfs = Initramfs::with_busybox(&debian, SCRIPT)?;
        initramfs.program("guest-pages", env!("CARGO_BIN_EXE_guest-pages"), qemu.tree())?;
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("qemu.cpio");
        std::fs::write(&file, initramfs.finish()?)?;
        let mut this = Self { qemu, kernel, initramfs: file.display().to_string(), accelerator: "tcg" };
        // A /dev/kvm that opens may still run no unmodified kernel, so one is run.
        if std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok() && this.boots_under("kvm") {
            this.accelerator = "kvm";
        }
        println!("{} under {}", this.kernel.release(), this.accelerator);
        Ok(this)
    }

    fn boots_under(&self, accelerator: &str) -> bool {
        let machine = self.machine(accelerator).map(|machine| machine.words("-m 384M").start());
        machine.is_ok_and(|machine| machine.is_ok_and(|mut it| it.console().wait_for("ready ", Duration::from_secs(8)).is_ok()))
    }

    fn machine(&self, accelerator: &str) -> Result<MachineBuilder, Missing> {
        let kernel = self.kernel.image()?.display().to_string();
        let machine = self.qemu.machine()?.words("-M q35 -cpu max -no-reboot -accel").word(accelerator);
        let machine = machine.words("-kernel").word(kernel).words("-initrd").word(&self.initramfs);
        Ok(machine.words("-append").word("console=ttyS0 quiet panic=-1 memhp_default_state=online_movable"))
    }
}

/// A booted machine on memory from a pool: each extent of `ram` is a NUMA node of the guest. One more node is empty.
pub(crate) struct Guest {
    pub(crate) machine: Machine,
}

/// A process in the guest that has pages in one node.
pub(crate) struct Pages {
    seed: u64,
    /// Where they are in the guest's physical memory, in bytes.
    pub(crate) addresses: Vec<u64>,
}

impl Guest {
    pub(crate) fn boot(software: &Software, stand: &Stand, ram: &Ram) -> Self {
        let mut machine = software.machine(software.accelerator).unwrap();
        let mut words = format!("-m {},slots=1,maxmem=4G", ram.allocation.bytes() >> 20);
        for (node, extent) in ram.allocation.extents().into_iter().enumerate() {
            let (fd, offset) = stand.grant(extent.frames);
            let (fd, bytes) = (machine.fd(fd), extent.frames.bytes());
            words += &format!(
                " -object memory-backend-file,id=m{node},mem-path=/proc/self/fd/{fd},offset={offset},size={bytes},share=on"
            );
            words += &format!(" -numa node,nodeid={node},memdev=m{node}");
        }
        words += &format!(" -numa node,nodeid={EXTENTS}");
        let mut machine = machine.words(&words).start().unwrap();
        machine.console().wait_for("ready ", BOOT).unwrap();
        Self { machine }
    }

    /// Has the guest's shell obey a line, which must succeed.
    pub(crate) fn run(&mut self, line: &str) {
        let console = self.machine.console();
        console.send(line).unwrap();
        let code = console.wait_for("done ", SOON).unwrap();
        assert_eq!(code, "0", "{line}\n{}", console.transcript());
    }

    /// Starts a process that has pages in `node` and has written its patterns there. It has the console until [`end`](Self::end).
    pub(crate) fn pages_on(&mut self, node: u64, seed: u64) -> Pages {
        self.machine.console().send(&format!("on_node {node} guest-pages {seed} {PAGES}")).unwrap();
        let told = self.machine.console().wait_for(&format!("pages {seed} "), SOON).unwrap();
        let addresses: Vec<u64> = told.split(',').map(|frame| u64::from_str_radix(frame, 16).unwrap() * 4096).collect();
        assert_eq!(addresses.len() as u64, PAGES);
        Pages { seed, addresses }
    }

    /// Has the process read its pages: all must hold what the owner wrote.
    pub(crate) fn assert_answered(&mut self, pages: &Pages) {
        self.machine.console().send("check").unwrap();
        let told = self.machine.console().wait_for(&format!("answer {}", pages.seed), SOON).unwrap();
        assert_eq!(told, format!(" {PAGES} same"));
    }

    /// Has the process touch its pages, which nothing is behind any more; the guest's kernel may have been faster. QEMU dies of
    /// it. Under KVM it may be the host's kernel that meets the fault: then QEMU stops the machine for good.
    pub(crate) fn assert_ends_by_a_touch(&mut self) {
        let _ = self.machine.console().send("write");
        match self.machine.wait(Duration::from_secs(30)) {
            Ok(status) => assert_eq!(status.signal(), Some(SIGBUS), "QEMU ended by {status:?}"),
            Err(_) => {
                let state = self.machine.qmp().unwrap().execute("query-status", json!({})).unwrap();
                assert_eq!(state["status"], "internal-error", "the machine goes on without its memory");
            }
        }
    }

    /// The process ends, and the shell has the console again.
    pub(crate) fn end(&mut self, _pages: Pages) {
        self.run("end");
    }

    /// Adds a segment to the running machine, as memory of the node that is empty. Answers its guest-physical address.
    pub(crate) fn plug(&mut self, stand: &Stand, ram: &Ram) -> Plugged {
        let (fd, offset) = stand.grant(ram.allocation.extents()[0].frames);
        let qmp = self.machine.qmp().unwrap();
        let (number, set) = qmp.add_fd(fd.as_fd()).unwrap();
        let backend = json!({
            "qom-type": "memory-backend-file",
            "id": "hot",
            "mem-path": format!("/proc/self/fd/{number}"),
            "offset": offset,
            "size": SEGMENT,
            "share": true,
        });
        qmp.execute("object-add", backend).unwrap();
        qmp.execute("device_add", json!({ "driver": "pc-dimm", "id": "dimm", "memdev": "hot", "node": EXTENTS })).unwrap();
        let devices = qmp.execute("query-memory-devices", json!({})).unwrap();
        let address = devices[0]["data"]["addr"].as_u64().unwrap();
        // Online by the guest's own policy; until then the node has nothing to give.
        let meminfo = format!("/sys/devices/system/node/node{EXTENTS}/meminfo");
        self.run(&format!("until awk '/MemFree/ {{ exit $4 == 0 }}' {meminfo}; do usleep 20000; done"));
        Plugged { address, set }
    }

    /// Takes the segment back: the guest gives up the memory, QEMU the device, the mapping and the descriptor.
    pub(crate) fn unplug(&mut self, plugged: &Plugged) {
        let qmp = self.machine.qmp().unwrap();
        qmp.execute("device_del", json!({ "id": "dimm" })).unwrap();
        while qmp.event("DEVICE_DELETED", SOON).unwrap()["device"] != "dimm" {}
        qmp.execute("object-del", json!({ "id": "hot" })).unwrap();
        qmp.execute("remove-fd", json!({ "fdset-id": plugged.set })).unwrap();
    }
}

/// A segment that was added to a running machine.
pub(crate) struct Plugged {
    pub(crate) address: u64,
    set: i64,
}

/// Both directions: what the process in the guest wrote is in `ram` where it was computed to be, and what the owner writes
/// there is what the process reads. `base` is the guest-physical address of the first byte of `ram`.
pub(crate) fn assert_both_ways(guest: &mut Guest, pages: &Pages, ram: &Ram, base: u64) {
    let mut bytes = vec![0; 4096];
    for (page, address) in (0..).zip(&pages.addresses) {
        ram.host.read(address - base, &mut bytes).unwrap();
        assert!(bytes == pattern(pages.seed, page), "page {page} at {address:#x} holds {:x?}", &bytes[..32]);
    }
    for (page, address) in (0..).zip(&pages.addresses) {
        ram.host.write(address - base, &answer(pages.seed, page)).unwrap();
    }
    guest.assert_answered(pages);
}
