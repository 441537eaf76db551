//! Colour on a terminal: whether it is wanted, and the escape codes.

use std::ffi::OsStr;
use std::io::IsTerminal;

/// When to use colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum ColorChoice {
    /// When standard output is a terminal that shows colour, and `NO_COLOR` is not set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl ColorChoice {
    /// The paint for this process's standard output.
    #[must_use]
    pub fn for_stdout(self) -> Paint {
        let (no_color, term) = (std::env::var_os("NO_COLOR"), std::env::var_os("TERM"));
        self.resolve(std::io::stdout().is_terminal(), no_color.as_deref(), term.as_deref())
    }

    /// The paint, given whether the output is a terminal and the values of `NO_COLOR` and `TERM`. An empty `NO_COLOR` counts
    /// as not set (no-color.org).
    #[must_use]
    pub fn resolve(self, terminal: bool, no_color: Option<&OsStr>, term: Option<&OsStr>) -> Paint {
        match self {
            Self::Always => Paint::Ansi,
            Self::Never => Paint::Plain,
            Self::Auto => {
                let allowed = no_color.is_none_or(OsStr::is_empty) && term.is_none_or(|term| term != "dumb");
                if terminal && allowed { Paint::Ansi } else { Paint::Plain }
            }
        }
    }
}

/// How text gets its colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Paint {
    /// It gets none.
    #[default]
    Plain,
    /// By the escape codes of ECMA-48, with 256 colours.
    Ansi,
}

impl Paint {
    /// `text` under the given parameters of *select graphic rendition*, for instance `1;38;5;196`.
    #[must_use]
    pub fn sgr(self, parameters: &str, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Ansi => format!("\x1b[{parameters}m{text}\x1b[0m"),
        }
    }

    /// A heading.
    #[must_use]
    pub fn strong(self, text: &str) -> String {
        self.sgr("1", text)
    }

    /// What matters less.
    #[must_use]
    pub fn dim(self, text: &str) -> String {
        self.sgr("2", text)
    }

    /// Good news.
    #[must_use]
    pub fn good(self, text: &str) -> String {
        self.sgr("1;38;5;35", text)
    }

    /// Bad news.
    #[must_use]
    pub fn bad(self, text: &str) -> String {
        self.sgr("1;38;5;196", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_needs_a_terminal_that_shows_it_and_nobody_who_objects() {
        let os = |text: &'static str| Some(OsStr::new(text));
        assert_eq!(ColorChoice::Auto.resolve(true, None, os("xterm")), Paint::Ansi);
        assert_eq!(ColorChoice::Auto.resolve(true, os(""), None), Paint::Ansi);
        assert_eq!(ColorChoice::Auto.resolve(true, os("1"), os("xterm")), Paint::Plain);
        assert_eq!(ColorChoice::Auto.resolve(true, None, os("dumb")), Paint::Plain);
        assert_eq!(ColorChoice::Auto.resolve(false, None, os("xterm")), Paint::Plain);
        assert_eq!(ColorChoice::Always.resolve(false, os("1"), os("dumb")), Paint::Ansi);
        assert_eq!(ColorChoice::Never.resolve(true, None, os("xterm")), Paint::Plain);
    }
}
