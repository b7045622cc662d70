//! How one process follows another without a refused or reset connection.
//!
//! The serving process listens on the upgrade socket. The next one connects, asks, and gets a handle to every listening
//! socket: the very same sockets, with their queues of connections that wait. It also gets the keys of TLS session
//! tickets, so that clients resume as before; only a process of the same user does. From then on both accept. When the next
//! process serves, it acknowledges; only then the first one stops accepting and drains. If the next process ends before
//! that, nothing has happened.
//!
//! ```text
//! next -> serving   fieldgate-handover/3\n
//! serving -> next   the sockets, by name: "10.0.0.1:80#0", "10.0.0.1:80#1", ..., "admin"
//! serving -> next   the ticket keys behind their length (u32, big endian)
//! serving -> next   endpoints that an operator has taken out of service, one per line, behind their length
//! next -> serving   R
//! ```
//!
//! Version 2 has no endpoints; both sides still speak it with a process that knows no better, so that an upgrade has a way
//! back.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fieldgate_wire::socket::{recv_sockets, send_sockets};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use crate::control::{ControlHandle, Inheritance, read_drained, write_drained};

const GREETING: &[u8] = b"fieldgate-handover/3\n";
const GREETING_2: &[u8] = b"fieldgate-handover/2\n";
const READY: u8 = b'R';
const ADMIN: &str = "admin";
/// More bytes of ticket keys than there can be.
const KEYS_MAX: usize = 4096;
/// Bytes of endpoints out of service: some ten thousand.
const DRAINED_MAX: usize = 1 << 20;
/// For each step of the exchange that takes no more than the other side's attention.
const STEP: Duration = Duration::from_secs(10);

/// Where the next process is waited for.
pub struct UpgradeSocket {
    listener: UnixListener,
    /// Only this user, and root, may take sockets.
    owner: u32,
    path: PathBuf,
    /// Tells this socket from the one of a later process at the same path.
    inode: u64,
}

impl UpgradeSocket {
    /// Binds the path, in place of whoever listened there before.
    pub fn bind(path: &Path) -> Result<Self, String> {
        let failed =
            |error: io::Error| format!("cannot listen on the upgrade socket {}: {error}", path.display());
        // Under another name first: the path always names a socket on which somebody listens.
        let mut own = path.as_os_str().to_owned();
        own.push(format!(".{}", std::process::id()));
        let own = PathBuf::from(own);
        let _ = std::fs::remove_file(&own);
        let listener = UnixListener::bind(&own).map_err(failed)?;
        std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let metadata = std::fs::metadata(&own).map_err(failed)?;
        std::fs::rename(&own, path).map_err(failed)?;
        Ok(Self { listener, owner: metadata.uid(), path: path.to_owned(), inode: metadata.ino() })
    }

    /// Hands sockets to whoever asks; ends once a process has acknowledged that it serves.
    pub async fn serve(self, control: &ControlHandle, admin: Option<&TcpListener>) {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "cannot accept on the upgrade socket");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            match self.hand_over(stream, control, admin).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, "no upgrade took place; this process goes on serving"),
            }
        }
    }

    async fn hand_over(
        &self,
        mut stream: tokio::net::UnixStream,
        control: &ControlHandle,
        admin: Option<&TcpListener>,
    ) -> io::Result<()> {
        let peer = stream.peer_cred()?;
        if peer.uid() != self.owner && peer.uid() != 0 {
            return Err(io::Error::other(format!("user {} may not take this process's sockets", peer.uid())));
        }
        let mut greeting = [0; GREETING.len()];
        tokio::time::timeout(STEP, stream.read_exact(&mut greeting)).await??;
        if greeting != GREETING && greeting != GREETING_2 {
            return Err(io::Error::other(
                "whoever connected to the upgrade socket speaks another version of its protocol",
            ));
        }
        let Some(inheritance) = control.inheritance().await else {
            return Err(io::Error::other("there are no sockets to hand over any more: this process drains"));
        };
        let admin = admin.map(TcpListener::try_clone).transpose()?;
        let count = inheritance.sockets.len();
        let blocking = stream.into_std()?;
        let with_drained = greeting == GREETING;
        let sent =
            tokio::task::spawn_blocking(move || send(blocking, inheritance, admin, with_drained)).await;
        let mut stream = tokio::net::UnixStream::from_std(sent.map_err(io::Error::other)??)?;
        tracing::info!(
            pid = peer.pid(),
            sockets = count,
            "the next process has the listening sockets; waiting until it serves"
        );
        // Without a limit: it may have a hundred thousand routes to read. If it ends, this read does.
        match stream.read_u8().await {
            Ok(READY) => {
                tracing::info!(pid = peer.pid(), "the next process serves");
                // So that it need not wait; if it is gone already, it is gone as one that serves.
                let _ = stream.shutdown().await;
                Ok(())
            }
            Ok(_) => Err(io::Error::other("the next process sent something else than an acknowledgement")),
            Err(_) => Err(io::Error::other("the next process ended before it served")),
        }
    }
}

