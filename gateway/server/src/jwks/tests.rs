use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use fieldgate_core::ir::{Authentication, JwtRule, ObjectKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// What the issuer answers, in turn; the last again and again.
struct Issuer {
    address: std::net::SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    async fn start(answers: Vec<String>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&asked);
        let mut answers = VecDeque::from(answers);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 2048];
                let length = stream.read(&mut request).await.unwrap_or(0);
                assert!(request[..length].starts_with(b"GET /"));
                count.fetch_add(1, Ordering::Relaxed);
                let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
                let _ = stream.write_all(answer.unwrap_or_default().as_bytes()).await;
            }
        });
        Self { address, asked }
    }

    fn remote(&self, discover: bool) -> RemoteJwks {
        RemoteJwks {
            uri: format!("http://{}", self.address).into(),
            discover,
            refresh: Duration::from_mins(5),
            timeout: Duration::from_secs(5),
            roots: None,
        }
    }
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

fn redirect(to: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
}

fn document(kid: &str) -> String {
    format!(
        r#"{{"keys": [{{"kty": "OKP", "crv": "Ed25519", "kid": "{kid}", "x": "fU0Of2FTpptiQrUiq77mhf2kQg-INLEIw72uNp71Sfo"}}]}}"#
    )
}

fn config(remotes: &[RemoteJwks]) -> Config {
    let key = ObjectKey { kind: "RequestAuthentication", namespace: "default".into(), name: "jwt".into() };
    let rule = |remote: &RemoteJwks| {
        Arc::new(JwtRule {
            issuer: "me".into(),
            audiences: Vec::new(),
            keys: Jwks::Remote(Arc::new(remote.clone())),
            from: Vec::new(),
            forward: false,
            payload_header: None,
            claim_headers: Vec::new(),
            clock_skew: Duration::ZERO,
        })
    };
    let rules = remotes.iter().map(rule).collect();
    let one = Authentication { key: key.clone(), listeners: Vec::new(), rules };
    Config { authentications: [(key, Arc::new(one))].into_iter().collect(), ..Config::default() }
}

fn kids(source: &KeySource) -> Vec<String> {
    let keys = source.current();
    keys.iter().flat_map(|keys| keys.keys()).filter_map(|key| key.kid.map(str::to_owned)).collect()
}

async fn failure(answers: Vec<String>, discover: bool) -> String {
    let issuer = Issuer::start(answers).await;
    match fetch::keys(&issuer.remote(discover)).await {
        Ok(_) => panic!("there are keys"),
        Err(failure) => failure.to_string(),
    }
}

#[tokio::test]
async fn what_is_not_keys_is_said() {
    let check = async |answers: Vec<String>, expected: &str| {
        let said = failure(answers, false).await;
        assert!(said.contains(expected), "{said}");
    };
    check(vec!["HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n".into()], "503").await;
    check(vec![ok("<html>")], "not a set of keys").await;
    check(vec![ok("{\"keys\": []}")], "it has no key").await;
    check(vec!["garbage\r\n\r\n".into()], "broke").await;
    check(vec![String::new()], "broke").await;
    check(vec![ok("{").replace("length: 1", "length: 2")], "broke off").await;
    check(vec![ok(&" ".repeat((1 << 20) + 1))], "longer than").await;
    check(vec![redirect("/again")], "redirects").await;
    check(vec![redirect("ftp://host/")], "redirected").await;
}

