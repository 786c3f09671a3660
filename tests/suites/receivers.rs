//! What a webhook's receiver can do to a broker, and what the broker makes of it: one table. Invariant: each row is what
//! API.md says of it, seen by who publishes, by who looks at the subscription, and on the wire.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::strtime;
use serde_json::{Value, json};
use sluice_tests::raw_receiver::{Conduct, Identity, authority};
use sluice_tests::{Broker, RawReceiver, Settings, TestClock, wait};

/// The time that a subscription of the table gives its receiver. The broker's clock is moved by it: as no wait of a test
/// is as long, an attempt that ends with it was ended by it.
const ACK_TIMEOUT: Duration = Duration::from_secs(60);
/// How much later than exactly a message may come again: what the machine took to settle it.
const LATE_MAX: Duration = Duration::from_secs(30);
/// What a broker reads of an answer and what lies in the system's buffers, at most. A gigabyte is offered.
const BYTES_TAKEN_MAX: u64 = 64 << 20;
const GIGABYTE: u64 = 1 << 30;

/// A receiver, what each attempt is recorded as, and what becomes of the message.
struct Row {
    does: &'static str,
    receiver: (Identity, Conduct),
    ends: Ends,
    attempt: (Option<u16>, Option<&'static str>),
    fate: Fate,
}

/// When an attempt is over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    ByItself,
    /// When the time for reading the rest of an answer is over.
    WithReading,
    WithAckTimeout,
}

impl Ends {
    /// How far the clock is moved for it.
    fn after(self) -> Duration {
        match self {
            ByItself => Duration::ZERO,
            // The time for that begins when the head has been read.
            WithReading => Duration::from_secs(10),
            WithAckTimeout => ACK_TIMEOUT,
        }
    }
}

#[derive(Clone, Copy)]
enum Fate {
    Acked,
    /// Comes again after the subscription's backoff (100 s ± 20 %); a dead letter where no attempt is left.
    BackedOff,
    /// Comes again after as long as the receiver asked for; a dead letter where no attempt is left.
    ComesAfter(Duration),
    /// Waits, as its subscription is paused.
    Paused,
}

use Ends::{ByItself, WithAckTimeout, WithReading};
use Fate::{Acked, BackedOff, ComesAfter, Paused};

