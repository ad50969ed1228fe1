//! Threads that do the pieces of one step at the same time.

use std::{
    any::Any,
    cell::UnsafeCell,
    fmt, hint,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle, Thread},
};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::{Error, Threads};

/// How often a thread looks for work, or for the end of it, before it sleeps: longer than the gaps between the steps of a
/// run.
const SPINS: usize = 2_000;

/// A fixed number of threads, the one that asks among them. They take no memory once started.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads of a pool share.
struct Shared {
    /// Counts what was asked for: a new number starts the threads.
    round: AtomicUsize,
    /// Threads that are not done with it.
    left: AtomicUsize,
    /// Written while no thread is at work.
    asked: UnsafeCell<Option<Asked>>,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// What is to be done, and who waits for it.
struct Asked {
    work: *const (dyn Fn(usize) + Sync),
    caller: Thread,
}

// SAFETY: `asked` is written by the caller alone while no thread is at work, and read between its announcement in
// `round` and its end in `left`; the work may be shared, and lives until then.
unsafe impl Send for Shared {}
// SAFETY: the same.
unsafe impl Sync for Shared {}

impl fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} threads", self.count())
    }
}

impl Pool {
    /// Starts all threads but the one that asks.
    ///
    /// # Errors
    /// When the system refuses one, or refuses to pin it.
    pub fn new(threads: Threads) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            round: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            asked: UnsafeCell::new(None),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Self {
            shared: shared.clone(),
            threads: Vec::new(),
        };
        let refused = |source| Error::Threads {
            count: threads.count,
            source,
        };
        for piece in 1..threads.count {
            let (shared, name) = (shared.clone(), format!("preface-{piece}"));
            let started = thread::Builder::new().name(name);
            let started = started.spawn(move || shared.serve(piece));
            pool.threads.push(started.map_err(refused)?);
        }
        if threads.pinned {
            pool.pin().map_err(|error| refused(error.into()))?;
        }
        Ok(pool)
    }

    /// Keeps every thread but this one on a processor of its own, as far as there are enough; the first is left to this
    /// one.
    fn pin(&mut self) -> rustix::io::Result<()> {
        let processors = processors()?;
        let mut pinned = vec![Ok(()); self.count()];
        self.each(&mut pinned, |piece, pinned| {
            if piece > 0 {
                let mut only = CpuSet::new();
                only.set(processors[piece % processors.len()]);
                *pinned = sched_setaffinity(None, &only);
            }
        });
        pinned.into_iter().collect()
    }

    /// Threads, the one that asks among them.
    pub fn count(&self) -> usize {
        self.threads.len() + 1
    }

    /// Does `work` with each of `states` and its number, all at the same time: the first on this thread.
    ///
    /// # Panics
    /// When there are not as many states as threads, or `work` panics.
    pub fn each<S: Send>(&mut self, states: &mut [S], work: impl Fn(usize, &mut S) + Sync) {
        struct States<S>(*mut S);
        // SAFETY: each thread makes a reference to a state of its own.
        unsafe impl<S: Send> Sync for States<S> {}
        impl<S> States<S> {
            fn at(&self, index: usize) -> *mut S {
                self.0.wrapping_add(index)
            }
        }

        assert_eq!(states.len(), self.count(), "a state for each thread");
        let states = States(states.as_mut_ptr());
        // SAFETY: pieces are as many as states, and each is given to one thread.
        self.run(&|piece| work(piece, unsafe { &mut *states.at(piece) }));
    }

    /// Does `work` for every piece.
    fn run(&mut self, work: &(dyn Fn(usize) + Sync)) {
        if self.threads.is_empty() {
            return work(0);
        }
        let shared = &*self.shared;
        // SAFETY: a lifetime is left out that outlasts this call, which returns only when no thread uses the work.
        let work_of_all: *const (dyn Fn(usize) + Sync) =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), _>(work) };
        // SAFETY: no thread is at work: the last call waited for them.
        unsafe {
            *shared.asked.get() = Some(Asked {
                work: work_of_all,
                caller: thread::current(),
            });
        }
        shared.left.store(self.threads.len(), Ordering::Relaxed);
        shared.round.fetch_add(1, Ordering::Release);
        self.threads
            .iter()
            .for_each(|thread| thread.thread().unpark());
        let own = catch_unwind(AssertUnwindSafe(|| work(0)));
        wait(|| shared.left.load(Ordering::Acquire) == 0);
        let others = shared.panic.lock().ok().and_then(|mut panic| panic.take());
        if let Some(panic) = own.err().or(others) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.round.fetch_add(1, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // Panics were the callers'.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Does the pieces numbered `piece` until the pool is dropped.
    fn serve(&self, piece: usize) {
        let mut seen = 0;
        loop {
            wait(|| self.round.load(Ordering::Acquire) != seen);
            seen = seen.wrapping_add(1);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            // SAFETY: the caller announced what it asks for before, and waits until `left` says that nobody reads it.
            let Some(asked) = (unsafe { &*self.asked.get() }) else {
                return;
            };
            // SAFETY: the same; the work lives until then.
            let work = unsafe { &*asked.work };
            let done = catch_unwind(AssertUnwindSafe(|| work(piece)));
            if let (Err(panic), Ok(mut slot)) = (done, self.panic.lock()) {
                *slot = Some(panic);
            }
            let caller = asked.caller.clone();
            if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                caller.unpark();
            }
        }
    }
}

