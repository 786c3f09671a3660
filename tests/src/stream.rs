//! A stream of Server-Sent Events, event by event. Invariant: an event is what the HTML specification makes of the bytes;
//! comments (heartbeats) are passed over.

use crate::consume::{Delivery, Received};
use crate::{Client, wait};

/// An open stream of deliveries.
#[derive(Debug)]
pub struct Stream {
    response: reqwest::Response,
    client: Client,
    group: String,
    buffered: String,
    last_id: String,
}

impl Stream {
    pub(crate) fn new(response: reqwest::Response, client: Client, group: &str) -> Stream {
        Stream { response, client, group: group.to_owned(), buffered: String::new(), last_id: String::new() }
    }

    /// The id of the last event that arrived.
    #[must_use]
    pub fn last_event_id(&self) -> &str {
        &self.last_id
    }

    /// The next delivery.
    ///
    /// # Panics
    /// When none comes within [`wait::PATIENCE`], or the stream ends.
    pub async fn next(&mut self) -> Delivery {
        let next = tokio::time::timeout(wait::PATIENCE, self.try_next());
        next.await.expect("an event comes").expect("the stream goes on")
    }

    /// The next delivery, where the end of the stream is an outcome too.
    pub async fn try_next(&mut self) -> Option<Delivery> {
        let data = self.event().await?;
        let message: Received = serde_json::from_str(&data).unwrap_or_else(|error| panic!("{error}: {data}"));
        Some(Delivery::new(message, self.client.clone(), &self.group))
    }

    /// The data of the next event, as JSON.
    ///
    /// # Panics
    /// When none comes within [`wait::PATIENCE`], the stream ends, or it is no JSON.
    pub async fn next_json(&mut self) -> serde_json::Value {
        let next = tokio::time::timeout(wait::PATIENCE, self.event());
        let data = next.await.expect("an event comes").expect("the stream goes on");
        serde_json::from_str(&data).unwrap_or_else(|error| panic!("{error}: {data}"))
    }

    /// Whether the broker ends the stream, after whatever it still sends.
    pub async fn ends(mut self) -> bool {
        let end = async { while self.event().await.is_some() {} };
        tokio::time::timeout(wait::PATIENCE, end).await.is_ok()
    }

    /// The data of the next event that has any; none at the end.
    async fn event(&mut self) -> Option<String> {
        loop {
            while let Some((event, rest)) = self.buffered.split_once("\n\n") {
                let data: Vec<&str> = event.lines().filter_map(|line| line.strip_prefix("data:")).collect();
                if let Some(id) = event.lines().find_map(|line| line.strip_prefix("id:")) {
                    id.trim_start().clone_into(&mut self.last_id);
                }
                let data = data.iter().map(|line| line.trim_start()).collect::<Vec<_>>().join("\n");
                self.buffered = rest.to_owned();
                if !data.is_empty() {
                    return Some(data);
                }
            }
            let chunk = self.response.chunk().await.ok().flatten()?;
            self.buffered.push_str(std::str::from_utf8(&chunk).expect("events are UTF-8 and these are not cut"));
        }
    }
}
