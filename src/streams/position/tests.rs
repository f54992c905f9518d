//! Streams that follow a changing store from any position.

use std::collections::BTreeMap;

use serde_json::Value;

use super::*;
use crate::session::{ChangedMessages, Identifier, Partition, Role, SessionId, Timestamp, escaped_text};
use crate::store::StreamContents;

/// A session as the store has it.
#[derive(Clone)]
struct Store {
    session: Session,
    messages: Vec<MessageJson>,
    turn: Option<Turn>,
    /// In the format of the stored lines.
    earlier_turns: String,
    chunks: Vec<Bytes>,
}

impl Store {
    fn new() -> Self {
        let at = Timestamp(1_795_341_600_000);
        let text = |text: &str| text.to_owned();
        let session = Session {
            session_id: SessionId::random(Partition(1)).expect("random bytes"),
            business_id: text("b"),
            user_id: text("u"),
            location_id: text("l"),
            session_type: text("general"),
            status: Status::Active,
            title: None,
            metadata: text("{}"),
            message_count: 0,
            version: 1,
            created_at: at,
            updated_at: at,
            last_activity_at: at,
            expires_at: at,
            active_until: at,
            ended_at: None,
            end_reason: None,
            largest_message_bytes: 0,
            message_bytes: 0,
            oldest_seq: 1,
            history_at: at,
            turn_number: None,
            open_turn: None,
            changed_messages: ChangedMessages::default(),
        };
        Self { session, messages: Vec::new(), turn: None, earlier_turns: String::new(), chunks: Vec::new() }
    }

    fn append(&mut self, id: &str, content: &str) {
        self.session.message_count += 1;
        let json = format!(
            "{{\"seq\":{},\"createdAt\":\"{}\",\"sessionId\":\"{}\",\"messageId\":\"{}\",\"role\":\"user\",\
             \"content\":\"{content}\",\"metadata\":{{}}}}",
            self.session.message_count,
            self.session.created_at,
            self.session.session_id,
            escaped_text(Identifier::new(id).expect("an identifier").as_str()),
        );
        self.messages.push(MessageJson::of(self.session.session_id, json.into()).expect("a message"));
    }

    fn change(&mut self, seq: u64) {
        let changed = &mut self.session.changed_messages;
        changed.count += 1;
        changed.recent.push(seq);
        let excess = changed.recent.len().saturating_sub(8);
        changed.recent.drain(..excess);
        self.session.version += 1;
    }

    fn begin(&mut self, turn_id: &str) {
        let number = Some(self.session.turn_number.unwrap_or_default() + 1);
        self.session.turn_number = number;
        if let Some(turn) = &self.turn {
            let status = if turn.status == TurnStatus::Open { "interrupted" } else { turn.status.as_str() };
            let (id, seq) = (&turn.turn_id, turn.message_seq.map(|seq| seq.to_string()).unwrap_or_default());
            let number = turn.number.expect("a number");
            let line = format!("{id}\t{number}\tw\tassistant\t{status}\t\t0\t0\t0\t0\t0\t{seq}\n");
            self.earlier_turns.push_str(&line);
        }
        self.chunks.clear();
        self.turn = Some(Turn {
            turn_id: turn_id.to_owned(),
            session_id: self.session.session_id,
            number,
            since: number,
            writer: Some("w".to_owned()),
            role: Role::Assistant,
            metadata: "{}".to_owned(),
            status: TurnStatus::Open,
            next_chunk: Some(0),
            chunk_bytes: 0,
            after_seq: Some(self.session.message_count),
            cancel_requested: false,
            lease_until: None,
            started_at: Some(self.session.created_at),
            ended_at: None,
            error: None,
            message_seq: None,
            ended_as: None,
        });
    }

    fn take_over(&mut self) {
        let turn = self.turn.as_mut().expect("a turn");
        let number = self.session.turn_number.map(|number| number + 1);
        (self.session.turn_number, turn.number) = (number, number);
    }

    fn write(&mut self, chunks: &[&str]) {
        self.chunks.extend(chunks.iter().map(|chunk| Bytes::copy_from_slice(chunk.as_bytes())));
        self.turn.as_mut().expect("a turn").next_chunk = Some(self.chunks.len() as u64);
    }

    fn end(&mut self) {
        let content: String = self.chunks.iter().map(|chunk| String::from_utf8_lossy(chunk)).collect();
        let turn_id = self.turn.as_ref().expect("a turn").turn_id.clone();
        self.append(&turn_id, &content);
        let turn = self.turn.as_mut().expect("a turn");
        (turn.status, turn.message_seq) = (TurnStatus::Completed, Some(self.session.message_count));
    }

