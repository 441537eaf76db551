//! The story told as it happens: numbered chapters, short sentences, tables of outcomes, and progress on standard error.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, ContentArrangement, Table, TableComponent};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::args::Voice;
use crate::paint::Paint;
use crate::report::{Outcome, Step};

/// Lines are not made longer than this, however wide the terminal: nobody reads longer ones with pleasure.
const WIDEST: usize = 100;

/// Tells the story, and remembers what it told for the page and the JSON.
///
/// Nothing it does fails: a broken standard output is remembered until [`Narrator::finish`], so that the tour ends, and puts
/// everything back, also when nobody listens any more.
pub struct Narrator {
    out: Box<dyn Write>,
    paint: Paint,
    columns: usize,
    steps: Vec<Step>,
    pending: usize,
    bars: MultiProgress,
    failure: Option<io::Error>,
}

impl Narrator {
    /// A narrator on standard output. With [`Voice::Json`] it says nothing there, and only shows progress.
    #[must_use]
    pub fn new(voice: Voice, paint: Paint) -> Self {
        let out: Box<dyn Write> = match voice {
            Voice::Prose => Box::new(io::stdout()),
            Voice::Json => Box::new(io::sink()),
        };
        let terminal = console::Term::stdout();
        let columns = if io::stdout().is_terminal() { usize::from(terminal.size().1) } else { WIDEST };
        Self::speaking_to(out, paint, columns)
    }

    /// A narrator that speaks to `out`, in lines of at most `columns` characters.
    #[must_use]
    pub fn speaking_to(out: Box<dyn Write>, paint: Paint, columns: usize) -> Self {
        // On standard error, and hidden where that is no terminal.
        let bars = MultiProgress::new();
        Self { out, paint, columns: columns.clamp(40, WIDEST), steps: Vec::new(), pending: 0, bars, failure: None }
    }

    /// How text gets its colour.
    #[must_use]
    pub const fn paint(&self) -> Paint {
        self.paint
    }

    /// How many characters a line has.
    #[must_use]
    pub const fn columns(&self) -> usize {
        self.columns
    }

    /// Begins the next chapter. Its number is counted here.
    pub fn chapter(&mut self, title: &str) {
        self.flush_outcomes();
        self.steps.push(Step { title: title.to_owned(), ..Step::default() });
        let heading = self.paint.strong(&format!("{}. {title}", self.steps.len()));
        self.say(&format!("\n{heading}\n"));
    }

    /// Says a sentence or two.
    pub fn line(&mut self, text: impl Display) {
        self.flush_outcomes();
        let text = text.to_string();
        // What follows the first line hangs, so that one sees where the next sentence begins.
        let wrapped = wrap(&text, self.columns, "     ").replacen("     ", "   ", 1);
        self.current().lines.push(text);
        self.say(&wrapped);
    }

    /// Shows what a VMM is told. Outcomes that follow one another make one table.
    pub fn outcome(&mut self, outcome: Outcome) {
        self.current().outcomes.push(outcome);
        self.pending += 1;
    }

    /// Prints `text` as it is, without keeping it in the story: a map, a summary.
    pub fn show(&mut self, text: &str) {
        self.flush_outcomes();
        self.say(text);
    }

    /// Shows how something long goes on, in `total` steps, until the handle is dropped.
    pub fn progress(&self, label: &str, total: u64) -> Progress {
        let bar = ProgressBar::new(total);
        self.begin(bar, label, "{spinner} {msg} {wide_bar} {pos}/{len} {eta}")
    }

    /// Shows that something long of unknown length goes on, until the handle is dropped.
    pub fn spinner(&self, label: &str) -> Progress {
        self.begin(ProgressBar::new_spinner(), label, "{spinner} {msg} {elapsed}")
    }

    /// The chapters told so far.
    #[must_use]
    pub fn steps(&mut self) -> &[Step] {
        self.flush_outcomes();
        &self.steps
    }

    /// Ends the story: the error says that not everything could be printed. That a reader hung up is none.
    pub fn finish(mut self) -> io::Result<()> {
        self.flush_outcomes();
        let flushed = self.out.flush();
        self.note(flushed);
        self.failure.filter(|error| error.kind() != io::ErrorKind::BrokenPipe).map_or(Ok(()), Err)
    }

    fn begin(&self, bar: ProgressBar, label: &str, template: &str) -> Progress {
        let bar = self.bars.add(bar);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(label.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Progress { bar }
    }

    /// The chapter that is being told; one without a title if none was begun.
    fn current(&mut self) -> &mut Step {
        if self.steps.is_empty() {
            self.steps.push(Step::default());
        }
        let last = self.steps.len() - 1;
        &mut self.steps[last]
    }

    fn flush_outcomes(&mut self) {
        let (pending, columns) = (std::mem::take(&mut self.pending), self.columns);
        if pending == 0 {
            return;
        }
        let outcomes = &self.current().outcomes;
        let fresh = outcomes.get(outcomes.len().saturating_sub(pending)..).unwrap_or_default();
        let table = outcome_table(fresh, columns.saturating_sub(3));
        let indented: Vec<String> = table.lines().map(|line| format!("   {}", line.trim_end())).collect();
        self.say(&format!("\n{}\n", indented.join("\n")));
    }

    fn say(&mut self, text: &str) {
        if self.failure.is_none() {
            let (bars, out) = (&self.bars, &mut self.out);
            let said = bars.suspend(|| writeln!(out, "{text}").and_then(|()| out.flush()));
            self.note(said);
        }
    }

    fn note(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            self.failure.get_or_insert(error);
        }
    }
}

