//! Panics: a mistake in this program, whoever found it.
//!
//! One in a connection's task ends that connection: its task is unwound, what it held is given back by destructors, and
//! the worker goes on with the others. Here each is counted and its place is told. What it says is told only where it is a
//! fixed text: a value that is formatted into it may be a client's, or a secret.

use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::telemetry::exposition::Family;

static COUNT: AtomicU64 = AtomicU64::new(0);

/// Counts and tells panics from now on, of every thread.
pub fn watch() {
    panic::set_hook(Box::new(|info| {
        COUNT.fetch_add(1, Ordering::Relaxed);
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        tracing::error!(place, thread, "panic, a mistake in this program: {}", message(info));
    }));
}

/// How many there were.
pub fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// The metric, which is there from the start.
pub fn render(out: &mut String) {
    let help = "Panics of this process: mistakes in the program. Each has ended one connection, or one task.";
    Family::begin(out, "fieldgate_panics_total", "counter", help).sample(&[], count() as f64);
}

fn message<'p>(info: &'p PanicHookInfo<'_>) -> &'p str {
    info.payload()
        .downcast_ref::<&'static str>()
        .copied()
        .unwrap_or("(its text may hold values, and is not told)")
}

#[cfg(test)]
mod tests {
    use tokio::runtime::{Builder, LocalOptions};

    use super::*;

    /// The one test of this program that panics in a task on purpose; others run beside it.
    #[test]
    fn a_panic_in_a_task_is_counted_and_ends_that_task_alone() {
        let (before, usual) = (count(), panic::take_hook());
        watch();
        let runtime = Builder::new_current_thread().build_local(LocalOptions::default()).unwrap();
        let other = runtime.block_on(async {
            let broken = tokio::task::spawn_local(async { panic!("on purpose") });
            let other = tokio::task::spawn_local(async {
                tokio::task::yield_now().await;
                7
            });
            assert!(broken.await.unwrap_err().is_panic());
            other.await.unwrap()
        });
        panic::set_hook(usual);
        assert_eq!(other, 7);
        assert!(count() > before);
        let mut text = String::new();
        render(&mut text);
        assert!(text.contains("fieldgate_panics_total "), "{text}");
    }
}
