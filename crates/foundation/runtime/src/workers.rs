//! The data-plane threads: single-threaded runtimes that share nothing.
//!
//! In: futures that need not be `Send`, with the number of the worker to run them. Out:
//! their results. Promise: a thread is started on its first task; dropping the handle of
//! a task ends it; a panic, also one outside a task, reaches whoever waits for a task.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle, LocalOptions};
use tokio::sync::{mpsc, oneshot};

use crate::panics::{CatchPanic, describe};

/// Tasks that may wait to be taken up by one worker. Workers take up tasks within
/// microseconds; one that does not is wedged, and a task for it fails at once.
const QUEUE: usize = 1024;

type Job = Box<dyn FnOnce() + Send>;

/// The data-plane threads. Cheap to clone.
#[derive(Clone)]
pub struct Workers(Arc<Vec<Worker>>);

struct Worker {
    index: usize,
    thread: Mutex<Option<Thread>>,
    vitals: Arc<Vitals>,
}

struct Thread {
    jobs: mpsc::Sender<Job>,
    join: JoinHandle<()>,
}

#[derive(Default)]
struct Vitals {
    tasks: AtomicUsize,
    /// Panics outside a task; each cost every task of the worker.
    deaths: AtomicU64,
    /// Whether a ping is under way, and since when.
    ping: Mutex<Option<Instant>>,
    started: AtomicBool,
    handle: Mutex<Option<Handle>>,
}

/// One worker as the admin API shows it.
pub(crate) struct WorkerState {
    pub(crate) index: usize,
    pub(crate) started: bool,
    pub(crate) tasks: usize,
    pub(crate) alive_tasks: usize,
    pub(crate) deaths: u64,
    /// How long it has not answered.
    pub(crate) silent: Option<Duration>,
}

impl Workers {
    /// `count` workers (at least one). No thread is started yet.
    pub fn new(count: usize) -> Self {
        let worker = |index| Worker { index, thread: Mutex::new(None), vitals: Arc::new(Vitals::default()) };
        Self(Arc::new((0..count.max(1)).map(worker).collect()))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Runs `make()` and then the future it gives on worker `worker` (modulo their number).
    ///
    /// A task per listener is meant, not one per connection: those are `spawn_local`ed by that task.
    /// `make` and the future may panic: the panic comes out of the [`WorkerTask`]. Within the future,
    /// `tokio::task::spawn_local` and `JoinSet::spawn_local` are there for further tasks of the same worker.
    pub fn spawn<F, Fut, T>(&self, worker: usize, make: F) -> WorkerTask<T>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let worker = &self.0[worker % self.0.len()];
        let (result, receiver) = oneshot::channel();
        let counted = TaskCount::new(Arc::clone(&worker.vitals));
        let job: Job = Box::new(move || {
            let task = async move {
                let _counted = counted;
                let mut result = result;
                let mut run = CatchPanic::new(async move { make().await });
                let outcome = tokio::select! {
                    biased;
                    () = result.closed() => return,
                    outcome = &mut run => outcome,
                };
                // Whoever waited may have gone; then nobody wants the result.
                let _ = result.send(outcome);
            };
            // The task ends with its handle: dropping that closes the channel of the result.
            drop(tokio::task::spawn_local(task));
        });
        let index = worker.index;
        let refused = worker.submit(job).err();
        WorkerTask { index, receiver, refused }
    }

    /// How each worker is.
    pub(crate) fn states(&self) -> Vec<WorkerState> {
        self.0.iter().map(Worker::state).collect()
    }

    /// Asks every started worker for a sign of life and gives them `patience` to answer. Returns how each is.
    pub(crate) async fn ping(&self, patience: Duration) -> Vec<WorkerState> {
        let answers: Vec<_> = self.0.iter().filter_map(Worker::ping).collect();
        let all = async {
            for answer in answers {
                let _ = answer.await;
            }
        };
        let _ = tokio::time::timeout(patience, all).await;
        self.states()
    }

