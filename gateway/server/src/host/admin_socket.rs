//! The admin server's socket: where it may listen, and who serves it.

use std::sync::Arc;

use tokio::net::TcpListener;

use super::RunOptions;
use crate::admin::{self, Tls};
use crate::control::{AdminState, ApiWrite};

/// Whoever reaches the admin server sees everything, and may change everything if objects can be changed.
pub(super) fn check(options: &RunOptions) -> Result<(), String> {
    let Some(address) = options.admin else {
        return match options.api_write {
            ApiWrite::Off => Ok(()),
            _ => Err("--api-write needs an admin server, and --admin is off".to_owned()),
        };
    };
    let guarded = address.ip().is_loopback() || options.admin_access.tls.is_some();
    let port = address.port();
    match options.api_write {
        ApiWrite::Anyone => Ok(()),
        ApiWrite::Loopback if !guarded => Err(format!(
            "--api-write is for an admin server on loopback or with TLS, and this one listens on {address}, where anybody \
             who reaches it could change every route (hint: --admin 127.0.0.1:{port}; or --admin-tls-cert; or \
             --api-write-from-anywhere, behind a firewall)"
        )),
        ApiWrite::Off if !guarded && !options.admin_access.plaintext => Err(format!(
            "the admin server on {address} would show the configuration to anybody who reaches it (hint: --admin \
             127.0.0.1:{port}; or --admin-tls-cert, --admin-tls-key and --admin-client-ca; or --admin-plaintext, to let \
             everybody read)"
        )),
        _ => Ok(()),
    }
}

/// The socket, to be handed to the next process, and the task that serves it.
pub(super) type Admin = (Option<std::net::TcpListener>, Option<tokio::task::JoinHandle<()>>);

pub(super) async fn serve(
    options: &RunOptions,
    inherited: Option<std::net::TcpListener>,
    state: Arc<AdminState>,
) -> Result<Admin, String> {
    let Some(address) = options.admin else { return Ok((None, None)) };
    let tls = options.admin_access.tls.clone().map(Tls::open).transpose()?.map(Arc::new);
    let failed =
        |error: std::io::Error| format!("the admin server cannot listen on {address} (--admin): {error}");
    // A socket bound to another address than the one that is asked for now is of no use.
    let usable = |socket: &std::net::TcpListener| {
        socket
            .local_addr()
            .is_ok_and(|bound| bound == address || (address.port() == 0 && bound.ip() == address.ip()))
    };
    let listener = match inherited.filter(usable) {
        Some(socket) => TcpListener::from_std(socket),
        None => TcpListener::bind(address).await,
    }
    .map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let socket = listener.into_std().map_err(failed)?;
    let listener = TcpListener::from_std(socket.try_clone().map_err(failed)?).map_err(failed)?;
    tracing::info!(tls = tls.is_some(), address = %bound, "admin server listening");
    let task = tokio::spawn(admin::serve(listener, state, tls));
    Ok((Some(socket), Some(task)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::TlsFiles;

    #[test]
    fn an_admin_server_for_everybody_is_asked_for_by_name() {
        let files = TlsFiles { certificate: "c".into(), key: "k".into(), client_ca: "a".into() };
        let told = |address: &str, api_write, plaintext, tls: bool| {
            let tls = tls.then(|| files.clone());
            check(&RunOptions {
                admin: Some(address.parse().unwrap()),
                api_write,
                admin_access: admin::Options { tls, plaintext, roles: Vec::new() },
                ..RunOptions::default()
            })
        };
        for (address, api_write, plaintext, tls, good) in [
            ("127.0.0.1:15000", ApiWrite::Loopback, false, false, true),
            ("[::1]:15000", ApiWrite::Off, false, false, true),
            ("0.0.0.0:15000", ApiWrite::Off, false, false, false),
            ("10.0.0.1:15000", ApiWrite::Off, true, false, true),
            ("10.0.0.1:15000", ApiWrite::Off, false, true, true),
            ("10.0.0.1:15000", ApiWrite::Loopback, true, false, false),
            ("10.0.0.1:15000", ApiWrite::Loopback, false, true, true),
            ("10.0.0.1:15000", ApiWrite::Anyone, false, false, true),
        ] {
            let result = told(address, api_write, plaintext, tls);
            assert_eq!(result.is_ok(), good, "{address} {api_write:?} {plaintext} {tls}: {result:?}");
        }
        let refused = told("0.0.0.0:15000", ApiWrite::Off, false, false).unwrap_err();
        assert!(refused.contains("--admin-plaintext") && refused.contains("127.0.0.1:15000"), "{refused}");
    }
}
