//! Many writers: writers that resume too late, two writers of one turn, and jobs that are delivered twice.

use std::collections::BTreeMap;

use futures_util::future::{join, join_all};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::{LOST, Turns};
use crate::support::audit::expect_clean;
use crate::support::service::Service;

const WRITERS: usize = 1000;
/// Turns that are written at the same time.
const CONCURRENT: usize = 50;

impl<'a> Turns<'a> {
    /// The same session, called on another service.
    fn on(&self, service: &'a Service) -> Self {
        Self { service, session: self.session.clone() }
    }

    /// Writes chunks one by one until a call is rejected, then ends the turn. Returns the stored chunks, and whether
    /// the turn became this writer's message.
    async fn write(&self, turn_id: &str, number: u64, from: usize, chunks: usize) -> (Vec<String>, bool) {
        let mut stored = Vec::new();
        for index in from..from + chunks {
            let chunk = format!("{number}.{index} ");
            let written = self.chunks(turn_id, number, index as u64, &[&chunk]).await;
            if written.status != 200 {
                written.expect_problem(409, "turn_closed");
                return (stored, false);
            }
            stored.push(chunk);
        }
        let ended = self.end(turn_id, number, json!({})).await;
        if ended.status != 200 {
            ended.expect_problem(409, "turn_closed");
        }
        (stored, ended.status == 200)
    }
}

/// The turns of new users.
async fn writers(service: &Service, count: usize) -> Vec<Turns<'_>> {
    let names: Vec<_> = (0..count).map(|user| format!("u{user}")).collect();
    stream::iter(&names).map(|name| Turns::of(service, name)).buffered(CONCURRENT).collect().await
}

#[tokio::test]
async fn writers_that_were_stopped_too_long_write_nothing() {
    let service = Service::start(&[]).await;
    let sibling = service.sibling(&[]).await;
    let writers = writers(&service, WRITERS).await;
    let written = stream::iter(&writers).map(async |turns| {
        turns.begin("first", "w", json!({})).await.expect(201);
        turns.chunks("first", 1, 0, &["1.0 ", "1.1 "]).await.expect(200);
    });
    written.buffered(CONCURRENT).collect::<Vec<()>>().await;
    service.advance(LOST);
    let continued = stream::iter(writers.iter().enumerate()).map(async |(index, turns)| {
        let (first, other) = (turns.on(&sibling), turns);
        let next = async || {
            let began = other.begin("second", "x", json!({})).await;
            if began.status != 201 {
                // The first call came before this and renewed its lease.
                assert_eq!(began.expect_problem(409, "turn_open").member("openTurnId"), "first");
                return None;
            }
            let number = began.member("number").as_u64().expect("a number");
            assert!(other.write("second", number, 0, 3).await.1);
            Some(number)
        };
        let (number, (late, is_ended)) = if index % 2 == 0 {
            let number = next().await;
            assert!(number.is_some());
            (number, first.write("first", 1, 2, 2).await)
        } else {
            join(next(), first.write("first", 1, 2, 2)).await
        };
        let expected_first = ["1.0 ", "1.1 "].map(str::to_owned).into_iter().chain(late.iter().cloned());
        let status = if is_ended { "completed" } else { "lost" };
        let mut expected = vec![[json!("first"), json!(expected_first.collect::<String>()), json!(status)]];
        expected.extend(number.map(|number| {
            let text = format!("{number}.0 {number}.1 {number}.2 ");
            [json!("second"), json!(text), json!("completed")]
        }));
        assert_eq!(turns.messages().await, expected, "{index}");
        late.len()
    });
    let late: Vec<usize> = continued.buffered(CONCURRENT).collect().await;
    assert!(late.iter().step_by(2).all(|chunks| *chunks == 0), "they came after the turn was closed");
    expect_clean(&service).await;
}

#[tokio::test]
async fn two_writers_of_one_turn_write_one_after_the_other() {
    let service = Service::start(&[]).await;
    let sibling = service.sibling(&[]).await;
    let writers = writers(&service, WRITERS / 4).await;
    let written = stream::iter(writers.iter().enumerate()).map(async |(index, turns)| {
        turns.begin("t", "w", json!({})).await.expect(201);
        let if_open = if index % 2 == 0 { "takeover" } else { "discard" };
        let other = turns.on(&sibling);
        let second = async {
            let taken = other.begin("t", "x", json!({"ifOpen": if_open})).await.expect(200);
            if taken.member("status") != "open" {
                return (0, Vec::new(), false);
            }
            let from = usize::try_from(taken.member("nextChunk").as_u64().expect("a number")).expect("few");
            let (stored, is_ended) = other.write("t", taken.member("number").as_u64().expect("two"), from, 3).await;
            (from, stored, is_ended)
        };
        let ((first, is_first), (from, second, is_second)) = join(turns.write("t", 1, 0, 6), second).await;
        assert!(is_first != is_second, "{index}: one of them ends the turn");
        let kept = if is_second { from } else { first.len() };
        // Everything that was acknowledged before the takeover is stored, and nothing from after it.
        assert!(if_open == "discard" || first.len() == kept, "{index}: {first:?} {kept}");
        let text: String = first.into_iter().take(kept).chain(second).collect();
        assert_eq!(turns.messages().await, [[json!("t"), json!(text), json!("completed")]], "{index}: {if_open}");
    });
    written.buffered(CONCURRENT).collect::<Vec<()>>().await;
    expect_clean(&service).await;
}

/// Answers one message, as a worker does with a job: only the writer of its turn answers, and waits for earlier turns.
async fn work(turns: &Turns<'_>, message_id: &str, writer: &str) {
    let turn_id = format!("re:{message_id}");
    loop {
        let began = turns.begin(&turn_id, writer, json!({})).await;
        match began.status.as_u16() {
            201 => {
                let number = began.member("number").as_u64().expect("a number");
                assert!(turns.write(&turn_id, number, 0, 3).await.1);
                return;
            }
            // The message has been answered.
            200 => return,
            _ => drop(began.expect_problem(409, "turn_open")),
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn every_message_is_answered_once_if_jobs_are_delivered_twice() {
    let service = Service::start(&[]).await;
    let sibling = service.sibling(&[]).await;
    let writers = writers(&service, WRITERS / 10).await;
    let answered = stream::iter(&writers).map(async |turns| {
        let other = turns.on(&sibling);
        let jobs = ["m1", "m2", "m3"].map(async |message_id| {
            turns.append(message_id).await.expect(201);
            join(work(turns, message_id, "w"), work(&other, message_id, "x")).await;
        });
        join_all(jobs).await;
        let messages = turns.messages().await;
        let mut answers: BTreeMap<String, usize> = BTreeMap::new();
        for [id, content, reason] in &messages {
            *answers.entry(id.as_str().expect("an id").to_owned()).or_default() += 1;
            let chunks: Vec<_> = content.as_str().expect("a text").split_whitespace().collect();
            let is_whole =
                chunks.len() == 3 && chunks.iter().all(|chunk| chunk.split('.').next() == chunks[0].split('.').next());
            assert!(*reason == Value::Null || is_whole, "{messages:?}");
        }
        let expected = ["m1", "m2", "m3", "re:m1", "re:m2", "re:m3"].map(|id| (id.to_owned(), 1));
        assert_eq!(answers, BTreeMap::from(expected));
    });
    answered.buffered(CONCURRENT / 10).collect::<Vec<()>>().await;
    expect_clean(&service).await;
}
