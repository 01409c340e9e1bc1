//! Threads that wait for work and cost nothing to those who have none for them.
//!
//! ```text
//! pool.run(tasks, |i| ...)      every i in 0..tasks exactly once, by the caller and whoever joins it
//! ```
//!
//! The caller opens a gate, works through the tasks itself, closes the gate and waits for those who went
//! in. A worker that wakes up too late finds the gate closed, so no call ever waits for a sleeping thread,
//! and a call of one task never touches the others at all. A second caller that finds the pool taken, and a
//! task that calls the pool again, do their tasks alone: nothing here can wait in a circle.
//!
//! Which thread runs a task is chance; what a task computes must not depend on it, and with tasks that
//! write disjoint parts it cannot.
//!
//! Why not rayon: two tasks of 5 us each, called back to back, take 5.6 us here and 13.2 us through a rayon pool
//! (`install` and `join`); two empty ones 0.15 and 4.7 us (two cores of an AMD EPYC Zen 4, medians of 2,000 calls).

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::matrix::MatrixMut;

/// From so many elements on, about 100 us of elementwise work, a second thread pays.
const PARALLEL: usize = 1 << 18;

/// Elements of one job of elementwise work: what one core's second-level cache holds.
pub(crate) const PART: usize = 1 << 16;

/// Work of fewer nanoseconds is not worth waking anyone.
const WORTH_WAKING: f64 = 40_000.0;
/// Nor the help of those who are awake: what it saves, it may cost when a core is busy, or when zeros make the work shorter than
/// it was counted. Shared from 4,000 on, MNIST images took 2.3 us in int8 instead of 1.6, and rows without zeros 3.0 instead of 3.3.
pub(super) const WORTH_SHARING: f64 = 5_000.0;

/// A handle on a set of threads; clones share them. The threads end with the last handle.
///
/// ```
/// use std::sync::atomic::{AtomicUsize, Ordering};
/// use trimnet::kernel::Pool;
///
/// let (pool, sum) = (Pool::new(2), AtomicUsize::new(0));
/// pool.run(100, |i| {
///     sum.fetch_add(i, Ordering::Relaxed);
/// });
/// assert_eq!(sum.into_inner(), 4950);
/// ```
#[derive(Clone, Default)]
pub struct Pool {
    crew: Option<Arc<crew::Crew>>,
}

impl Pool {
    /// The caller alone: no thread is ever started.
    pub const fn single() -> Self {
        Self { crew: None }
    }

    /// `threads` at a time, the caller's included; 0 and 1 mean the caller alone, as does every number without the
    /// feature `parallel`. If the system refuses a thread, the pool works with those it gave.
    pub fn new(threads: usize) -> Self {
        Self { crew: crew::Crew::hire(threads.saturating_sub(1)).map(Arc::new) }
    }

    /// The pool of all cores that this process may use, shared by everyone who asks; its threads start with the first.
    pub fn shared() -> Self {
        static SHARED: OnceLock<Pool> = OnceLock::new();
        SHARED.get_or_init(|| Self::new(std::thread::available_parallelism().map_or(1, usize::from))).clone()
    }

    /// How many threads work at the same time at best, the caller's included.
    pub fn threads(&self) -> usize {
        1 + self.crew.as_ref().map_or(0, |crew| crew.workers())
    }

    /// Whether so many nanoseconds of work, by a rough count, are worth sharing.
    pub(crate) fn pays(&self, nanoseconds: f64) -> bool {
        nanoseconds >= WORTH_SHARING
            && self.threads() > 1
            && (nanoseconds >= WORTH_WAKING || self.awake(nanoseconds))
    }

    /// Whether other threads would join a call at once, so that even so few nanoseconds of work are worth sharing. They do
    /// for a moment after each call; callers that ask this soon after the work of the time before, often enough, wake them.
    fn awake(&self, nanoseconds: f64) -> bool {
        self.crew.as_ref().is_some_and(|crew| crew.awake(nanoseconds))
    }

    /// Calls `task(i)` once for every `i` in `0..tasks`, at best on all threads, and returns when all are done.
    ///
    /// # Panics
    /// If a task panics: with its message, when no task runs any more. Tasks that had not begun are left out.
    pub fn run<F: Fn(usize) + Sync>(&self, tasks: usize, task: F) {
        match &self.crew {
            Some(crew) if tasks > 1 => crew.run(tasks, &task),
            _ => (0..tasks).for_each(task),
        }
    }