fn rows(clock: &TestClock) -> Vec<Row> {
    let row =
        |does, conduct, ends, attempt, fate| Row { does, receiver: (Identity::Plain, conduct), ends, attempt, fate };
    let status = |does, line: &str, headers: &str, attempt, fate| {
        row(does, Conduct::Says(whole(line, headers)), ByItself, attempt, fate)
    };
    let tls = |does, identity, attempt, fate| Row {
        does,
        receiver: (identity, Conduct::Says(whole("200 OK", ""))),
        ends: ByItself,
        attempt,
        fate,
    };
    let mut rows = vec![
        status("answers 200", "200 OK", "", (Some(200), None), Acked),
        status("answers 201", "201 Created", "", (Some(201), None), Acked),
        status("answers 301", "301 Moved Permanently", "location: /other\r\n", failed(301, "HTTP_301"), BackedOff),
        status("answers 307", "307 Temporary Redirect", "location: /other\r\n", failed(307, "HTTP_307"), BackedOff),
        status("answers 400", "400 Bad Request", "", failed(400, "HTTP_400"), BackedOff),
        status("answers 404", "404 Not Found", "retry-after: 600\r\n", failed(404, "HTTP_404"), BackedOff),
        status("answers 410", "410 Gone", "", failed(410, "HTTP_410"), Paused),
        status("answers 500", "500 Internal Server Error", "", failed(500, "HTTP_500"), BackedOff),
        status(
            "answers 500 and says when",
            "500 Internal Server Error",
            "retry-after: 600\r\n",
            failed(500, "HTTP_500"),
            BackedOff,
        ),
        status("answers 599", "599", "", failed(599, "HTTP_599"), BackedOff),
        status("changes the protocol", "101 Switching Protocols", "", failed(101, "HTTP_101"), BackedOff),
        row(
            "answers 200, says to close, and closes",
            Conduct::Closes(whole("200 OK", "connection: close\r\n")),
            ByItself,
            (Some(200), None),
            Acked,
        ),
        row(
            "answers 200 up to the end of the connection",
            Conduct::Closes("HTTP/1.1 200 OK\r\n\r\nas long as it is".to_owned()),
            ByItself,
            (Some(200), None),
            Acked,
        ),
        row("says nothing", Conduct::Says(String::new()), WithAckTimeout, (None, Some("TIMEOUT")), BackedOff),
        row(
            "drips a byte a second of its head",
            Conduct::Drips("HTTP/1.1 200 OK\r\nx-drip: ".to_owned(), "x"),
            WithAckTimeout,
            (None, Some("TIMEOUT")),
            BackedOff,
        ),
        row(
            "says again and again that the request may go on",
            Conduct::Drips(String::new(), "HTTP/1.1 100 Continue\r\n\r\n"),
            WithAckTimeout,
            (None, Some("TIMEOUT")),
            BackedOff,
        ),
        row(
            "drips a byte a second of its body",
            Conduct::Drips("HTTP/1.1 200 OK\r\ncontent-length: 3600\r\n\r\n".to_owned(), "x"),
            WithReading,
            (Some(200), None),
            Acked,
        ),
        row(
            "drips a byte a second of the body of its failure",
            Conduct::Drips("HTTP/1.1 500 Oh\r\ncontent-length: 3600\r\n\r\n".to_owned(), "x"),
            WithReading,
            failed(500, "HTTP_500"),
            BackedOff,
        ),
        row(
            "closes before its answer",
            Conduct::Closes(String::new()),
            ByItself,
            (None, Some("CONNECTION_BROKEN")),
            BackedOff,
        ),
        row(
            "closes inside its head",
            Conduct::Closes("HTTP/1.1 200 OK\r\ncontent-".to_owned()),
            ByItself,
            (None, Some("CONNECTION_BROKEN")),
            BackedOff,
        ),
        row(
            "closes inside its body",
            Conduct::Closes("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".to_owned()),
            ByItself,
            failed(200, "CONNECTION_BROKEN"),
            BackedOff,
        ),
        row(
            "closes inside the body of its failure",
            Conduct::Closes("HTTP/1.1 503 Oh\r\nretry-after: 600\r\ncontent-length: 100\r\n\r\nhalf".to_owned()),
            ByItself,
            failed(503, "HTTP_503"),
            ComesAfter(Duration::from_secs(600)),
        ),
        row(
            "closes inside the body by which it is gone",
            Conduct::Closes("HTTP/1.1 410 Gone\r\ncontent-length: 100\r\n\r\nhalf".to_owned()),
            ByItself,
            failed(410, "HTTP_410"),
            Paused,
        ),
        row(
            "resets its connection",
            Conduct::Resets(String::new()),
            ByItself,
            (None, Some("CONNECTION_BROKEN")),
            BackedOff,
        ),
        row(
            "speaks something else",
            Conduct::Closes("220 mail.example ESMTP\r\n".to_owned()),
            ByItself,
            (None, Some("CONNECTION_BROKEN")),
            BackedOff,
        ),
        row(
            "sends a gigabyte",
            Conduct::Pours(format!("HTTP/1.1 200 OK\r\ncontent-length: {GIGABYTE}\r\n\r\n"), "much ", GIGABYTE),
            ByItself,
            (Some(200), None),
            Acked,
        ),
        row(
            "sends a gigabyte in pieces",
            Conduct::Pours(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned(),
                "4\r\nmuch\r\n",
                GIGABYTE,
            ),
            ByItself,
            (Some(200), None),
            Acked,
        ),
        row(
            "sends a gigabyte of failure",
            Conduct::Pours(format!("HTTP/1.1 400 Oh\r\ncontent-length: {GIGABYTE}\r\n\r\n"), "much ", GIGABYTE),
            ByItself,
            failed(400, "HTTP_400"),
            BackedOff,
        ),
        row(
            "sends a gigabyte of headers",
            Conduct::Pours("HTTP/1.1 200 OK\r\n".to_owned(), "x-much: and more\r\n", GIGABYTE),
            ByItself,
            (None, Some("CONNECTION_BROKEN")),
            BackedOff,
        ),
        row(
            "sends a gigabyte in one header",
            Conduct::Pours("HTTP/1.1 200 OK\r\nx-much: ".to_owned(), "and more ", GIGABYTE),
            ByItself,
            (None, Some("CONNECTION_BROKEN")),
            BackedOff,
        ),
        tls("has a certificate that is good", Identity::Good, (Some(200), None), Acked),
        tls("has another host's certificate", Identity::OtherHost, (None, Some("TLS")), BackedOff),
        tls("has a certificate whose time is over", Identity::Expired, (None, Some("TLS")), BackedOff),
        tls("has a certificate that it signed itself", Identity::SelfSigned, (None, Some("TLS")), BackedOff),
    ];
    for (code, line) in [(429, "429 Too Many Requests"), (503, "503 Service Unavailable")] {
        let attempt = || failed(code, if code == 429 { "HTTP_429" } else { "HTTP_503" });
        rows.push(status("is busy and does not say for how long", line, "", attempt(), BackedOff));
        let until = |seconds: i64| http_date(clock.now_ms() + seconds * 1000);
        for (says, wait) in [
            ("600".to_owned(), ComesAfter(Duration::from_secs(600))),
            ("0".to_owned(), BackedOff),
            (until(3600), ComesAfter(Duration::from_secs(3600))),
            (until(-3600), BackedOff),
            ("soon".to_owned(), BackedOff),
            ("-5".to_owned(), BackedOff),
            ("1.5".to_owned(), BackedOff),
            ("99999999999999999999999".to_owned(), ComesAfter(Duration::from_secs(24 * 3600))),
            ("Fri, 31 Dec 9999 23:59:59 GMT".to_owned(), ComesAfter(Duration::from_secs(24 * 3600))),
        ] {
            let header = format!("retry-after: {says}\r\n");
            rows.push(status("is busy and says for how long", line, &header, attempt(), wait));
        }
    }
    // Dates are of now: those who let the clock be moved come after them.
    rows.sort_by_key(|row| row.ends.after());
    rows
}

