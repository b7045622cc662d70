//! Which sockets listen: binds what the configuration names, gives each worker its own, and lets go of the rest.
//!
//! It knows addresses and workers only, nothing of what is served there. An address that cannot be bound is tried again
//! and never stops the others.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use fieldgate_wire::socket::bind_reuseport;
use tokio::time::Instant;

use crate::worker::Command;

/// Pause between attempts to bind an address.
const RETRY: Duration = Duration::from_secs(3);

/// How workers are told; the number is the worker's index.
pub type Tell = Box<dyn Fn(usize, Command) + Send + Sync>;

/// The listening sockets of all workers.
pub struct Sockets {
    workers: usize,
    send: Tell,
    bound: BTreeMap<SocketAddr, Vec<Held>>,
    failed: BTreeMap<SocketAddr, String>,
    /// From the process before, not yet asked for.
    inherited: BTreeMap<SocketAddr, Vec<TcpListener>>,
    wanted: BTreeSet<SocketAddr>,
    retry_at: Option<Instant>,
    next_id: u64,
    closed: bool,
}

/// A socket that a worker listens on. Ours is a second handle to it, which the next process gets.
struct Held {
    id: u64,
    worker: usize,
    handle: TcpListener,
}

impl Sockets {
    /// `inherited` are sockets of the process before; they are used in place of new ones, all of them: each has its own
    /// queue of connections that wait.
    pub fn new(workers: usize, inherited: Vec<(SocketAddr, TcpListener)>, send: Tell) -> Self {
        let mut by_address: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (address, socket) in inherited {
            by_address.entry(address).or_default().push(socket);
        }
        Self {
            workers,
            send,
            bound: BTreeMap::new(),
            failed: BTreeMap::new(),
            inherited: by_address,
            wanted: BTreeSet::new(),
            retry_at: None,
            next_id: 0,
            closed: false,
        }
    }

    /// Listens on exactly these addresses from now on. To be called after what is served there is published.
    pub fn reconcile(&mut self, wanted: impl IntoIterator<Item = SocketAddr>) {
        if self.closed {
            return;
        }
        self.wanted = wanted.into_iter().collect();
        let gone: Vec<_> =
            self.bound.keys().filter(|address| !self.wanted.contains(address)).copied().collect();
        // First, as `[::]:80` and `0.0.0.0:80` may replace each other.
        for address in gone {
            tracing::info!(%address, "no longer listening");
            self.unlisten(address);
        }
        self.failed.retain(|address, _| self.wanted.contains(address));
        self.bind_missing();
        // What the process before listened on and we do not. It still holds these sockets itself and serves those who
        // wait in their queues.
        self.inherited.clear();
    }

    /// When [`Self::retry`] is due, if anything failed.
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Tries again what could not be bound.
    pub fn retry(&mut self) {
        self.bind_missing();
    }

    /// Lets the workers drain and binds nothing any more.
    pub fn drain(&mut self, deadline: Duration) {
        self.closed = true;
        // Ours first, as in `unlisten`.
        self.bound.clear();
        self.retry_at = None;
        for worker in 0..self.workers {
            (self.send)(worker, Command::Drain { deadline });
        }
    }

    /// How many sockets listen on an address, or why none does.
    pub fn state(&self, address: SocketAddr) -> Result<usize, String> {
        match (self.bound.get(&address), self.failed.get(&address)) {
            (Some(held), _) => Ok(held.len()),
            (None, Some(why)) => Err(why.clone()),
            (None, None) => Err("not listening".to_owned()),
        }
    }

    /// What could not be bound, with the reason for people.
    pub fn failures(&self) -> impl Iterator<Item = (SocketAddr, &str)> {
        self.failed.iter().map(|(address, why)| (*address, why.as_str()))
    }

    /// Handles to all sockets, for the next process.
    pub fn handles(&self) -> io::Result<Vec<(SocketAddr, TcpListener)>> {
        let all =
            self.bound.iter().flat_map(|(address, held)| held.iter().map(|held| (*address, &held.handle)));
        all.map(|(address, handle)| Ok((address, handle.try_clone()?))).collect()
    }

    fn bind_missing(&mut self) {
        let missing: Vec<_> =
            self.wanted.iter().filter(|address| !self.bound.contains_key(address)).copied().collect();
        for address in missing {
            match self.sockets_for(address).and_then(|sockets| self.listen(address, sockets)) {
                Ok(()) => {
                    self.failed.remove(&address);
                    tracing::info!(%address, "listening");
                }
                Err(error) => {
                    self.failed.insert(address, format!("{error}; trying again every {} s", RETRY.as_secs()));
                }
            }
        }
        self.retry_at = (!self.failed.is_empty()).then(|| Instant::now() + RETRY);
    }

