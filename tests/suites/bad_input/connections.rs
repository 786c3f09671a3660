//! Connections that are slow, broken, or speak something else: byte by byte over plain sockets. Invariant: each of them ends;
//! nothing of a request that was cut is stored; others are served meanwhile, and every descriptor comes back. What the
//! HTTP library answers by itself (docs/api.md, "Errors") is a bare status: asserted as it comes.

use serde_json::Value;
use sluice_tests::{Broker, Client, Settings, wait};

use super::stored::{difference, stored};
use super::wire::{self, Wire};

/// Files that a broker opens once and keeps (segments, the catalog's connections): no connection's own.
const FILES_SLACK: usize = 8;
/// A whole message: whoever reads no further than this would store it.
const MESSAGE: &[u8] = br#"{"topicName":"jobs","payload":"cut"}"#;

/// A broker whose clients have two seconds for a request, and what it was like before.
struct Bed {
    broker: Broker,
    before: Value,
    descriptors: usize,
}

impl Bed {
    async fn start() -> Bed {
        Bed::with(Settings::new().env("SLUICE__LIMITS__REQUEST_TIMEOUT", "PT2S")).await
    }

    async fn with(settings: Settings) -> Bed {
        let broker = Broker::with(settings).await;
        broker.create_topic("jobs", "Queue").await;
        broker.publish("jobs", 1).await;
        let before = stored(&broker).await;
        Bed { descriptors: descriptors(&broker), before, broker }
    }

    /// A connection that has sent this.
    async fn sent(&self, bytes: &[u8]) -> Wire {
        let mut wire = Wire::to(&self.broker).await;
        wire.send(bytes).await;
        wire
    }

    /// A publish's head, with these lines in it.
    fn head(&self, lines: &[&str]) -> Vec<u8> {
        let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let token = self.broker.token();
        let head = "POST /api/v1/messages/publish HTTP/1.1\r\nhost: broker\r\n";
        format!("{head}authorization: Bearer {token}\r\n{lines}\r\n").into_bytes()
    }

    fn get(&self, path: &str) -> Vec<u8> {
        wire::request(&self.broker, ("GET", path), &[], None)
    }

    async fn is_served(&self) {
        self.broker.get("/topics/jobs").await.expect(200);
    }

    async fn expect_as_before(&self) {
        self.is_served().await;
        assert_eq!(difference(&self.before, &stored(&self.broker).await), None);
        let most = self.descriptors + FILES_SLACK;
        wait::until("descriptors come back", async || (descriptors(&self.broker) <= most).then_some(())).await;
    }
}

fn descriptors(broker: &Broker) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", broker.process_id())).expect("the broker runs").count()
}

