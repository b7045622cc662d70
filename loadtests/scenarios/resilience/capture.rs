//! What a proxy really sends to backends: packets of the load's requests, seen on the backends' side of the wire, so
//! that a backend which hears nothing is no less observed than others. HTTP/1.1 only, for there an id can be read.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fieldgate_loadtests::load::recorded::ID;
use socket2::{Domain, Protocol, Socket, Type};

use super::network::Network;

/// Of Ethernet, IPv4.
const ETHERTYPE: u16 = 0x0800;
const TCP: u8 = 6;
const SYN: u8 = 0x02;
const LOOK_UP: Duration = Duration::from_millis(100);
const BUFFER: usize = 4 << 20;

/// A request on its way to a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// When.
    pub at: Instant,
    /// The backend's host.
    pub host: usize,
    /// The request's id.
    pub id: String,
}

/// A capture under way.
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Sent>>,
}

impl Capture {
    /// Begins, if packets of this network can be seen.
    pub fn start(network: &Arc<Network>) -> Result<Option<Self>, String> {
        if !network.is_real() {
            return Ok(None);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, network) = (Arc::clone(&stop), Arc::clone(network));
        let (ready, begun) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let socket = network.enter().and_then(|()| open());
            let failed = socket.as_ref().err().cloned();
            // The receiver waits for this one word.
            let _ = ready.send(failed);
            socket.map(|socket| watch(socket, &network, &stopped)).unwrap_or_default()
        });
        match begun.recv() {
            Ok(None) => Ok(Some(Self { stop, thread })),
            Ok(Some(error)) => Err(format!("capture: {error}")),
            Err(_) => Err("capture: its thread panicked".to_owned()),
        }
    }

    /// All that was seen.
    pub fn stop(self) -> Vec<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the capture's thread panicked")
    }
}

fn open() -> Result<Socket, String> {
    let protocol = Protocol::from(i32::from(ETHERTYPE.to_be()));
    let open = || {
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
        socket.set_read_timeout(Some(LOOK_UP))?;
        socket.set_recv_buffer_size(BUFFER)?;
        Ok(socket)
    };
    open().map_err(|error: std::io::Error| error.to_string())
}

fn watch(mut socket: Socket, network: &Network, stop: &AtomicBool) -> Vec<Sent> {
    let mut seen = Vec::new();
    let mut flows = HashMap::new();
    let mut packet = vec![0; 64 * 1024];
    while !stop.load(Ordering::Relaxed) {
        let read = match socket.read(&mut packet) {
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
            Err(_) => break,
        };
        let at = Instant::now();
        let Some(segment) = Segment::parse(&packet[..read]) else { continue };
        let Some(host) = network.host_of(segment.to) else { continue };
        let ids = segment.new_ids(&mut flows);
        seen.extend(ids.into_iter().map(|id| Sent { at, host, id }));
    }
    seen
}

/// A connection: the sender's port and the receiver.
type Flow = (u16, Ipv4Addr);

struct Segment<'a> {
    flow: Flow,
    to: Ipv4Addr,
    sequence: u32,
    flags: u8,
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    fn parse(packet: &'a [u8]) -> Option<Self> {
        let header = usize::from(packet.first()? & 0x0f) * 4;
        let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
        if *packet.get(9)? != TCP {
            return None;
        }
        let to = <[u8; 4]>::try_from(packet.get(16..20)?).ok()?.into();
        let tcp = packet.get(header..total.min(packet.len()))?;
        let port = u16::from_be_bytes([*tcp.first()?, *tcp.get(1)?]);
        let sequence = u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?);
        let offset = usize::from(tcp.get(12)? >> 4) * 4;
        Some(Self { flow: (port, to), to, sequence, flags: *tcp.get(13)?, payload: tcp.get(offset..)? })
    }

    /// The ids in what is not a retransmission.
    fn new_ids(&self, flows: &mut HashMap<Flow, u32>) -> Vec<String> {
        if self.flags & SYN != 0 {
            flows.remove(&self.flow);
        }
        if self.payload.is_empty() {
            return Vec::new();
        }
        let end = self.sequence.wrapping_add(self.payload.len() as u32);
        let known = flows.entry(self.flow).or_insert(self.sequence);
        // Sequence numbers go around: RFC 9293 section 3.4.
        if end.wrapping_sub(*known).cast_signed() <= 0 {
            return Vec::new();
        }
        *known = end;
        ids(self.payload)
    }
}

fn ids(payload: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(payload);
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let named = lines.filter(|(name, _)| name.eq_ignore_ascii_case(ID));
    named.map(|(_, value)| value.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(40 + payload.len() as u16).to_be_bytes());
        packet[9] = TCP;
        packet[16..20].copy_from_slice(&[10, 0, 0, 1]);
        packet[20..22].copy_from_slice(&4000_u16.to_be_bytes());
        packet[24..28].copy_from_slice(&sequence.to_be_bytes());
        packet[32] = 0x50;
        packet[33] = flags;
        packet.extend_from_slice(payload);
        packet
    }

    #[test]
    fn a_request_is_seen_once_however_often_it_is_sent() {
        let mut flows = HashMap::new();
        let mut seen = |sequence, flags, payload: &[u8]| {
            let packet = packet(sequence, flags, payload);
            Segment::parse(&packet).unwrap().new_ids(&mut flows)
        };
        let request = b"GET / HTTP/1.1\r\nHost: a\r\nX-Load-Id: h1-get-7\r\n\r\n";
        let start = u32::MAX - 10;
        assert_eq!(seen(start, 0, request), ["h1-get-7"]);
        assert!(seen(start, 0, request).is_empty());
        assert!(seen(start, 0, b"").is_empty());
        assert_eq!(seen(start.wrapping_add(request.len() as u32), 0, request), ["h1-get-7"]);
        // Another connection of the same port.
        seen(5, SYN, b"");
        assert_eq!(seen(6, 0, request), ["h1-get-7"]);
        assert!(seen(1000, 0, b"GET /healthz HTTP/1.1\r\n\r\n").is_empty());
    }
}