    /// Calls `task` once for each of `jobs`, which own or borrow what they work on. Without allocating; those after the
    /// first [`JOBS`](Self::JOBS) are left to the caller alone.
    pub(crate) fn share<J: Send>(&self, mut jobs: impl Iterator<Item = J>, task: impl Fn(J) + Sync) {
        if self.threads() > 1 {
            let slots = [const { Mutex::new(None) }; Self::JOBS];
            let mut count = 0;
            for (slot, job) in slots.iter().zip(jobs.by_ref()) {
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(job);
                count += 1;
            }
            self.run(count, |i| {
                if let Some(job) = slots[i].lock().unwrap_or_else(PoisonError::into_inner).take() {
                    task(job);
                }
            });
        }
        jobs.for_each(task);
    }

    /// Most jobs that [`share`](Self::share) shares out.
    pub(crate) const JOBS: usize = 64;
    /// Calls `task` once for each of `jobs`, which own or borrow what they work on. Alone, without collecting them.
    pub(crate) fn each<J: Send>(&self, jobs: impl Iterator<Item = J>, task: impl Fn(J) + Sync) {
        if self.threads() == 1 {
            return jobs.for_each(task);
        }
        let mut jobs: Vec<Option<J>> = jobs.map(Some).collect();
        let count = jobs.len();
        self.run_rows(MatrixMut::new(&mut jobs, count, 1), 1, |_, mut job| {
            if let Some(job) = job.row_mut(0)[0].take() {
                task(job);
            }
        });
    }

    /// The shared pool for work on `elements` numbers, or the caller alone if starting threads costs more than it saves.
    pub(crate) fn for_elements(elements: usize) -> Self {
        if elements < PARALLEL { Self::single() } else { Self::shared() }
    }

    /// Cuts `out` into parts of `width` columns and calls `task(i, part)` once for each, the last one perhaps narrower.
    ///
    /// # Panics
    /// If `width` is 0, or a task panics.
    pub fn run_columns<T: Send>(
        &self,
        out: MatrixMut<'_, T>,
        width: usize,
        task: impl Fn(usize, MatrixMut<'_, T>) + Sync,
    ) {
        assert!(width > 0, "parts of 0 columns");
        let (columns, whole) = (out.columns(), Parts(out));
        self.run(columns.div_ceil(width), |i| {
            let (first, last) = (i * width, ((i + 1) * width).min(columns));
            // SAFETY: `run` calls with each `i` once, and the column ranges of two `i` are disjoint.
            let part = unsafe { whole.get() };
            task(i, part.split_columns(last).0.split_columns(first).1);
        });
    }

    /// Cuts `out` into parts of `height` rows and calls `task(i, part)` once for each, the last one perhaps lower.
    ///
    /// # Panics
    /// If `height` is 0, or a task panics.
    pub fn run_rows<T: Send>(
        &self,
        out: MatrixMut<'_, T>,
        height: usize,
        task: impl Fn(usize, MatrixMut<'_, T>) + Sync,
    ) {
        assert!(height > 0, "parts of 0 rows");
        let (rows, whole) = (out.rows(), Parts(out));
        self.run(rows.div_ceil(height), |i| {
            let (first, last) = (i * height, ((i + 1) * height).min(rows));
            // SAFETY: `run` calls with each `i` once, and the row ranges of two `i` are disjoint.
            let part = unsafe { whole.get() };
            task(i, part.split_rows(last).0.split_rows(first).1);
        });
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

/// A matrix that several tasks cut their own parts out of.
struct Parts<'a, T>(MatrixMut<'a, T>);

// SAFETY: shared references to it do nothing but `get`, whose contract keeps apart what threads reach; elements may
// move between threads, `T: Send`.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    /// The whole matrix once more.
    ///
    /// # Safety
    /// Of the results of different calls, only disjoint parts may be used.
    unsafe fn get(&self) -> MatrixMut<'a, T> {
        // SAFETY: a bitwise copy of a plain view without a destructor; aliasing is excluded by the contract above.
        unsafe { std::ptr::read(&self.0) }
    }
}

#[cfg(not(feature = "parallel"))]
mod crew {
    /// No threads.
    pub(super) enum Crew {}

    impl Crew {
        pub(super) fn hire(_workers: usize) -> Option<Self> {
            None
        }

        pub(super) fn workers(&self) -> usize {
            match *self {}
        }

        pub(super) fn awake(&self, _nanoseconds: f64) -> bool {
            match *self {}
        }

