//! Publishing line by line over one request. Invariant: a line that was answered is durable, in its place; a stream that ends
//! without its summary broke off.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::token::Claims;
use sluice_tests::{Broker, Client, Settings, guest, wait};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// One request over a plain socket, in chunks: what is written and what is read are two things.
struct Publishing {
    writes: OwnedWriteHalf,
    answers: Answers,
}

struct Answers(Lines<BufReader<OwnedReadHalf>>);

impl Publishing {
    async fn begin(broker: &Broker) -> Publishing {
        Publishing::begin_as(broker, &broker.admin()).await
    }

    async fn begin_as(broker: &Broker, client: &Client) -> Publishing {
        let address = broker.url().trim_start_matches("http://").to_owned();
        let (reads, mut writes) = TcpStream::connect(&address).await.expect("it listens").into_split();
        let head = format!(
            "POST /api/v1/messages/publish/stream HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\
             content-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n",
            client.token()
        );
        writes.write_all(head.as_bytes()).await.expect("the head is taken");
        let mut lines = BufReader::new(reads).lines();
        let status = lines.next_line().await.expect("an answer").expect("a status");
        assert_eq!(status, "HTTP/1.1 200 OK");
        while !lines.next_line().await.expect("a head").expect("a line of it").is_empty() {}
        Publishing { writes, answers: Answers(lines) }
    }

