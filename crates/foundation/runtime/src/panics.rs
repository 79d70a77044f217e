//! Panics, told as errors.
//!
//! In: a panic anywhere in the process. Out: one log event with place and message, and
//! the same text to whoever catches the panic. Promise: message and place only; no
//! backtrace and no payload of another type, for they might show a secret.

use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::pin::Pin;
use std::sync::Once;
use std::task::{Context, Poll};

/// Longer messages are cut.
const LONGEST: usize = 400;

thread_local! {
    /// The last panic of this thread, told by the hook.
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Installs the hook, once per process.
pub(crate) fn install_hook() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| std::panic::set_hook(Box::new(tell)));
}

fn tell(info: &PanicHookInfo<'_>) {
    let message = message_of(info.payload());
    let place = info.location().map_or_else(String::new, |at| format!("{}:{}", at.file(), at.line()));
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    tracing::error!(component = "runtime", panic = %message, at = %place, thread = name, "panic");
    LAST.with(|last| last.replace(Some(format!("panic at {place}: {message}"))));
}

/// What a caught panic said, with its place when the hook has seen it on this thread.
pub(crate) fn describe(payload: &(dyn Any + Send)) -> String {
    LAST.with(RefCell::take).unwrap_or_else(|| format!("panic: {}", message_of(payload)))
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)");
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect()
}

/// A future whose panics come out as `Err` with a description, on the thread that polled it.
pub(crate) struct CatchPanic<F>(Option<Pin<Box<F>>>);

impl<F: Future> CatchPanic<F> {
    pub(crate) fn new(future: F) -> Self {
        Self(Some(Box::pin(future)))
    }
}

impl<F: Future> Future for CatchPanic<F> {
    type Output = Result<F::Output, String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(future) = self.0.as_mut() else { return Poll::Pending };
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(payload) => {
                let told = describe(&*payload);
                // What a panic left behind may panic again while it is dropped; that one is only logged.
                let broken = self.0.take();
                let _ = catch_unwind(AssertUnwindSafe(|| drop(broken)));
                Poll::Ready(Err(told))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_comes_out_as_text_and_a_value_as_itself() {
        assert_eq!(CatchPanic::new(async { 7 }).await, Ok(7));
        let told = CatchPanic::new(async { panic!("no {}\nat all", "luck") }).await;
        let told: Result<(), String> = told;
        assert!(told.unwrap_err().contains("no luck at all"));
    }

    #[test]
    fn a_payload_that_is_no_text_is_not_shown() {
        assert_eq!(message_of(&42), "(no message)");
    }
}
