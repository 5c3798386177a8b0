//! `serve` with TLS, and what it refuses to serve without.

use std::process::Output;

use crate::host::{Host, wait};
use crate::pki::Ca;

/// A host with the directories `server`, `client` and `nobody`.
fn host() -> Host {
    let host = Host::new();
    let (ca, at) = (Ca::new("authority"), host.directory.path());
    let (server, client) = (ca.server(&["localhost", "127.0.0.1"]), ca.client("client-7"));
    ca.directory(at, "server", &[("server", &server)]);
    ca.directory(at, "client", &[("client", &client)]);
    ca.directory(at, "nobody", &[]);
    host
}

fn message(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const VERIFIED: [&str; 5] = ["--tls", "required", "--tls-certificates", "server", "--tls-verify-peer"];

#[test]
fn a_fork_over_tls_from_the_command_line() {
    let host = host();
    let bytes = host.import("v", 1);
    let server = host.serve(&[&["--listen", "127.0.0.1:0"], &VERIFIED[..]].concat());
    assert!(server.uris[0].starts_with("nbds://127.0.0.1:"), "{:?}", server.uris);
    // The directory is that of the caller, wherever the process is that opens the source.
    let other = Host::bare();
    let uri = |certificates: &str| format!("{}?tls-certificates={certificates}", server.uri("v"));
    let fork = |certificates: &str, name: &str| {
        let mut command = other.command(&["fork", &uri(certificates), name]);
        command.current_dir(host.directory.path()).output().unwrap()
    };
    let refused = fork("nobody", "no");
    assert!(!refused.status.success() && message(&refused).contains("client-cert.pem"), "{}", message(&refused));
    assert!(fork("client", "fork").status.success());
    assert!(other.bytes("fork") == bytes);
    let shown = other.json(&["show", "fork"]);
    let expected = format!("tls-certificates={}", host.path("client").display());
    assert!(shown.to_string().contains(&expected), "{shown}");
    server.stop();
}

#[test]
fn the_certificate_of_a_client_is_shown() {
    let host = host();
    host.ok(&["create", "v", "--size", "1M"]);
    let server = host.serve(&["--tls-unix", "required", "--tls-certificates", "server", "--tls-verify-peer"]);
    let uri = format!("{}&tls-certificates={}&tls-hostname=localhost", server.uri("v"), host.path("client").display());
    assert!(uri.starts_with("nbds+unix:///v?socket="), "{uri}");
    let source = volfork::source::NbdSource::open(&uri, Default::default()).unwrap();
    let shown = host.ok(&["show", "v"]);
    assert!(shown.contains("with the certificate of 'client-7'"), "{shown}");
    volfork::source::Source::close(&*source);
    server.stop();
}

#[test]
fn what_others_reach_is_served_only_with_tls() {
    let host = host();
    let exposed = ["--listen", "0.0.0.0:0"];
    for (options, what) in [
        (&[][..], "--insecure"),
        (&["--tls", "on", "--tls-certificates", "server", "--tls-verify-peer"], "--insecure"),
        (&["--tls", "required", "--tls-certificates", "server"], "--tls-verify-peer"),
        (&["--tls-unix", "required", "--tls-certificates", "server", "--tls-verify-peer"], "--insecure"),
    ] {
        let text = host.fails(1, &[&["serve"], &exposed[..], options].concat());
        assert!(text.contains("other machines reach nbd") && text.contains(what), "{options:?}: {text}");
    }
    for options in [&VERIFIED[..], &["--insecure"]] {
        let server = host.serve(&[&exposed[..], options].concat());
        assert_eq!(server.uris[0].starts_with("nbds://0.0.0.0:"), options.len() > 1);
        server.stop();
    }
    host.serve(&["--listen", "[::1]:0", "--listen", "127.0.0.2:0"]).stop();
}

#[test]
fn tls_that_cannot_be_is_refused() {
    let host = host();
    for (options, what) in [
        (&["--tls", "required"][..], "--tls-certificates"),
        (&["--tls-certificates", "server"], "--tls required"),
        (&["--tls", "on", "--tls-certificates", "nowhere"], "server-cert.pem is missing"),
        (&["--tls", "on", "--tls-certificates", "client"], "server-cert.pem is missing"),
    ] {
        let text = host.fails(1, &[&["serve"], options].concat());
        assert!(text.contains(what), "{options:?}: {text}");
    }
    std::fs::copy(host.path("client/client-key.pem"), host.path("server/server-key.pem")).unwrap();
    let text = host.fails(1, &["serve", "--tls", "on", "--tls-certificates", "server"]);
    assert!(text.contains("server-key.pem is not the key of server-cert.pem"), "{text}");
    assert!(!text.contains("PRIVATE KEY"), "{text}");
    for wrong in [&["serve", "--tls", "maybe"][..], &["serve", "--tls-verify-peer"]] {
        host.fails(2, wrong);
    }
}

#[test]
fn a_server_behind_tls_is_replaced() {
    let host = host();
    host.ok(&["create", "v", "--size", "1M"]);
    let mut first = host.serve(&[&["--listen", "0.0.0.0:0"], &VERIFIED[..]].concat());
    // The one that serves goes on if the other one could not.
    for options in [&[][..], &["--tls", "required", "--tls-certificates", "server"], &["--tls", "on", "--tls-certificates", "nowhere"]] {
        host.fails(1, &[&["serve", "--replace"], options].concat());
        assert_eq!(host.volumes(), ["v"]);
        assert!(first.child.try_wait().unwrap().is_none());
    }
    let port = first.uris[0].rsplit(':').next().unwrap().to_owned();
    let uri = format!("nbds://127.0.0.1:{port}/v?tls-certificates={}", host.path("client").display());
    let read = || {
        let source = volfork::source::NbdSource::open(&uri, Default::default()).unwrap();
        assert_eq!(volfork::source::SourceExt::read_blocking(&*source, 0..512).unwrap(), vec![0; 512]);
        source
    };
    let source = read();
    let second = host.serve(&[&["--replace"], &VERIFIED[..]].concat());
    assert_eq!(second.uris, first.uris);
    assert!(wait(&mut first.child).success());
    // A source that was connected finds the new process.
    assert_eq!(volfork::source::SourceExt::read_blocking(&*source, 0..512).unwrap(), vec![0; 512]);
    read();
    second.stop();
}
