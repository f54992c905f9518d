//! Reads event streams: event by event, and as a client that follows a session across interruptions.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::Response;
use serde_json::Value;

use super::process::{TEST_TIMEOUT, with_timeout};
use super::random::Random;

/// One event.
#[derive(Clone, Debug)]
pub struct Event {
    pub name: String,
    pub id: Option<String>,
    pub data: Value,
}

impl Event {
    /// A member of the data.
    pub fn member(&self, name: &str) -> &Value {
        &self.data[name]
    }

    /// Panics unless the event has this name.
    pub fn expect(self, name: &str) -> Self {
        assert_eq!(self.name, name, "{self:?}");
        self
    }
}

/// An open stream.
pub struct EventStream {
    response: Response,
    received: Vec<u8>,
    /// Lines that do not belong to an event: comments and `retry`.
    pub others: Vec<String>,
}

impl EventStream {
    /// Opens a stream, which must be accepted.
    pub async fn open(url: &str, headers: &[(&str, &str)]) -> Self {
        let response = Self::request(url, headers).await.expect("a response");
        assert_eq!(response.status().as_u16(), 200, "{url}");
        Self::of(response)
    }

    /// The response to a request for a stream.
    pub async fn request(url: &str, headers: &[(&str, &str)]) -> reqwest::Result<Response> {
        // Uses its own client, because a dropped stream leaves an unusable connection.
        let mut request = reqwest::Client::new().get(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await
    }

    pub fn of(response: Response) -> Self {
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, received: Vec::new(), others: Vec::new() }
    }

    /// The next event; `None` at the end of the stream, or if it was cut.
    pub async fn next(&mut self) -> Option<Event> {
        with_timeout(async {
            loop {
                if let Some(end) = self.received.windows(2).position(|pair| pair == b"\n\n") {
                    let block: Vec<_> = self.received.drain(..end + 2).collect();
                    if let Some(event) = self.parse(std::str::from_utf8(&block).expect("UTF-8")) {
                        return Some(event);
                    }
                    continue;
                }
                match self.response.chunk().await {
                    Ok(Some(bytes)) => self.received.extend_from_slice(&bytes),
                    _ => return None,
                }
            }
        })
        .await
    }

    /// Waits for a comment. There must be no event before it.
    pub async fn comment(&mut self) {
        self.others.clear();
        let wait = async {
            while !self.others.iter().any(|line| line == ":") {
                let bytes = self.response.chunk().await.expect("no error").expect("an open stream");
                self.received.extend_from_slice(&bytes);
                while let Some(end) = self.received.windows(2).position(|pair| pair == b"\n\n") {
                    let block: Vec<_> = self.received.drain(..end + 2).collect();
                    assert!(self.parse(std::str::from_utf8(&block).expect("UTF-8")).is_none(), "an event");
                }
            }
        };
        with_timeout(wait).await;
    }

    /// The next event, which must have this name.
    pub async fn expect(&mut self, name: &str) -> Event {
        self.next().await.unwrap_or_else(|| panic!("the stream ended before {name}")).expect(name)
    }

    /// The events up to the next one with this name, which is the last one.
    pub async fn until(&mut self, name: &str) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self.next().await.unwrap_or_else(|| panic!("the stream ended before {name}: {events:?}"));
            events.push(event);
            if events.last().is_some_and(|event| event.name == name) {
                return events;
            }
        }
    }

    fn parse(&mut self, block: &str) -> Option<Event> {
        let (mut name, mut id, mut data) = (None, None, None);
        for line in block.lines().filter(|line| !line.is_empty()) {
            match line.split_once(": ") {
                Some(("event", value)) => name = Some(value.to_owned()),
                Some(("id", value)) => id = Some(value.to_owned()),
                Some(("data", value)) => data = Some(serde_json::from_str(value).expect("JSON")),
                _ => self.others.push(line.to_owned()),
            }
        }
        Some(Event { name: name?, id, data: data.expect("an event with data") })
    }
}

/// The names of events.
pub fn names(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.name.as_str()).collect()
}

/// The state of a client that follows a session by the rules of docs/api.md. Panics if an event breaks them.
#[derive(Debug, Default)]
pub struct Followed {
    pub last_id: Option<String>,
    /// The content of the messages, by `seq`.
    pub messages: BTreeMap<u64, Value>,
    /// The chunks of turns that have no message yet, by `turnId`: the number of the turn, and the chunks.
    texts: HashMap<String, (u64, Vec<String>)>,
    /// The turns that have become messages. Their chunks are ignored from then on.
    done: HashSet<String>,
    pub resets: Vec<String>,
    /// Set by a reset until the messages are listed again.
    pub must_list: bool,
    pub chunks: usize,
    pub is_deleted: bool,
}