/// Returns when `ready` says so: looks often at first, then sleeps until it is woken.
fn wait(ready: impl Fn() -> bool) {
    for _ in 0..SPINS {
        if ready() {
            return;
        }
        hint::spin_loop();
    }
    while !ready() {
        thread::park();
    }
}

/// The processors that this process may use.
fn processors() -> rustix::io::Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    let all = 0..CpuSet::MAX_CPU;
    Ok(all.filter(|&processor| allowed.is_set(processor)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(count: usize) -> Pool {
        Pool::new(Threads {
            count,
            pinned: false,
        })
        .unwrap()
    }

    #[test]
    fn every_piece_is_done_once_on_a_thread_of_its_own() {
        for count in 1..=5 {
            let mut pool = pool(count);
            assert_eq!(pool.count(), count);
            let mut seen = vec![(0, None); count];
            for round in 1..=2_000 {
                pool.each(&mut seen, |piece, (times, thread)| {
                    *times += piece + 1;
                    let here = thread::current().id();
                    assert_eq!(*thread.get_or_insert(here), here);
                });
                let times = seen.iter().map(|&(times, _)| times);
                assert!(times.eq((1..=count).map(|piece| piece * round)));
            }
            let mut threads: Vec<_> = seen.iter().map(|&(_, thread)| thread).collect();
            threads.dedup();
            assert_eq!(threads.len(), count);
        }
    }

    #[test]
    fn a_sleeping_pool_wakes() {
        let mut pool = pool(3);
        let mut times = [0; 3];
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(20));
            pool.each(&mut times, |_, times| *times += 1);
        }
        assert_eq!(times, [3; 3]);
    }

    #[test]
    fn a_panic_of_a_piece_is_the_callers_and_the_pool_goes_on() {
        let mut pool = pool(3);
        let mut done = [false; 3];
        for bad in [&[0][..], &[1], &[2], &[0, 1, 2]] {
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                pool.each(&mut done, |piece, _| {
                    assert!(!bad.contains(&piece), "as it should")
                });
            }));
            assert!(panicked.is_err());
            pool.each(&mut done, |_, done| *done = true);
            assert_eq!(done, [true; 3]);
        }
    }

    #[test]
    fn threads_stay_where_they_are_pinned() {
        let processors = processors().unwrap();
        let mut pool = Pool::new(Threads {
            count: 3,
            pinned: true,
        })
        .unwrap();
        let mut found = [const { Vec::new() }; 3];
        pool.each(&mut found, |_, found| *found = self::processors().unwrap());
        assert_eq!(found[0], processors);
        for (piece, found) in found.iter().enumerate().skip(1) {
            assert_eq!(found[..], [processors[piece % processors.len()]]);
        }
    }
}
