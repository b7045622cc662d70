//! Sockets: listening ones shared by workers, outgoing ones, and handing listening ones to another process.
//!
//! Errors say which address and what to do. What to bind, how many and when is the caller's decision.

use std::fmt::Write as _;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;

/// Connections that may wait to be accepted, per socket. The kernel takes `net.core.somaxconn` where that is less.
const BACKLOG: i32 = 4096;

/// Bytes that the kernel keeps of what was not sent yet, per accepted connection. Without a bound a client that does not
/// read makes it keep megabytes, of what was sent for it and of what the upstream goes on to send; some hundred such
/// clients, and the memory of all TCP is short. What is on its way does not count, so fast and distant ones lose nothing.
const UNSENT: u32 = 128 * 1024;

/// Descriptors in one message; the kernel's limit is 253.
const BATCH: usize = 32;
/// Longest name of a socket that is handed over.
const NAME_MAX: usize = 1024;
/// Bytes of a batch's names and their lengths.
const NAMES_MAX: usize = BATCH * (2 + NAME_MAX);

/// Binds `count` listening sockets to one address, among which the kernel spreads connections: all of them or none.
///
/// Port 0 gives all of them the same free port. `[::]` takes IPv4 too, any other IPv6 address only
/// IPv6. Accepted connections inherit `TCP_NODELAY` and `TCP_NOTSENT_LOWAT`. The sockets are non-blocking. Note that closing one resets what
/// waits in its queue.
pub fn bind_reuseport(addr: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    let mut addr = addr;
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = bind(addr).map_err(|error| explain_bind(addr, &error))?;
        addr = socket.local_addr()?;
        sockets.push(socket);
    }
    Ok(sockets)
}

/// Opens a connection, with `TCP_NODELAY`. The caller bounds the time.
pub async fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// When the kernel probes a silent connection, and when it gives it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub time: Duration,
    /// Pause between probes.
    pub interval: Duration,
    /// Probes without an answer until the connection is broken.
    pub retries: u32,
}

/// Turns keepalive on. On a listening socket it is inherited by what is accepted, which saves a call per connection.
pub fn set_keepalive(socket: &impl AsFd, keepalive: &Keepalive) -> io::Result<()> {
    let settings = TcpKeepalive::new()
        .with_time(keepalive.time)
        .with_interval(keepalive.interval)
        .with_retries(keepalive.retries);
    SockRef::from(socket).set_tcp_keepalive(&settings)
}