    /// A read that begins with this message and this chunk, and returns at most `page` of each after them.
    fn read(&self, first_seq: u64, first_chunk: u64, page: usize) -> StreamSnapshot {
        let all = self.messages.iter().filter(|message| message.seq >= first_seq);
        let messages: Vec<_> = all.clone().take(page + 1).cloned().collect();
        let skipped = usize::try_from(first_chunk).expect("a small number").min(self.chunks.len());
        let chunks: Vec<_> = self.chunks[skipped..].iter().take(page + 1).cloned().collect();
        let seqs = &self.session.changed_messages.recent;
        let changed =
            seqs.iter().filter_map(|&seq| Some((seq, self.messages.get(usize::try_from(seq).ok()? - 1)?.clone())));
        StreamSnapshot {
            session: Box::new(self.session.clone()),
            turn: self.turn.clone().map(Box::new),
            earlier_turns: self.earlier_turns.clone(),
            contents: StreamContents {
                has_all_messages: messages.len() == all.count(),
                messages,
                first_chunk,
                has_all_chunks: skipped + chunks.len() == self.chunks.len(),
                chunks,
                changed: changed.collect::<BTreeMap<_, _>>(),
            },
        }
    }

    /// The read of a stream at this position.
    fn for_position(&self, position: &Position, page: usize) -> StreamSnapshot {
        let first_chunk = self.turn.as_ref().map_or(0, |turn| position.first_chunk(turn));
        self.read(position.cursor.seq, first_chunk, page)
    }
}

fn start(store: &Store) -> Position {
    Position::start(Cursor::after(&store.session, 0))
}

fn names(events: &[Event]) -> Vec<&'static str> {
    events.iter().map(|event| event.kind.as_str()).collect()
}

fn advanced(position: &mut Position, store: &Store) -> Vec<Event> {
    let mut events = Vec::new();
    let progress = position.advance(&store.for_position(position, 100), &mut events);
    assert_eq!(progress, Ok(Progress::UpToDate));
    events
}

fn data(event: &Event) -> Value {
    let text = String::from_utf8_lossy(&event.text);
    let data = text.lines().find_map(|line| line.strip_prefix("data: ")).expect("data");
    serde_json::from_str(data).expect("JSON")
}

#[test]
fn the_end_of_a_turn_is_sent_before_the_next_turn() {
    for is_resumed in [false, true] {
        let mut store = Store::new();
        store.begin("t");
        store.write(&["a"]);
        let mut position = start(&store);
        advanced(&mut position, &store);
        store.take_over();
        store.begin("t2");
        store.write(&["b"]);
        if is_resumed {
            position = Position::start(position.cursor);
        }
        let events = advanced(&mut position, &store);
        let turns: Vec<_> = events.iter().filter(|event| event.kind.as_str() == "turn").map(data).collect();
        let sent =
            turns.iter().map(|turn| (turn["turnId"].clone(), turn["status"].clone(), turn["messageSeq"].clone()));
        let expected =
            [("t", "interrupted"), ("t2", "open")].map(|(id, status)| (id.into(), status.into(), Value::Null));
        assert_eq!(sent.collect::<Vec<_>>(), expected);
        assert_eq!(turns[1]["nextChunk"], 1);
        assert_eq!(events.iter().filter(|event| event.kind.as_str() == "chunk").count(), 1);
        store.write(&["c"]);
        assert_eq!(names(&advanced(&mut position, &store)), ["chunk"], "the turn is sent once");
    }
}

#[test]
fn cursors_round_trip() {
    let mut store = Store::new();
    store.append("m", "x");
    store.begin("t");
    store.write(&["a"]);
    let mut position = start(&store);
    advanced(&mut position, &store);
    assert_eq!(Cursor::parse(&position.cursor.to_text()), Some(position.cursor));
    for other in ["", "1", "2.0.0.0.0.0.0.0.0", "1.0.0.0.0.0.0.0", "1.0.+1.0.0.0.0.0.0", "1.0.01.0.0.0.0.0.0"] {
        assert_eq!(Cursor::parse(other), None, "{other}");
    }
}