    /// At least one socket per worker. Workers beyond the number of inherited ones get new sockets beside them.
    fn sockets_for(&mut self, address: SocketAddr) -> io::Result<Vec<TcpListener>> {
        let mut sockets = self.inherited.remove(&address).unwrap_or_default();
        let missing = self.workers.saturating_sub(sockets.len());
        if missing > 0 {
            match bind_reuseport(address, missing) {
                Ok(new) => sockets.extend(new),
                // Some workers without a socket are better than none with one.
                Err(error) if !sockets.is_empty() => {
                    tracing::warn!(%address, %error, missing, "no further sockets beside the inherited ones");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(sockets)
    }

    fn listen(&mut self, address: SocketAddr, sockets: Vec<TcpListener>) -> io::Result<()> {
        let mut held = Vec::with_capacity(sockets.len());
        for (index, socket) in sockets.iter().enumerate() {
            let id = self.next_id + index as u64;
            held.push(Held { id, worker: index % self.workers, handle: socket.try_clone()? });
        }
        self.next_id += sockets.len() as u64;
        for (held, socket) in held.iter().zip(sockets) {
            (self.send)(held.worker, Command::Listen { id: held.id, address, socket });
        }
        self.bound.insert(address, held);
        Ok(())
    }

    fn unlisten(&mut self, address: SocketAddr) {
        for Held { id, worker, handle } in self.bound.remove(&address).unwrap_or_default() {
            // Ours first: the worker's is the last one then, and closing it closes the socket.
            drop(handle);
            (self.send)(worker, Command::Unlisten { id });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Stands for workers: keeps what they were told to listen on.
    type Told = Arc<Mutex<BTreeMap<u64, (usize, SocketAddr, TcpListener)>>>;

    fn sockets(workers: usize, inherited: Vec<(SocketAddr, TcpListener)>) -> (Sockets, Told) {
        let told = Told::default();
        let send = {
            let told = Arc::clone(&told);
            Box::new(move |worker, command| match command {
                Command::Listen { id, address, socket } => {
                    assert!(
                        told.lock().unwrap().insert(id, (worker, address, socket)).is_none(),
                        "id {id} given twice"
                    );
                }
                Command::Unlisten { id } => {
                    assert_eq!(told.lock().unwrap().remove(&id).map(|(w, ..)| w), Some(worker));
                }
                Command::Drain { .. } => told.lock().unwrap().retain(|_, (w, ..)| *w != worker),
                _ => panic!("only listening is decided here"),
            })
        };
        (Sockets::new(workers, inherited, send), told)
    }

    fn free_address() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    fn workers_of(told: &Told) -> Vec<usize> {
        let mut workers: Vec<_> = told.lock().unwrap().values().map(|(worker, ..)| *worker).collect();
        workers.sort_unstable();
        workers
    }

    #[test]
    fn every_worker_gets_a_socket_and_loses_it_with_the_address() {
        let (mut sockets, told) = sockets(3, vec![]);
        let (a, b) = (free_address(), free_address());
        sockets.reconcile([a, b]);
        assert_eq!(workers_of(&told), [0, 0, 1, 1, 2, 2]);
        assert_eq!(sockets.state(a), Ok(3));
        TcpStream::connect(a).unwrap();

        sockets.reconcile([b]);
        assert_eq!(workers_of(&told), [0, 1, 2]);
        assert!(TcpStream::connect(a).is_err(), "nothing holds the socket any more");
        TcpStream::connect(b).unwrap();
    }

    #[test]
    fn an_address_in_use_stops_no_other_and_is_had_when_it_is_free() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let (busy, free) = (taken.local_addr().unwrap(), free_address());
        let (mut sockets, told) = sockets(1, vec![]);
        sockets.reconcile([busy, free]);
        assert_eq!(told.lock().unwrap().len(), 1);
        assert_eq!(sockets.state(free), Ok(1));
        let why = sockets.state(busy).unwrap_err();
        assert!(why.contains("another process has it"), "{why}");
        assert!(sockets.retry_at().is_some());

        drop(taken);
        sockets.retry();
        assert_eq!(sockets.state(busy), Ok(1));
        assert_eq!(sockets.retry_at(), None);
        assert_eq!(sockets.failures().count(), 0);
    }

    #[test]
    fn inherited_sockets_are_all_used_and_workers_without_one_get_a_new_one() {
        let address = free_address();
        let inherit =
            |n| bind_reuseport(address, n).unwrap().into_iter().map(|s| (address, s)).collect::<Vec<_>>();
        let (mut fewer_workers, told) = sockets(2, inherit(3));
        fewer_workers.reconcile([address]);
        assert_eq!(workers_of(&told), [0, 0, 1]);
        drop((fewer_workers, told));

        let (mut more_workers, told) = sockets(3, inherit(1));
        more_workers.reconcile([address]);
        assert_eq!(workers_of(&told), [0, 1, 2]);
    }

    #[test]
    fn who_waits_in_the_queue_of_an_inherited_socket_is_served() {
        let address = free_address();
        let before = bind_reuseport(address, 1).unwrap().remove(0);
        let waiting = TcpStream::connect(address).unwrap();
        let (mut sockets, told) = sockets(1, vec![(address, before)]);
        sockets.reconcile([address]);
        let told = told.lock().unwrap();
        let (_, peer) = told.values().next().unwrap().2.accept().unwrap();
        assert_eq!(peer, waiting.local_addr().unwrap());
    }

    #[test]
    fn handles_keep_a_socket_alive_when_its_process_closes() {
        let (mut sockets, told) = sockets(1, vec![]);
        let address = free_address();
        sockets.reconcile([address]);
        let handed = sockets.handles().unwrap();
        sockets.drain(Duration::ZERO);
        let waiting = TcpStream::connect(address).unwrap();
        assert_eq!(handed[0].1.accept().unwrap().1, waiting.local_addr().unwrap());
        sockets.reconcile([free_address()]);
        assert!(told.lock().unwrap().is_empty(), "nothing is bound after closing");
    }
}
