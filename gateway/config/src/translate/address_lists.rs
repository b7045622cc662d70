//! Lists of addresses, as policies and ConfigMaps have them. One of a million lines is read once, however often what
//! refers to it is translated.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use fieldgate_core::AddressSet;
use ipnet::IpNet;

use super::attached::Refusal;
use super::routes::Surroundings;
use crate::diagnostic::did_you_mean_hint;
use crate::document::Object;
use crate::kinds::edge_policy::AddressListRef;
use crate::kinds::{Kind, Spec};

/// Prefixes of one policy, those of its lists included.
const MAX_PREFIXES: usize = 2_000_000;

/// What was read before, by what it was read from.
#[derive(Debug, Default)]
pub(crate) struct Lists(Mutex<BTreeMap<String, Read>>);

#[derive(Debug)]
struct Read {
    /// The objects that it was read from.
    from: Vec<Weak<Object>>,
    set: Arc<AddressSet>,
}

/// The addresses of `inline` and of the lists that are referred to. `place`: the field of the inline ones.
pub(crate) fn read(
    object: &Object,
    inline: &[String],
    lists: &[AddressListRef],
    place: &str,
    around: &Surroundings<'_>,
) -> Result<Arc<AddressSet>, Refusal> {
    if lists.is_empty() {
        return Ok(Arc::new(AddressSet::new(&of_policy(inline, place)?)));
    }
    let found: Result<Vec<_>, Refusal> = lists
        .iter()
        .enumerate()
        .map(|(i, list)| find(object, list, &format!("{place}From[{i}]"), around))
        .collect();
    let found = found?;
    let from: Vec<Weak<Object>> = found.iter().map(|(map, _)| Arc::downgrade(map)).collect();
    // What is written in the policy is a part of its key: the policy itself may be another object with the same words.
    let words: Vec<String> = lists.iter().map(|l| format!("{}/{}", l.config_map, l.key)).collect();
    let key = format!("{} {} {}", object.namespace, words.join(" "), inline.join(" "));
    let cache = &around.guards.lists;
    let known =
        cache.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(&key).and_then(|read| {
            let same = read.from.len() == from.len() && read.from.iter().zip(&from).all(|(a, b)| a.ptr_eq(b));
            same.then(|| read.set.clone())
        });
    if let Some(set) = known {
        return Ok(set);
    }
    let mut prefixes = of_policy(inline, place)?;
    for ((map, text), (i, list)) in found.iter().zip(lists.iter().enumerate()) {
        for (line, prefix) in text.lines().enumerate() {
            let prefix = prefix.split('#').next().unwrap_or_default().trim();
            if prefix.is_empty() {
                continue;
            }
            let refusal = |message: String, hint: &str| Refusal {
                reason: "InvalidValue",
                field: format!("{place}From[{i}]"),
                message,
                hint: Some(hint.to_owned()),
            };
            let Some(prefix) = block(prefix) else {
                let (name, key, line) = (&map.name, &list.key, line + 1);
                let message = format!(
                    "line {line} of \"{key}\" in ConfigMap {name}: \"{prefix}\" is neither an IP address nor a CIDR range"
                );
                return Err(refusal(message, "one prefix a line, such as 192.0.2.0/24; # begins a comment"));
            };
            if prefixes.len() == MAX_PREFIXES {
                let message = format!("there are more than {MAX_PREFIXES} prefixes");
                return Err(refusal(message, "fewer, wider prefixes"));
            }
            prefixes.push(prefix);
        }
    }
    let set = Arc::new(AddressSet::new(&prefixes));
    let mut cache = cache.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    cache.retain(|_, read| read.from.iter().all(|object| object.strong_count() > 0));
    cache.insert(key, Read { from, set: set.clone() });
    Ok(set)
}

/// The text of a list, and the ConfigMap that has it.
fn find<'a>(
    object: &Object,
    list: &AddressListRef,
    place: &str,
    around: &Surroundings<'a>,
) -> Result<(&'a Arc<Object>, &'a str), Refusal> {
    let refusal = |reason, field: &str, message, hint| Refusal {
        reason,
        field: format!("{place}.{field}"),
        message,
        hint,
    };
    let Some(map) = around.objects.get(Kind::ConfigMap, &object.namespace, &list.config_map) else {
        let names = around.objects.names(Kind::ConfigMap, &object.namespace);
        let hint = did_you_mean_hint(&list.config_map, names.iter().map(String::as_str));
        let message = format!("there is no ConfigMap {}/{}", object.namespace, list.config_map);
        return Err(refusal("RefNotFound", "configMap", message, hint));
    };
    let data = match &map.spec {
        Spec::ConfigMap(map) => map.data.as_ref(),
        _ => None,
    };
    data.and_then(|data| data.get(&list.key)).map(|text| (map, text.as_str())).ok_or_else(|| {
        let names = data.into_iter().flatten().map(|(key, _)| key.as_str());
        let message = format!("ConfigMap {} has no key \"{}\"", map.name, list.key);
        refusal("RefNotFound", "key", message, did_you_mean_hint(&list.key, names))
    })
}

fn of_policy(inline: &[String], place: &str) -> Result<Vec<IpNet>, Refusal> {
    let parse = |(i, text): (usize, &String)| {
        block(text).ok_or_else(|| Refusal {
            reason: "InvalidValue",
            field: format!("{place}[{i}]"),
            message: format!("\"{text}\" is neither an IP address nor a CIDR range"),
            hint: Some("such as 192.0.2.0/24 or 2001:db8::1".to_owned()),
        })
    };
    inline.iter().enumerate().map(parse).collect()
}

fn block(text: &str) -> Option<IpNet> {
    let net = text.parse().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from))?;
    Some(net.trunc())
}
