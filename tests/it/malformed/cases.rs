//! Malformed, ambiguous and tricky requests, as ten proxies were measured with: a plain table.
//!
//! `{H}` stands for a Host and a valid key, `{S}` for a second request that is well-formed, `KEY` for
//! the key, `LEN` for the length of `{S}`.

use crate::house::KEY;

/// What the gate does with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Answers 4xx or 5xx and closes, and no complete request reaches the backend.
    Refuse,
    /// May serve or refuse.
    Accept,
    /// See the test of this name.
    Look,
}

use Expect::{Accept, Look, Refuse};

pub type Case = (&'static str, Expect, fn() -> Vec<u8>);

const HEADERS: &str = "Host: a\r\nAuthorization: Bearer KEY\r\n";
const SECOND: &str = "GET /api/version HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer KEY\r\n\r\n";

fn plain(bytes: &[u8]) -> Vec<u8> {
    let second = SECOND.replace("KEY", KEY);
    let mut bytes = bytes.to_vec();
    for (mark, text) in
        [("{H}", HEADERS), ("{S}", SECOND), ("LEN", &second.len().to_string()), ("KEY", KEY)]
    {
        while let Some(at) = crate::house::find(&bytes, mark.as_bytes()) {
            bytes.splice(at..at + mark.len(), text.bytes());
        }
    }
    bytes
}

fn long(before: &[u8], again: &[u8], times: usize, after: &[u8]) -> Vec<u8> {
    [plain(before), again.repeat(times), plain(after)].concat()
}

#[rustfmt::skip]
pub const CASES: [Case; 74] = [
    ("base", Accept, || plain(b"GET /ok HTTP/1.1\r\n{H}\r\n")),
    ("clte", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /api/version HTTP/1.1\r\n{H}\r\n")),
    ("tecl", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET /api/version HTTP/1.1\r\n{H}\r\n")),
    ("dup_cl_diff", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Content-Length: 0\r\nContent-Length: 5\r\n\r\nAAAAA")),
    ("dup_cl_same", Accept, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Content-Length: 5\r\nContent-Length: 5\r\n\r\nAAAAA")),
    ("cl_list_same", Accept, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Content-Length: 5, 5\r\n\r\nAAAAA")),
    ("cl_plus", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Content-Length: +5\r\n\r\nAAAAA")),
    ("cl_neg", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Content-Length: -1\r\n\r\nAAAAA")),
    ("cl_hex", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Content-Length: 0x5\r\n\r\nAAAAA")),
    ("cl_empty", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Content-Length: \r\n\r\n")),
    ("cl_overflow", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Content-Length: 18446744073709551617\r\n\r\nA")),
    ("cl_underscore", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Content-Length: 1_0\r\n\r\n0123456789")),
    ("cl_space_colon", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Content-Length : 5\r\n\r\nAAAAA")),
    ("te_xchunked", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n")),
    ("te_identity", Look, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Transfer-Encoding: identity\r\nContent-Length: 1\r\n\r\nA")),
    ("te_chunked_identity", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n")),
    ("te_comma_chunked", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n")),
    ("te_dup", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")),
    ("te_vt", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n")),
    ("te_http10", Refuse, || plain(b"POST /api/chat HTTP/1.0\r\n{H}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")),
    ("chunk_0x", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n0x1\r\nA\r\n0\r\n\r\n")),
    ("chunk_neg", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n-1\r\nA\r\n0\r\n\r\n")),
    ("chunk_overflow", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n10000000000000001\r\nA\r\n0\r\n\r\n")),
    ("chunk_barelf", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n1\nA\n0\n\r\n")),
    ("chunk_ext_lf", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n1;a\nb\r\nA\r\n0\r\n\r\n")),
    ("chunk_ext_cr", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n1\r;a\r\nA\r\n0\r\n\r\n")),
    ("chunk_noterm", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n1\r\nAXX0\r\n\r\n")),
    ("trailer_te", Look, || plain(b"POST /api/later HTTP/1.1\r\n{H}Transfer-Encoding: chunked\r\n\r\n1\r\nA\r\n0\r\nContent-Length: 50\r\nX-Trail: 1\r\nAuthorization: Basic x\r\n\r\n")),
    ("obs_fold", Refuse, || plain(b"GET /api/tags HTTP/1.1\r\n{H}X-A: 1\r\n 2\r\n\r\n")),
    ("obs_fold_te", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n")),
    ("first_hdr_ws", Refuse, || plain(b"GET /api/tags HTTP/1.1\r\n X-A: 1\r\n{H}\r\n")),
    ("hdr_nul", Refuse, || plain(b"GET /api/tags HTTP/1.1\r\n{H}X-A: a\x00b\r\n\r\n")),
    ("hdr_cr", Refuse, || plain(b"GET /api/tags HTTP/1.1\r\n{H}X-A: a\rX-B: b\r\n\r\n")),
    ("hdr_lf_end", Accept, || plain(b"GET /api/tags HTTP/1.1\nHost: a\nX-A: 1\n\n")),
    ("hdr_empty_name", Refuse, || plain(b"GET /api/tags HTTP/1.1\r\n{H}: v\r\n\r\n")),
    ("hdr_nocolon", Refuse, || plain(b"GET /api/tags HTTP/1.1\r\n{H}Foo bar\r\n\r\n")),
    ("hdr_badname", Refuse, || plain(b"GET /api/tags HTTP/1.1\r\n{H}X(A): b\r\n\r\n")),
    ("hdr_8bitname", Refuse, || plain(b"GET /api/tags HTTP/1.1\r\n{H}X\xa0: b\r\n\r\n")),
    ("no_host", Refuse, || plain(b"GET /api/tags HTTP/1.1\r\nAuthorization: Bearer KEY\r\n\r\n")),
    ("two_host", Refuse, || plain(b"GET /api/tags HTTP/1.1\r\n{H}Host: b\r\n\r\n")),
    ("bad_host", Refuse, || plain(b"GET /api/tags HTTP/1.1\r\nHost: a b/../c@d\r\nAuthorization: Bearer KEY\r\n\r\n")),
    ("abs_host_mismatch", Refuse, || plain(b"GET http://evil/x HTTP/1.1\r\n{H}\r\n")),
    ("abs_ftp", Refuse, || plain(b"GET ftp://evil/x HTTP/1.1\r\n{H}\r\n")),
    ("connect", Refuse, || plain(b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n")),
    ("asterisk_get", Refuse, || plain(b"GET * HTTP/1.1\r\n{H}\r\n")),
    ("noslash", Refuse, || plain(b"GET x HTTP/1.1\r\n{H}\r\n")),
    ("http09", Refuse, || plain(b"GET /api/tags\r\n\r\n")),
    ("http2ver", Refuse, || plain(b"GET /api/tags HTTP/2.0\r\n{H}\r\n")),
    ("http19", Refuse, || plain(b"GET /api/tags HTTP/1.9\r\n{H}\r\n")),
    ("uri_ctl", Refuse, || plain(b"GET /api/tags\x01y HTTP/1.1\r\n{H}\r\n")),
    ("uri_8bit", Refuse, || plain(b"GET /api/tags\xffy HTTP/1.1\r\n{H}\r\n")),
    ("uri_frag", Refuse, || plain(b"GET /api/tags#/api/tags HTTP/1.1\r\n{H}\r\n")),
    ("uri_badpct", Refuse, || plain(b"GET /api/tags%zz HTTP/1.1\r\n{H}\r\n")),
    ("uri_nulpct", Refuse, || plain(b"GET /api/tags%00 HTTP/1.1\r\n{H}\r\n")),
    ("twosp", Refuse, || plain(b"GET  /api/tags HTTP/1.1\r\n{H}\r\n")),
    ("tab_rl", Refuse, || plain(b"GET\x09/x\x09HTTP/1.1\r\n{H}\r\n")),
    ("lead_crlf", Accept, || plain(b"\r\n\r\nGET /api/tags HTTP/1.1\r\n{H}\r\n")),
    ("hdr64k", Refuse, || long(b"GET /api/tags HTTP/1.1\r\n{H}X-A: ", b"a", 65_536, b"\r\n\r\n")),
    ("hdr1m", Refuse, || long(b"GET /api/tags HTTP/1.1\r\n{H}X-A: ", b"a", 1_000_000, b"\r\n\r\n")),
    ("hdrs2000", Refuse, || long(b"GET /api/tags HTTP/1.1\r\n{H}", b"X-1: a\r\n", 2_000, b"\r\n")),
    ("uri64k", Refuse, || long(b"GET /", b"a", 65_536, b" HTTP/1.1\r\n{H}\r\n")),
    ("method_long", Refuse, || long(b"", b"A", 300, b" /api/tags HTTP/1.1\r\n{H}\r\n")),
    ("conn_xff", Look, || plain(b"GET /api/tags HTTP/1.1\r\n{H}X-Forwarded-For: 6.6.6.6\r\nConnection: close, X-Forwarded-For, X-Keep\r\nX-Keep: 1\r\n\r\n")),
    ("conn_auth", Look, || plain(b"GET /api/tags HTTP/1.1\r\n{H}Authorization: Basic eDp5\r\nConnection: close, Authorization\r\n\r\n")),
    ("xff_spoof", Look, || plain(b"GET /api/tags HTTP/1.1\r\n{H}X-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX_Forwarded_For: 7.7.7.7\r\n\r\n")),
    ("upgrade_bogus_pipe", Look, || plain(b"GET /api/tags HTTP/1.1\r\n{H}Connection: Upgrade\r\nUpgrade: foo\r\n\r\nGET /api/version HTTP/1.1\r\n{H}\r\n")),
    ("h2c_upgrade", Look, || plain(b"GET /api/tags HTTP/1.1\r\n{H}Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n")),
    ("ws_badver", Look, || plain(b"GET /api/tags HTTP/1.1\r\n{H}Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nGET /api/version HTTP/1.1\r\n{H}\r\n")),
    ("get_body_pipe", Look, || plain(b"GET /api/tags HTTP/1.1\r\n{H}Content-Length: LEN\r\n\r\nGET /api/version HTTP/1.1\r\n{H}\r\n")),
    ("expect_obf", Refuse, || plain(b"POST /api/chat HTTP/1.1\r\n{H}Expect: y 100-continue\r\nContent-Length: 5\r\n\r\nAAAAA")),
    ("expect_get", Look, || plain(b"GET /api/tags HTTP/1.1\r\n{H}Expect: 100-continue\r\nContent-Length: LEN\r\n\r\nGET /api/version HTTP/1.1\r\n{H}\r\n")),
    ("trace", Refuse, || plain(b"TRACE /api/tags HTTP/1.1\r\n{H}Authorization: Bearer s3cret\r\n\r\n")),
    ("override", Look, || plain(b"POST /api/chat HTTP/1.1\r\n{H}X-HTTP-Method-Override: DELETE\r\nContent-Length: 0\r\n\r\n")),
    ("prior_h2c", Refuse, || plain(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")),
];