/// Streams that continue after any event get the remaining events.
#[test]
fn streams_from_every_position_with_every_page_size_get_the_same_events() {
    let mut store = Store::new();
    let mut stores = vec![store.clone()];
    let mut step = |change: &dyn Fn(&mut Store)| {
        change(&mut store);
        stores.push(store.clone());
    };
    step(&|store| store.append("1", "x"));
    step(&|store| store.begin("t"));
    step(&|store| store.write(&["a", "b", "c"]));
    step(&|store| store.append("2", "y"));
    step(&|store| store.take_over());
    step(&|store| store.write(&["d"]));
    step(&|store| store.end());
    step(&|store| store.begin("t2"));
    step(&|store| store.write(&["e", "f"]));
    let contents = |events: &[Event]| {
        let mut messages = Vec::new();
        let mut texts: BTreeMap<String, String> = BTreeMap::new();
        for event in events {
            let data = data(event);
            match event.kind.as_str() {
                "message" => {
                    texts.remove(data["messageId"].as_str().expect("an id"));
                    messages.push(data["content"].as_str().expect("a text").to_owned());
                }
                "chunk" => {
                    let new: Vec<_> =
                        data["chunks"].as_array().expect("chunks").iter().filter_map(Value::as_str).collect();
                    texts
                        .entry(data["turnId"].as_str().expect("an id").to_owned())
                        .or_default()
                        .push_str(&new.concat());
                }
                _ => {}
            }
        }
        // A client shows no text of a turn whose message has arrived.
        texts.retain(|turn_id, _| turn_id == "t2");
        (messages, texts.into_values().collect::<String>())
    };
    for page in [1, 2, 100] {
        for first in 0..stores.len() {
            // A stream that reads only after every n-th change.
            for every in [1, 2, 3, 100] {
                let (mut position, mut events) = (start(&stores[0]), Vec::new());
                for (index, store) in stores.iter().enumerate().skip(first) {
                    let is_last = index + 1 == stores.len();
                    if index % every != 0 && !is_last {
                        continue;
                    }
                    let mut reads = 0;
                    while position.advance(&store.for_position(&position, page), &mut events) == Ok(Progress::Behind) {
                        reads += 1;
                        assert!(reads < 100, "no progress");
                    }
                    // The stream is interrupted, and continues after its last event id.
                    position = Position::start(Cursor::parse(&position.cursor.to_text()).expect("a cursor"));
                }
                let expected = (["x", "y", "abcd"].map(str::to_owned).to_vec(), "ef".to_owned());
                assert_eq!(
                    contents(&events),
                    expected,
                    "page {page}, first {first}, every {every}: {:?}",
                    names(&events)
                );
            }
        }
    }
}

#[test]
fn text_of_a_forgotten_turn_is_discarded_by_a_turn_without_chunks() {
    let mut store = Store::new();
    store.begin("t");
    store.write(&["a"]);
    let mut position = start(&store);
    advanced(&mut position, &store);
    store.begin("t2");
    store.earlier_turns.clear();
    store.write(&["b"]);
    let events = advanced(&mut position, &store);
    assert_eq!(names(&events), ["turn", "chunk"]);
    assert_eq!((&data(&events[0])["nextChunk"], &data(&events[1])["from"]), (&Value::from(0), &Value::from(0)));
    // A new writer keeps the text.
    store.take_over();
    store.write(&["c"]);
    let events = advanced(&mut position, &store);
    assert_eq!((names(&events), &data(&events[0])["nextChunk"]), (vec!["turn", "chunk"], &Value::from(2)));
}

#[test]
fn changes_are_sent_unless_there_are_too_many() {
    let mut store = Store::new();
    for id in 0..12 {
        store.append(&id.to_string(), "x");
    }
    let mut position = start(&store);
    advanced(&mut position, &store);
    for seq in [3, 3, 5] {
        store.change(seq);
    }
    assert_eq!(names(&advanced(&mut position, &store)), ["session", "changed", "changed"]);
    for seq in 1..=9 {
        store.change(seq);
    }
    let mut events = Vec::new();
    assert_eq!(position.advance(&store.for_position(&position, 100), &mut events), Err(ResetReason::Changed));
    assert!(events.is_empty());
}

#[test]
fn loss_of_sent_content_is_detected() {
    let mut store = Store::new();
    store.append("1", "x");
    store.begin("t");
    store.write(&["a", "b"]);
    let mut position = start(&store);
    advanced(&mut position, &store);
    let diverged = |change: &dyn Fn(&mut Store)| {
        let mut other = store.clone();
        change(&mut other);
        let mut events = Vec::new();
        let result = position.clone().advance(&other.for_position(&position, 100), &mut events);
        result == Err(ResetReason::Diverged) && events.is_empty()
    };
    assert!(!diverged(&|_| ()));
    assert!(diverged(&|store| store.session.created_at = Timestamp(1)), "created again");
    assert!(diverged(&|store| {
        store.session.message_count = 0;
        store.messages.clear();
    }));
    assert!(diverged(&|store| {
        store.session.message_count = 0;
        store.messages.clear();
        store.append("2", "x");
    }));
    assert!(diverged(&|store| {
        store.chunks.pop();
        store.turn.as_mut().expect("a turn").next_chunk = Some(1);
    }));
    assert!(diverged(&|store| store.chunks[1] = Bytes::from_static(b"c")));
    assert!(diverged(&|store| (store.turn, store.session.turn_number) = (None, None)));
    assert!(diverged(&|store| {
        store.session.turn_number = None;
        store.begin("other");
        store.write(&["a", "b"]);
    }));
    assert!(!diverged(&|store| store.begin("other")), "a later turn");
    let mut trimmed = store.clone();
    trimmed.session.oldest_seq = 3;
    let result = position.advance(&trimmed.read(3, 0, 100), &mut Vec::new());
    assert_eq!(result, Err(ResetReason::TooFar));
}
