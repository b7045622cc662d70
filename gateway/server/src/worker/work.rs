//! What guards have computed elsewhere, since it takes longer than a worker may stand still: checks of passwords, whose
//! hashes are made to be slow.

use std::sync::atomic::{AtomicUsize, Ordering};

use fieldgate_core::guard::{Answered, NoAnswer, Work};
use tokio::sync::Semaphore;

/// Computed at once in the whole process: whoever guesses passwords may keep so many cores busy and no more.
const AT_ONCE: usize = 2;
/// Requests that may wait for their turn, or for what comes out.
const MAX_WAITING: usize = 128;

static TURNS: Semaphore = Semaphore::const_new(AT_ONCE);
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Waits for what comes out. Who does not want to wait any longer drops it; what has begun goes on to its end.
pub(super) async fn done(work: Work) -> Result<Answered, NoAnswer> {
    let _place = Place::take().ok_or_else(|| unreachable("too many wait for it"))?;
    let turn = TURNS.acquire().await.map_err(|_| unreachable("it is over"))?;
    let job = tokio::task::spawn_blocking(move || {
        let out = (work.job)();
        drop(turn);
        out
    });
    let body = job.await.map_err(|_| unreachable("it panicked"))?;
    Ok(Answered { body, ..Answered::default() })
}

fn unreachable(why: &str) -> NoAnswer {
    NoAnswer::Unreachable(why.to_owned())
}

struct Place;

impl Place {
    fn take() -> Option<Self> {
        let place = WAITING.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
            (waiting < MAX_WAITING).then_some(waiting + 1)
        });
        place.ok().map(|_| Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        WAITING.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use bytes::Bytes;

    use super::*;

    #[tokio::test]
    async fn a_worker_goes_on_meanwhile_and_not_too_many_wait() {
        let (say, hear) = mpsc::channel::<()>();
        let slow = Work {
            job: Box::new(move || {
                let _ = hear.recv();
                Bytes::from_static(b"1")
            }),
            step: 1,
        };
        let slow = tokio::spawn(done(slow));
        let quick = || Work { job: Box::new(|| Bytes::from_static(b"2")), step: 1 };
        assert_eq!(&*done(quick()).await.unwrap().body, b"2", "while the other is under way");
        let places: Vec<_> = std::iter::from_fn(Place::take).take(MAX_WAITING).collect();
        assert!(done(quick()).await.is_err());
        drop(places);
        say.send(()).unwrap();
        assert_eq!(&*slow.await.unwrap().unwrap().body, b"1");
        let panics = Work { job: Box::new(|| panic!("on purpose")), step: 1 };
        assert!(done(panics).await.is_err());
    }
}