    /// Ends all threads, and waits for them until `deadline`; one that does not end is left behind.
    pub(crate) fn shutdown(&self, deadline: Instant) {
        let threads: Vec<Thread> = self.0.iter().filter_map(|worker| worker.thread.lock().take()).collect();
        let joins: Vec<JoinHandle<()>> = threads.into_iter().map(|thread| thread.join).collect();
        for join in joins {
            while !join.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            if join.is_finished() {
                let _ = join.join();
            } else {
                tracing::warn!(component = "runtime", "a worker thread did not end in time");
            }
        }
    }
}

impl Worker {
    fn submit(&self, job: Job) -> Result<(), String> {
        let mut thread = self.thread.lock();
        if thread.as_ref().is_none_or(|thread| thread.join.is_finished()) {
            *thread = Some(self.start().map_err(|error| format!("its thread cannot be started: {error}"))?);
        }
        let Some(thread) = thread.as_ref() else { return Err("it has no thread".to_owned()) };
        thread.jobs.try_send(job).map_err(|_| "it is wedged: its queue is full".to_owned())
    }

    fn start(&self) -> std::io::Result<Thread> {
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        let (index, vitals) = (self.index, Arc::clone(&self.vitals));
        let join = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            outrigger_telemetry::set_shard(index + 1);
            // A panic outside a task costs all tasks of this worker; those who wait for them
            // are told, and the worker itself goes on with a new runtime.
            while let Err(payload) = catch_unwind(AssertUnwindSafe(|| serve(&mut queue, &vitals))) {
                vitals.deaths.fetch_add(1, Ordering::Relaxed);
                let told = describe(&*payload);
                tracing::error!(component = "runtime", worker = index, error = %told, "worker died; all its tasks are lost");
            }
        })?;
        self.vitals.started.store(true, Ordering::Relaxed);
        Ok(Thread { jobs, join })
    }

    fn ping(&self) -> Option<oneshot::Receiver<()>> {
        let thread = self.thread.lock();
        let thread = thread.as_ref()?;
        let mut ping = self.vitals.ping.lock();
        if ping.is_some() {
            return None;
        }
        *ping = Some(Instant::now());
        drop(ping);
        let (sender, receiver) = oneshot::channel();
        let vitals = Arc::clone(&self.vitals);
        // A queue that is full stays unanswered, which is the truth about the worker.
        let _ = thread.jobs.try_send(Box::new(move || {
            *vitals.ping.lock() = None;
            let _ = sender.send(());
        }));
        Some(receiver)
    }

    fn state(&self) -> WorkerState {
        let alive = self.vitals.handle.lock().as_ref().map_or(0, |handle| handle.metrics().num_alive_tasks());
        WorkerState {
            index: self.index,
            started: self.vitals.started.load(Ordering::Relaxed),
            tasks: self.vitals.tasks.load(Ordering::Relaxed),
            alive_tasks: alive,
            deaths: self.vitals.deaths.load(Ordering::Relaxed),
            silent: self.vitals.ping.lock().map(|since| since.elapsed()),
        }
    }
}

/// One life of a worker: takes up jobs until all handles are gone.
fn serve(queue: &mut mpsc::Receiver<Job>, vitals: &Vitals) {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_name("worker-blocking")
        .build_local(LocalOptions::default())
        .expect("a runtime needs only an epoll instance and an eventfd");
    *vitals.handle.lock() = Some(runtime.handle().clone());
    runtime.block_on(async {
        while let Some(job) = queue.recv().await {
            job();
        }
    });
    runtime.shutdown_background();
}

struct TaskCount(Arc<Vitals>);

impl TaskCount {
    fn new(vitals: Arc<Vitals>) -> Self {
        vitals.tasks.fetch_add(1, Ordering::Relaxed);
        Self(vitals)
    }
}

