//! The questions, in the order in which they are asked.

pub mod allocate;
pub mod check;
pub mod convert;
pub mod footprint;
pub mod frames;
pub mod kernel;
pub mod ledger;
pub mod pool;
pub mod restructure;
pub mod shareability;
pub mod threads;

use crate::bench::Bench;

/// A group of tasks.
pub struct Question {
    /// Its name, which `--filter` knows.
    pub name: &'static str,
    /// Its tasks: keys of DESIGN §8, and names for what compares rivals.
    pub tasks: &'static [&'static str],
    /// Asks all of it that is wanted.
    pub ask: fn(&mut Bench) -> anyhow::Result<()>,
}

/// All questions.
pub const QUESTIONS: [Question; 11] = [
    Question { name: "frame layer", tasks: frames::TASKS, ask: frames::ask },
    Question { name: "conversion", tasks: convert::TASKS, ask: convert::ask },
    Question { name: "check", tasks: check::TASKS, ask: check::ask },
    Question { name: "threads", tasks: threads::TASKS, ask: threads::ask },
    Question { name: "pool", tasks: pool::TASKS, ask: pool::ask },
    Question { name: "ledger", tasks: ledger::TASKS, ask: ledger::ask },
    Question { name: "footprint", tasks: footprint::TASKS, ask: footprint::ask },
    Question { name: "check and restructure", tasks: restructure::TASKS, ask: restructure::ask },
    Question { name: "the running kernel", tasks: kernel::TASKS, ask: kernel::ask },
    Question { name: "shareability", tasks: shareability::TASKS, ask: shareability::ask },
    Question { name: "allocation", tasks: allocate::TASKS, ask: allocate::ask },
];

/// How many tasks a filter selects.
#[must_use]
pub fn selected(filter: Option<&str>) -> usize {
    let wanted = |name: &str| filter.is_none_or(|word| name.contains(word));
    let of = |question: &Question| question.tasks.iter().filter(|task| wanted(question.name) || wanted(task)).count();
    QUESTIONS.iter().map(of).sum()
}

/// Asks everything that is wanted.
pub fn ask_all(bench: &mut Bench) -> anyhow::Result<()> {
    for question in &QUESTIONS {
        bench.begin(question.name);
        (question.ask)(bench)?;
    }
    Ok(())
}