impl Followed {
    /// Takes one event.
    pub fn take(&mut self, event: &Event) {
        if let Some(id) = &event.id {
            self.last_id = Some(id.clone());
        }
        match event.name.as_str() {
            "reset" => {
                self.resets.push(text(event.member("reason")));
                self.messages.clear();
                self.texts.clear();
                self.must_list = true;
            }
            "message" => self.take_message(event),
            "turn" => {
                let (turn_id, number) = (text(event.member("turnId")), number(event.member("number")));
                let is_dropped = event.member("status") != "open" && event.member("messageSeq").is_null();
                let known = self.texts.get(&turn_id).map(|(known, _)| *known);
                if is_dropped || (known != Some(number) && event.member("nextChunk") == 0) {
                    self.texts.remove(&turn_id);
                }
                if let Some((known, _)) = self.texts.get_mut(&turn_id) {
                    *known = number;
                }
            }
            "chunk" => {
                let (turn_id, turn_number) = (text(event.member("turnId")), number(event.member("number")));
                if self.done.contains(&turn_id) {
                    return;
                }
                let (known, chunks) = self.texts.entry(turn_id).or_insert((turn_number, Vec::new()));
                assert_eq!(*known, turn_number, "a chunk of a turn that was not said to be new: {event:?}");
                let from = usize::try_from(number(event.member("from"))).expect("a small number");
                assert_eq!(from, chunks.len(), "a chunk is lost or repeated: {event:?}");
                let new = event.member("chunks").as_array().expect("chunks");
                self.chunks += new.len();
                chunks.extend(new.iter().map(text));
            }
            "deleted" => self.is_deleted = true,
            _ => {}
        }
    }

    fn take_message(&mut self, event: &Event) {
        let (seq, content) = (number(event.member("seq")), event.member("content").clone());
        if let Some((last, _)) = self.messages.last_key_value() {
            assert_eq!(seq, last + 1, "a message is lost or repeated: {event:?}");
        }
        self.done.insert(text(event.member("messageId")));
        if let Some((_, chunks)) = self.texts.remove(&text(event.member("messageId"))) {
            let content = text(&content);
            assert!(
                content.starts_with(&chunks.concat()),
                "chunks that are not of the message: {chunks:?} {content:?}"
            );
        }
        self.messages.insert(seq, content);
    }

    /// Takes listed messages after a reset. Messages that the stream sent as well are the same.
    pub fn take_list(&mut self, messages: &[Value]) {
        let sent = std::mem::take(&mut self.messages);
        self.done.extend(messages.iter().map(|message| text(&message["messageId"])));
        self.messages.extend(messages.iter().map(|message| (number(&message["seq"]), message["content"].clone())));
        for (seq, content) in sent {
            if let Some(listed) = self.messages.insert(seq, content.clone()) {
                assert_eq!(listed, content, "{seq}");
            }
        }
        self.must_list = false;
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("not a number: {value}"))
}

/// The nodes of a service that a client may use, and the calls of the client for one session.
#[derive(Clone, Debug)]
pub struct SessionClient {
    nodes: Vec<String>,
    path: String,
    client: reqwest::Client,
}

impl SessionClient {
    /// A client of this session, whose path is below the address of each node.
    pub fn new(nodes: &[&str], session_id: &str) -> Self {
        let nodes = nodes.iter().map(|&node| node.to_owned()).collect();
        Self { nodes, path: format!("/api/sessions/{session_id}"), client: reqwest::Client::new() }
    }

    fn url(&self, random: &mut Random, rest: &str) -> String {
        format!("{}{}{rest}", random.one_of(&self.nodes), self.path)
    }

    /// Repeats a call until the response is not that of a fault.
    async fn call(&self, random: &mut Random, rest: &str, body: Option<&Value>) -> (u16, Value) {
        loop {
            let url = self.url(random, rest);
            let request = match body {
                Some(body) => self.client.post(url).json(body),
                None => self.client.get(url),
            };
            if let Ok(response) = request.send().await {
                let status = response.status().as_u16();
                if let (true, Ok(body)) = (status < 500, response.json().await) {
                    return (status, body);
                }
            }
            tokio::time::sleep(AFTER_FAULT).await;
        }
    }

