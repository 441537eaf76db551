//! The ledger that a pool writes through. One thread commits; everyone who waits meanwhile shares its next commit.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pageless::ledger::{Book, Entry, LandmarkKind, Ledger, LedgerError, PoolFacts, Rows};
use parking_lot::{Condvar, Mutex};
use redb::Database;

use crate::disk::{Disk, FileDisk, explain, explain_at, unfinished};
use crate::encode::Row;
use crate::opened::{self, Opened, explain_redb, explain_step, put_meta};
use crate::tables::{Changes, POOL_ROW, TOTALS_ROW, Totals};

/// How a ledger behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// How long a caller waits for its commit.
    pub patience: Duration,
    /// At least so many bytes are reserved beyond the end of the file before anything is handed out. Withdrawals use them.
    pub reserve: u64,
}

impl Default for Options {
    /// Two seconds, which a disk that works never needs, and 8 MiB, which hold tens of thousands of withdrawn runs.
    fn default() -> Self {
        Self { patience: Duration::from_secs(2), reserve: 8 << 20 }
    }
}

/// Entries in one commit, before the next caller's wait for another.
const ENTRIES_IN_A_COMMIT: usize = 4096;

/// A ledger in a redb file.
#[derive(Debug)]
pub struct RedbLedger {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    place: String,
    boot: Arc<str>,
    options: Options,
    disk: Arc<dyn Disk>,
    file: Mutex<File>,
    queue: Mutex<Queue>,
    /// Something is in the queue, or the ledger ends.
    work: Condvar,
    /// Something was answered.
    answers: Condvar,
}

/// The open database; none after an error, until it is opened again.
#[derive(Default)]
struct File {
    database: Option<Database>,
    pool: Option<PoolFacts>,
    totals: Totals,
    /// What was read when it was opened, until a pool takes it.
    book: Option<Book>,
    bound: bool,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} commits", self.totals.commits)
    }
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    answers: std::collections::HashMap<u64, Result<(), LedgerError>>,
    next: u64,
    /// Jobs that the writer has taken and not answered.
    under_way: usize,
    ends: bool,
}

#[derive(Debug)]
struct Job {
    number: u64,
    entries: Vec<Entry>,
    /// Somebody waits for the answer; else the entries are kept until they are written.
    waited_for: bool,
}

impl RedbLedger {
    /// Opens the ledger at `path`, or makes one where there is none.
    pub fn at(path: &Path) -> Result<Self, LedgerError> {
        Self::with(path, Options::default())
    }

    /// The same, with these options.
    pub fn with(path: &Path, options: Options) -> Result<Self, LedgerError> {
        let place = path.display().to_string();
        let exists = path.try_exists().map_err(|error| explain(path, &error))?;
        if !exists {
            create(path, &place)?;
        }
        Self::on(&place, Arc::new(FileDisk::open(path)?), options)
    }

    /// Opens the ledger on a disk, or makes one where that is empty.
    pub fn on(place: &str, disk: Arc<dyn Disk>, options: Options) -> Result<Self, LedgerError> {
        let boot = boot_id();
        if disk.is_empty().map_err(|error| explain_at(place, &error))? {
            opened::create(place, &disk, &boot)?;
        }
        let shared = Arc::new(Shared {
            place: place.to_owned(),
            boot,
            options,
            disk,
            file: Mutex::default(),
            queue: Mutex::default(),
            work: Condvar::new(),
            answers: Condvar::new(),
        });
        shared.opened(&mut shared.file.lock())?;
        let writer = Arc::clone(&shared);
        let spawned = std::thread::Builder::new().name("ledger".to_owned()).spawn(move || writer.run());
        let writer = spawned.map_err(|error| explain_at(place, &error))?;
        Ok(Self { shared, writer: Some(writer) })
    }

    /// How many commits the file has seen.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.shared.file.lock().totals.commits
    }
}

impl Drop for RedbLedger {
    fn drop(&mut self) {
        self.shared.queue.lock().ends = true;
        self.shared.work.notify_all();
        if let Some(writer) = self.writer.take() {
            // It ends after its last commit; a panic in it has been told.
            let _ended = writer.join();
        }
    }
}

/// Makes a ledger under another name first, so that there is never half of one under its own.
fn create(path: &Path, place: &str) -> Result<(), LedgerError> {
    let fresh = unfinished(path);
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(explain(&fresh, &error)),
        _ => {}
    }
    let disk: Arc<dyn Disk> = Arc::new(FileDisk::create(&fresh)?);
    opened::create(place, &disk, &boot_id())?;
    std::fs::rename(&fresh, path).map_err(|error| explain(path, &error))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| explain(folder, &error))
}