#[tokio::test]
async fn redirects_are_followed() {
    let issuer = Issuer::start(vec![redirect("/keys"), ok(&document("a"))]).await;
    assert!(fetch::keys(&issuer.remote(false)).await.is_ok());
    assert_eq!(issuer.asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn the_discovery_document_names_the_keys() {
    // The document has to name the address that the issuer has, which is known only once it listens.
    let keys = Issuer::start(vec![ok(&document("found"))]).await;
    let discovery = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = discovery.local_addr().unwrap();
    let says = |issuer: String| {
        ok(&format!(r#"{{"issuer": "{issuer}", "jwks_uri": "http://{}/keys"}}"#, keys.address))
    };
    let answers = [says(format!("http://{address}/")), says("http://other".to_owned()), ok("{}")];
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = discovery.accept().await.unwrap();
            let mut request = [0; 2048];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /.well-known/openid-configuration HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let remote = RemoteJwks { uri: format!("http://{address}").into(), ..keys.remote(true) };
    let (_, found) = fetch::keys(&remote).await.unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(found.keys().next().and_then(|key| key.kid), Some("found"));
    for _ in 0..2 {
        let why = fetch::keys(&remote).await.err().map(|why| why.to_string());
        assert_eq!(why.as_deref(), Some("the discovery document is about another issuer"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_issuer_is_not_waited_for() {
    // Accepted by the kernel, answered by nobody.
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap()).into();
    let remote = RemoteJwks {
        uri,
        discover: false,
        refresh: Duration::from_mins(5),
        timeout: Duration::from_secs(5),
        roots: None,
    };
    let why = fetch::keys(&remote).await.err().map(|why| why.to_string());
    assert_eq!(why.as_deref(), Some("no answer within 5s"));
}

#[tokio::test]
async fn keys_are_kept_through_an_outage_and_across_configurations() {
    let issuer = Issuer::start(vec![ok(&document("a"))]).await;
    let (sender, mut reports) = tokio::sync::mpsc::unbounded_channel();
    let mut sets = KeySets::new(move || _ = sender.send(()));
    let remote = issuer.remote(false);
    sets.reconcile(&config(std::slice::from_ref(&remote)));
    assert!(sets.unanswered());
    reports.recv().await.unwrap();
    assert!(!sets.unanswered());
    let source = sets.source(&Jwks::Remote(Arc::new(remote.clone())));
    assert_eq!(kids(&source), ["a"]);
    // The same set, named by another configuration, is not fetched again.
    sets.reconcile(&config(&[remote.clone(), remote.clone()]));
    assert!(Arc::ptr_eq(&source, &sets.source(&Jwks::Remote(Arc::new(remote.clone())))));
    assert_eq!(issuer.asked.load(Ordering::Relaxed), 1);
    assert_eq!(sets.view().all().len(), 1);
    sets.reconcile(&Config::default());
    assert!(sets.view().all().is_empty());
    assert_eq!(kids(&source), ["a"], "who still has the source has its keys");
    assert!(sets.source(&Jwks::Remote(Arc::new(remote))).current().is_none());
}

#[tokio::test]
async fn rotation_is_picked_up_and_an_outage_is_waited_out() {
    let bad = "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".to_owned();
    let answers = vec![ok(&document("a")), bad.clone(), bad, ok(&document("b"))];
    let issuer = Issuer::start(answers).await;
    let tick = Duration::from_millis(20);
    let mut sets = KeySets::at_pace(Pace { earliest: tick, first: tick, longest: tick }, || ());
    let remote = issuer.remote(false);
    sets.reconcile(&config(std::slice::from_ref(&remote)));
    let watch = sets.view().get(&remote).unwrap();
    let mut states = watch.state.subscribe();
    states.wait_for(|state| state.succeeded == 1).await.unwrap();
    assert_eq!(kids(&watch.source), ["a"]);
    // Nothing else makes it look before five minutes are over.
    watch.source.wish_for_newer();
    states.wait_for(|state| state.failed == 1).await.unwrap();
    assert_eq!(kids(&watch.source), ["a"], "old keys stay good");
    assert!(watch.state().failure.is_some());
    states.wait_for(|state| state.succeeded == 2).await.unwrap();
    assert_eq!(kids(&watch.source), ["b"]);
    assert!(watch.state().failure.is_none());
    assert_eq!(issuer.asked.load(Ordering::Relaxed), 4);
}