/// Sends each connection one more byte, looks after others, until the broker has ended them all.
async fn drip(bed: &Bed, wires: &mut [Wire]) {
    wait::until("slow connections are ended", async || {
        bed.is_served().await;
        let mut open = false;
        for wire in wires.iter_mut() {
            wire.send(b"a").await;
            open |= !wire.has_ended();
        }
        (!open).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_is_cut_while_others_are_served() {
    let bed = Bed::start().await;
    let mut slow = Vec::new();
    for begun in ["", "G", "GET /api/v1/topics HTTP/1.1\r\n", "GET /api/v1/topics HTTP/1.1\r\nx-slow: "] {
        for _ in 0..10 {
            slow.push(bed.sent(begun.as_bytes()).await);
        }
    }
    // One that was served before has no longer for its next head.
    let mut served = bed.sent(&bed.get("/api/v1/topics")).await;
    assert_eq!(served.expect_answer().await.status, 200);
    slow.push(served);
    drip(&bed, &mut slow).await;
    for mut wire in slow {
        wire.expect_end().await;
    }
    bed.expect_as_before().await;
}

#[tokio::test]
async fn a_body_that_comes_byte_by_byte_times_out_while_others_are_served() {
    let bed = Bed::start().await;
    let mut slow = Vec::new();
    for framing in ["content-length: 1000000", "transfer-encoding: chunked"] {
        let head = bed.head(&[framing]);
        let begun: &[u8] = if framing.starts_with('c') { MESSAGE } else { b"f4240\r\n" };
        slow.push(bed.sent(&[&head, begun].concat()).await);
    }
    wait::until("slow bodies are refused", async || {
        bed.is_served().await;
        let mut open = false;
        for wire in &mut slow {
            wire.send(b" ").await;
            open |= !wire.has_answered();
        }
        (!open).then_some(())
    })
    .await;
    for mut wire in slow {
        wire.expect_answer().await.expect_problem(408, "REQUEST_TIMEOUT");
        wire.expect_end().await;
    }
    bed.expect_as_before().await;
}

#[tokio::test]
async fn a_body_that_is_cut_stores_nothing() {
    let bed = Bed::start().await;
    let longer = format!("content-length: {}", MESSAGE.len() + 10);
    let chunk = [format!("{:x}\r\n", MESSAGE.len()).as_bytes(), MESSAGE, b"\r\n"].concat();
    let begun = [[bed.head(&[&longer]), MESSAGE.to_vec()], [bed.head(&["transfer-encoding: chunked"]), chunk]];
    for begun in begun.map(|parts| parts.concat()) {
        for _ in 0..20 {
            bed.sent(&begun).await.reset();
            drop(bed.sent(&begun).await);
            let mut closing = bed.sent(&begun).await;
            closing.finish().await;
            // Whether its answer reaches a client that has stopped is not promised, but that it is no success is.
            if let Some(answer) = closing.answer().await {
                answer.expect_problem(400, "MALFORMED_JSON");
            }
            closing.expect_end().await;
        }
        for length in [0, 1, 20, begun.len() / 2] {
            bed.sent(&begun[..length]).await.reset();
        }
    }
    bed.expect_as_before().await;
}

#[tokio::test]
async fn a_body_whose_length_cannot_be_told_stores_nothing() {
    let bed = Bed::start().await;
    let length = format!("content-length: {}", MESSAGE.len());
    // Before there is a request: hyper answers, and ends the connection.
    for lines in [
        &["content-length: 36", "content-length: 37"][..],
        &["content-length: 36, 36"],
        &["content-length: -1"],
        &["content-length: +36"],
        &["content-length: 0x24"],
        &["content-length: 3e1"],
        &["content-length: 36 36"],
        &["content-length: 99999999999999999999999999"],
        &["content-length:"],
        &["transfer-encoding: gzip"],
        &["transfer-encoding: chunked, gzip"],
        &["transfer-encoding: xchunked"],
        &["transfer-encoding:"],
        &["x-folded: a", " b"],
        &["x-space : a"],
        &["x-nul: \0"],
        &["x y: a"],
        &[": a"],
    ] {
        let mut lines = lines.to_vec();
        if !lines[0].starts_with("content-length") {
            lines.push(&length);
        }
        let mut wire = bed.sent(&[bed.head(&lines), MESSAGE.to_vec()].concat()).await;
        let answer = wire.expect_answer().await;
        assert_eq!((answer.status, answer.body.len()), (400, 0), "{lines:?}: {answer}");
        wire.expect_end().await;
        bed.is_served().await;
    }
    // Within the body: the broker answers, and what follows is not taken for a request.
    let next = String::from_utf8(bed.get("/api/v1/topics")).expect("a request is text");
    for chunks in ["zz\r\n", "-1\r\n", "fffffffffffffffff\r\n", "24", "\r\n", "24\r\n{}\r\n", "2\r\n{}xx", "2;\n{}\r\n"]
    {
        let mut wire =
            bed.sent(&[&bed.head(&["transfer-encoding: chunked"]), chunks.as_bytes(), next.as_bytes()].concat()).await;
        wire.finish().await;
        wire.expect_answer().await.expect_problem(400, "MALFORMED_JSON");
        wire.expect_end().await;
        bed.is_served().await;
    }
    bed.expect_as_before().await;
}

/// Two lengths are how requests are smuggled past a proxy: the one that counts is the chunks' (RFC 9112 §6.3), and nothing
/// behind it is read as a request.
#[tokio::test]
async fn a_body_with_two_lengths_is_the_last_of_its_connection() {
    let bed = Bed::start().await;
    let hidden = bed.get("/api/v1/topics");
    let chunked = "transfer-encoding: chunked";
    for (first, second) in [(chunked, "content-length: 3"), ("content-length: 3", chunked)] {
        let mut wire =
            bed.sent(&[&bed.head(&[first, second]), b"2\r\n[]\r\n0\r\n\r\n".as_slice(), &hidden].concat()).await;
        wire.expect_answer().await.expect_problem(400, "VALIDATION_ERROR");
        wire.expect_end().await;
    }
    bed.expect_as_before().await;
}

#[tokio::test]
async fn what_is_not_http_is_hung_up_on() {
    let bed = Bed::start().await;
    let hello = b"\x16\x03\x01\x00\xc5\x01\x00\x00\xc1\x03\x03";
    let noise: Vec<u8> = (0..4096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let bare: [&[u8]; 9] = [
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/0.9\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"G\x00T /health HTTP/1.1\r\n\r\n",
        b"GET /health\x00 HTTP/1.1\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        hello,
        &noise,
    ];
    for bytes in bare {
        let mut wire = bed.sent(bytes).await;
        let answer = wire.expect_answer().await;
        assert_eq!((answer.status, answer.body.len()), (400, 0), "{}: {answer}", String::from_utf8_lossy(bytes));
        bed.is_served().await;
    }
    // HTTP/2's preface, and then no frame of it: an answer in frames, and the end.
    let mut wire = bed.sent(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &noise].concat()).await;
    wire.expect_end_of_frames().await;
    // These are HTTP, and no route's.
    for (line, status, code) in [
        ("OPTIONS * HTTP/1.1", 404, "NOT_FOUND"),
        ("TRACE /api/v1/topics HTTP/1.1", 405, "METHOD_NOT_ALLOWED"),
        ("CONNECT internal:443 HTTP/1.1", 404, "NOT_FOUND"),
        ("GET http://elsewhere/nowhere HTTP/1.1", 404, "NOT_FOUND"),
        ("NONSENSE /api/v1/topics HTTP/1.1", 405, "METHOD_NOT_ALLOWED"),
    ] {
        let mut wire = bed.sent(format!("{line}\r\nhost: broker\r\n\r\n").as_bytes()).await;
        wire.expect_answer().await.expect_problem(status, code);
    }
    bed.expect_as_before().await;
}

#[tokio::test]
async fn a_flood_of_headers_costs_nothing() {
    let bed = Bed::start().await;
    let lines = |count: usize| (0..count).map(|n| format!("x-{n}: v\r\n")).collect::<String>();
    let head = |target: &str, lines: &str| format!("GET {target} HTTP/1.1\r\nhost: broker\r\n{lines}\r\n");
    let long = |count: usize| "x".repeat(count);
    let topics = "/api/v1/topics";
    for (request, status, code) in [
        (head(topics, &lines(200)), 431, "HEADERS_TOO_LARGE"),
        (head(topics, &lines(1000)), 431, "HEADERS_TOO_LARGE"),
        (head(topics, &format!("x-large: {}\r\n", long(40_000))), 431, "HEADERS_TOO_LARGE"),
        (head(topics, &format!("{}: v\r\n", long(40_000))), 431, "HEADERS_TOO_LARGE"),
        (head(&format!("/{}", long(8192)), ""), 414, "URI_TOO_LONG"),
        (head(&format!("{topics}?x={}", long(60_000)), ""), 414, "URI_TOO_LONG"),
    ] {
        bed.sent(request.as_bytes()).await.expect_answer().await.expect_problem(status, code);
    }
    // Here hyper answers, and hangs up on what still comes: that may reset the connection before the answer is read.
    for request in [
        head(topics, &lines(10_000)),
        head(topics, &format!("x-large: {}\r\n", long(1 << 20))),
        head(&format!("/{}", long(1 << 20)), ""),
        long(1 << 20),
    ] {
        let mut wire = bed.sent(request.as_bytes()).await;
        if let Some(answer) = wire.answer().await {
            assert!(matches!(answer.status, 400 | 414 | 431) && answer.body.is_empty(), "{answer}");
        }
        bed.is_served().await;
    }
    bed.expect_as_before().await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_each_for_itself() {
    let bed = Bed::start().await;
    let post = |body: &[u8]| wire::request(&bed.broker, ("POST", "/api/v1/topics"), &[], Some(body));
    let mut all = Vec::new();
    for _ in 0..20 {
        all.extend([bed.get("/api/v1/topics/jobs"), post(b"{"), bed.get("/api/v1/topics/%FF"), post(b"{\"name\":5}")]);
    }
    all.push(b"nonsense\r\n\r\n".to_vec());
    let mut wire = bed.sent(&all.concat()).await;
    for _ in 0..20 {
        wire.expect_answer().await.expect(200);
        wire.expect_answer().await.expect_problem(400, "MALFORMED_JSON");
        wire.expect_answer().await.expect_problem(400, "VALIDATION_ERROR");
        wire.expect_answer().await.expect_problem(400, "VALIDATION_ERROR");
    }
    assert_eq!(wire.expect_answer().await.status, 400);
    wire.expect_end().await;
    bed.expect_as_before().await;
}

#[tokio::test]
async fn a_body_that_is_too_large_is_not_asked_for() {
    let bed = Bed::start().await;
    for length in [17 << 20, 100 << 20, 1_u64 << 62] {
        let length = format!("content-length: {length}");
        let mut wire = bed.sent(&bed.head(&[&length, "expect: 100-continue"])).await;
        // Not 100: what was announced is refused before any of it is sent.
        wire.expect_answer().await.expect_problem(413, "MESSAGE_TOO_LARGE");
        wire.expect_end().await;
    }
    bed.expect_as_before().await;
    let length = format!("content-length: {}", MESSAGE.len());
    let mut wire = bed.sent(&bed.head(&[&length, "expect: 100-continue"])).await;
    assert_eq!(wire.expect_answer().await.status, 100);
    wire.send(MESSAGE).await;
    wire.expect_answer().await.expect(202);
}

#[tokio::test]
async fn connections_that_say_nothing_do_not_stay_and_keep_nobody_out() {
    let bed = Bed::start().await;
    let mut idle = Vec::new();
    for _ in 0..500 {
        idle.push(Wire::to(&bed.broker).await);
    }
    // Clients that have said all and stopped; what they would be answered is lost with them, or not.
    for _ in 0..50 {
        let mut half = bed.sent(&bed.get("/api/v1/topics")).await;
        half.finish().await;
        idle.push(half);
    }
    bed.is_served().await;
    for wire in &mut idle {
        while wire.answer().await.is_some() {}
    }
    bed.expect_as_before().await;
}

#[tokio::test]
async fn who_asks_and_does_not_read_the_answers_is_cut() {
    let bed = Bed::start().await;
    // Many times what the sockets between hold.
    let questions = bed.get("/openapi.json").repeat(200);
    let mut deaf = Vec::new();
    for _ in 0..20 {
        deaf.push(bed.sent(&questions).await);
    }
    // Descriptors come back though these connections are still held here.
    bed.expect_as_before().await;
    drop(deaf);
}

#[tokio::test]
async fn who_waits_for_room_is_served_once_silent_connections_have_ended() {
    let settings = Settings::new().env("SLUICE__LIMITS__REQUEST_TIMEOUT", "PT1S");
    let bed = Bed::with(settings.env("SLUICE__LIMITS__CONNECTIONS_MAX", "50")).await;
    let silent = crowd(&bed.broker, 60).await;
    let mut late = bed.sent(&bed.get("/api/v1/topics/jobs")).await;
    late.expect_answer().await.expect(200);
    drop(silent);
    bed.expect_as_before().await;
}

async fn crowd(client: &Client, count: usize) -> Vec<Wire> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(Wire::to(client).await);
    }
    all
}
