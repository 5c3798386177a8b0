//! What a client may send to a server.
#![no_main]

use volfork::wire::{ContextQuery, GoRequest, OptionRequest, Request, StatusQuery};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some(header) = bytes.first_chunk() {
        let _ = OptionRequest::decode(header);
    }
    if let Ok(go) = GoRequest::decode(bytes) {
        assert_eq!(GoRequest::decode(&go.encode()), Ok(go));
    }
    if let Ok(query) = ContextQuery::decode(bytes) {
        assert_eq!(ContextQuery::decode(&query.encode()), Ok(query));
    }
    if let Ok(query) = StatusQuery::decode(bytes) {
        assert_eq!(StatusQuery::decode(&query.encode()), Ok(query));
    }
    for extended in [false, true] {
        if let Ok(request) = Request::decode(bytes, extended) {
            assert_eq!(Request::decode(&request.encode(extended), extended), Ok(request));
        }
    }
});
