//! Limits of a volume's clients, on a closed store and on one that is served.

use serde_json::{Value, json};

use crate::host::Host;

fn limits(iops: Option<u64>, bytes: Option<u64>, burst: Option<u64>) -> Value {
    json!({ "iops": iops, "bytes_per_second": bytes, "burst_millis": burst })
}

/// Every command that has to do with limits.
fn walk(host: &Host) {
    host.ok(&["create", "v", "--size", "1M", "--iops", "5000", "--bandwidth", "100M", "--burst", "2s"]);
    let all = limits(Some(5000), Some(100 << 20), Some(2000));
    assert_eq!(host.json(&["show", "v"])["limits"], all);
    assert!(host.ok(&["show", "v"]).contains("5000 iops, 100.0 MiB/s, burst 2s"));
    assert_eq!(host.json(&["limit", "v"])["limits"], all);
    assert_eq!(host.json(&["fork", "v", "free"])["limits"], limits(None, None, None));
    assert_eq!(host.json(&["fork", "v", "slow", "--iops", "9"])["limits"], limits(Some(9), None, None));
    assert_eq!(host.json(&["limit", "v", "--bandwidth", "1G"])["limits"], limits(Some(5000), Some(1 << 30), Some(2000)));
    assert_eq!(host.json(&["limit", "v", "--burst", "none"])["limits"], limits(Some(5000), Some(1 << 30), None));
    assert_eq!(host.ok(&["limit", "v", "--iops", "none", "--bandwidth", "none"]), "volume 'v' has no limits\n");
    assert_eq!(host.json(&["show", "v"])["limits"], limits(None, None, None));
    assert_eq!(host.kind(&["limit", "v", "--burst", "1s"]), "invalid_input");
    assert_eq!(host.kind(&["limit", "v", "--iops", "1", "--burst", "2h"]), "invalid_input");
    assert_eq!(host.kind(&["limit", "gone", "--iops", "1"]), "not_found");
    let refused = host.run(&["limit", "v", "--iops", "0"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("lets nothing pass"), "{refused:?}");
    assert_eq!(host.json(&["list"]).as_array().unwrap()[1]["limits"], limits(Some(9), None, None));
}

#[test]
fn limits_are_changed_and_shown_on_a_closed_store() {
    walk(&Host::new());
}

#[test]
fn limits_are_changed_and_shown_while_the_store_is_served() {
    let host = Host::new();
    let server = host.serve(&[]);
    walk(&host);
    server.stop();
    assert_eq!(host.json(&["show", "slow"])["limits"], limits(Some(9), None, None));
}
