//! A ledger in the memory of this process: what it keeps survives a pool, not the process.

use std::sync::Arc;

use super::{Book, Entry, LandmarkKind, Ledger, LedgerError, PoolFacts, Rows};
use crate::sync::Mutex;

/// A ledger in memory, for pools that come and go within one process, and for tests.
#[derive(Debug)]
pub struct Kept(Mutex<State>);

#[derive(Debug)]
struct State {
    pool: Option<PoolFacts>,
    book: Book,
    open: bool,
}

const PLACE: &str = "in memory";

impl Kept {
    /// A ledger that no pool has opened.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::holding(None, Book::new("this process"))
    }

    /// A ledger that holds this already: for a pool of this shape, if one is given.
    #[must_use]
    pub fn holding(pool: Option<PoolFacts>, book: Book) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { pool, book, open: false })))
    }

    /// What it holds.
    #[must_use]
    pub fn book(&self) -> Book {
        self.0.lock().book.clone()
    }
}

impl Ledger for Kept {
    fn place(&self) -> String {
        PLACE.to_owned()
    }

    fn open(&self, pool: &PoolFacts) -> Result<Book, LedgerError> {
        let mut state = self.0.lock();
        if state.open {
            return Err(LedgerError::Busy { place: PLACE.to_owned() });
        }
        let gone = match &state.pool {
            Some(recorded) => pool.memory_gone(recorded, PLACE)?,
            None => None,
        };
        if let Some(instance) = gone {
            let withdrawn = state.book.withdrawn().frames();
            state.book.forget_memory();
            let Ok(()) = state.book.landmark(LandmarkKind::MemoryGone { instance, withdrawn });
        }
        state.pool = Some(pool.clone());
        state.open = true;
        let Ok(()) = state.book.landmark(LandmarkKind::Opened);
        Ok(state.book.clone())
    }

    fn commit(&self, entries: Vec<Entry>) -> Result<(), LedgerError> {
        self.submit(entries);
        Ok(())
    }

    fn submit(&self, entries: Vec<Entry>) {
        let mut state = self.0.lock();
        for entry in &entries {
            let Ok(()) = state.book.apply(entry);
        }
    }

    fn close(&self) {
        self.0.lock().open = false;
    }
}