fn failed(status: u16, code: &'static str) -> (Option<u16>, Option<&'static str>) {
    (Some(status), Some(code))
}

/// A whole answer on a connection that is kept.
fn whole(line: &str, headers: &str) -> String {
    format!("HTTP/1.1 {line}\r\ncontent-length: 2\r\n{headers}\r\nok")
}

fn http_date(at_ms: i64) -> String {
    let at = Timestamp::from_millisecond(at_ms).expect("a time of this age");
    strtime::format("%a, %d %b %Y %H:%M:%S GMT", &at.to_zoned(jiff::tz::TimeZone::UTC)).expect("a date can be written")
}

#[tokio::test]
async fn whatever_a_receiver_does_comes_to_what_the_api_says() {
    let trusting = Settings::new().env("SSL_CERT_FILE", &authority().display().to_string());
    let broker = Broker::with(trusting).await;
    for (number, row) in rows(broker.clock()).into_iter().enumerate() {
        eprintln!("{number}: a receiver that {}, {:?}", row.does, row.receiver);
        let receiver = RawReceiver::start(row.receiver.0, row.receiver.1.clone()).await;
        let resident = broker.resident_bytes();
        try_row(&broker, &receiver, &format!("row{number}"), &row).await;
        assert!(receiver.bytes_taken() <= BYTES_TAKEN_MAX, "{} bytes were taken", receiver.bytes_taken());
        let grown = broker.resident_bytes().saturating_sub(resident);
        assert!(grown <= BYTES_TAKEN_MAX, "the broker takes {grown} bytes more than before");
    }
}

