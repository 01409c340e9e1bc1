//! The threads of a [`super::Pool`], and the gate through which they come to help.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Instant;

/// Nanoseconds for which a worker without work looks for more before it sleeps: about what waking it costs, several times over.
const AWAKE: u64 = 30_000;

/// So many nanoseconds of work in quick succession wake workers that sleep.
const ALONE: u64 = 500_000;

/// The gate: the number of calls so far, whether one is open, and how many workers are inside.
const INSIDE: u64 = 0xffff;
const OPEN: u64 = 1 << 16;
const CALL: u64 = 1 << 17;

/// More workers than this would overflow the count of those inside.
const MOST: usize = 1024;

/// A call in progress, as workers see it: a closure without its type and lifetime.
#[derive(Clone, Copy)]
struct Job {
    task: *const (),
    /// Calls the closure behind `task`, which must be of the type that this was made for, and alive.
    call: unsafe fn(*const (), usize),
    tasks: usize,
}

struct Worker {
    asleep: AtomicBool,
}

struct Shared {
    /// Whether a caller has the pool.
    taken: AtomicBool,
    gate: AtomicU64,
    /// Written by the caller that has taken the pool, while the gate is closed and nobody is inside; read inside.
    job: UnsafeCell<Job>,
    /// The next task to begin.
    next: AtomicUsize,
    /// What the first panic of a worker carried.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    workers: Vec<Worker>,
    closing: AtomicBool,
    /// When the pool began.
    begin: Instant,
    /// Nanoseconds from then to the end, as expected, of the last work that somebody was not awake for.
    ends: AtomicU64,
    /// Nanoseconds of such work in quick succession.
    alone: AtomicU64,
}

// SAFETY: `job` is the one part that is not `Send + Sync` by itself, and its rule, kept by `Crew::run` and `enter`, orders
// every write before the reads through the gate; the closure behind its pointer is `Sync`, by the bound of `Crew::run`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

pub(super) struct Crew {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// Gives the pool back when a call ends.
struct Taken<'a>(&'a Shared);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.0.taken.store(false, Ordering::Release);
    }
}

impl Crew {
    /// Starts so many threads, or as many as the system gives; `None` for none.
    pub(super) fn hire(workers: usize) -> Option<Self> {
        let workers = workers.min(MOST);
        let shared = Arc::new(Shared {
            taken: AtomicBool::new(false),
            gate: AtomicU64::new(0),
            job: UnsafeCell::new(Job { task: std::ptr::null(), call: nothing, tasks: 0 }),
            next: AtomicUsize::new(0),
            panic: Mutex::new(None),
            workers: (0..workers).map(|_| Worker { asleep: AtomicBool::new(false) }).collect(),
            closing: AtomicBool::new(false),
            begin: Instant::now(),
            ends: AtomicU64::new(0),
            alone: AtomicU64::new(0),
        });
        let mut threads = Vec::with_capacity(workers);
        for index in 0..workers {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name(format!("trimnet-{index}"));
            match thread.spawn(move || shared.work(index)) {
                Ok(thread) => threads.push(thread),
                Err(_) => break,
            }
        }
        (!threads.is_empty()).then_some(Self { shared, threads })
    }

    pub(super) fn workers(&self) -> usize {
        self.threads.len()
    }

