//! The tour on memory that is set aside: without struct pages, watched from outside the process, and as a devdax device.

use std::path::Path;
use std::process::Command;

use pageless_e2e::{Initramfs, Missing, Package, Suite, or_skip};
use serde_json::Value;

use crate::inside::{PATIENCE, PERSISTENT, Parts, WINDOW, WITHOUT_PAGES, pack_program, program_in};

/// The tour runs; meanwhile another process looks at its mappings, at the kernel's page flags, and reads the same physical
/// memory through a descriptor of its own.
const SCRIPT: &str = r#"
pageless tour --json --no-html --backing physical --window WINDOW >/tmp/tour.json 2>/tmp/tour.err &
tour=$!
while kill -0 $tour 2>/dev/null; do
    flags=$(awk '/\/dev\/mem/ { mine = 1 } mine && /^VmFlags/ { print; exit }' /proc/$tour/smaps 2>/dev/null)
    [ -n "$flags" ] && break
done
echo "vm flags: $flags"
echo "page flags: $(dd if=/proc/kpageflags bs=8 skip=262144 count=1 2>/dev/null | od -An -tx8)"
while kill -0 $tour 2>/dev/null; do
    seen=$(dd if=/dev/mem bs=1M skip=1024 count=16 2>/dev/null | grep -a -c "vm-a's secret")
    [ "$seen" != 0 ] && break
done
echo "secrets seen: $seen"
wait $tour
echo "exit code: $?"
cat /tmp/tour.err
echo "report: $(tr -d '\n' </tmp/tour.json)"
echo "kernel log: $(dmesg | grep -c -i -e 'BUG:' -e 'WARNING:' -e 'Oops')"
pageless tour --no-html --window /dev/mem@0x3ff00000+512M 2>/tmp/ram.err; echo "on RAM: $? $(tr '\n' ' ' </tmp/ram.err)"
pageless tour --no-html --window /dev/mem@0xfec00000+512M 2>/tmp/io.err; echo "on devices: $? $(tr '\n' ' ' </tmp/io.err)"
"#;

#[test]
fn the_tour_holds_on_memory_without_struct_pages() {
    let Some(parts) = or_skip("the_tour_holds_on_memory_without_struct_pages", Parts::fetch()) else { return };
    let initramfs = parts.initramfs(&SCRIPT.replace("WINDOW", WINDOW)).unwrap();
    let mut machine = parts.boot("tour", &WITHOUT_PAGES, initramfs);
    let mut said = |what: &str| machine.console().wait_for(what, PATIENCE).unwrap().trim().to_owned();

    let flags = said("vm flags: VmFlags:");
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    assert!(has("pf") && has("io") && has("sh"), "the mapping is no VM_PFNMAP: {flags}");
    let page_flags = u64::from_str_radix(&said("page flags:"), 16).unwrap();
    assert_eq!(page_flags, 1 << 20, "KPF_NOPAGE, and nothing else");
    assert_ne!(said("secrets seen:"), "0", "what is written through the mapping lies at the physical address");
    assert_eq!(said("exit code:"), "0");

    let report = holds("tour", &said("report:"));
    assert_eq!((&report["kernel_has_struct_pages"], &report["proof"]["granule_bytes"]), (&false.into(), &4096.into()));
    assert_eq!(report["pool_bytes"], 512 << 20);
    let window = 0x4_0000..0x6_0000;
    assert!(report["withdrawn"].as_array().unwrap().iter().all(|run| window.contains(&run["pfn"].as_u64().unwrap())));
    // On this memory a lost frame costs itself: nothing beside it waits.
    assert!(report["withdrawn"].as_array().unwrap().iter().all(|run| run["frames"] == 1), "{}", report["withdrawn"]);

    assert_eq!(said("kernel log:"), "0");
    let refused = said("on RAM:");
    assert!(
        refused.starts_with("1 ") && refused.contains("0x3ff00000..0x40000000") && refused.contains("System RAM"),
        "{refused}"
    );
    let refused = said("on devices:");
    assert!(refused.starts_with("1 ") && refused.contains("/proc/iomem"), "{refused}");
    assert!(machine.wait(PATIENCE).unwrap().success());
}

