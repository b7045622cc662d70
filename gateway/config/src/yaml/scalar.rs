//! The type of a plain scalar by YAML 1.2's core schema, as far as JSON has that type.
//!
//! `yes`, `no`, `on` and `off` are strings, as YAML 1.2 has it.

/// What a plain scalar is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Resolved {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// Any other number.
    Float(f64),
    /// A string.
    Text,
}

/// Decides the type of a plain scalar.
pub fn resolve(text: &str) -> Resolved {
    match text.as_bytes().first() {
        None => Resolved::Null,
        Some(b'~' | b'n' | b'N' | b't' | b'T' | b'f' | b'F') => word(text),
        Some(b'0'..=b'9' | b'-' | b'+' | b'.') => number(text),
        Some(_) => Resolved::Text,
    }
}

fn word(text: &str) -> Resolved {
    match text {
        "~" | "null" | "Null" | "NULL" => Resolved::Null,
        "true" | "True" | "TRUE" => Resolved::Bool(true),
        "false" | "False" | "FALSE" => Resolved::Bool(false),
        _ => Resolved::Text,
    }
}

fn number(text: &str) -> Resolved {
    if let Some(digits) = text.strip_prefix("0x") {
        return radix(digits, 16);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return radix(digits, 8);
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !unsigned.is_empty() && unsigned.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().map_or_else(|_| float(text), Resolved::Int);
    }
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return Resolved::Float(if text.starts_with('-') { f64::NEG_INFINITY } else { f64::INFINITY });
    }
    if matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Resolved::Float(f64::NAN);
    }
    // Rust's own parser takes "inf", "nan" and "infinity" too; those begin with a letter and never come here unsigned.
    if is_float(unsigned) { float(text) } else { Resolved::Text }
}

/// Also what is too large for an integer: a number stays one.
fn float(text: &str) -> Resolved {
    text.parse().map_or(Resolved::Text, Resolved::Float)
}

fn radix(digits: &str, radix: u32) -> Resolved {
    // `from_str_radix` takes a sign, the core schema does not.
    if digits.starts_with(['+', '-']) {
        return Resolved::Text;
    }
    i128::from_str_radix(digits, radix).map_or(Resolved::Text, Resolved::Int)
}

/// `[0-9]* ( \. [0-9]* )? ( [eE] [-+]? [0-9]+ )?` with at least one digit before the exponent.
fn is_float(text: &str) -> bool {
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(i) => (&text[..i], Some(&text[i + 1..])),
        None => (text, None),
    };
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent_ok = exponent.is_none_or(|e| {
        let e = e.strip_prefix(['-', '+']).unwrap_or(e);
        !e.is_empty() && digits(e)
    });
    digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty()) && exponent_ok
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_schema() {
        for (text, expected) in [
            ("", Resolved::Null),
            ("~", Resolved::Null),
            ("NULL", Resolved::Null),
            ("nULL", Resolved::Text),
            ("true", Resolved::Bool(true)),
            ("False", Resolved::Bool(false)),
            ("yes", Resolved::Text),
            ("no", Resolved::Text),
            ("on", Resolved::Text),
            ("0", Resolved::Int(0)),
            ("-7", Resolved::Int(-7)),
            ("+7", Resolved::Int(7)),
            ("007", Resolved::Int(7)),
            ("-10000000000000000000000000000000000000000", Resolved::Float(-1e40)),
            ("0x1F", Resolved::Int(31)),
            ("0o17", Resolved::Int(15)),
            ("0x+1", Resolved::Text),
            ("1.5", Resolved::Float(1.5)),
            (".5", Resolved::Float(0.5)),
            ("1.", Resolved::Float(1.0)),
            ("1e3", Resolved::Float(1000.0)),
            ("1e", Resolved::Text),
            (".", Resolved::Text),
            ("-", Resolved::Text),
            ("-inf", Resolved::Text),
            ("-.inf", Resolved::Float(f64::NEG_INFINITY)),
            ("1_000", Resolved::Text),
            ("10.0.0.1", Resolved::Text),
            ("5s", Resolved::Text),
            ("2024-01-01", Resolved::Text),
            ("::1", Resolved::Text),
        ] {
            assert_eq!(resolve(text), expected, "{text:?}");
        }
    }
}
