//! `x-forwarded-client-cert`: what is read means one thing only, and what is written of a certificate, whatever its names
//! are, is one element that says just that.

#![no_main]

use fieldgate_core::identity::PeerIdentity;
use fieldgate_core::ir::ClientCertDetails;
use fieldgate_core::xfcc::{Element, element, parse};
use fieldgate_fuzz::input::Input;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    if input.below(2) == 0 {
        read(input.0);
    } else {
        write(&mut input);
    }
});

fn read(field: &[u8]) {
    let Ok(elements) = parse(field) else { return };
    assert!(elements.iter().all(|element| element.pairs().next().is_some()));
    // Written again with every value in quotes it says the same. A backslash at the end would keep the quote.
    let mut values = elements.iter().flat_map(Element::pairs).map(|(_, value)| value);
    if values.all(|value| value.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 0) {
        let again = parse(quoted(&elements).as_bytes());
        assert_eq!(again.as_ref(), Ok(&elements), "{:?}", String::from_utf8_lossy(field));
    }
    // A proxy on the way adds its element behind: those before stay as they are.
    let longer = [field, b",Hash=00"].concat();
    if let Ok(longer) = parse(&longer) {
        assert_eq!(longer[..longer.len() - 1], elements);
        assert_eq!(longer[longer.len() - 1].first("hash"), Some("00"));
    }
}

fn quoted(elements: &[Element]) -> String {
    let value = |text: &str| {
        text.chars().flat_map(|c| (c == '"').then_some('\\').into_iter().chain([c])).collect::<String>()
    };
    let pair = |(key, text): (&str, &str)| format!("{key}=\"{}\"", value(text));
    let one = |element: &Element| element.pairs().map(pair).collect::<Vec<_>>().join(";");
    elements.iter().map(one).collect::<Vec<_>>().join(",")
}

fn write(input: &mut Input<'_>) {
    let details = ClientCertDetails {
        cert: input.below(2) == 1,
        chain: input.below(2) == 1,
        subject: false,
        uri: true,
        dns: true,
    };
    let names = |input: &mut Input<'_>| {
        (0..input.below(3))
            .map(|_| input.text().into_boxed_str())
            .filter(|name| !name.is_empty() && !name.contains(' '))
            .collect::<Vec<_>>()
    };
    let (uris, dns, by) = (names(input), names(input), names(input));
    let der = input.line();
    let peer = PeerIdentity {
        uris,
        dns,
        hash: "ab12".into(),
        der: der.into(),
        chain: vec![der.into()],
        ..PeerIdentity::default()
    };
    let written = element(&peer, &by, details);
    let Ok(elements) = parse(&written) else { return };
    let [one] = &elements[..] else { panic!("{} elements of one certificate", elements.len()) };
    assert_eq!(one.all("Hash").collect::<Vec<_>>(), ["ab12"]);
    let told = |name: &Box<str>| match name.contains([',', ';', '=', '"']) {
        true => name.replace('\\', "%5C"),
        false => name.to_string(),
    };
    assert!(one.all("DNS").eq(peer.dns.iter().map(told)));
    assert!(one.all("By").eq(by.iter().map(told)));
    match &peer.uris[..] {
        [] => assert_eq!(one.all("URI").collect::<Vec<_>>(), [""]),
        uris => assert!(one.all("URI").eq(uris.iter().map(told))),
    }
    assert_eq!(one.all("Cert").count(), usize::from(details.cert));
}
