//! RFC 3986 read aloud: what the canonical form of a path is.

/// The canonical form, or nothing if the gateway promises to refuse the path. For paths of visible ASCII.
pub fn canonical(path: &str) -> Option<String> {
    if !path.starts_with('/') || path.contains('#') {
        return None;
    }
    Some(remove_dot_segments(&unreserved(&path.replace('\\', "/"))?))
}

/// Section 6.2.2: escapes of unreserved characters are undone, others stay as they are. `%00` is refused.
fn unreserved(path: &str) -> Option<String> {
    let mut parts = path.split('%');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.get(..2).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
        let byte = u8::from_str_radix(digits, 16).ok().filter(|b| *b != 0)?;
        match char::from(byte) {
            c if c.is_ascii_alphanumeric() || "-._~".contains(c) => out.push(c),
            _ => out.push_str(&format!("%{digits}")),
        }
        out.push_str(&part[2..]);
    }
    Some(out)
}

/// Section 5.2.4, step by step as it is written there.
fn remove_dot_segments(path: &str) -> String {
    let mut input = path.to_owned();
    let mut output = String::new();
    while !input.is_empty() {
        if let Some(rest) = input.strip_prefix("/./") {
            input = format!("/{rest}");
        } else if input == "/." {
            input = "/".to_owned();
        } else if let Some(rest) = input.strip_prefix("/../") {
            input = format!("/{rest}");
            output.truncate(output.rfind('/').unwrap_or(0));
        } else if input == "/.." {
            input = "/".to_owned();
            output.truncate(output.rfind('/').unwrap_or(0));
        } else {
            let end = input[1..].find('/').map_or(input.len(), |at| at + 1);
            output.push_str(&input[..end]);
            input.drain(..end);
        }
    }
    output
}