/// One message to two subscriptions: `patient` has attempts left when the first has failed, `strict` has none.
async fn try_row(broker: &Broker, receiver: &RawReceiver, topic: &str, row: &Row) {
    broker.create_topic(topic, "PubSub").await;
    let settings = |retries: u32| {
        json!({
            "maxRetries": retries, "ackTimeout": format!("PT{}S", ACK_TIMEOUT.as_secs()),
            "backoff": {"initial": "PT100S", "multiplier": 2, "max": "PT1H", "jitter": 0.2}
        })
    };
    let patient = broker.subscribe_push(topic, "patient", &receiver.url(), settings(3)).await;
    let strict = broker.subscribe_push(topic, "strict", &receiver.url(), settings(0)).await;
    let published = broker.publish(topic, json!({"n": 1})).await;
    let reaches = row.attempt.1 != Some("TLS");
    if row.ends != ByItself {
        wait::until("the requests", async || (receiver.requests() == 2).then_some(())).await;
    }
    if row.ends == WithAckTimeout {
        broker.clock().advance(row.ends.after() / 2).await;
        assert_eq!(attempts(broker, &patient).await, json!([]), "it has half of its time left");
        broker.clock().advance(row.ends.after() / 2).await;
    } else if row.ends == WithReading {
        broker.clock().advance(row.ends.after()).await;
    }
    for subscription in [&patient, &strict] {
        check_attempt(broker, subscription, row).await;
    }
    check_fate(broker, topic, (&patient, &published.message_id), row).await;
    assert_eq!(receiver.requests(), if reaches { 2 } else { 0 }, "a request for each, and none that nobody counts");
    broker.delete(&format!("/topics/{topic}?force=true")).await.expect(204);
}

async fn attempts(broker: &Broker, subscription: &Value) -> Value {
    let id = subscription["subscriptionId"].as_str().expect("an id");
    broker.get(&format!("/subscriptions/{id}/attempts")).await.expect(200)["attempts"].clone()
}

async fn check_attempt(broker: &Broker, subscription: &Value, row: &Row) {
    let seen = wait::until("the attempt", async || {
        // The newest is first.
        attempts(broker, subscription).await.as_array().expect("a list").last().cloned()
    })
    .await;
    let (status, code) = row.attempt;
    let outcome = match row.fate {
        Acked => "delivered",
        Paused => "gone",
        BackedOff | ComesAfter(_) => "retry",
    };
    assert_eq!((&seen["outcome"], seen["attempt"].as_u64()), (&json!(outcome), Some(1)), "{seen}");
    assert_eq!(seen["status"].as_u64(), status.map(u64::from), "{seen}");
    let word = seen["error"].as_str().and_then(|error| error.split_once(": ")).map(|(word, _)| word);
    assert_eq!(word, code, "{seen}");
}

async fn check_fate(broker: &Broker, topic: &str, (patient, id): (&Value, &str), row: &Row) {
    let state = |wanted: &'static str| async move {
        wait::until(&format!("the message is {wanted} for the patient one"), async || {
            let read = broker.get(&format!("/messages/{id}")).await.expect(200);
            let groups = read["groups"].as_array().expect("a list").clone();
            groups.into_iter().find(|group| group["consumerGroup"] == "patient" && group["status"] == wanted)
        })
        .await
    };
    match row.fate {
        Acked => {
            state("Settled").await;
            assert_eq!(dead_letters(broker, topic, 0).await, [] as [Value; 0]);
        }
        Paused => {
            let state = state("Waiting").await;
            assert!(state["attempts"].as_u64().is_none_or(|attempts| attempts == 0), "no attempt is lost: {state}");
            let path = format!("/subscriptions/{}", patient["subscriptionId"].as_str().expect("an id"));
            wait::until("the subscription is paused", async || {
                (broker.get(&path).await.expect(200)["isActive"] == json!(false)).then_some(())
            })
            .await;
            assert_eq!(dead_letters(broker, topic, 0).await, [] as [Value; 0]);
        }
        BackedOff => check_retry(broker, topic, patient, (state("Retrying").await, row.ends), (80, 120)).await,
        ComesAfter(wait) => {
            let seconds = wait.as_secs();
            check_retry(broker, topic, patient, (state("Retrying").await, row.ends), (seconds, seconds)).await;
        }
    }
}