    pub(super) fn run<F: Fn(usize) + Sync>(&self, tasks: usize, task: &F) {
        let shared = &*self.shared;
        if shared.taken.swap(true, Ordering::Acquire) {
            // Someone else's call, or one further up in this thread: alone is the way that cannot get stuck.
            (0..tasks).for_each(task);
            return;
        }
        let taken = Taken(shared);
        let job = Job { task: std::ptr::from_ref(task).cast(), call: call::<F>, tasks };
        shared.next.store(0, Ordering::Relaxed);
        // SAFETY: this caller has taken the pool, and the one before it left with the gate closed and nobody inside.
        unsafe { *shared.job.get() = job };
        // From here until `close` returns, workers may use `task`. No step in between can unwind.
        shared.gate.fetch_add(CALL | OPEN, Ordering::SeqCst);
        self.wake(tasks - 1);
        let mine = catch_unwind(AssertUnwindSafe(|| shared.take_tasks(job)));
        if mine.is_err() {
            shared.next.store(tasks, Ordering::Relaxed);
        }
        shared.close();
        let theirs = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(taken);
        if let Some(panic) = mine.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    /// Whether all workers look for work right now. Enough work of those who ask, each soon after that of the time before,
    /// wakes those who sleep.
    pub(super) fn awake(&self, nanoseconds: f64) -> bool {
        let shared = &*self.shared;
        if shared.workers.iter().all(|worker| !worker.asleep.load(Ordering::Relaxed)) {
            return true;
        }
        let (now, work) = (shared.now(), nanoseconds as u64);
        let before = shared.ends.swap(now + work, Ordering::Relaxed);
        if now.saturating_sub(before) > AWAKE {
            shared.alone.store(0, Ordering::Relaxed);
        } else if shared.alone.fetch_add(work, Ordering::Relaxed) >= ALONE {
            shared.alone.store(0, Ordering::Relaxed);
            self.wake(self.threads.len());
        }
        false
    }

    /// Wakes sleepers until `wanted` workers are up.
    fn wake(&self, wanted: usize) {
        for (worker, thread) in self.shared.workers.iter().zip(&self.threads).take(wanted) {
            // The plain load first: a worker that is up costs no write to its cache line.
            if worker.asleep.load(Ordering::SeqCst) && worker.asleep.swap(false, Ordering::SeqCst) {
                thread.thread().unpark();
            }
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let handle: &Thread = thread.thread();
            handle.unpark();
            // A worker cannot fail: what its tasks throw is caught.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// The life of a worker.
    fn work(&self, index: usize) {
        let mut last = 0; // the number of the last call it went to
        while let Some(call) = self.wait(index, last) {
            last = call;
            if let Some(job) = self.enter(call) {
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.take_tasks(job))) {
                    self.next.store(job.tasks, Ordering::Relaxed);
                    let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
                    match *first {
                        None => *first = Some(panic),
                        // Dropping it could panic again, outside of every net.
                        Some(_) => std::mem::forget(panic),
                    }
                }
                // Release: what the tasks wrote is there before the caller sees this worker gone.
                self.gate.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// Nanoseconds since the pool began.
    fn now(&self) -> u64 {
        self.begin.elapsed().as_nanos() as u64
    }

    /// The number of an open call other than `last`, or `None` when the pool ends. Looks for a while, then sleeps; for who was
    /// just woken, the while begins at the end of the work that was begun without it.
    fn wait(&self, index: usize, last: u64) -> Option<u64> {
        let asleep = &self.workers[index].asleep;
        let open = || {
            let gate = self.gate.load(Ordering::SeqCst);
            (gate & OPEN != 0 && gate / CALL != last).then_some(gate / CALL)
        };
        loop {
            let end = self.now().max(self.ends.load(Ordering::Relaxed)) + AWAKE;
            loop {
                if let Some(call) = open() {
                    return Some(call);
                }
                if self.closing.load(Ordering::SeqCst) {
                    return None;
                }
                if self.now() >= end {
                    break;
                }
                (0..16).for_each(|_| spin_loop());
            }
            // Announced before the last look: a caller opens the gate before it reads `asleep`, so one of the two sees the other.
            asleep.store(true, Ordering::SeqCst);
            if open().is_none() && !self.closing.load(Ordering::SeqCst) {
                thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
        }
    }

    /// Goes in, unless the call is over.
    fn enter(&self, call: u64) -> Option<Job> {
        let here = |gate: u64| (gate & OPEN != 0 && gate / CALL == call).then_some(gate + 1);
        self.gate.fetch_update(Ordering::Acquire, Ordering::Relaxed, here).ok()?;
        // SAFETY: inside an open gate: the job was written before it opened, and is not written before this worker has left.
        Some(unsafe { *self.job.get() })
    }

    /// Begins tasks until none is left.
    fn take_tasks(&self, job: Job) {
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= job.tasks {
                return;
            }
            // SAFETY: `job.call` was made for the type of `job.task`, and `Crew::run` keeps that alive until all have left.
            unsafe { (job.call)(job.task, i) };
        }
    }

    /// Closes the gate and waits until nobody is inside.
    fn close(&self) {
        let mut gate = self.gate.fetch_and(!OPEN, Ordering::AcqRel) & !OPEN;
        let mut looks = 0u32;
        while gate & INSIDE != 0 {
            looks += 1;
            // A worker whose core was taken away needs ours to finish.
            if looks.is_multiple_of(512) {
                thread::yield_now()
            } else {
                spin_loop()
            }
            gate = self.gate.load(Ordering::Acquire);
        }
    }
}

/// # Safety
/// `task` points to a living `F`.
unsafe fn call<F: Fn(usize) + Sync>(task: *const (), i: usize) {
    // SAFETY: the contract of this function.
    unsafe { (*task.cast::<F>())(i) }
}

/// The job of a pool that has had none.
///
/// # Safety
/// None needed; the type is that of [`call`].
unsafe fn nothing(_: *const (), _: usize) {}