/// Hands sockets with their names to the process at the other end of `stream`, which must be blocking.
///
/// They stay open here too. The other side takes them with [`recv_sockets`].
pub fn send_sockets(stream: &UnixStream, sockets: &[(String, BorrowedFd<'_>)]) -> io::Result<()> {
    for batch in sockets.chunks(BATCH) {
        send_batch(stream, batch)?;
    }
    send_batch(stream, &[])
}

/// Takes what [`send_sockets`] sent on the other end of `stream`, which must be blocking. The descriptors are not
/// inherited by programs that this one starts.
pub fn recv_sockets(stream: &UnixStream) -> io::Result<Vec<(String, OwnedFd)>> {
    let mut sockets = Vec::new();
    loop {
        let batch = recv_batch(stream)?;
        if batch.is_empty() {
            return Ok(sockets);
        }
        sockets.extend(batch);
    }
}

fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket =
        Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if let IpAddr::V6(ip) = addr.ip() {
        socket.set_only_v6(!ip.is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn explain_bind(addr: SocketAddr, error: &io::Error) -> io::Error {
    let mut text = format!("cannot listen on {addr}: {error}");
    let port = addr.port();
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied if port < 1024 => write!(
            text,
            "; ports below 1024 need the capability CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE, \
             Kubernetes: securityContext.capabilities.add: [NET_BIND_SERVICE]) or a lower sysctl \
             net.ipv4.ip_unprivileged_port_start"
        ),
        io::ErrorKind::AddrInUse => {
            write!(text, "; another process has it, and `ss -ltnp 'sport = :{port}'` (as root) says which")
        }
        io::ErrorKind::AddrNotAvailable => {
            write!(text, "; no interface of this machine has the address {}, see `ip address`", addr.ip())
        }
        _ => Ok(()),
    };
    hint.expect("a String takes any text");
    io::Error::new(error.kind(), text)
}

/// A batch on the wire: how many descriptors and how many bytes of names (`u32` each, the descriptors ride on
/// these bytes), then each name behind its length (`u16`). Big endian. A batch of none ends the list.
fn send_batch(stream: &UnixStream, batch: &[(String, BorrowedFd<'_>)]) -> io::Result<()> {
    let names = encode_names(batch)?;
    let mut header = [0; 8];
    header[..4].copy_from_slice(&(batch.len() as u32).to_be_bytes());
    header[4..].copy_from_slice(&(names.len() as u32).to_be_bytes());
    let descriptors: Vec<_> = batch.iter().map(|(_, socket)| *socket).collect();

    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(BATCH))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        let fits = control.push(SendAncillaryMessage::ScmRights(&descriptors));
        assert!(fits, "a batch is no more than there is space for");
    }
    let sent = retry(|| sendmsg(stream, &[IoSlice::new(&header)], &mut control, SendFlags::NOSIGNAL))?;
    let mut stream = stream;
    stream.write_all(&header[sent..])?;
    stream.write_all(&names)
}

fn recv_batch(stream: &UnixStream) -> io::Result<Vec<(String, OwnedFd)>> {
    let mut header = [0; 8];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(BATCH))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = retry(|| {
        recvmsg(stream, &mut [IoSliceMut::new(&mut header)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    // Owned from here on, so that an error below closes them.
    let descriptors: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if received.bytes == 0 {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the other process closed before its last socket",
        ));
    }
    let mut stream = stream;
    stream.read_exact(&mut header[received.bytes..])?;

    let [count, size] = [&header[..4], &header[4..]]
        .map(|field| u32::from_be_bytes(field.try_into().expect("half of eight bytes")) as usize);
    if count > BATCH || size > NAMES_MAX {
        return Err(invalid(format!("a batch of {count} sockets and {size} bytes of names is no hand-over")));
    }
    let mut names = vec![0; size];
    stream.read_exact(&mut names)?;
    let names = decode_names(&names)?;
    if names.len() != count || descriptors.len() != count {
        return Err(invalid(format!(
            "{count} sockets announced, {} names and {} descriptors received; is the limit of open files (ulimit -n) too low?",
            names.len(),
            descriptors.len()
        )));
    }
    Ok(names.into_iter().zip(descriptors).collect())
}

fn encode_names(batch: &[(String, BorrowedFd<'_>)]) -> io::Result<Vec<u8>> {
    let mut names = Vec::new();
    for (name, _) in batch {
        if name.len() > NAME_MAX {
            let text = format!("the name of a socket is {} bytes long, {NAME_MAX} are allowed", name.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        names.extend_from_slice(&(name.len() as u16).to_be_bytes());
        names.extend_from_slice(name.as_bytes());
    }
    Ok(names)
}

fn decode_names(mut bytes: &[u8]) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    while !bytes.is_empty() {
        let split = bytes
            .split_first_chunk()
            .and_then(|(length, rest)| rest.split_at_checked(usize::from(u16::from_be_bytes(*length))));
        let (name, rest) = split.ok_or_else(|| invalid("the name of a socket is cut off".to_owned()))?;
        let name =
            str::from_utf8(name).map_err(|_| invalid("the name of a socket is not UTF-8".to_owned()))?;
        names.push(name.to_owned());
        bytes = rest;
    }
    Ok(names)
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream as StdStream;

    fn localhost() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[test]
    fn all_sockets_share_one_port() {
        let sockets = bind_reuseport(localhost(), 4).unwrap();
        let addr = sockets[0].local_addr().unwrap();
        assert_ne!(addr.port(), 0);
        assert!(sockets.iter().all(|socket| socket.local_addr().unwrap() == addr));
        let blocked = sockets[0].accept().unwrap_err();
        assert_eq!(blocked.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn an_address_in_use_gives_none_and_says_how_to_find_who_has_it() {
        let other = TcpListener::bind(localhost()).unwrap();
        let addr = other.local_addr().unwrap();
        let error = bind_reuseport(addr, 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let text = error.to_string();
        assert!(text.starts_with(&format!("cannot listen on {addr}: ")), "{text}");
        assert!(text.contains(&format!("ss -ltnp 'sport = :{}'", addr.port())), "{text}");
    }

    #[test]
    fn a_low_port_without_permission_names_the_capability() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let low = explain_bind("0.0.0.0:443".parse().unwrap(), &denied).to_string();
        assert!(low.contains("CAP_NET_BIND_SERVICE"), "{low}");
        let high = explain_bind("0.0.0.0:8443".parse().unwrap(), &denied).to_string();
        assert!(!high.contains("CAP_NET_BIND_SERVICE"), "{high}");
    }

    #[test]
    fn a_foreign_address_is_named() {
        let error = bind_reuseport("192.0.2.1:0".parse().unwrap(), 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
        assert!(
            error.to_string().contains("no interface of this machine has the address 192.0.2.1"),
            "{error}"
        );
    }

    #[test]
    fn all_interfaces_means_both_families_and_one_address_only_its_own() {
        let Ok(both) = bind_reuseport("[::]:0".parse().unwrap(), 1) else {
            println!("skipped: no IPv6 on this machine");
            return;
        };
        let port = both[0].local_addr().unwrap().port();
        StdStream::connect(("127.0.0.1", port)).unwrap();
        assert!(!SockRef::from(&both[0]).only_v6().unwrap());
        if let Ok(six) = bind_reuseport("[::1]:0".parse().unwrap(), 1) {
            assert!(SockRef::from(&six[0]).only_v6().unwrap());
        }
    }

    #[tokio::test]
    async fn options_of_the_listener_are_those_of_its_connections() {
        let mut sockets = bind_reuseport(localhost(), 1).unwrap();
        let keepalive =
            Keepalive { time: Duration::from_mins(1), interval: Duration::from_secs(7), retries: 3 };
        set_keepalive(&sockets[0], &keepalive).unwrap();
        let listener = tokio::net::TcpListener::from_std(sockets.remove(0)).unwrap();
        let client = connect(listener.local_addr().unwrap()).await.unwrap();
        assert!(client.nodelay().unwrap());
        let (accepted, _) = listener.accept().await.unwrap();
        assert!(accepted.nodelay().unwrap());
        assert_eq!(SockRef::from(&accepted).tcp_notsent_lowat().unwrap(), UNSENT);
        let accepted = SockRef::from(&accepted);
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), keepalive.time);
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), keepalive.interval);
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), keepalive.retries);
    }

    fn hand_over(sockets: &[TcpListener]) -> Vec<(String, OwnedFd)> {
        let (sender, receiver) = UnixStream::pair().unwrap();
        let named: Vec<_> =
            sockets.iter().enumerate().map(|(n, s)| (format!("listener {n}"), s.as_fd())).collect();
        std::thread::scope(|scope| {
            let sent = scope.spawn(|| send_sockets(&sender, &named));
            let received = recv_sockets(&receiver).unwrap();
            sent.join().unwrap().unwrap();
            received
        })
    }

    #[test]
    fn any_number_of_sockets_arrives_in_order_with_its_names() {
        for count in [0, 1, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH + 5] {
            let sockets: Vec<_> = (0..count).map(|_| TcpListener::bind(localhost()).unwrap()).collect();
            let received = hand_over(&sockets);
            assert_eq!(received.len(), count);
            for (n, (name, socket)) in received.into_iter().enumerate() {
                assert_eq!(name, format!("listener {n}"));
                assert!(rustix::io::fcntl_getfd(&socket).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
                assert_eq!(TcpListener::from(socket).local_addr().unwrap(), sockets[n].local_addr().unwrap());
            }
        }
    }

    #[test]
    fn a_connection_that_waits_is_accepted_by_the_receiver() {
        let sockets = bind_reuseport(localhost(), 1).unwrap();
        let client = StdStream::connect(sockets[0].local_addr().unwrap()).unwrap();
        let (_, socket) = hand_over(&sockets).remove(0);
        drop(sockets);
        let (_, peer) = TcpListener::from(socket).accept().unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
    }

    #[test]
    fn other_bytes_on_the_stream_after_the_hand_over_stay_there() {
        let (mut sender, mut receiver) = UnixStream::pair().unwrap();
        let socket = TcpListener::bind(localhost()).unwrap();
        send_sockets(&sender, &[("a".to_owned(), socket.as_fd())]).unwrap();
        sender.write_all(b"R").unwrap();
        assert_eq!(recv_sockets(&receiver).unwrap().len(), 1);
        let mut byte = [0];
        receiver.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"R");
    }

    #[test]
    fn nonsense_and_an_early_end_are_errors() {
        let cases: [(&[u8], io::ErrorKind); 5] = [
            (b"", io::ErrorKind::UnexpectedEof),
            (b"\0\0\0", io::ErrorKind::UnexpectedEof),
            (b"HTTP/1.1", io::ErrorKind::InvalidData),
            (b"\0\0\0\x01\0\0\0\x03\0\x01a", io::ErrorKind::InvalidData),
            (b"\0\0\0\x01\0\0\0\x03\0\x02a", io::ErrorKind::InvalidData),
        ];
        for (bytes, kind) in cases {
            let (mut sender, receiver) = UnixStream::pair().unwrap();
            sender.write_all(bytes).unwrap();
            drop(sender);
            assert_eq!(recv_sockets(&receiver).unwrap_err().kind(), kind, "{bytes:?}");
        }
        let (sender, _receiver) = UnixStream::pair().unwrap();
        let long = [("x".repeat(NAME_MAX + 1), sender.as_fd())];
        assert_eq!(send_sockets(&sender, &long).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
