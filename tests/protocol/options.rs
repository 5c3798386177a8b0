//! The negotiation of an export.

use volfork::LeaseId;
use volfork::serve::NbdServerOptions;
use volfork::wire::constants::{
    OPT_GO, OPT_INFO, OPT_LEASE, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY, REP_ACK, REP_ERR_INVALID,
    REP_ERR_POLICY, REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_LEASE, REP_META_CONTEXT, STRING_BYTES_MAX,
};
use volfork::wire::{ContextQuery, GoRequest, HeaderMode, LeaseAction, LeaseGrant, LeaseRequest};

use crate::client::{Client, Host};

fn end(client: &mut Client, option: u32, data: &[u8]) -> std::io::Result<u32> {
    Ok(client.option(option, data)?.last().unwrap().0)
}

#[test]
fn a_client_may_ask_about_every_export_but_not_endlessly() {
    let host = Host::new(NbdServerOptions::default());
    host.store.create_volume("v", 1 << 20).unwrap();
    let info = GoRequest { name: "v".into(), infos: Vec::new() }.encode();
    let unknown = GoRequest { name: "w".into(), infos: Vec::new() }.encode();
    let mut client = host.connect();
    for _ in 0..2000 {
        assert_eq!(end(&mut client, OPT_INFO, &info).unwrap(), REP_ACK);
        // It may have been destroyed since it was listed.
        assert_eq!(end(&mut client, OPT_INFO, &unknown).unwrap(), REP_ERR_UNKNOWN);
    }
    client.go(HeaderMode::Extended, "v");
    for (option, data, reply) in
        [(77, &b"what?"[..], REP_ERR_UNSUP), (OPT_STRUCTURED_REPLY, b"", REP_ACK), (OPT_GO, &unknown, REP_ERR_UNKNOWN)]
    {
        let mut client = host.connect();
        let answered = (0..5000).map_while(|_| end(&mut client, option, data).ok()).inspect(|end| assert_eq!(*end, reply)).count();
        assert!((100..=300).contains(&answered), "option {option}: {answered} of them were answered");
    }
}

#[test]
fn a_client_does_not_get_leases_without_end() {
    let host = Host::new(NbdServerOptions::default());
    let volume = host.store.create_volume("v", 1 << 20).unwrap();
    volume.write_at(&[1; 4096], 0).unwrap();
    let request = |action, number: u16| {
        let mut request = LeaseRequest { action, id: LeaseId([0; 16]), fork: "f".into(), host: "h".into(), identity: String::new() };
        request.id.0[..2].copy_from_slice(&number.to_le_bytes());
        request
    };
    let mut client = host.connect();
    let replies = client.option(OPT_LEASE, &request(LeaseAction::Take, 0).encode("v")).unwrap();
    assert_eq!(replies.iter().map(|(reply, _)| *reply).collect::<Vec<_>>(), [REP_LEASE, REP_ACK]);
    let grant = LeaseGrant::decode(&replies[0].1).unwrap();
    let snapshot = grant.export.strip_prefix("v@").unwrap().to_owned();
    assert_eq!(host.store.snapshot_names("v").unwrap(), [snapshot]);
    for (data, reply) in [
        (request(LeaseAction::Take, 1).encode("w"), REP_ERR_UNKNOWN),
        (request(LeaseAction::Take, 1).encode("v@s"), REP_ERR_UNKNOWN),
        (request(LeaseAction::Hold, 1).encode("v"), REP_ERR_UNSUP),
        (request(LeaseAction::Hold, 1).encode("v")[..20].to_vec(), REP_ERR_INVALID),
        (LeaseRequest { fork: "\u{1b}[2J".into(), ..request(LeaseAction::Take, 1) }.encode("v"), REP_ERR_INVALID),
        (request(LeaseAction::Release, 5000).encode("v"), REP_ACK),
    ] {
        assert_eq!(end(&mut client, OPT_LEASE, &data).unwrap(), reply);
    }
    let take = |number: u16| {
        volume.write_at(&number.to_le_bytes(), 0).unwrap();
        request(LeaseAction::Take, number).encode("v")
    };
    let answered = (1..5000).map_while(|number| end(&mut client, OPT_LEASE, &take(number)).ok()).collect::<Vec<_>>();
    assert!((100..=300).contains(&answered.len()), "{} of them were answered", answered.len());
    assert_eq!(answered.iter().filter(|reply| **reply == REP_ACK).count(), 63);
    assert!(answered[63..].iter().all(|reply| *reply == REP_ERR_POLICY));
    assert_eq!(host.store.snapshot_names("v").unwrap().len(), 64);
}

fn contexts(client: &mut Client, option: u32, query: &str) -> Vec<String> {
    let queries = if query.is_empty() { Vec::new() } else { vec![query.to_owned()] };
    let replies = client.option(option, &ContextQuery { name: "v".into(), queries }.encode()).unwrap();
    assert_eq!(replies.last().unwrap().0, REP_ACK);
    let contexts = replies.into_iter().filter(|(reply, _)| *reply == REP_META_CONTEXT);
    contexts.map(|(_, data)| String::from_utf8(data[4..].to_vec()).unwrap()).collect()
}

/// Each of many snapshots stands on all before it: a list of all contexts of all exports would grow with the square of their number.
#[test]
fn contexts_list_recent_snapshots_and_find_all_by_name() {
    let host = Host::new(NbdServerOptions::default());
    let volume = host.store.create_volume("v", 1 << 20).unwrap();
    (0..70).for_each(|number| volume.create_snapshot(&format!("s{number}")).unwrap());
    let mut client = host.connect();
    client.option(OPT_STRUCTURED_REPLY, &[]).unwrap();
    let all = contexts(&mut client, OPT_LIST_META_CONTEXT, "");
    assert!(all.contains(&"base:allocation".into()) && all.contains(&"x-volfork:missing".into()), "{all:?}");
    let named: Vec<_> = all.iter().filter_map(|name| name.strip_prefix("qemu:dirty-bitmap:")).collect();
    assert_eq!(named, (6..70).map(|number| format!("s{number}")).collect::<Vec<_>>());
    assert_eq!(contexts(&mut client, OPT_LIST_META_CONTEXT, "qemu:dirty-bitmap:").len(), 70);
    assert_eq!(contexts(&mut client, OPT_SET_META_CONTEXT, "qemu:dirty-bitmap:s0"), ["qemu:dirty-bitmap:s0"]);
}

#[test]
fn no_text_of_a_refusal_is_longer_than_a_string_may_be() {
    let host = Host::new(NbdServerOptions::default());
    let mut client = host.connect();
    client.option(OPT_STRUCTURED_REPLY, &[]).unwrap();
    for name in ["x".repeat(STRING_BYTES_MAX), "ä".repeat(STRING_BYTES_MAX / 2)] {
        let go = GoRequest { name: name.clone(), infos: Vec::new() }.encode();
        let query = ContextQuery { name, queries: Vec::new() }.encode();
        for (option, data) in [(OPT_INFO, &go), (OPT_GO, &go), (OPT_LIST_META_CONTEXT, &query), (OPT_SET_META_CONTEXT, &query)] {
            let (reply, text) = client.option(option, data).unwrap().pop().unwrap();
            assert_eq!(reply, REP_ERR_UNKNOWN);
            assert!((1..=STRING_BYTES_MAX).contains(&text.len()), "{} bytes", text.len());
            assert!(std::str::from_utf8(&text).is_ok());
        }
    }
}
