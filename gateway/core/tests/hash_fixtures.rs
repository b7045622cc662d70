//! Rings, tables and hash functions as Envoy's own tests expect them. Set `FIELDGATE_FIXTURES` to the directory that holds
//! `envoy-derived/hash_lb_vectors.json`.

use std::net::SocketAddr;
use std::sync::Arc;

use fieldgate_core::balance::{CompiledPool, PoolState, Wish, murmur2};
use fieldgate_core::ir;
use fieldgate_core::split::hash::xxh64;
use serde_json::Value;

fn vectors() -> Option<Value> {
    let Ok(root) = std::env::var("FIELDGATE_FIXTURES") else {
        println!("skipped: FIELDGATE_FIXTURES is not set");
        return None;
    };
    let path = format!("{root}/envoy-derived/hash_lb_vectors.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    Some(serde_json::from_str(&text).unwrap())
}

/// `"90", "tcp://127.0.0.1:90", zone_a, 1`, where all but the address may be missing.
fn endpoint(text: &str) -> ir::Endpoint {
    let parts: Vec<&str> = text.split(", ").collect();
    let unquoted = |part: &str| part.strip_prefix('"').and_then(|p| p.strip_suffix('"')).map(str::to_owned);
    let address = parts.iter().find_map(|p| unquoted(p)?.strip_prefix("tcp://")?.parse().ok()).unwrap();
    let mut endpoint = ir::Endpoint::new(address);
    for part in parts {
        match unquoted(part) {
            Some(key) if !key.starts_with("tcp://") => endpoint.hash_key = Some(key.into()),
            Some(_) => {}
            None if part.starts_with("zone_") => {
                endpoint.locality = Some(Arc::new(ir::Locality::of_zone(part)));
            }
            None => endpoint.weight = part.parse().unwrap(),
        }
    }
    endpoint
}

fn endpoints(of: &Value) -> Vec<ir::Endpoint> {
    of["hosts"].as_array().unwrap().iter().map(|text| endpoint(text.as_str().unwrap())).collect()
}

fn pool(balance: ir::Balance, endpoints: Vec<ir::Endpoint>, zones: &[(&str, u32)]) -> CompiledPool {
    let object = ir::ObjectKey { kind: "Pool", namespace: "default".into(), name: "shop".into() };
    let key = ir::PoolKey { object, port: 0 };
    let mut pool = ir::Pool { balance, ..ir::Pool::of(key, ir::Endpoints::Static(endpoints)) };
    if !zones.is_empty() {
        let weight = |(zone, weight): &(&str, u32)| (ir::Locality::of_zone(zone), *weight);
        pool.spread.localities = ir::Localities::Weighted(zones.iter().map(weight).collect());
    }
    CompiledPool::compile(None, Arc::new(pool), 0)
}

fn lookup(pool: &CompiledPool, hash: u64) -> SocketAddr {
    let wish = Wish { hash: Some(hash), ..Wish::default() };
    pool.endpoints[pool.pick(&mut PoolState::default(), 0, &mut || 0, &wish).unwrap()].address()
}

/// The number in `set_minimum_ring_size()->set_value(12)`.
fn setting(config: &Value, name: &str) -> Option<u32> {
    let line = config.as_array()?.iter().filter_map(Value::as_str).find(|line| line.contains(name))?;
    line.rsplit_once("set_value(")?.1.trim_end_matches(");").parse().ok()
}

fn ring(of: &Value) -> ir::Balance {
    let config = &of["config"];
    let murmur = config.as_array().unwrap().iter().any(|line| line.to_string().contains("MURMUR_HASH_2"));
    let balance_factor = setting(config, "hash_balance_factor").unwrap_or(0);
    ir::Balance::RingHash {
        function: if murmur { ir::HashFunction::Murmur2 } else { ir::HashFunction::XxHash },
        min_size: setting(config, "minimum_ring_size").unwrap_or(1024),
        max_size: setting(config, "maximum_ring_size").unwrap_or(8_388_608),
        by: Arc::new(ir::HashBy { sources: Vec::new(), balance_factor }),
    }
}

/// What the vectors leave out: weights of localities, endpoints made by a loop.
fn left_out(name: &str) -> (Vec<ir::Endpoint>, &'static [(&'static str, u32)]) {
    match name {
        "LocalityWeightedTinyRing" => {
            (Vec::new(), &[("zone_a", 1), ("zone_b", 2), ("zone_c", 3), ("zone_d", 0)])
        }
        "HostAndLocalityWeightedTinyRing" => (Vec::new(), &[("zone_a", 1), ("zone_b", 2)]),
        // One endpoint that is a locality with nearly all of the weight, 1023 that share what is left.
        "LopsidedWeightSmallScale" => {
            let zone = |n: u16| if n == 0 { "zone_a" } else { "zone_b" };
            let one = |n: u16| endpoint(&format!("\"tcp://127.0.0.1:{n}\", {}", zone(n)));
            ((0..1024).map(one).collect(), &[("zone_a", 127), ("zone_b", 1)])
        }
        _ => (Vec::new(), &[]),
    }
}

