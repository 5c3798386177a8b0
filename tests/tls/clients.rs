//! Real clients of the server.

use crate::stage::{Host, MIB, Mode, fails, open, run, text};
use volfork::source::{Source, SourceExt};

/// `nbdsh` is a module of the system's Python.
const PYTHON: &str = "/usr/bin/python3";

#[test]
fn libnbd_clients_read_and_write_over_tls() {
    let host = Host::new(Mode::Verified);
    for uri in [host.uri("known"), host.unix_uri("known")] {
        let info = run("nbdinfo", &["--json", &uri]);
        assert!(info.contains("\"TLS\": true") && info.contains("\"structured\": true"), "{info}");
        assert!(run("nbdinfo", &["--map", &uri]).contains("data"));
        let copy = host.path("copy");
        run("nbdcopy", &[&uri, copy.to_str().unwrap()]);
        assert!(std::fs::read(&copy).unwrap() == host.data, "nbdcopy reads other bytes");
    }
    let bytes = crate::stage::pattern(2, 8 * MIB);
    std::fs::write(host.path("new"), &bytes).unwrap();
    run("nbdcopy", &["--flush", host.path("new").to_str().unwrap(), &host.uri("known")]);
    let mut stored = vec![0; bytes.len()];
    host.store.volume("v").unwrap().read_at(&mut stored, 0).unwrap();
    assert!(stored == bytes, "nbdcopy wrote other bytes");
}

#[test]
fn nothing_is_agreed_on_before_tls() {
    let host = Host::new(Mode::On);
    let script = format!(
        "h.set_opt_mode(True); h.set_request_structured_replies(False); h.set_request_meta_context(False)
h.set_tls(nbd.TLS_ALLOW); h.set_tls_certificates('{}'); h.connect_uri('nbd+unix:///v?socket={}')
assert h.opt_structured_reply()
assert h.opt_starttls(), 'TLS is refused'
assert h.get_tls_negotiated()
h.opt_go(); assert not h.get_structured_replies_negotiated(), 'structured replies outlive STARTTLS'
assert h.pread(16, 0) == bytes.fromhex('{}'); h.shutdown()",
        host.path("nobody").display(),
        host.path("sock").display(),
        host.data[..16].iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    );
    let output = crate::stage::output(PYTHON, &["-m", "nbd", "-c", &script]);
    // An old library cannot ask for single options; the hostile clients of this test program do.
    assert!(output.status.success() || text(&output).contains("has no attribute"), "{}", text(&output));
}

#[test]
fn a_client_is_taken_as_the_listener_says() {
    for (mode, clear, nobody) in
        [(Mode::Off, true, false), (Mode::On, true, true), (Mode::Required, false, true), (Mode::Verified, false, false)]
    {
        let host = Host::new(mode);
        let plain = format!("nbd://{}/v", host.address());
        let size = |uri: &str, taken: bool| match taken {
            true => assert_eq!(run("nbdinfo", &["--size", uri]).trim(), host.data.len().to_string()),
            false => drop(fails("nbdinfo", &["--size", uri])),
        };
        size(&plain, clear);
        size(&host.uri("nobody"), nobody);
        size(&host.uri("known"), mode != Mode::Off);
        let scheme = if clear { "nbd" } else { "nbds" };
        let uris = host.server.as_ref().unwrap().uris("v");
        assert!(uris[0].starts_with(&format!("{scheme}://127.0.0.1:")) && uris[1].starts_with(&format!("{scheme}+unix:///v?")), "{uris:?}");
        // A list of exports is one of the things that clear text does not give.
        assert_eq!(crate::stage::output("nbdinfo", &["--list", &plain]).status.success(), clear);
    }
}

#[test]
fn strangers_are_not_taken() {
    let host = Host::new(Mode::Verified);
    for certificates in ["nobody", "stranger"] {
        fails("nbdinfo", &["--size", &host.uri(certificates)]);
    }
    assert!(host.server.as_ref().unwrap().clients().list().is_empty());
    run("nbdinfo", &["--size", &host.uri("known")]);
}

#[test]
fn qemu_reads_and_writes_over_tls() {
    let host = Host::new(Mode::Verified);
    let credentials = |name: &str| format!("tls-creds-x509,id=tls,endpoint=client,verify-peer=yes,dir={}", host.path(name).display());
    let port = host.address().rsplit_once(':').unwrap().1.to_owned();
    let image = format!("driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={port},export=v,tls-creds=tls");
    let copy = host.path("copy");
    let known = credentials("known");
    run("qemu-img", &["convert", "--object", &known, "--image-opts", &image, "-O", "raw", copy.to_str().unwrap()]);
    assert!(std::fs::read(&copy).unwrap() == host.data, "qemu-img reads other bytes");
    let write = "write -P 7 1M 1M";
    let written = run("qemu-io", &["--object", &known, "--image-opts", &image, "-c", write, "-c", "flush"]);
    assert!(written.contains("wrote 1048576"), "{written}");
    let mut stored = vec![0; MIB];
    host.store.volume("v").unwrap().read_at(&mut stored, MIB as u64).unwrap();
    assert!(stored == vec![7; MIB]);
    fails("qemu-img", &["info", "--object", &credentials("stranger"), "--image-opts", &image]);
}

#[test]
fn the_name_of_a_certificate_is_kept_with_its_client() {
    let host = Host::new(Mode::Verified);
    let source = open(&host.uri("known")).unwrap();
    source.read_blocking(0..4096).unwrap();
    let clients = host.server.as_ref().unwrap().clients();
    let list = clients.list();
    assert!(!list.is_empty());
    for client in list {
        assert_eq!(client.certificate.as_deref(), Some("client-7"));
        assert!(client.address.starts_with("127.0.0.1:"), "{}", client.address);
    }
    // Its connections are ended like others.
    assert!(clients.disconnect("v", crate::stage::PATIENCE).unwrap() > 0);
    source.close();
}

#[test]
fn a_server_that_ends_sends_its_last_replies() {
    let mut host = Host::new(Mode::Verified);
    let copy = host.path("copy");
    let (uri, server) = (host.uri("known"), host.server.take().unwrap());
    // A client that is served while the server ends gets all that it was promised, or sees the connection end.
    std::thread::scope(|scope| {
        let copied = scope.spawn(|| crate::stage::output("nbdcopy", &[&uri, copy.to_str().unwrap()]));
        while server.connections() == 0 && !copied.is_finished() {
            std::thread::yield_now();
        }
        server.shutdown();
        if copied.join().unwrap().status.success() {
            assert!(std::fs::read(&copy).unwrap() == host.data);
        }
    });
    host.serve(Mode::Verified, Default::default());
    let source = open(&host.uri("known")).unwrap();
    assert!(source.read_blocking(0..host.data.len() as u64).unwrap() == host.data);
    source.close();
}
