//! Whether the server serves: its sockets, counted, and its tasks, which are started again when they end.

use std::{cell::Cell, future::Future, rc::Rc, sync::Arc, time::Duration};

use super::metrics::Counters;

/// Pause before a task that ended is started again.
const PAUSE: Duration = Duration::from_secs(1);

/// The sockets that there are to be, and how many of them there are.
#[derive(Debug)]
pub(super) struct Doors {
    all: usize,
    open: Cell<usize>,
    counters: Arc<Counters>,
}

/// A socket that is served; until it is dropped.
#[derive(Debug)]
pub(super) struct Open(Rc<Doors>);

impl Doors {
    /// None of so many is open.
    pub(super) fn new(all: usize, counters: Arc<Counters>) -> Rc<Self> {
        Rc::new(Self { all, open: Cell::new(0), counters })
    }

    /// One more is open.
    pub(super) fn open(self: &Rc<Self>) -> Open {
        self.set(self.open.get() + 1);
        Open(self.clone())
    }

    fn set(&self, open: usize) {
        self.open.set(open);
        self.counters.set_up(open >= self.all);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(self.0.open.get().saturating_sub(1));
    }
}

/// Runs a task of this thread for ever: one that ends, by a fault as a rule, is started again.
pub(super) fn kept_up<F: Future<Output = ()> + 'static>(what: &'static str, task: impl Fn() -> F + 'static) {
    tokio::task::spawn_local(async move {
        loop {
            let ended = tokio::task::spawn_local(task()).await;
            let fault = ended.err().map(|error| error.to_string());
            tracing::error!(task = what, fault, "dns: a task has ended, and is started again");
            tokio::time::sleep(PAUSE).await;
        }
    });
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    #[test]
    fn a_task_that_ends_is_started_again_and_what_it_served_is_down_meanwhile() {
        let counters = Arc::new(Counters::default());
        let doors = Doors::new(2, counters.clone());
        let first = doors.open();
        assert!(!counters.is_up());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        tokio::task::LocalSet::new().block_on(&runtime.expect("a runtime"), async {
            let (starts, mut started) = unbounded_channel();
            let (task_doors, task_counters) = (doors.clone(), counters.clone());
            kept_up("test", move || {
                let (starts, doors, counters) = (starts.clone(), task_doors.clone(), task_counters.clone());
                async move {
                    let before = counters.is_up();
                    let _open = doors.open();
                    starts.send((before, counters.is_up())).expect("the test listens");
                    tokio::task::yield_now().await;
                    panic!("a fault");
                }
            });
            for _ in 0..2 {
                assert_eq!(started.recv().await, Some((false, true)));
            }
        });
        drop(first);
        assert!(!counters.is_up());
    }
}