        pub(super) fn run<F: Fn(usize) + Sync>(&self, _tasks: usize, _task: &F) {
            match *self {}
        }
    }
}

#[cfg(feature = "parallel")]
mod crew;

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn counts(pool: &Pool, tasks: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        pool.run(tasks, |i| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn runs_every_task_exactly_once() {
        for threads in [0, 1, 2, 3, 8] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 3, 7, 64, 1000] {
                assert_eq!(counts(&pool, tasks), vec![1; tasks], "{threads} threads, {tasks} tasks");
            }
        }
    }

    #[test]
    fn starts_no_thread_when_told_so() {
        assert_eq!(Pool::single().threads(), 1);
        assert_eq!(Pool::new(0).threads(), 1);
        assert_eq!(Pool::new(1).threads(), 1);
        assert_eq!(Pool::default().threads(), 1);
    }

    #[test]
    fn a_short_call_right_after_another_works_ten_thousand_times() {
        let pool = Pool::new(4);
        let total = AtomicUsize::new(0);
        for _ in 0..10_000 {
            pool.run(3, |i| {
                total.fetch_add(i + 1, Ordering::Relaxed);
            });
        }
        assert_eq!(total.into_inner(), 60_000);
    }

    #[test]
    fn wakes_workers_that_have_gone_to_sleep() {
        let pool = Pool::new(3);
        for _ in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(5));
            assert_eq!(counts(&pool, 50), vec![1; 50]);
        }
    }

    #[cfg(feature = "parallel")]
    #[test]
    fn a_quick_succession_of_questions_wakes_workers() {
        let pool = Pool::new(3);
        assert!(!Pool::single().awake(0.0));
        // Whether the work in between takes hardly any time or longer than they stay awake.
        for nanoseconds in [1_000u32, 100_000] {
            while pool.awake(0.0) {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            // Ten seconds of work, for workers that other programs keep from running.
            assert!((0..10_000_000_000 / u64::from(nanoseconds)).any(|_| {
                let begin = std::time::Instant::now();
                let awake = pool.awake(f64::from(nanoseconds));
                while begin.elapsed().as_nanos() < u128::from(nanoseconds) {
                    std::hint::spin_loop();
                }
                awake
            }));
            assert_eq!(counts(&pool, 50), vec![1; 50]);
        }
    }

    #[test]
    fn sixteen_callers_share_one_pool() {
        let pool = Pool::new(3);
        std::thread::scope(|scope| {
            for caller in 0..16 {
                let pool = pool.clone();
                scope.spawn(move || {
                    for tasks in 0..200 {
                        assert_eq!(counts(&pool, tasks), vec![1; tasks], "caller {caller}");
                    }
                });
            }
        });
    }

    #[test]
    fn a_task_may_call_the_pool_again() {
        let pool = Pool::new(3);
        let total = AtomicUsize::new(0);
        pool.run(6, |_| {
            pool.run(5, |_| {
                pool.run(2, |_| {
                    total.fetch_add(1, Ordering::Relaxed);
                });
            });
        });
        assert_eq!(total.into_inner(), 60);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        for bad in [0, 1, 30, 59] {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                pool.run(60, |i| assert_ne!(i, bad, "task {bad} fails"));
            }));
            let message = *result.unwrap_err().downcast::<String>().unwrap();
            assert!(message.contains(&format!("task {bad} fails")), "{message}");
            assert_eq!(counts(&pool, 60), vec![1; 60]);
        }
    }

    #[test]
    fn cuts_a_matrix_into_disjoint_parts() {
        let pool = Pool::new(3);
        for (rows, columns, size) in [(0, 5, 2), (5, 0, 2), (1, 1, 1), (7, 13, 4), (13, 7, 20)] {
            let mut data = vec![0usize; rows * columns];
            pool.run_columns(MatrixMut::new(&mut data, rows, columns), size, |i, mut part| {
                for row in 0..part.rows() {
                    part.row_mut(row).iter_mut().for_each(|x| *x += 1 + i);
                }
            });
            pool.run_rows(MatrixMut::new(&mut data, rows, columns), size, |i, mut part| {
                for row in 0..part.rows() {
                    part.row_mut(row).iter_mut().for_each(|x| *x += 100 * (1 + i));
                }
            });
            let expected: Vec<usize> = (0..rows * columns)
                .map(|at| 1 + (at % columns) / size + 100 * (1 + (at / columns) / size))
                .collect();
            assert_eq!(data, expected);
        }
    }
}
