//! The relay on edge-triggered epoll: of a small exchange it makes one read and one write each way, and its share of a
//! wait.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use crate::direction::{Direction, Moving, Shared};
use crate::sockets;

/// Events of one wait.
const EVENTS: usize = 256;
/// The token of the listening socket. Those of connections are twice their slot, plus one for the upstream's end.
const LISTENER: u64 = u64::MAX;

/// A connection and the upstream connection that it alone has.
struct Pair {
    sockets: [TcpStream; 2],
    /// By the socket that is read.
    directions: [Direction; 2],
}

/// Relays for ever.
pub fn relay(listener: &TcpListener, upstream: SocketAddr, moving: Moving) -> io::Result<()> {
    let poll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&poll, listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut shared = Shared::new(moving);
    let mut pairs: Vec<Option<Pair>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut events: Vec<Event> = Vec::with_capacity(EVENTS);
    loop {
        events.clear();
        match epoll::wait(&poll, spare_capacity(&mut events), None) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        // Slots are used again only from the next wait on, so that no event of this one meets another pair.
        let mut closed = Vec::new();
        for event in &events {
            let (token, flags) = (event.data.u64(), event.flags);
            if token == LISTENER {
                while let Some(client) = accept(listener)? {
                    let slot = free.pop().unwrap_or_else(|| {
                        pairs.push(None);
                        pairs.len() - 1
                    });
                    pairs[slot] = Some(open(&poll, slot, client, upstream)?);
                }
                continue;
            }
            let (slot, side) = ((token / 2) as usize, (token % 2) as usize);
            if let Some(pair) = &mut pairs[slot]
                && !pair.on_event(side, flags, &mut shared)
            {
                pairs[slot] = None;
                closed.push(slot);
            }
        }
        free.append(&mut closed);
    }
}

fn accept(listener: &TcpListener) -> io::Result<Option<TcpStream>> {
    match accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
        Ok(client) => Ok(Some(client.into())),
        Err(Errno::AGAIN) => Ok(None),
        Err(Errno::CONNABORTED) => accept(listener),
        Err(error) => Err(error.into()),
    }
}

fn open(
    poll: &impl std::os::fd::AsFd,
    slot: usize,
    client: TcpStream,
    upstream: SocketAddr,
) -> io::Result<Pair> {
    let sockets = [client, sockets::connect(upstream)?];
    for (side, socket) in sockets.iter().enumerate() {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(poll, socket, EventData::new_u64((slot * 2 + side) as u64), flags)?;
    }
    Ok(Pair { sockets, directions: Default::default() })
}

impl Pair {
    /// `false`: the pair is done, or one of its sockets broke.
    fn on_event(&mut self, side: usize, flags: EventFlags, shared: &mut Shared) -> bool {
        let [client, upstream] = &self.sockets;
        let (this, other) = if side == 0 { (client, upstream) } else { (upstream, client) };
        let ending = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
        if ending || flags.contains(EventFlags::IN) {
            let direction = &mut self.directions[side];
            direction.readable = true;
            direction.ending |= ending;
            if direction.pump(this, other, shared).is_err() {
                return false;
            }
        }
        if flags.contains(EventFlags::OUT) && self.directions[1 - side].pump(other, this, shared).is_err() {
            return false;
        }
        !self.directions.iter().all(|direction| direction.ended)
    }
}
