//! The tour on memory without struct pages, watched from outside the process.

use std::path::Path;
use std::process::Command;

use pageless_e2e::or_skip;
use serde_json::Value;

use crate::inside::{PATIENCE, Parts, WINDOW};

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
    let mut machine = parts.boot("tour", initramfs);
    let mut said = |what: &str| machine.console().wait_for(what, PATIENCE).unwrap().trim().to_owned();

    let flags = said("vm flags: VmFlags:");
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    assert!(has("pf") && has("io") && has("sh"), "the mapping is no VM_PFNMAP: {flags}");
    let page_flags = u64::from_str_radix(&said("page flags:"), 16).unwrap();
    assert_eq!(page_flags, 1 << 20, "KPF_NOPAGE, and nothing else");
    assert_ne!(said("secrets seen:"), "0", "what is written through the mapping lies at the physical address");
    assert_eq!(said("exit code:"), "0");

    let text = said("report:");
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tour-on-a-window.json");
    std::fs::write(&file, &text).unwrap();
    holds(&file);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&report["backing"], &report["proof"]["identity"]), (&"physical".into(), &"physical".into()));
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

/// What `.ci/run` holds every tour to.
fn holds(report: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.ci/tour-holds");
    let checked = Command::new("python3").arg(script).arg(report).output().unwrap();
    assert!(checked.status.success(), "{}{}", String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
}