/// A devdax device is made of persistent memory with ndctl, as an operator would.
const DEVDAX: &str = r#"
for module in /modules/*; do insmod $module || echo "no $module"; done
NDCTL create-namespace --force --reconfig=namespace0.0 --mode=devdax --align=2M --map=mem >/tmp/ndctl 2>&1 || cat /tmp/ndctl
pageless tour --json --no-html --window /dev/dax0.0 >/tmp/tour.json 2>/tmp/tour.err &
tour=$!
while kill -0 $tour 2>/dev/null; do
    flags=$(awk '/\/dev\/dax/ { mine = 1 } mine && /^VmFlags/ { print; exit }' /proc/$tour/smaps 2>/dev/null)
    [ -n "$flags" ] && break
done
echo "vm flags: $flags"
wait $tour
echo "exit code: $?"
cat /tmp/tour.err
echo "report: $(tr -d '\n' </tmp/tour.json)"
pageless tour --no-html --window /dev/mem@0x100000000+512M 2>/tmp/taken.err; echo "on a driver's: $? $(tr '\n' ' ' </tmp/taken.err)"
"#;

#[test]
fn the_tour_holds_on_devdax_and_says_that_its_proof_does_not_see_pins() {
    let Some((parts, initramfs)) = or_skip("the_tour_holds_on_devdax", with_ndctl()) else { return };
    let mut machine = parts.boot("devdax", &PERSISTENT, initramfs);
    let mut said = |what: &str| machine.console().wait_for(what, PATIENCE).unwrap().trim().to_owned();

    let flags = said("vm flags: VmFlags:");
    assert!(!flags.split_whitespace().any(|word| word == "pf"), "devdax has struct pages: {flags}");
    assert_eq!(said("exit code:"), "0");
    let report = holds("devdax", &said("report:"));
    assert_eq!((&report["kernel_has_struct_pages"], &report["proof"]["granule_bytes"]), (&true.into(), &(2 << 20).into()));
    assert!(report["proof"]["blind_to"].as_str().unwrap().starts_with("pins:"), "{}", report["proof"]);
    let told = report["steps"].to_string();
    assert!(told.contains("A pipe holds one page of vm-b") && told.contains("its proof does not see pins"), "{told}");
    assert!(report["withdrawn"].as_array().unwrap().iter().all(|run| run["pfn"].as_u64().unwrap() >= 1 << 20));

    let refused = said("on a driver's:");
    assert!(refused.starts_with("1 ") && refused.contains("/proc/iomem"), "{refused}");
    assert!(machine.wait(PATIENCE).unwrap().success());
}

fn with_ndctl() -> Result<(Parts, Initramfs), Missing> {
    let parts = Parts::fetch()?;
    let ndctl = parts.debian.unpack("ndctl", Suite::Release, &[Package::whole("ndctl")])?;
    let mut initramfs = parts.initramfs(&DEVDAX.replace("NDCTL", &program_in("ndctl")))?;
    pack_program(&mut initramfs, &ndctl, "usr/bin/ndctl", "ndctl")?;
    initramfs.modules(&parts.kernel.modules(&["nd_e820", "nd_pmem", "device_dax", "dax_pmem"])?)?;
    Ok((parts, initramfs))
}

/// The report of a tour, held to what `.ci/run` holds every tour to.
fn holds(name: &str, text: &str) -> Value {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-on-a-window.json"));
    std::fs::write(&file, text).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.ci/tour-holds");
    let checked = Command::new("python3").arg(script).arg("--emulated").arg(&file).output().unwrap();
    assert!(checked.status.success(), "{}{}", String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
    let report: Value = serde_json::from_str(text).unwrap();
    assert_eq!((&report["backing"], &report["proof"]["identity"]), (&"physical".into(), &"physical".into()));
    report
}