/// Each position is found by its own hash, and ends where the next begins.
fn check_positions(name: &str, pool: &CompiledPool, ring: &[Value]) {
    let is = |hash: u64, entry: &Value| {
        let suffix = entry[0].as_str().unwrap();
        let found = lookup(pool, hash).to_string();
        assert!(found.ends_with(suffix), "{name}: {hash} is at {found}, not {suffix}");
    };
    for (at, entry) in ring.iter().enumerate() {
        let position = entry[1].as_u64().unwrap();
        is(position, entry);
        is(position + 1, &ring[(at + 1) % ring.len()]);
    }
}

#[test]
fn rings() {
    let Some(vectors) = vectors() else { return };
    let rings = vectors["ring_hash"].as_object().unwrap();
    assert_eq!(rings.len(), 11);
    for (name, of) in rings {
        let positions = of["ring"].as_array().unwrap();
        if name == "UnevenHosts" {
            // Two rings after each other: of the first two endpoints, and of two others later.
            for (half, endpoints) in positions.chunks(4).zip(endpoints(of).chunks(2)) {
                let pool = pool(ring(of), endpoints.to_vec(), &[]);
                check_positions(name, &pool, half);
            }
            continue;
        }
        let (made, zones) = left_out(name);
        let endpoints = if made.is_empty() { endpoints(of) } else { made };
        let pool = pool(ring(of), endpoints.clone(), zones);
        check_positions(name, &pool, positions);
        let lookups = of["lookups_hash_to_host_index"].as_array().unwrap();
        assert!(!lookups.is_empty());
        for pair in lookups {
            let (hash, host) = (pair[0].as_u64().unwrap(), pair[1].as_u64().unwrap() as usize);
            assert_eq!(lookup(&pool, hash), endpoints[host].address, "{name}: {hash}");
        }
    }
}

#[test]
fn maglev_tables() {
    let Some(vectors) = vectors() else { return };
    let tables = vectors["maglev"].as_object().unwrap();
    assert_eq!(tables.len(), 9);
    for (name, of) in tables {
        let table_size = of["table_size"].as_u64().unwrap() as u32;
        let weights: Vec<u32> = of["locality_weights"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|text| text.as_str().unwrap().split(", "))
            .map(|weight| weight.parse().unwrap())
            .collect();
        let zones: Vec<(&str, u32)> = ["zone_a", "zone_b", "zone_c"].into_iter().zip(weights).collect();
        let (endpoints, by) = (endpoints(of), Arc::default());
        let pool = pool(ir::Balance::Maglev { table_size, by }, endpoints.clone(), &zones);
        for (hash, host) in of["expected_assignments"].as_array().unwrap().iter().enumerate() {
            let expected = endpoints[host.as_u64().unwrap() as usize].address;
            assert_eq!(lookup(&pool, hash as u64), expected, "{name}: {hash}");
        }
    }
}

#[test]
fn hash_functions() {
    let Some(vectors) = vectors() else { return };
    let check = |name: &str, function: fn(&[u8]) -> u64| {
        let pairs = vectors["hash_functions"][name].as_array().unwrap();
        assert!(pairs.len() >= 5);
        for pair in pairs {
            let text = pair[0].as_str().unwrap();
            assert_eq!(function(text.as_bytes()), pair[1].as_u64().unwrap(), "{name} of {text:?}");
        }
    };
    check("xxHash64", |text| xxh64(text, 0));
    check("murmurHash2", murmur2);
}
