//! A private apt: its own configuration, lists, cache and package state, with the sources that the system itself has.
//!
//! Nothing of the system's package state is read or written. Only the names of the servers, the keys and what leads to them
//! (proxies, passwords) are the system's. See apt.conf(5), sources.list(5), apt_preferences(5).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Missing;
use crate::debian::run;

const SOURCES: &str = "/etc/apt/sources.list";
const SOURCES_PARTS: &str = "/etc/apt/sources.list.d";

/// The release that the system runs, as `bookworm`: `VERSION_CODENAME` of os-release(5).
pub(crate) fn codename() -> Result<String, Missing> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let found = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    found.map(|name| name.trim_matches('"').to_owned()).ok_or(Missing::NotDebian("os-release has no VERSION_CODENAME"))
}

/// Writes everything that apt needs into `folder` and answers the file for `APT_CONFIG`.
pub(crate) fn configure(folder: &Path, codename: &str) -> Result<PathBuf, Missing> {
    let _ = fs::remove_dir_all(folder.join("etc")); // sources that the system no longer has
    for part in ["etc/sources.list.d", "etc/preferences.d", "state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(folder.join(part))?;
    }
    fs::write(folder.join("status"), "")?;
    let mut any = false;
    for (name, text) in system_sources()? {
        any = true;
        if let Some(more) = backports(&name, &text, codename) {
            fs::write(folder.join("etc/sources.list.d").join(format!("backports-{name}")), more)?;
        }
        fs::write(folder.join("etc/sources.list.d").join(name), text)?;
    }
    if !any {
        return Err(Missing::NotDebian("apt has no sources"));
    }
    let file = folder.join("apt.conf");
    fs::write(&file, configuration(folder)?)?;
    Ok(file)
}

/// The system's files of sources, by name.
fn system_sources() -> Result<Vec<(String, String)>, Missing> {
    let mut files = vec![PathBuf::from(SOURCES)];
    files.extend(fs::read_dir(SOURCES_PARTS).into_iter().flatten().flatten().map(|entry| entry.path()));
    files.retain(|file| file.is_file() && file.extension().is_some_and(|end| end == "list" || end == "sources"));
    files.sort();
    let named = |file: PathBuf| Some((file.file_name()?.to_str()?.to_owned(), fs::read_to_string(&file).ok()?));
    Ok(files.into_iter().filter_map(named).collect())
}

/// apt's own configuration, with what the system says about fetching. Its hooks are left out: they clean the system's cache.
fn configuration(folder: &Path) -> Result<String, Missing> {
    let system = run(&mut Command::new("apt-config"), &["dump", "Acquire"])?;
    let fetching = |line: &&str| line.starts_with("Acquire::") && !line.starts_with("Acquire::IndexTargets");
    let mut text: String = system.lines().filter(fetching).map(|line| format!("{line}\n")).collect();
    let folder = folder.display();
    text += &format!(
        r#"Dir::Etc "{folder}/etc";
Dir::Etc::parts "/dev/null";
Dir::Etc::trusted "/etc/apt/trusted.gpg";
Dir::Etc::trustedparts "/etc/apt/trusted.gpg.d";
Dir::Etc::netrc "/etc/apt/auth.conf";
Dir::Etc::netrcparts "/etc/apt/auth.conf.d";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Log "{folder}/log";
APT::Sandbox::User "";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Retries "2";
"#
    );
    Ok(text)
}

/// The same source for the backports of `codename`, where a file has its main suite and no backports yet. Debian and Ubuntu
/// keep both on one server.
fn backports(name: &str, text: &str, codename: &str) -> Option<String> {
    let suite = format!("{codename}-backports");
    if text.lines().any(|line| !line.trim_start().starts_with('#') && line.contains(&suite)) {
        return None;
    }
    if name.ends_with(".sources") {
        return text.split("\n\n").find_map(|stanza| stanza_for(stanza, codename, &suite));
    }
    let line = text.lines().find(|line| line.starts_with("deb ") && line.split_whitespace().any(|word| word == codename))?;
    let words = line.split_whitespace().map(|word| if word == codename { suite.as_str() } else { word });
    Some(words.collect::<Vec<_>>().join(" ") + "\n")
}

/// One stanza of deb822-style sources with another suite, if it has `codename` among its own.
fn stanza_for(stanza: &str, codename: &str, suite: &str) -> Option<String> {
    let mut found = false;
    let lines = stanza.lines().map(|line| match line.strip_prefix("Suites:") {
        Some(suites) if suites.split_whitespace().any(|word| word == codename) => {
            found = true;
            format!("Suites: {suite}\n")
        }
        _ => format!("{line}\n"),
    });
    let text = lines.collect();
    found.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backports_are_derived_from_the_main_source_in_both_formats() {
        let stanzas = "Types: deb\nURIs: http://mirror/debian-security\nSuites: codename-security\n\n\
                       Types: deb\nURIs: http://mirror/debian\nSuites: codename codename-updates\nComponents: main\n";
        let derived = "Types: deb\nURIs: http://mirror/debian\nSuites: codename-backports\nComponents: main\n";
        assert_eq!(backports("a.sources", stanzas, "codename").as_deref(), Some(derived));
        let lines = "# a comment\ndeb [arch=amd64] http://mirror/debian codename main contrib\n";
        let derived = "deb [arch=amd64] http://mirror/debian codename-backports main contrib\n";
        assert_eq!(backports("a.list", lines, "codename").as_deref(), Some(derived));
    }

    #[test]
    fn backports_that_are_there_or_have_no_main_source_are_not_derived() {
        let both = "deb http://mirror/debian codename main\ndeb http://mirror/debian codename-backports main\n";
        assert_eq!(backports("a.list", both, "codename"), None);
        assert_eq!(backports("a.list", "deb http://mirror/tools stable main\n", "codename"), None);
    }
}
