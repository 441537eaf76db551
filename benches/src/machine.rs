//! Where and what was measured.

use std::fs;
use std::path::Path;
use std::process::Command;

/// The machine in one line: processor, cores, memory, kernel, and how busy it was.
#[must_use]
pub fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let model = field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let mhz = field("cpu MHz").map_or_else(String::new, |mhz| format!(" at {mhz} MHz"));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = available("MemTotal:").map_or_else(String::new, |bytes| format!(", {} GiB", bytes >> 30));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let pages = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let pages = pages.split(['[', ']']).nth(1).map_or_else(String::new, |mode| format!(", THP {mode}"));
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().map_or_else(String::new, |load| format!(", load average {load} at the end"));
    format!("{model}{mhz}, {cores} cores{memory}, Linux {}{pages}{load}", kernel.trim())
}

/// A line of /proc/meminfo, in bytes.
#[must_use]
pub fn available(name: &str) -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

/// The commit of the work tree from which this was built, if that is still there.
#[must_use]
pub fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(Path::new(env!("CARGO_MANIFEST_DIR"))).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    match git(&["status", "--porcelain"]) {
        Some(changes) if changes.is_empty() => commit,
        _ => format!("{commit}+changes"),
    }
}