/// Something long under way; dropping it takes the bar away. Threads may share it.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A progress that nobody sees, for tests and callers without a narrator.
    #[must_use]
    pub fn hidden() -> Self {
        Self { bar: ProgressBar::hidden() }
    }

    /// `steps` more are done.
    pub fn advance(&self, steps: u64) {
        self.bar.inc(steps);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The table of what a VMM is told.
fn outcome_table(outcomes: &[Outcome], columns: usize) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_style(TableComponent::HeaderLines, '─').set_style(TableComponent::MiddleHeaderIntersections, '─');
    table.set_width(u16::try_from(columns).unwrap_or(u16::MAX));
    table.set_header(["situation", "the VMM sees", "errno", "the VMM does"]);
    for outcome in outcomes {
        table.add_row([&outcome.situation, &outcome.vmm_sees, &outcome.errno, &outcome.vmm_does].map(Cell::new));
    }
    table.to_string()
}

/// Breaks `text` between words into lines of at most `columns` characters, each behind `indent`.
#[must_use]
pub fn wrap(text: &str, columns: usize, indent: &str) -> String {
    let mut lines = vec![indent.to_owned()];
    let mut length = indent.chars().count();
    for word in text.split_whitespace() {
        let letters = word.chars().count();
        let first = length == indent.chars().count();
        if !first && length + 1 + letters > columns {
            lines.push(format!("{indent}{word}"));
            length = indent.chars().count() + letters;
        } else if let Some(line) = lines.last_mut() {
            if !first {
                line.push(' ');
            }
            line.push_str(word);
            length += letters + usize::from(!first);
        }
    }
    lines.join("\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Keeps what it is told, or fails as it is told to.
    #[derive(Clone, Default)]
    struct Ear {
        heard: Arc<Mutex<Vec<u8>>>,
        fails: Option<io::ErrorKind>,
    }

    impl Write for Ear {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.fails {
                Some(kind) => Err(kind.into()),
                None => self.heard.lock().unwrap().write(bytes),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn outcome(situation: &str) -> Outcome {
        let text = |text: &str| text.to_owned();
        Outcome { situation: text(situation), vmm_sees: text("Busy"), errno: text("EAGAIN"), vmm_does: text("asks again") }
    }

    #[test]
    fn chapters_are_numbered_and_outcomes_that_follow_one_another_make_one_table() {
        let ear = Ear::default();
        let mut narrator = Narrator::speaking_to(Box::new(ear.clone()), Paint::Plain, 80);
        narrator.chapter("Boot");
        narrator.line("Two guests boot.");
        narrator.outcome(outcome("converting"));
        narrator.outcome(outcome("held"));
        narrator.chapter("Failure");
        assert_eq!(narrator.steps().iter().map(|step| step.outcomes.len()).collect::<Vec<_>>(), [2, 0]);
        narrator.finish().unwrap();
        let heard = String::from_utf8(ear.heard.lock().unwrap().clone()).unwrap();
        assert!(heard.contains("1. Boot\n") && heard.contains("2. Failure\n") && heard.contains("   Two guests boot.\n"));
        assert_eq!(heard.matches("the VMM sees").count(), 1);
        assert!(heard.find("held") < heard.find("2. Failure"), "{heard}");
        assert!(heard.lines().all(|line| line.chars().count() <= 80), "{heard}");
    }

    #[test]
    fn a_reader_who_hangs_up_is_no_error_and_a_full_disk_is() {
        for (kind, fine) in [(io::ErrorKind::BrokenPipe, true), (io::ErrorKind::StorageFull, false)] {
            let ear = Ear { fails: Some(kind), ..Ear::default() };
            let mut narrator = Narrator::speaking_to(Box::new(ear), Paint::Plain, 80);
            narrator.chapter("Boot");
            narrator.outcome(outcome("held"));
            assert_eq!(narrator.steps().len(), 1);
            assert_eq!(narrator.finish().is_ok(), fine);
        }
    }

    #[test]
    fn a_line_before_any_chapter_is_kept() {
        let mut narrator = Narrator::speaking_to(Box::new(io::sink()), Paint::Plain, 80);
        narrator.line("hello");
        assert_eq!(narrator.steps()[0].lines, ["hello"]);
    }

    #[test]
    fn long_lines_break_between_words() {
        assert_eq!(wrap("one two three", 9, "  "), "  one two\n  three");
        assert_eq!(wrap("incomprehensibilities", 5, ""), "incomprehensibilities");
        assert_eq!(wrap("", 5, " "), " ");
    }
}
