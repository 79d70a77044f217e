//! What is wrong for now: told in the component's status, and gone when it is mended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use outrigger_runtime::Status;

/// Problems by who has them; a cheap handle.
#[derive(Clone)]
pub(crate) struct Problems {
    by_owner: Arc<Mutex<BTreeMap<String, String>>>,
    /// The last one of each, mended or not, and when it came.
    last: Arc<Mutex<BTreeMap<String, (String, SystemTime)>>>,
    status: Status,
}

impl Problems {
    pub(crate) fn new(status: Status) -> Self {
        Self { by_owner: Arc::default(), last: Arc::default(), status }
    }

    /// Tells a problem, once per text.
    pub(crate) fn tell(&self, owner: &str, problem: String) {
        let mut problems = self.by_owner.lock().unwrap_or_else(PoisonError::into_inner);
        if problems.get(owner) != Some(&problem) {
            tracing::warn!(component = "logs", owner, problem, "log forwarding is held up");
            let last = (problem.clone(), SystemTime::now());
            self.last.lock().unwrap_or_else(PoisonError::into_inner).insert(owner.to_owned(), last);
            problems.insert(owner.to_owned(), problem);
            self.show(&problems);
        }
    }

    /// Says that an owner has none any more.
    pub(crate) fn mended(&self, owner: &str) {
        let mut problems = self.by_owner.lock().unwrap_or_else(PoisonError::into_inner);
        if problems.remove(owner).is_some() {
            tracing::info!(component = "logs", owner, "log forwarding goes on");
            self.show(&problems);
        }
    }

    /// The last problem of an owner, when it came, and whether it still is one.
    pub(crate) fn last(&self, owner: &str) -> Option<(String, SystemTime, bool)> {
        let (text, at) = self.last.lock().unwrap_or_else(PoisonError::into_inner).get(owner).cloned()?;
        let lasts = self.by_owner.lock().unwrap_or_else(PoisonError::into_inner).contains_key(owner);
        Some((text, at, lasts))
    }

    /// Forgets all, as before a graph is built.
    pub(crate) fn forget(&self) {
        self.by_owner.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Tells the status as it is now.
    pub(crate) fn settled(&self) {
        self.show(&self.by_owner.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A sink or source that is down does not make the pod unready: traffic comes before logs.
    fn show(&self, problems: &BTreeMap<String, String>) {
        if problems.is_empty() {
            self.status.ready();
        } else {
            let texts: Vec<String> = problems.iter().map(|(owner, problem)| format!("{owner}: {problem}")).collect();
            self.status.degraded(texts.join("; "));
        }
    }
}
