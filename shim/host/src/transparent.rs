//! Transparent huge pages behind an ordinary memfd: whether this kernel gives them to memory that asks.
//!
//! Two settings decide (Documentation/admin-guide/mm/transhuge.rst): `shmem_enabled` for all sizes, whose `deny` and `force`
//! have the last word, and since Linux 6.11 one for pages of 2 MiB, which as a rule says `inherit`.

use std::fs;

/// Under which the kernel keeps them.
const SETTINGS: &str = "/sys/kernel/mm/transparent_hugepage";

/// Why memory that asks for transparent huge pages gets none: the setting that forbids them and its value. Nothing where they
/// are to be had, for as long as the kernel has whole free 2 MiB blocks.
pub(crate) fn forbidden() -> Option<String> {
    let all = format!("{SETTINGS}/shmem_enabled");
    let ours = format!("{SETTINGS}/hugepages-2048kB/shmem_enabled");
    let chosen = |file: &str| fs::read_to_string(file).ok().and_then(|text| chosen(&text).map(str::to_owned));
    let Some(of_all) = chosen(&all) else { return Some(format!("there is no {all}")) };
    let of_2m = chosen(&ours).filter(|value| value != "inherit");
    let (file, value) = match (of_all.as_str(), of_2m) {
        ("deny" | "force", _) | (_, None) => (all, of_all),
        (_, Some(value)) => (ours, value),
    };
    (!given_on_request(&value)).then(|| format!("{file} is {value}"))
}

/// The kernel puts the chosen one of its words in brackets.
fn chosen(text: &str) -> Option<&str> {
    text.split(['[', ']']).nth(1)
}

fn given_on_request(value: &str) -> bool {
    matches!(value, "always" | "within_size" | "advise" | "force")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_word_is_the_one_in_brackets() {
        assert_eq!(chosen("always within_size advise [never] deny force\n"), Some("never"));
        assert_eq!(chosen("garbage"), None);
    }

    #[test]
    fn only_never_and_deny_refuse_memory_that_asks() {
        let refused = ["always", "within_size", "advise", "never", "deny", "force"].map(|word| !given_on_request(word));
        assert_eq!(refused, [false, false, false, true, true, false]);
    }
}