impl Drop for TaskCount {
    fn drop(&mut self) {
        self.0.tasks.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A task on a worker: await it for its result; drop it to end the task.
#[must_use = "dropping it ends the task"]
pub struct WorkerTask<T> {
    index: usize,
    receiver: oneshot::Receiver<Result<T, String>>,
    refused: Option<String>,
}

impl<T> Future for WorkerTask<T> {
    type Output = Result<T, WorkerPanic>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let worker = self.index;
        if let Some(message) = self.refused.take() {
            return Poll::Ready(Err(WorkerPanic { worker, message }));
        }
        Pin::new(&mut self.receiver).poll(cx).map(|outcome| match outcome {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(message)) => Err(WorkerPanic { worker, message }),
            Err(_) => Err(WorkerPanic { worker, message: "the worker died or was shut down".to_owned() }),
        })
    }
}

/// A task on a worker ended without a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerPanic {
    /// The worker's number.
    pub worker: usize,
    /// What happened: the panic's place and message, or why the task could not run.
    pub message: String,
}

impl fmt::Display for WorkerPanic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {}: {}", self.worker, self.message)
    }
}

impl std::error::Error for WorkerPanic {}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[tokio::test]
    async fn a_future_that_is_not_send_runs_on_a_named_thread() {
        let workers = Workers::new(2);
        let name = workers.spawn(1, || async {
            let name = Rc::new(std::thread::current().name().map(str::to_owned));
            tokio::task::yield_now().await;
            (*name).clone()
        });
        assert_eq!(name.await.unwrap().as_deref(), Some("worker-1"));
        assert!(!workers.states()[0].started, "a worker nobody uses has no thread");
        workers.shutdown(Instant::now() + Duration::from_secs(5));
    }

    #[tokio::test]
    async fn a_panic_comes_out_of_the_task_and_the_worker_lives_on() {
        let workers = Workers::new(1);
        let failure = workers.spawn(0, || async { panic!("bad {}", 1) }).await;
        let failure: Result<(), WorkerPanic> = failure;
        assert!(failure.unwrap_err().message.contains("bad 1"));
        let failure = workers.spawn(0, || -> std::future::Ready<()> { panic!("in make") }).await;
        assert!(failure.unwrap_err().message.contains("in make"));
        assert_eq!(workers.spawn(0, || async { 5 }).await, Ok(5));
    }

    #[tokio::test]
    async fn a_panic_outside_a_task_reaches_those_who_wait_and_the_worker_starts_anew() {
        let workers = Workers::new(1);
        let lost = workers.spawn(0, std::future::pending::<()>);
        workers.0[0].submit(Box::new(|| panic!("outside"))).unwrap();
        assert!(lost.await.unwrap_err().message.contains("died"));
        assert_eq!(workers.spawn(0, || async { 6 }).await, Ok(6));
        assert_eq!(workers.states()[0].deaths, 1);
    }

    #[tokio::test]
    async fn dropping_the_handle_ends_the_task_on_its_worker() {
        struct Told(Option<oneshot::Sender<Option<String>>>);
        impl Drop for Told {
            fn drop(&mut self) {
                let name = std::thread::current().name().map(str::to_owned);
                self.0.take().map(|sender| sender.send(name));
            }
        }
        let workers = Workers::new(1);
        let (sender, dropped) = oneshot::channel();
        let (begins, begun) = oneshot::channel();
        let task = workers.spawn(0, move || async move {
            let _told = Told(Some(sender));
            let _ = begins.send(());
            std::future::pending::<()>().await;
        });
        begun.await.unwrap();
        drop(task);
        assert_eq!(dropped.await.unwrap().as_deref(), Some("worker-0"));
    }

    #[tokio::test]
    async fn a_worker_that_does_not_answer_is_found_out() {
        let workers = Workers::new(1);
        assert_eq!(workers.spawn(0, || async { 1 }).await, Ok(1));
        assert!(workers.ping(Duration::from_secs(5)).await[0].silent.is_none());
        let (release, wait) = std::sync::mpsc::sync_channel::<()>(0);
        let busy = workers.spawn(0, move || async move { wait.recv().is_ok() });
        while workers.ping(Duration::from_millis(20)).await[0].silent.is_none() {}
        release.send(()).unwrap();
        assert_eq!(busy.await, Ok(true));
        while workers.ping(Duration::from_secs(5)).await[0].silent.is_some() {}
    }
}
