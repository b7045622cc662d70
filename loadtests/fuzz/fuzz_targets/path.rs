//! There is one canonical form of a path: RFC 3986's. It holds no dot segment, no backslash and no escape of what needs
//! none, and its own canonical form is itself. Authorities split into what they were made of.

#![no_main]

use fieldgate_core::head::split_port;
use fieldgate_core::path::normalise;
use fieldgate_core::{HeaderId, RequestHead};
use fieldgate_fuzz::input::Input;
use fieldgate_fuzz::rfc3986::canonical;
use fieldgate_fuzz::rfc9112::is_authority;
use fieldgate_wire::h1::valid_authority;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let path = input.text();
    let authority = input.text();
    check_path(&path);
    check_authority(&authority);
    check_cookie(&mut input);
});

fn check_path(path: &str) {
    let found = normalise(path).map(String::from);
    if path.bytes().all(|b| b.is_ascii_graphic()) {
        assert_eq!(found, canonical(path), "{path}");
    }
    let Some(found) = found else { return };
    assert!(found.starts_with('/'));
    assert!(found.split('/').all(|segment| segment != "." && segment != ".."), "{path} {found}");
    assert!(!found.contains(['\\', '#', '\0']) || !path.bytes().all(|b| b.is_ascii_graphic()));
    assert!(found.len() <= path.len().max(1), "{path} {found}");
    assert_eq!(normalise(&found).as_deref(), Some(&*found), "{path}");
}

fn check_authority(authority: &str) {
    let valid = valid_authority(authority);
    assert_eq!(valid, is_authority(authority.as_bytes()), "{authority}");
    let (host, port) = split_port(authority);
    assert!(authority.starts_with(host));
    if valid {
        match port {
            Some(port) => assert_eq!(authority[host.len() + 1..].parse(), Ok(port)),
            None => assert_eq!(host, authority),
        }
        assert!(valid_authority(host) && valid_authority(&authority.to_ascii_lowercase()));
    }
}

/// A cookie that is found was sent, and one that was sent is found.
fn check_cookie(input: &mut Input<'_>) {
    let mut head = RequestHead::default();
    let name = input.text();
    while !input.is_empty() {
        head.headers.push(b"Cookie", input.line());
    }
    let found = head.cookie(&name);
    let pairs = || head.headers.get_all_id(HeaderId::Cookie).flat_map(|f| f.split(|b| *b == b';'));
    let named = |pair: &&[u8]| {
        let pair = pair.trim_ascii();
        pair.iter().position(|b| *b == b'=').is_some_and(|at| pair[..at] == *name.as_bytes())
    };
    if !name.contains('=') {
        assert_eq!(found.is_some(), pairs().any(|p| named(&p)), "{name}");
    }
}
