//! Malformed requests and request smuggling: bytes that are not a request, that hide another request, or that two
//! parsers may read differently.

use crate::support::load::Load;
use crate::support::raw;

use super::{Target, expect_all_served};

/// A request that creates a session. Attacks hide it after or inside of other bytes; it must not be executed.
const HIDDEN: &str = "POST /api/sessions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
    content-length: 38\r\n\r\n{\"businessId\":\"b\",\"userId\":\"smuggled\"}";
const ROUNDS: usize = 5;

/// One attack, and the statuses of the responses to it until the connection ends.
struct Attack {
    name: String,
    bytes: Vec<u8>,
    statuses: Vec<u16>,
    /// Whether the client closes its sending side after the bytes. Otherwise it only sends nothing more.
    half_closes: bool,
}

fn attack(name: &str, bytes: impl Into<Vec<u8>>, statuses: &[u16]) -> Attack {
    Attack { name: name.to_owned(), bytes: bytes.into(), statuses: statuses.to_vec(), half_closes: false }
}

/// The head of a create with these headers, which give the length of the body, then `rest`. As a create it is invalid.
fn framed(headers: &str, rest: &str) -> String {
    format!("POST /api/sessions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{headers}\r\n\r\n{rest}")
}

fn get(headers: &str) -> String {
    format!("GET /livez HTTP/1.1\r\nhost: x\r\n{headers}\r\n\r\n")
}

/// Two lengths for one body, and invalid lengths.
fn lengths() -> Vec<Attack> {
    let end_and_hidden = format!("0\r\n\r\n{HIDDEN}");
    let length = end_and_hidden.len();
    let both = |headers: &str| framed(headers, &end_and_hidden);
    let mut attacks = vec![
        // The service reads chunks, and closes the connection after the response: RFC 9112, 6.3.
        attack("CL, TE", both(&format!("content-length: {length}\r\ntransfer-encoding: chunked")), &[400]),
        attack("TE, CL", both(&format!("transfer-encoding: chunked\r\ncontent-length: {length}")), &[400]),
        attack("TE, CL 5", both("transfer-encoding: chunked\r\ncontent-length: 5"), &[400]),
        attack(
            "CL twice, differing",
            framed(&format!("content-length: 0\r\ncontent-length: {length}"), HIDDEN),
            &[400],
        ),
        attack(
            "CL twice, the same",
            framed("connection: close\r\ncontent-length: 2\r\ncontent-length: 2", "{}"),
            &[400],
        ),
        attack("CL longer than the body", framed("content-length: 100", "{}"), &[408]),
        attack(
            "CL shorter than the body",
            framed("content-length: 2", &format!("{{}}junk\r\n\r\n{HIDDEN}")),
            &[400, 400],
        ),
        attack(
            "TE in HTTP/1.0",
            both("transfer-encoding: chunked").replace(
                "HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntr",
                "HTTP/1.0\r\nhost: x\r\ncontent-type: application/json\r\ntr",
            ),
            &[400],
        ),
    ];
    attacks.push(Attack {
        half_closes: true,
        ..attack("CL longer than the body, cut off", framed("content-length: 100", "{}"), &[400])
    });
    let no_lengths = ["+2", "-1", "0x2", "2 2", "2,2", "2, 100", "", "two", "2.0", "18446744073709551616", "1e1"];
    attacks.extend(no_lengths.map(|text| {
        attack(&format!("CL {text:?}"), framed(&format!("content-length: {text}"), &format!("{{}}{HIDDEN}")), &[400])
    }));
    let no_codings =
        ["gzip", "xchunked", "chunked, gzip", "\x0bchunked", "chunked\r\ntransfer-encoding: identity", "\"chunked\""];
    attacks.extend(no_codings.map(|text| {
        attack(&format!("TE {text:?}"), both(&format!("content-length: 5\r\ntransfer-encoding: {text}")), &[400])
    }));
    attacks
}

fn chunks() -> Vec<Attack> {
    let chunked = |rest: &str| framed("transfer-encoding: chunked", rest);
    let bad = [
        ("size that is no number", "zz\r\n{}\r\n0\r\n\r\n"),
        ("size with a sign", "+2\r\n{}\r\n0\r\n\r\n"),
        ("size with a prefix", "0x2\r\n{}\r\n0\r\n\r\n"),
        ("size of more than 64 bits", "10000000000000002\r\n{}\r\n0\r\n\r\n"),
        ("size that is missing", "\r\n{}\r\n0\r\n\r\n"),
        ("chunk that is longer than it says", "2\r\n{}more\r\n0\r\n\r\n"),
        ("chunk that is shorter than it says", "5\r\n{}\r\n0\r\n\r\n"),
        ("size that ends with LF", "2\n{}\r\n0\r\n\r\n"),
        ("chunk that ends with LF", "2\r\n{}\n0\r\n\r\n"),
        ("extension with LF", "2;a\nb\r\n{}\r\n0\r\n\r\n"),
        ("end that is missing", "2\r\n{}\r\n"),
        ("size that never ends", &"0".repeat(100_000)),
        ("extension that never ends", &format!("2;{}", "a".repeat(100_000))),
        ("trailers that never end", &format!("0\r\n{}", "a: b\r\n".repeat(20_000))),
    ];
    bad.map(|(name, rest)| attack(&format!("chunks: {name}"), chunked(&format!("{rest}{HIDDEN}")), &[400])).into()
}

/// Heads that one parser may read as one request, and another one as two requests or none.
fn lines() -> Vec<Attack> {
    let bad = [
        ("LF only", get("a: b").replace("\r\n", "\n")),
        ("LF in a header", get(&format!("a: b\n\n{HIDDEN}"))),
        ("LF for a header", get("a: b\ncontent-length: 100")),
        ("LF after the head", format!("GET /livez HTTP/1.1\r\nhost: x\r\n\n{HIDDEN}")),
        ("LF after the first line", format!("GET /livez HTTP/1.1\nhost: x\r\n\r\n{HIDDEN}")),
        ("CR in a header", get("a: b\rtransfer-encoding: chunked")),
        ("CR only", get("a: b").replace("\r\n", "\r")),
        ("NUL in a header", get("a: b\0c")),
        ("folded header", get("a: b\r\n c")),
        ("folded TE", framed("transfer-encoding:\r\n chunked", &format!("0\r\n\r\n{HIDDEN}"))),
        ("header folded first", format!("GET /livez HTTP/1.1\r\n host: x\r\n\r\n{HIDDEN}")),
        ("space before the colon", framed("transfer-encoding : chunked", &format!("0\r\n\r\n{HIDDEN}"))),
        ("space in a name", get("a b: c")),
        ("no colon", get("a")),
        ("no name", get(": a")),
        ("no version", "GET /livez\r\n\r\n".to_owned()),
        ("no such version", "GET /livez HTTP/9.9\r\nhost: x\r\n\r\n".to_owned()),
        ("no path", "GET  HTTP/1.1\r\nhost: x\r\n\r\n".to_owned()),
        ("space in the path", "GET /livez /livez HTTP/1.1\r\nhost: x\r\n\r\n".to_owned()),
        ("no method", " /livez HTTP/1.1\r\nhost: x\r\n\r\n".to_owned()),
    ];
    let cut = |head: String| head.trim_end_matches(['\r', '\n']).to_owned();
    let mut attacks: Vec<_> = bad.into_iter().map(|(name, head)| attack(name, head + HIDDEN, &[400])).collect();
    // A head that does not end gets no response.
    attacks.push(attack("head cut off", cut(get("a: b")), &[]));
    // With CR only, the head has no end, so this adds one.
    attacks.retain(|attack| attack.name != "CR only");
    attacks.push(attack("CR only", get("a: b").replace("\r\n", "\r") + "\r\n\r\n", &[400]));
    attacks
}

fn garbage() -> Vec<Attack> {
    let random: Vec<u8> =
        (0..10_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
    vec![
        attack("garbage", [random.as_slice(), b"\r\n\r\n", HIDDEN.as_bytes()].concat(), &[400]),
        attack("garbage behind a request", [get("a: b").as_bytes(), &random, HIDDEN.as_bytes()].concat(), &[200, 400]),
        attack("a word behind a request", get("a: b") + "junk\r\n\r\n" + HIDDEN, &[200, 400]),
        attack("TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".as_slice(), &[400]),
        attack("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", &[]),
        attack("SSH", "SSH-2.0-OpenSSH_9.6\r\n", &[400]),
        attack("Redis", format!("*1\r\n$4\r\nPING\r\n{HIDDEN}"), &[400]),
    ]
}

fn too_much() -> Vec<Attack> {
    let megabyte = "a".repeat(1 << 20);
    let line = |uri: &str| format!("GET /{uri} HTTP/1.1\r\nhost: x\r\n\r\n{HIDDEN}");
    vec![
        attack("20,000 headers", get(&"a: b\r\n".repeat(20_000)), &[431]),
        attack("101 headers", get("a: b\r\n".repeat(100).trim_end()), &[431]),
        attack("a header of 1 MB", get(&format!("a: {megabyte}")) + HIDDEN, &[431]),
        attack("a name of 1 MB", get(&format!("{megabyte}: a")) + HIDDEN, &[431]),
        attack("a URI of 1 MB", line(&megabyte), &[414]),
        attack("a method of 1 MB", format!("{megabyte} / HTTP/1.1\r\nhost: x\r\n\r\n{HIDDEN}"), &[414]),
        attack(
            "a URI of 10,000 bytes",
            format!("GET /{} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", &megabyte[..10_000]),
            &[414],
        ),
        attack(
            "a body of 1 MB",
            framed(&format!("connection: close\r\ncontent-length: {}", 1 << 20), &megabyte),
            &[413],
        ),
    ]
}

fn all() -> Vec<Attack> {
    [lengths(), chunks(), lines(), garbage(), too_much()].into_iter().flatten().collect()
}

impl Attack {
    /// Attacks the service. Returns a text if the statuses are not the expected ones.
    async fn on(&self, target: &Target) -> Option<String> {
        let received = target.send(&self.bytes, self.half_closes).await;
        let responses = raw::answers(&received);
        let statuses: Vec<_> = responses.iter().map(|response| response.status.as_u16()).collect();
        for response in responses.iter().filter(|response| response.status.as_u16() >= 400) {
            response.expect_problem(response.status.as_u16(), &response.string("code"));
        }
        for response in &responses {
            let headers = (response.header("x-content-type-options"), response.header("cache-control"));
            assert_eq!(headers, (Some("nosniff"), Some("no-store")), "{}: {response:?}", self.name);
        }
        (statuses != self.statuses).then(|| format!("{}: {statuses:?} instead of {:?}", self.name, self.statuses))
    }
}

#[tokio::test]
async fn malformed_requests_are_rejected_and_hidden_requests_are_not_executed() {
    let target = Target::start("attacks", &[]).await;
    // Alone, the hidden request is executed. Otherwise this test would show nothing.
    let alone = HIDDEN.replace("smuggled", "straight").replace("host: x", "host: x\r\nconnection: close");
    let seen = raw::answers(&target.send(alone.as_bytes(), false).await);
    assert_eq!(seen.iter().map(|response| response.status.as_u16()).collect::<Vec<_>>(), [201], "{seen:?}");
    let before = target.probe.digest().await;
    assert!(!before.is_empty());
    let mut wrong = Vec::new();
    for attack in all() {
        wrong.extend(attack.on(&target).await);
        let unchanged = target.probe.digest().await == before;
        assert!(unchanged, "{}: Redis has changed", attack.name);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn other_clients_are_served_during_every_attack() {
    let target = Target::start("beside-attacks", &[]).await;
    let users: Vec<_> = (0..4).map(|number| ("b".to_owned(), format!("u{number}"))).collect();
    let load = Load::start(&target.base, &users).await;
    for _ in 0..ROUNDS {
        let attacks = all();
        let wrong = futures_util::future::join_all(attacks.iter().map(|attack| attack.on(&target))).await;
        let wrong: Vec<_> = wrong.into_iter().flatten().collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
    expect_all_served(&load.stop().await);
}