    async fn send(&mut self, bytes: &[u8]) {
        let chunk = [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
        self.writes.write_all(&chunk).await.expect("the chunk is taken");
    }

    async fn end(&mut self) {
        self.writes.write_all(b"0\r\n\r\n").await.expect("the end is taken");
    }
}

impl Answers {
    /// The next answer; none when the connection is over.
    async fn next(&mut self) -> Option<Value> {
        loop {
            let line =
                tokio::time::timeout(Duration::from_secs(60), self.0.next_line()).await.expect("in time").ok()??;
            // Sizes of chunks and empty lines stand between.
            if line.starts_with('{') {
                return Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")));
            }
            if line == "0" {
                return None;
            }
        }
    }
}

fn line(payload: impl Into<Value>) -> String {
    json!({"topicName": "events", "payload": payload.into()}).to_string() + "\n"
}

async fn with_events() -> Broker {
    let broker = Broker::start().await;
    broker.create_topic("events", "Queue").await;
    broker
}

#[tokio::test]
async fn each_line_has_its_result_while_more_are_to_come() {
    let broker = with_events().await;
    let mut stream = Publishing::begin(&broker).await;
    for number in 1..=3 {
        stream.send(line(format!("number {number}")).as_bytes()).await;
        let answer = stream.answers.next().await.expect("a result");
        assert_eq!((&answer["line"], &answer["status"]), (&json!(number), &json!("Pending")), "{answer}");
    }
    // Half a line waits for its rest; what is wrong with one is no matter of the others.
    let two = line("four") + "\n{\"topicName\": 1}\n" + &line("seven");
    let (begin, rest) = two.split_at(10);
    stream.send(begin.as_bytes()).await;
    stream.send(rest.as_bytes()).await;
    let answers = [stream.answers.next().await, stream.answers.next().await, stream.answers.next().await];
    let [four, six, seven] = answers.map(|answer| answer.expect("a result"));
    assert_eq!((&four["line"], &six["line"], &seven["line"]), (&json!(4), &json!(6), &json!(7)));
    assert_eq!((&six["status"], &six["error"]["code"]), (&json!("Rejected"), &json!("VALIDATION_ERROR")), "{six}");
    stream.end().await;
    let last = stream.answers.next().await.expect("a summary");
    assert_eq!(last, json!({"summary": {"accepted": 5, "refused": 1}}));
    assert_eq!(stream.answers.next().await, None);
    let stored = broker.consume("events", "").collect(5).await;
    let payloads: Vec<&str> = stored.iter().map(|delivery| delivery.payload()).collect();
    assert_eq!(payloads, ["number 1", "number 2", "number 3", "four", "seven"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_lines_take_no_memory_and_a_reader_that_waits_holds_the_writer_up() {
    const LINES: usize = 200_000;
    let broker = with_events().await;
    let before = broker.resident_bytes();
    let Publishing { mut writes, mut answers } = Publishing::begin(&broker).await;
    let writing = tokio::spawn(async move {
        let some = line("x".repeat(100)).repeat(100);
        let chunk = format!("{:x}\r\n{some}\r\n", some.len());
        for _ in 0..LINES / 100 {
            writes.write_all(chunk.as_bytes()).await.expect("it is taken, sooner or later");
        }
        writes.write_all(b"0\r\n\r\n").await.expect("the end is taken");
        writes
    });
    // Nothing is read: what the sockets and one run hold is taken, and then no more.
    let stalled = wait::until("the broker takes no more", async || {
        let published = async || {
            broker.get("/topics/events/metrics").await.expect(200)["publishedTotal"].as_u64().expect("a number")
        };
        let first = published().await;
        wait::pause(Duration::from_millis(500)).await;
        (first > 0 && published().await == first).then_some(first)
    })
    .await;
    assert!(stalled < LINES as u64, "{stalled} were taken while no result was");
    let mut results = 0;
    let summary = loop {
        let answer = answers.next().await.expect("it goes on to its summary");
        if answer["summary"].is_object() {
            break answer;
        }
        results += 1;
        assert_eq!(answer["line"], results);
    };
    assert_eq!(summary, json!({"summary": {"accepted": LINES, "refused": 0}}));
    drop(writing.await.expect("no panic"));
    let grown = broker.resident_bytes().saturating_sub(before);
    assert!(grown < 150 << 20, "{LINES} lines took {} MiB", grown >> 20);
}

#[tokio::test]
async fn what_was_answered_is_there_whatever_ends_the_stream() {
    let mut broker = with_events().await;
    let mut stream = Publishing::begin(&broker).await;
    stream.send((line("one") + "{\"topicName\": \"ev").as_bytes()).await;
    assert_eq!(stream.answers.next().await.expect("a result")["line"], 1);
    drop(stream);
    let mut stream = Publishing::begin(&broker).await;
    stream.send(line("two").as_bytes()).await;
    assert_eq!(stream.answers.next().await.expect("a result")["line"], 1);
    broker.ask_to_stop();
    let last = stream.answers.next().await.expect("a last line");
    assert_eq!((&last["summary"]["accepted"], &last["error"]["code"]), (&json!(1), &json!("SHUTTING_DOWN")), "{last}");
    broker.stopped().await;
    broker.restart().await;
    let mut stream = Publishing::begin(&broker).await;
    stream.send(line("three").as_bytes()).await;
    assert_eq!(stream.answers.next().await.expect("a result")["line"], 1);
    broker.crash().await;
    assert_eq!(stream.answers.next().await, None, "no summary: it broke off");
    let stored = broker.consume("events", "").collect(3).await;
    let payloads: Vec<&str> = stored.iter().map(|delivery| delivery.payload()).collect();
    assert_eq!(payloads, ["one", "two", "three"]);
}

#[tokio::test]
async fn a_full_topic_is_a_result_and_a_quiet_stream_stays() {
    let broker = with_events().await;
    broker.post("/topics", &json!({"name": "small", "type": "Queue", "retentionBytes": 4096})).await.expect(201);
    let today = Claims::new("today", &["Producer"]).with("exp", broker.clock().now_ms() / 1000 + 86_400);
    let mut stream = Publishing::begin_as(&broker, &broker.client(&today)).await;
    let small = json!({"topicName": "small", "payload": "x".repeat(500)}).to_string() + "\n";
    let code = loop {
        stream.send(small.as_bytes()).await;
        let answer = stream.answers.next().await.expect("a result");
        if answer["status"] == "Rejected" {
            break answer["error"]["code"].clone();
        }
    };
    assert_eq!(code, "TOPIC_FULL");
    broker.clock().advance(Duration::from_secs(600)).await;
    stream.send(line("later").as_bytes()).await;
    assert_eq!(stream.answers.next().await.expect("a result")["status"], "Pending");
    // A token that ends ends it.
    broker.clock().advance(Duration::from_secs(2 * 86_400)).await;
    let last = stream.answers.next().await.expect("a last line");
    assert_eq!(last["error"]["code"], "UNAUTHENTICATED", "{last}");
}

/// One batch of a topic may wait for its stage. Runs of several streams that take a while there find it full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_that_find_the_broker_busy_are_tried_again_until_they_are_stored() {
    const STREAMS: usize = 4;
    /// More than one batch of the slow topic, which waits for the one before.
    const RUN: usize = 200;
    const OVERLOADS: &str = "sluice_plugin_overloads_total";
    let few = Settings::new().env("SLUICE__PLUGINS__WORKERS", "1").env("SLUICE__PLUGINS__QUEUE_BATCHES_MAX", "1");
    let broker = Broker::with(few).await;
    broker.place_plugin("hostile.wasm", guest::hostile());
    wait::until("the plugin is taken in", async || (broker.get("/plugins/hostile").await.status == 200).then_some(()))
        .await;
    for topic in ["slow", "plain"] {
        broker.create_topic(topic, "Queue").await;
    }
    let stage = json!({"name": "s", "plugin": "hostile", "version": "latest", "config": {}, "timeoutMs": 5000});
    broker.put_pipeline("slow", json!([stage])).await;

    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.push(Publishing::begin(&broker).await);
    }
    let mut sent = 0;
    // Everything that is refused is a line of a stream: nobody else publishes.
    while broker.metric(OVERLOADS).await.is_none_or(|refused| refused == 0.0) {
        assert!(sent < 50 * RUN, "so many runs and none found the other ones in its way");
        for (number, stream) in streams.iter_mut().enumerate() {
            let lines: String = (sent..sent + RUN).map(|at| slow_or_plain(number, at)).collect();
            stream.send(lines.as_bytes()).await;
        }
        sent += RUN;
        for stream in &mut streams {
            for line in sent - RUN + 1..=sent {
                let answer = stream.answers.next().await.expect("a result");
                assert_eq!((&answer["line"], &answer["status"]), (&json!(line), &json!("Pending")), "{answer}");
            }
        }
    }
    for stream in &mut streams {
        stream.end().await;
        let last = stream.answers.next().await.expect("a summary");
        assert_eq!(last, json!({"summary": {"accepted": sent, "refused": 0}}));
    }
    for topic in ["slow", "plain"] {
        let stored =
            broker.consume(topic, "").collect(STREAMS * (0..sent).filter(|at| topic_of(*at) == topic).count()).await;
        broker.consume(topic, "").expect_nothing().await;
        for number in 0..STREAMS {
            let of_stream = |text: &&str| text.starts_with(&format!("{number} "));
            let found: Vec<&str> = stored.iter().map(|delivery| delivery.payload()).filter(of_stream).collect();
            let wanted: Vec<String> =
                (0..sent).filter(|at| topic_of(*at) == topic).map(|at| format!("{number} {at}")).collect();
            assert_eq!(found, wanted, "each once, and in order");
        }
    }
}

fn topic_of(at: usize) -> &'static str {
    if at % 4 == 3 { "plain" } else { "slow" }
}

fn slow_or_plain(stream: usize, at: usize) -> String {
    // Some take the stage ten milliseconds: that is long for the others, and no burden for a machine.
    let headers = if at.is_multiple_of(60) { json!({"do": "drip"}) } else { json!({}) };
    json!({"topicName": topic_of(at), "payload": format!("{stream} {at}"), "headers": headers}).to_string() + "\n"
}
