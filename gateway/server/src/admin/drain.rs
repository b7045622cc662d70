//! `/api/v1/pools/{namespace}/{pool}` and below: a pool by its name, and an operator's drain of one endpoint.
//!
//! `{pool}` is the name of a Pool, `service/NAME:PORT` or `hostname/NAME:PORT`. A drain sends traffic elsewhere, so it is
//! taken where other changes are (`change::may_change`).

use std::net::SocketAddr;

use http::{Method, Request, StatusCode};
use serde_json::json;

use super::pools::Pools;
use super::{Answer, change, decode_path, json as shown, not_allowed};
use crate::audit::{self, Who};
use crate::control::{AdminState, PoolName, no_such_pool};

/// Where pools are.
const POOLS: &str = "/api/v1/pools/";

/// Whether a request is one for [`order`].
pub(super) fn is_order<B>(request: &Request<B>) -> bool {
    request.uri().path().starts_with(POOLS) && !matches!(*request.method(), Method::GET | Method::HEAD)
}

/// Whether a path is one for [`show`].
pub(super) fn is_pool(path: &str) -> bool {
    path.starts_with(POOLS)
}

/// `GET` of a pool: all of that name, as in the list of all.
pub(super) async fn show(state: &AdminState, path: &str) -> Answer {
    let name = match pool(&path[POOLS.len()..]) {
        Ok(name) => name,
        Err(message) => return refused(StatusCode::NOT_FOUND, &message),
    };
    let pools = Pools::of(state).await;
    match pools.named(&name) {
        Some(found) => shown(&found),
        None => refused(StatusCode::NOT_FOUND, &no_such_pool(&pools.snapshot, &name)),
    }
}

/// `POST .../endpoints/{address}/drain` and `.../undrain`.
pub(super) async fn order<B>(state: &AdminState, who: &Who, request: &Request<B>) -> Answer {
    let path = &request.uri().path()[POOLS.len()..];
    let Some((path, what)) = path.rsplit_once('/').filter(|(_, what)| matches!(*what, "drain" | "undrain"))
    else {
        return not_allowed("GET, HEAD");
    };
    if *request.method() != Method::POST {
        return not_allowed("POST");
    }
    if let Err((status, message)) = change::may_change(state.api_write) {
        let about = json!({"asked": format!("POST {}", request.uri().path())});
        state.audit.record(what, who, about, &audit::Outcome::Refused(message.clone()));
        tracing::warn!(%who, %status, "a drain by the admin API is refused: {message}");
        return refused(status, &message);
    }
    let (name, address) = match endpoint(path) {
        Ok(endpoint) => endpoint,
        Err((status, message)) => return refused(status, &message),
    };
    let drained = what == "drain";
    let done = state.control.drain_endpoint(who.clone(), name.clone(), address, drained).await;
    let changed = match done {
        Some(Ok(changed)) => changed,
        Some(Err(message)) => return refused(StatusCode::NOT_FOUND, &message),
        None => return refused(StatusCode::SERVICE_UNAVAILABLE, "the gateway ends"),
    };
    let pools = Pools::of(state).await;
    // One that is remembered need not be there at present.
    let (in_flight, safe) = pools.endpoint(&name, address).unwrap_or((0, false));
    shown(&json!({
        "pool": name.to_string(),
        "address": address,
        "drained": drained,
        "changed": changed,
        "in_pool": pools.endpoint(&name, address).is_some(),
        "in_flight": in_flight,
        "safe_to_remove": safe,
    }))
}

fn endpoint(path: &str) -> Result<(PoolName, SocketAddr), (StatusCode, String)> {
    let Some((path, address)) = path.rsplit_once("/endpoints/") else {
        let message = "name an endpoint: POST /api/v1/pools/{namespace}/{pool}/endpoints/{address}/drain";
        return Err((StatusCode::NOT_FOUND, message.to_owned()));
    };
    let name = pool(path).map_err(|message| (StatusCode::NOT_FOUND, message))?;
    let address = decode_path(address);
    let parsed = address.parse().map_err(|_| {
        let message =
            format!("{address:?} is no address with a port (hint: 10.0.0.1:8080 or [fd00::1]:8080)");
        (StatusCode::BAD_REQUEST, message)
    })?;
    Ok((name, parsed))
}

fn pool(path: &str) -> Result<PoolName, String> {
    let (namespace, name) = path.split_once('/').ok_or("name a pool: /api/v1/pools/{namespace}/{pool}")?;
    PoolName::parse(&decode_path(namespace), &decode_path(name))
}

fn refused(status: StatusCode, message: &str) -> Answer {
    change::told(status, &json!({"error": message}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_by_path() {
        let text = |path| endpoint(path).map(|(name, address)| format!("{name} {address}"));
        let status = |path| text(path).map_err(|(status, _)| status.as_u16());
        for (path, expected) in [
            ("default/vms/endpoints/10.0.0.1:80", Ok("Pool default/vms 10.0.0.1:80")),
            ("prod/service/shop:8080/endpoints/%5Bfd00::1%5D:80", Ok("Service prod/shop:8080 [fd00::1]:80")),
            ("prod/service%2Fshop%3A8080/endpoints/[::1]:80", Ok("Service prod/shop:8080 [::1]:80")),
            (
                "prod/hostname/a.example:443/endpoints/10.0.0.1:443",
                Ok("Hostname prod/a.example:443 10.0.0.1:443"),
            ),
            ("default/vms/endpoints/10.0.0.1", Err(400)),
            ("default/vms/endpoints/vm-1:80", Err(400)),
            ("default/vms/10.0.0.1:80", Err(404)),
            ("vms/endpoints/10.0.0.1:80", Err(404)),
            ("prod/service/shop/endpoints/10.0.0.1:80", Err(404)),
        ] {
            assert_eq!(status(path).as_deref(), expected.as_ref().map(|text| *text), "{path}");
        }
    }
}