async fn check_retry(
    broker: &Broker,
    topic: &str,
    patient: &Value,
    (state, ends): (Value, Ends),
    (least, most): (u64, u64),
) {
    let seen = attempts(broker, patient).await[0].clone();
    let time = |value: &Value| value.as_str().and_then(|text| text.parse::<Timestamp>().ok()).expect("a time");
    let wait = time(&state["retryAt"]).as_millisecond() - time(&seen["at"]).as_millisecond();
    let wait = Duration::from_millis(u64::try_from(wait).expect("it comes later"));
    // A date has whole seconds, and the table was made some rows ago.
    let fits =
        Duration::from_secs(least) + ends.after() - LATE_MAX..=Duration::from_secs(most) + ends.after() + LATE_MAX;
    assert!(fits.contains(&wait), "it comes after {wait:?}, and not within {fits:?}: {seen} {state}");
    let letters = dead_letters(broker, topic, 1).await;
    let facts = &letters[0]["deadLetter"];
    assert_eq!((&facts["consumerGroup"], &facts["attempts"]), (&json!("strict"), &json!(1)), "{facts}");
    assert_eq!(facts["lastStatus"], seen["status"], "{facts}");
    let error = format!("{}: {}", facts["reason"].as_str().unwrap_or(""), facts["detail"].as_str().unwrap_or(""));
    assert_eq!(seen["error"].as_str(), Some(error.as_str()), "the dead letter says what the attempt said");
    assert_eq!(state["failures"][0]["reason"], facts["reason"], "{state}");
}

/// So many dead letters of the topic.
async fn dead_letters(broker: &Broker, topic: &str, count: usize) -> Vec<Value> {
    wait::until(&format!("{count} dead letters"), async || {
        let listed = broker.get(&format!("/topics/{topic}/dlq")).await.expect(200);
        let letters = listed["deadLetters"].as_array().expect("a list").clone();
        (letters.len() == count).then_some(letters)
    })
    .await
}

/// A name is not judged by itself but by what it resolves to when it is connected to. What a name can do between the two is
/// tried where the look-up can be replaced, beside the sender.
#[tokio::test]
async fn a_name_of_an_address_that_webhooks_may_not_reach_is_refused_when_it_is_connected_to() {
    let elsewhere = Settings::new().env("SLUICE__PUSH__ALLOW_NETWORKS", "192.0.2.0/24");
    let broker = Broker::with(elsewhere).await;
    let receiver = RawReceiver::start(Identity::Plain, Conduct::Says(whole("200 OK", ""))).await;
    broker.create_topic("events", "PubSub").await;
    let literal = json!({
        "topicName": "events", "consumerGroup": "literal", "type": "Push", "consumerEndpoint": receiver.url()
    });
    broker.post("/subscriptions", &literal).await.expect_problem(400, "VALIDATION_ERROR");
    let url = receiver.url_at("localhost");
    let subscription = broker.subscribe_push("events", "named", &url, json!({"maxRetries": 0})).await;
    broker.publish("events", "secret").await;
    let letters = dead_letters(&broker, "events", 1).await;
    let facts = &letters[0]["deadLetter"];
    assert_eq!((&facts["reason"], &facts["lastStatus"]), (&json!("ADDRESS_REFUSED"), &Value::Null), "{facts}");
    let seen = attempts(&broker, &subscription).await[0].clone();
    assert_eq!((&seen["outcome"], &seen["status"]), (&json!("retry"), &Value::Null), "{seen}");
    assert_eq!(receiver.requests(), 0, "nothing reached it");
}
