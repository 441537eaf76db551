//! Transparent huge pages behind an ordinary memfd: whether this kernel gives them to memory that asks.
//!
//! Two settings decide (Documentation/admin-guide/mm/transhuge.rst): `shmem_enabled` for all sizes, whose `deny` and `force`
//! have the last word, and since Linux 6.11 one for pages of 2 MiB, which as a rule says `inherit`.

use std::fs;

/// Where the kernel keeps both.
const SETTINGS: &str = "/sys/kernel/mm/transparent_hugepage";

/// Why memory that asks for transparent huge pages gets none: the setting that forbids them and its value. Nothing where they
/// are to be had, for as long as the kernel has whole free 2 MiB blocks.
pub(crate) fn forbidden() -> Option<String> {
    let all = format!("{SETTINGS}/shmem_enabled");
    let ours = format!("{SETTINGS}/hugepages-2048kB/shmem_enabled");
    let chosen = |file: &str| fs::read_to_string(file).ok().and_then(|text| chosen(&text).map(str::to_owned));
    let Some(of_all) = chosen(&all) else { return Some(format!("there is no {all}")) };
    let refusing = match refusal(&of_all, chosen(&ours).as_deref())? {
        Level::All => format!("{all} is {of_all}"),
        Level::Of2M => format!("{ours} is never"),
    };
    Some(format!("{refusing}; as root, write advise to it"))
}

/// Which of the two settings refuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Level {
    All,
    Of2M,
}

/// Who refuses memory that asks, given the chosen words; the second is missing on older kernels.
fn refusal(of_all: &str, of_2m: Option<&str>) -> Option<Level> {
    match (of_all, of_2m) {
        ("force", _) => None,
        ("deny", _) => Some(Level::All),
        (_, Some("never")) => Some(Level::Of2M),
        ("always" | "within_size" | "advise", _) | (_, Some("always" | "within_size" | "advise")) => None,
        _ => Some(Level::All),
    }
}

/// The kernel puts the chosen one of its words in brackets.
fn chosen(text: &str) -> Option<&str> {
    text.split(['[', ']']).nth(1)
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
    fn deny_and_force_have_the_last_word_and_never_may_be_overruled_by_size() {
        let inherit = Some("inherit");
        let words = ["always", "within_size", "advise", "never", "deny", "force"];
        let refused = [None, None, None, Some(Level::All), Some(Level::All), None];
        assert_eq!(words.map(|word| refusal(word, None)), refused, "before Linux 6.11");
        assert_eq!(words.map(|word| refusal(word, inherit)), refused);
        let never = Some(Level::Of2M);
        assert_eq!(words.map(|word| refusal(word, Some("never"))), [never, never, never, never, Some(Level::All), None]);
        assert_eq!(words.map(|word| refusal(word, Some("advise"))), [None, None, None, None, Some(Level::All), None]);
    }
}