impl Drop for UpgradeSocket {
    fn drop(&mut self) {
        if std::fs::metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn send(
    mut stream: UnixStream,
    inheritance: Inheritance,
    admin: Option<TcpListener>,
    with_drained: bool,
) -> io::Result<UnixStream> {
    let Inheritance { sockets, ticket_keys, drained } = inheritance;
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(STEP))?;
    let mut named: Vec<(String, BorrowedFd<'_>)> = Vec::with_capacity(sockets.len() + 1);
    for (index, (address, socket)) in sockets.iter().enumerate() {
        named.push((format!("{address}#{index}"), socket.as_fd()));
    }
    if let Some(admin) = &admin {
        named.push((ADMIN.to_owned(), admin.as_fd()));
    }
    send_sockets(&stream, &named)?;
    send_bytes(&mut stream, &ticket_keys)?;
    if with_drained {
        let mut text = write_drained(&drained);
        if text.len() > DRAINED_MAX {
            tracing::warn!(
                endpoints = drained.len(),
                "too many endpoints are out of service to hand them all over"
            );
            text.truncate(text[..DRAINED_MAX].rfind('\n').map_or(0, |end| end + 1));
        }
        send_bytes(&mut stream, text.as_bytes())?;
    }
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn send_bytes(stream: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(&(bytes.len() as u32).to_be_bytes())?;
    stream.write_all(bytes)
}

/// What the serving process gave, and the connection to it. Dropped without [`Self::acknowledge`], the other goes on.
pub struct Takeover {
    stream: UnixStream,
    inheritance: Inheritance,
    admin: Option<TcpListener>,
}

impl Takeover {
    /// Asks the serving process for its sockets and keys.
    pub fn request(path: &Path) -> Result<Self, String> {
        let failed = |error: io::Error| {
            format!("cannot take over from the serving process at {}: {error}", path.display())
        };
        let connect = || {
            UnixStream::connect(path).map_err(|error| {
                format!(
                    "cannot connect to the upgrade socket {}: {error}; is a process serving that was started with \
                     this --upgrade-socket? The first one is started without --upgrade",
                    path.display()
                )
            })
        };
        // A process of version 2 closes the connection on a greeting that it does not know.
        let mut version_2 = false;
        let (stream, received) = match greet(connect()?, GREETING) {
            Ok(greeted) => greeted,
            Err(_) => {
                version_2 = true;
                greet(connect()?, GREETING_2).map_err(failed)?
            }
        };
        let ticket_keys = recv_bytes(&stream, KEYS_MAX, "ticket keys").map_err(failed)?;
        let drained = if version_2 {
            Vec::new()
        } else {
            let text = recv_bytes(&stream, DRAINED_MAX, "endpoints out of service").map_err(failed)?;
            read_drained(&String::from_utf8_lossy(&text))
        };
        let inheritance = Inheritance { sockets: Vec::new(), ticket_keys, drained };
        let mut takeover = Self { stream, inheritance, admin: None };
        for (name, socket) in received {
            takeover.keep(&name, socket).map_err(failed)?;
        }
        tracing::info!(
            sockets = takeover.inheritance.sockets.len(),
            "listening sockets received from the serving process"
        );
        Ok(takeover)
    }

    /// The listening sockets of the gateway's addresses, and the ticket keys.
    pub fn take(&mut self) -> Inheritance {
        std::mem::take(&mut self.inheritance)
    }

    /// The admin server's.
    pub fn take_admin(&mut self) -> Option<TcpListener> {
        self.admin.take()
    }

    /// Tells the serving process that this one serves. An error means that it was not told.
    pub fn acknowledge(mut self) -> io::Result<()> {
        self.stream.write_all(&[READY])?;
        // Ends when the other has understood. A timeout is no reason to stop: it has been told.
        let _ = self.stream.read(&mut [0]);
        Ok(())
    }

    fn keep(&mut self, name: &str, socket: OwnedFd) -> io::Result<()> {
        let socket = TcpListener::from(socket);
        if name == ADMIN {
            self.admin = Some(socket);
            return Ok(());
        }
        let address = name.split('#').next().and_then(|address| address.parse::<SocketAddr>().ok());
        let address = address.ok_or_else(|| {
            io::Error::other(format!("a socket with the name {name:?}, which is no address"))
        })?;
        self.inheritance.sockets.push((address, socket));
        Ok(())
    }
}

fn greet(stream: UnixStream, greeting: &[u8]) -> io::Result<(UnixStream, Vec<(String, OwnedFd)>)> {
    stream.set_read_timeout(Some(STEP))?;
    stream.set_write_timeout(Some(STEP))?;
    (&stream).write_all(greeting)?;
    let received = recv_sockets(&stream)?;
    Ok((stream, received))
}

fn recv_bytes(mut stream: &UnixStream, max: usize, what: &str) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let len = u32::from_be_bytes(len) as usize;
    if len > max {
        return Err(io::Error::other(format!("{len} bytes of {what}, where {max} are many")));
    }
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};

    use fieldgate_wire::socket::bind_reuseport;

    use super::*;
    use crate::control::{self, DrainedEndpoint, Event, NamedSockets, PoolName};

    /// Stands for a control task: answers with handles to its sockets, or not at all when it drains.
    fn control(sockets: Option<NamedSockets>) -> ControlHandle {
        let (handle, mut events) = control::channel();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let Event::HandOver(reply) = event else { panic!("only sockets are asked for") };
                if let Some(sockets) = &sockets {
                    let handles =
                        sockets.iter().map(|(address, socket)| (*address, socket.try_clone().unwrap()));
                    let inheritance = Inheritance {
                        sockets: handles.collect(),
                        ticket_keys: b"secret".to_vec(),
                        drained: drained(),
                    };
                    let _ = reply.send(inheritance);
                }
            }
        });
        handle
    }

    fn drained() -> Vec<DrainedEndpoint> {
        vec![(PoolName::parse("prod", "vms").unwrap(), ([10, 0, 0, 1], 80).into())]
    }

    fn listening(count: usize) -> NamedSockets {
        let sockets = bind_reuseport((Ipv4Addr::LOCALHOST, 0).into(), count).unwrap();
        let address = sockets[0].local_addr().unwrap();
        sockets.into_iter().map(|socket| (address, socket)).collect()
    }

    async fn request(path: &Path) -> Result<Takeover, String> {
        let path = path.to_owned();
        tokio::task::spawn_blocking(move || Takeover::request(&path)).await.unwrap()
    }

    #[tokio::test]
    async fn the_next_process_gets_every_socket_with_its_queue() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        // More than pingora's table would take.
        let sockets = listening(40);
        let address = sockets[0].0;
        let waiting = TcpStream::connect(address).unwrap();
        let admin = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let admin_address = admin.local_addr().unwrap();
        let upgrade = UpgradeSocket::bind(&path).unwrap();
        let control = control(Some(sockets));
        let serving = tokio::spawn(async move { upgrade.serve(&control, Some(&admin)).await });

        let mut takeover = request(&path).await.unwrap();
        assert_eq!(takeover.take_admin().unwrap().local_addr().unwrap(), admin_address);
        let Inheritance { sockets: taken, ticket_keys, drained: out } = takeover.take();
        assert_eq!((&*ticket_keys, out), (&b"secret"[..], drained()));
        assert_eq!(taken.len(), 40);
        assert!(
            taken.iter().all(|(name, socket)| *name == address && socket.local_addr().unwrap() == address)
        );
        let accepted: Vec<_> = taken.iter().filter_map(|(_, socket)| socket.accept().ok()).collect();
        assert_eq!(
            accepted.iter().map(|(_, peer)| *peer).collect::<Vec<_>>(),
            [waiting.local_addr().unwrap()]
        );

        assert!(!serving.is_finished());
        tokio::task::spawn_blocking(|| takeover.acknowledge()).await.unwrap().unwrap();
        serving.await.unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_process_of_version_2_is_given_all_that_it_knows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        let upgrade = UpgradeSocket::bind(&path).unwrap();
        let control = control(Some(listening(1)));
        let serving = tokio::spawn(async move { upgrade.serve(&control, None).await });
        let next = tokio::task::spawn_blocking(move || {
            let (mut stream, sockets) = greet(UnixStream::connect(path).unwrap(), GREETING_2).unwrap();
            let keys = recv_bytes(&stream, KEYS_MAX, "keys").unwrap();
            stream.write_all(&[READY]).unwrap();
            // Nothing follows but the end.
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
            (sockets.len(), keys)
        });
        assert_eq!(next.await.unwrap(), (1, b"secret".to_vec()));
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn a_process_of_version_2_is_taken_over_from() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let sockets = listening(1);
        let serving = tokio::task::spawn_blocking(move || {
            let mut greeting = [0; GREETING.len()];
            listener.accept().unwrap().0.read_exact(&mut greeting).unwrap();
            assert_eq!(greeting, GREETING);
            // The connection is dropped: unknown. It is asked again.
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut greeting).unwrap();
            assert_eq!(greeting, GREETING_2);
            let inheritance = Inheritance { sockets, ticket_keys: b"secret".to_vec(), drained: drained() };
            send(stream, inheritance, None, false).unwrap()
        });
        let Inheritance { sockets, ticket_keys, drained } = request(&path).await.unwrap().take();
        assert_eq!((sockets.len(), &*ticket_keys, drained), (1, &b"secret"[..], Vec::new()));
        drop(serving.await.unwrap());
    }

    #[tokio::test]
    async fn a_process_that_ends_before_it_serves_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        let upgrade = UpgradeSocket::bind(&path).unwrap();
        let control = control(Some(listening(1)));
        let serving = tokio::spawn(async move { upgrade.serve(&control, None).await });

        drop(request(&path).await.unwrap());
        let second = request(&path).await.unwrap();
        assert!(!serving.is_finished());
        tokio::task::spawn_blocking(|| second.acknowledge()).await.unwrap().unwrap();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn a_draining_process_hands_nothing_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        let upgrade = UpgradeSocket::bind(&path).unwrap();
        let control = control(None);
        let serving = tokio::spawn(async move { upgrade.serve(&control, None).await });
        assert!(request(&path).await.is_err());
        serving.abort();
    }

    #[tokio::test]
    async fn the_path_belongs_to_whoever_bound_it_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upgrade.sock");
        assert!(Takeover::request(&path).err().unwrap().contains("without --upgrade"));
        let first = UpgradeSocket::bind(&path).unwrap();
        let second = UpgradeSocket::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }
}