/// The boot id of this host; of no boot where that cannot be read.
fn boot_id() -> Arc<str> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(|_| "unknown".into(), |text| text.trim().into())
}

impl Ledger for RedbLedger {
    fn place(&self) -> String {
        self.shared.place.clone()
    }

    fn open(&self, pool: &PoolFacts) -> Result<Book, LedgerError> {
        let shared = &self.shared;
        let mut file = shared.file.lock();
        if file.bound {
            return Err(LedgerError::Busy { place: shared.place.clone() });
        }
        if file.book.is_none() {
            // An earlier pool has changed it.
            file.database = None;
        }
        shared.opened(&mut file)?;
        let gone = file.pool.as_ref().map_or(Ok(None), |recorded| pool.memory_gone(recorded, &shared.place))?;
        let mut book = file.book.take().unwrap_or_default();
        shared.commit(
            &mut file,
            |changes| {
                if let Some(instance) = gone.clone() {
                    let withdrawn = book.withdrawn().frames();
                    changes.forget_memory()?;
                    book.forget_memory();
                    changes.landmark(LandmarkKind::MemoryGone { instance: instance.clone(), withdrawn })?;
                    let Ok(()) = book.landmark(LandmarkKind::MemoryGone { instance, withdrawn });
                }
                let Ok(()) = book.landmark(LandmarkKind::Opened);
                changes.landmark(LandmarkKind::Opened)
            },
            Some(pool),
        )?;
        file.pool = Some(pool.clone());
        file.bound = true;
        Ok(book)
    }

    fn commit(&self, entries: Vec<Entry>) -> Result<(), LedgerError> {
        let shared = &self.shared;
        let until = Instant::now() + shared.options.patience;
        let number = shared.enqueue(entries, true);
        let mut queue = shared.queue.lock();
        loop {
            if let Some(answer) = queue.answers.remove(&number) {
                return answer;
            }
            if shared.answers.wait_until(&mut queue, until).timed_out() {
                let answered = queue.answers.remove(&number);
                // What the writer has not taken yet is not written any more.
                queue.jobs.retain(|job| job.number != number);
                let late = LedgerError::TimedOut { place: shared.place.clone(), bound: shared.options.patience };
                return answered.unwrap_or(Err(late));
            }
        }
    }

    fn submit(&self, entries: Vec<Entry>) {
        self.shared.enqueue(entries, false);
    }

    fn close(&self) {
        let shared = &self.shared;
        let until = Instant::now() + shared.options.patience;
        let mut queue = shared.queue.lock();
        while !(queue.jobs.is_empty() && queue.under_way == 0) {
            if shared.answers.wait_until(&mut queue, until).timed_out() {
                break;
            }
        }
        drop(queue);
        shared.file.lock().bound = false;
    }
}

impl Shared {
    fn enqueue(&self, entries: Vec<Entry>, waited_for: bool) -> u64 {
        let mut queue = self.queue.lock();
        queue.next += 1;
        let number = queue.next;
        queue.jobs.push_back(Job { number, entries, waited_for });
        drop(queue);
        self.work.notify_one();
        number
    }

    /// The writer's life.
    fn run(&self) {
        while let Some(jobs) = self.take_jobs() {
            let (jobs, refused) = self.with_room(jobs);
            let written = self.write(&jobs);
            let mut queue = self.queue.lock();
            queue.under_way = 0;
            for (job, why) in refused {
                queue.answers.insert(job.number, Err(why));
            }
            let mut kept = Vec::new();
            for job in jobs {
                match (&written, job.waited_for) {
                    (_, true) => {
                        queue.answers.insert(job.number, written.clone());
                    }
                    (Ok(()), false) => {}
                    (Err(_), false) => kept.push(job),
                }
            }
            // What nobody waits for is tried again, before everything that came later.
            kept.into_iter().rev().for_each(|job| queue.jobs.push_front(job));
            // Answers to callers who have stopped waiting.
            let next = queue.next;
            queue.answers.retain(|number, _| next - number < 1 << 16);
            self.answers.notify_all();
            if written.is_err() && !queue.ends {
                // Nobody is served by trying faster than this.
                self.work.wait_for(&mut queue, Duration::from_millis(20));
            }
        }
    }

