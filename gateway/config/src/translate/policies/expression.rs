//! Expressions in CEL beside a policy's rules: what is wrong with one is said before it is used. What it evaluates to is not
//! known here.
//!
//! The cost of an expression is bounded by its form: so many bytes, so deep, and no comprehension within another; what it
//! looks at is bounded by the bounds on requests and tokens.

use std::collections::BTreeSet;

use cel::common::ast::{EntryExpr, Expr};
use cel::{IdedExpr, Program};

/// Bytes that an expression may have.
const LONGEST: usize = 4096;
/// Levels of an expression, brackets as well as operators.
const DEEPEST: usize = 48;

/// What an expression may look at. After those with a dot at their end anything may follow.
const ATTRIBUTES: &[&str] = &[
    "request.path",
    "request.url_path",
    "request.query",
    "request.host",
    "request.scheme",
    "request.method",
    "request.protocol",
    "request.headers",
    "request.referer",
    "request.useragent",
    "request.id",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims",
    "source.address",
    "source.principal",
    "source.namespace",
    "source.service_account",
    "remote.address",
    "destination.address",
    "destination.port",
    "connection.sni",
    "connection.requested_server_name",
    "connection.mtls",
    "connection.uri_san_peer_certificate",
    "connection.dns_san_peer_certificate",
    "connection.subject_peer_certificate",
    "metadata.filter_metadata",
];

/// Functions of the engine that cost no more than what they are given; operators are among them.
const FUNCTIONS: &[&str] = &[
    "contains",
    "startsWith",
    "endsWith",
    "size",
    "has",
    "string",
    "int",
    "uint",
    "double",
    "bool",
    "type",
    "dyn",
    "in",
    "@in",
    "min",
    "max",
];

/// What is wrong with an expression, if anything is.
pub(super) fn problem(text: &str) -> Option<String> {
    if text.len() > LONGEST {
        return Some(format!("the expression has {} bytes; {LONGEST} are allowed", text.len()));
    }
    // Before the parser goes as deep as that.
    if brackets(text) > DEEPEST {
        return Some(format!("the expression has brackets deeper than {DEEPEST}"));
    }
    let program = match Program::compile(text) {
        Ok(program) => program,
        Err(errors) => {
            return Some(format!("the expression cannot be read: {}", first_line(&errors.to_string())));
        }
    };
    check(program.expression(), 0, false, &BTreeSet::new()).err()
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// The most brackets and prefix operators that are open at once; those in texts are counted too, which does no harm.
fn brackets(text: &str) -> usize {
    let (mut open, mut most, mut prefixes) = (0_usize, 0, 0);
    for b in text.bytes() {
        match b {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            b'!' | b'-' | b'?' => prefixes += 1,
            _ => {}
        }
        most = most.max(open);
    }
    most.max(prefixes / 4)
}

/// `bound`: the variables of comprehensions around.
fn check(node: &IdedExpr, depth: usize, within: bool, bound: &BTreeSet<String>) -> Result<(), String> {
    if depth > DEEPEST {
        return Err(format!("the expression is deeper than {DEEPEST} levels"));
    }
    if let Some(name) = name_of(node) {
        let root = name.split('.').next().unwrap_or_default();
        let is_under = |attribute: &str| {
            name.strip_prefix(attribute).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if bound.contains(root) || ATTRIBUTES.iter().any(|attribute| is_under(attribute)) {
            return Ok(());
        }
        return Err(format!("there is no attribute \"{name}\"; there are {}", ATTRIBUTES.join(", ")));
    }
    let deeper = |node: &IdedExpr, within: bool| check(node, depth + 1, within, bound);
    match &node.expr {
        Expr::Call(call) => {
            let operator = call.func_name.contains(|c: char| !c.is_ascii_alphanumeric());
            if !operator && !FUNCTIONS.contains(&&*call.func_name) {
                return Err(format!("there is no function \"{}\" here", call.func_name));
            }
            call.target.iter().try_for_each(|target| deeper(target, within))?;
            call.args.iter().try_for_each(|argument| deeper(argument, within))
        }
        Expr::Comprehension(all) => {
            if within {
                return Err("a comprehension within another could take too long".to_owned());
            }
            check(&all.iter_range, depth + 1, true, bound)?;
            let names = [Some(all.iter_var.clone()), all.iter_var2.clone(), Some(all.accu_var.clone())];
            let mut inner = bound.clone();
            inner.extend(names.into_iter().flatten());
            let parts = [&all.accu_init, &all.loop_cond, &all.loop_step, &all.result];
            parts.into_iter().try_for_each(|part| check(part, depth + 1, true, &inner))
        }
        Expr::List(list) => list.elements.iter().try_for_each(|element| deeper(element, within)),
        Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
            EntryExpr::MapEntry(entry) => {
                deeper(&entry.key, within).and_then(|()| deeper(&entry.value, within))
            }
            EntryExpr::StructField(field) => deeper(&field.value, within),
        }),
        Expr::Select(select) => deeper(&select.operand, within),
        Expr::Struct(_) => Err("objects cannot be made here".to_owned()),
        _ => Ok(()),
    }
}

/// `a.b.c` of a chain of names.
fn name_of(node: &IdedExpr) -> Option<String> {
    match &node.expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(select) => Some(format!("{}.{}", name_of(&select.operand)?, select.field)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said() {
        for good in [
            "request.path == '/a' && request.headers['x-team'] == 'a'",
            "has(request.auth.claims.group) && 'admin' in request.auth.claims.groups",
            "request.auth.claims.groups.exists(g, g.startsWith('team-'))",
            "source.address == '10.0.0.1' || !connection.mtls",
            "destination.port in [80, 443] && request.headers.exists(h, h == 'x')",
            "request.auth.claims['https://x/y'].size() > 1 ? true : false",
        ] {
            assert_eq!(problem(good), None, "{good}");
        }
        for (bad, why) in [
            ("request.path ==", "cannot be read"),
            ("request.paths == 'a'", "no attribute \"request.paths\""),
            ("user == 'a'", "no attribute \"user\""),
            ("request.path.matches('a')", "no function \"matches\""),
            ("[1].all(x, [2].all(y, x == y))", "within another"),
        ] {
            assert!(problem(bad).is_some_and(|said| said.contains(why)), "{bad}: {:?}", problem(bad));
        }
        let long = format!("request.path == '{}'", "a".repeat(LONGEST));
        assert!(problem(&long).unwrap().contains("4096 are allowed"));
        for deep in [
            "(".repeat(3000),
            format!("{}true", "!".repeat(3000)),
            "request.path+".repeat(200) + "'a' == 'b'",
        ] {
            assert!(problem(&deep).is_some(), "{}", &deep[..20]);
        }
    }
}
