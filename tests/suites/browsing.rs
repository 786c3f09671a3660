//! Looking at a topic without consuming from it. Invariant: pages put together are the log, once each and in its order,
//! wherever they begin; no cursor moves.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_tests::Broker;

async fn page(broker: &Broker, query: &str) -> Value {
    broker.get(&format!("/topics/news/messages?{query}")).await.expect(200)
}

fn payloads(page: &Value) -> Vec<String> {
    let messages = page["messages"].as_array().unwrap_or_else(|| panic!("a list of messages: {page}"));
    messages.iter().map(|message| message["payload"].as_str().expect("text").to_owned()).collect()
}

/// All pages from `from` on, under the parameters that each page is asked with, and how many there were.
async fn walk(broker: &Broker, from: &str, each: &str, limit: usize) -> (Vec<String>, usize) {
    let mut read = page(broker, &format!("{from}&{each}limit={limit}")).await;
    let (mut all, mut pages) = (payloads(&read), 1);
    while read["hasMore"] == json!(true) {
        let token = read["nextToken"].as_str().expect("where it goes on").to_owned();
        read = page(broker, &format!("nextToken={token}&{each}limit={limit}")).await;
        assert!(payloads(&read).len() <= limit, "{read}");
        all.extend(payloads(&read));
        pages += 1;
    }
    assert!(read["nextToken"].is_null(), "there is no more: {read}");
    (all, pages)
}

async fn news(partitions: u32) -> Broker {
    let broker = Broker::start().await;
    let topic = json!({"name": "news", "type": "PubSub", "partitionCount": partitions});
    broker.post("/topics", &topic).await.expect(201);
    broker.subscribe("news", "g").await;
    broker
}

#[tokio::test]
async fn pages_of_any_size_make_the_whole_log() {
    let broker = news(1).await;
    let written: Vec<String> = (0..7).map(|n| format!("{n}")).collect();
    for payload in &written {
        broker.publish("news", payload.as_str()).await;
    }
    for (limit, pages) in [(1, 7), (2, 4), (3, 3), (7, 1), (100, 1)] {
        let (all, walked) = walk(&broker, "from=earliest", "", limit).await;
        assert_eq!(all, written, "{limit} a page");
        // The last page may be full, and only the next look says that it was the last.
        assert!(walked == pages || walked == pages + 1, "{limit} a page: {walked} pages");
    }
    assert_eq!(walk(&broker, "", "", 3).await.0, written, "the earliest is what is meant when nothing is said");
    // Nobody has lost a message by this.
    let consumed = broker.consume("news", "g").limit(10).await;
    assert_eq!(consumed.iter().map(|delivery| delivery.payload()).collect::<Vec<_>>(), written);
    assert!(consumed.iter().all(|delivery| delivery.message.delivery_attempt == 1));
    // Nor does it matter who holds or has settled them.
    consumed[0].ack().await;
    assert_eq!(walk(&broker, "from=earliest", "", 3).await.0, written);
}

#[tokio::test]
async fn pages_over_partitions_and_priorities_hold_each_message_once() {
    let broker = news(4).await;
    let mut written = BTreeSet::new();
    for n in 0_u8..40 {
        let payload = format!("{n}");
        broker.publish("news", payload.as_str()).key(&payload).priority(n % 3).await;
        written.insert(payload);
    }
    for limit in [1, 7, 100] {
        let (all, _) = walk(&broker, "from=earliest", "", limit).await;
        assert_eq!(all.len(), 40, "none comes twice");
        assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), written, "{limit} a page");
    }
    let mut by_partition = BTreeSet::new();
    for partition in 0..4 {
        let (some, _) = walk(&broker, "from=earliest", &format!("partition={partition}&"), 3).await;
        for payload in some {
            assert!(by_partition.insert(payload), "a message is in one partition");
        }
    }
    assert_eq!(by_partition, written);
}

#[tokio::test]
async fn browsing_begins_at_a_word_a_time_or_an_offset() {
    let broker = news(1).await;
    let mut offsets = Vec::new();
    let mut times = Vec::new();
    for n in 0..4 {
        let published = broker.publish("news", format!("{n}")).await;
        offsets.push(published.offset.expect("it has a place"));
        let read = broker.get(&format!("/messages/{}", published.message_id)).await.expect(200);
        times.push(read["timestamp"].as_str().expect("a time").to_owned());
        broker.clock().advance(Duration::from_secs(60)).await;
    }
    let all = ["0", "1", "2", "3"];
    let begins = async |from: &str| walk(&broker, &format!("from={from}"), "", 2).await.0;
    assert_eq!(begins("earliest").await, all);
    assert_eq!(begins("2020-01-01T00:00:00Z").await, all);
    for n in 0..4 {
        assert_eq!(begins(&times[n]).await, all[n..], "what was published then is in it");
        assert_eq!(begins(&format!("{}&partition=0", offsets[n])).await, all[n..]);
        assert_eq!(begins(&offsets[n].to_string()).await, all[n..], "where there is one partition it is the one meant");
    }
    assert_eq!(begins("latest").await, [] as [&str; 0]);
    assert_eq!(begins(&broker.clock().now_rfc3339()).await, [] as [&str; 0]);
    assert_eq!(begins(&format!("{}&partition=0", offsets[3] + 1)).await, [] as [&str; 0]);
    broker.get("/topics/news/messages?from=someday").await.expect_problem(400, "VALIDATION_ERROR");
}

#[tokio::test]
async fn a_page_behind_a_filter_holds_what_fits_and_says_where_to_go_on() {
    let broker = news(1).await;
    for n in 0..20 {
        broker.publish("news", json!({"n": n, "odd": n % 2 == 1})).await;
    }
    broker.publish("news", "no JSON").await;
    let (found, _) = walk(&broker, "", "filter=%24.odd%20%3D%3D%20true&", 4).await;
    assert_eq!(found.len(), 10, "{found:?}");
    let first = page(&broker, "filter=%24.odd%20%3D%3D%20true&limit=3").await;
    assert_eq!((payloads(&first).len(), &first["hasMore"]), (3, &json!(true)));
    // The token says where to go on; what to look for, each page is asked for.
    let token = first["nextToken"].as_str().expect("where it goes on");
    let second = page(&broker, &format!("nextToken={token}&filter=%24.odd%20%3D%3D%20true&limit=3")).await;
    let odd: Vec<u64> = [first.clone(), second]
        .iter()
        .flat_map(payloads)
        .map(|payload| serde_json::from_str::<Value>(&payload).expect("JSON")["n"].as_u64().expect("a number"))
        .collect();
    assert_eq!(odd, [1, 3, 5, 7, 9, 11]);
}