    /// The next commit's jobs, in order; none at the end of the ledger.
    fn take_jobs(&self) -> Option<Vec<Job>> {
        let mut queue = self.queue.lock();
        let mut last_try = false;
        while queue.jobs.is_empty() {
            if queue.ends {
                return None;
            }
            self.work.wait(&mut queue);
        }
        if queue.ends {
            last_try = true;
        }
        let (mut jobs, mut entries) = (Vec::new(), 0);
        while let Some(job) = queue.jobs.pop_front() {
            entries += job.entries.len();
            jobs.push(job);
            if entries >= ENTRIES_IN_A_COMMIT && !last_try {
                break;
            }
        }
        queue.under_way = jobs.len();
        drop(queue);
        if last_try {
            // What cannot be written now will not be.
            let _last = self.write(&jobs);
            self.queue.lock().under_way = 0;
            self.answers.notify_all();
            return None;
        }
        Some(jobs)
    }

    /// Parts the jobs into those that may be written, and those that hand something out while too little room is left.
    fn with_room(&self, jobs: Vec<Job>) -> (Vec<Job>, Vec<(Job, LedgerError)>) {
        let hands_out = |job: &Job| job.waited_for && job.entries.iter().any(grows);
        if !jobs.iter().any(hands_out) {
            return (jobs, Vec::new());
        }
        // redb doubles its file.
        let room = self.disk.len().map(|length| length.max(self.options.reserve)).and_then(|bytes| self.disk.reserve(bytes));
        match room {
            Ok(()) => (jobs, Vec::new()),
            Err(error) => {
                let why = explain_at(&self.place, &error);
                let (refused, jobs): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(hands_out);
                (jobs, refused.into_iter().map(|job| (job, why.clone())).collect())
            }
        }
    }

    fn write(&self, jobs: &[Job]) -> Result<(), LedgerError> {
        if jobs.is_empty() {
            return Ok(());
        }
        let mut file = self.file.lock();
        self.opened(&mut file)?;
        self.commit(
            &mut file,
            |changes| jobs.iter().flat_map(|job| &job.entries).try_for_each(|entry| changes.apply(entry)),
            None,
        )
    }

    /// Opens the file, if it is not open.
    fn opened(&self, file: &mut File) -> Result<(), LedgerError> {
        if file.database.is_none() {
            let Opened { database, pool, totals, book, .. } = opened::open(&self.place, &self.disk, &self.boot)?;
            let bound = file.bound;
            *file = File { database: Some(database), pool, totals, book: Some(book), bound };
            if bound {
                file.book = None;
            }
        }
        Ok(())
    }

    /// One transaction. After an error nobody knows whether it was written: the file must be opened again.
    fn commit(
        &self,
        file: &mut File,
        change: impl FnOnce(&mut Changes<'_>) -> Result<(), crate::tables::StepError>,
        pool: Option<&PoolFacts>,
    ) -> Result<(), LedgerError> {
        let Some(database) = &file.database else {
            return Err(LedgerError::Io { place: self.place.clone(), why: "it is not open".to_owned() });
        };
        let mut totals = file.totals;
        totals.commits += 1;
        let attempt = || -> Result<Totals, LedgerError> {
            let redb = |error: redb::Error| explain_redb(&self.place, error);
            let mut txn = database.begin_write().map_err(|error| redb(error.into()))?;
            txn.set_two_phase_commit(true);
            let mut changes = Changes::begin(&txn, totals, Arc::clone(&self.boot)).map_err(redb)?;
            change(&mut changes).map_err(|error| explain_step(&self.place, error))?;
            let totals = changes.totals;
            drop(changes);
            put_meta(&txn, TOTALS_ROW, totals.to_bytes()).map_err(redb)?;
            if let Some(pool) = pool {
                put_meta(&txn, POOL_ROW, pool.to_bytes()).map_err(redb)?;
            }
            txn.commit().map_err(|error| redb(error.into()))?;
            Ok(totals)
        };
        match attempt() {
            Ok(totals) => {
                file.totals = totals;
                file.book = None;
                Ok(())
            }
            Err(error) => {
                file.database = None;
                Err(error)
            }
        }
    }
}

/// Whether the entry hands something out, and may be refused while there is too little room.
const fn grows(entry: &Entry) -> bool {
    matches!(entry, Entry::Allocated(_) | Entry::Held(_) | Entry::Attached { .. } | Entry::Replaced { .. })
}