    /// All messages.
    pub async fn messages(&self, random: &mut Random) -> Vec<Value> {
        let (mut messages, mut after) = (Vec::new(), 0);
        loop {
            let (status, page) = self.call(random, &format!("/messages?after={after}&limit=500"), None).await;
            assert_eq!(status, 200, "{page}");
            let page = page.as_array().expect("messages");
            let Some(last) = page.last() else { return messages };
            after = number(&last["seq"]);
            messages.extend(page.iter().cloned());
        }
    }

    /// Appends a message and writes a reply, `turns` times, on alternating nodes. Returns the acknowledged messages:
    /// the id and the content of each.
    pub async fn write(&self, random: &mut Random, turns: usize) -> Vec<(String, String)> {
        self.write_from(random, 0, turns).await
    }

    /// The same, after `first` other ones.
    pub async fn write_from(&self, random: &mut Random, first: usize, turns: usize) -> Vec<(String, String)> {
        let mut acknowledged = Vec::new();
        for turn in first..first + turns {
            let question = format!("q{turn}");
            let body = serde_json::json!({"role": "user", "content": question, "messageId": question});
            let (status, answer) = self.call(random, "/messages", Some(&body)).await;
            assert!(status < 300, "{answer}");
            acknowledged.push((question.clone(), question));
            let turn_id = format!("re:{turn}");
            let body = serde_json::json!({"turnId": turn_id, "writer": "w"});
            let (status, begun) = self.call(random, "/turns", Some(&body)).await;
            assert!(status < 300, "{begun}");
            let (mut from, mut text) = (0, String::new());
            for _ in 0..random.below(8) {
                let chunks: Vec<_> =
                    (0..=random.below(4)).map(|index| format!("{turn}.{}.{index} ", text.len())).collect();
                let body = serde_json::json!({"number": begun["number"], "from": from, "chunks": chunks});
                let (status, answer) = self.call(random, &format!("/turns/{turn_id}/chunks"), Some(&body)).await;
                assert_eq!(status, 200, "{answer}");
                from += chunks.len();
                text.push_str(&chunks.concat());
            }
            let body = serde_json::json!({"number": begun["number"], "status": "completed"});
            let (status, answer) = self.call(random, &format!("/turns/{turn_id}/end"), Some(&body)).await;
            assert_eq!(status, 200, "{answer}");
            acknowledged.push((turn_id, text));
        }
        acknowledged
    }

    /// Panics unless a client has everything that was acknowledged, in the order in which the service lists it.
    pub async fn expect_complete(&self, followed: &Followed, random: &mut Random, acknowledged: &[(String, String)]) {
        let listed = self.messages(random).await;
        let contents: Vec<_> = listed.iter().map(|message| message["content"].clone()).collect();
        assert_eq!(followed.messages.values().cloned().collect::<Vec<_>>(), contents);
        for (id, content) in acknowledged {
            let stored = listed.iter().find(|message| message["messageId"] == *id);
            assert_eq!(stored.map(|message| &message["content"]), Some(&Value::from(content.as_str())), "{id}");
        }
    }

    /// Follows the session by one stream after another, each cut at a random moment, until `is_done`. Then reads to the
    /// end. Counts the cuts.
    pub async fn follow(&self, mut random: Random, is_done: &AtomicBool, cuts: &AtomicUsize) -> Followed {
        let mut followed = Followed::default();
        loop {
            let is_last = is_done.load(Ordering::Relaxed);
            let url = self.url(&mut random, "/events?after=0");
            let mut headers = Vec::new();
            let last_id = followed.last_id.clone();
            if let Some(last_id) = &last_id {
                headers.push(("last-event-id", last_id.as_str()));
            }
            let response = match EventStream::request(&url, &headers).await {
                Ok(response) if response.status().as_u16() == 200 => response,
                _ => {
                    tokio::time::sleep(AFTER_FAULT).await;
                    continue;
                }
            };
            let mut stream = EventStream::of(response);
            let lifetime = if is_last { TEST_TIMEOUT } else { random.pause(0, 30) };
            let read = tokio::time::timeout(lifetime, async {
                while let Some(event) = stream.next().await {
                    followed.take(&event);
                    if followed.is_deleted || (is_last && event.name == "ready") {
                        return true;
                    }
                }
                false
            });
            let is_complete = read.await.unwrap_or(false);
            cuts.fetch_add(1, Ordering::Relaxed);
            if followed.must_list {
                let messages = self.messages(&mut random).await;
                followed.take_list(&messages);
            }
            if is_complete {
                return followed;
            }
        }
    }
}

/// What a client does after a fault.
const AFTER_FAULT: Duration = Duration::from_millis(10);
