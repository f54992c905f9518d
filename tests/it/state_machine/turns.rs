//! The calls of turns: how they are drawn, sent and compared with the model.

use proptest::option::weighted;
use proptest::prelude::{BoxedStrategy, Just, Strategy, prop_oneof};
use proptest::sample::select;
use serde_json::{Value, json};

use super::operation::{CONTENTS, Json, METADATA, json, object};
use super::{Case, Outcome, encoded};

/// Outcomes that each run must have.
pub const OUTCOMES: &[&str] = &[
    "200 chunks",
    "200 turn cancelled",
    "200 turn completed",
    "200 turn failed",
    "200 turn interrupted",
    "200 turn lost",
    "200 turn open",
    "201 turn open",
    "202 turn open",
    "404 turn_not_found",
    "409 chunk_conflict",
    "409 chunk_gap",
    "409 turn_closed cancelled",
    "409 turn_closed completed",
    "409 turn_closed failed",
    "409 turn_closed interrupted",
    "409 turn_closed lost",
    "409 turn_closed taken",
    "409 turn_open",
];
/// The n-th chunk of every turn, unless a call sends another one.
const CHUNKS: [&str; 4] = ["Hel", "lo \"", "é💬\n\\", "</"];
const OTHER_CHUNK: &str = "x";

/// A call of a turn.
#[derive(Clone, Debug)]
pub enum TurnCall {
    /// The body lacks `turnId`.
    Begin {
        turn: TurnName,
        body: Json,
    },
    /// Chunks that start at `from` after the turn's number of chunks. If `differs`, the first one is not the usual one.
    Append {
        turn: TurnName,
        is_number: bool,
        from: isize,
        count: usize,
        differs: bool,
    },
    /// The body lacks `number`.
    End {
        turn: TurnName,
        is_number: bool,
        body: Json,
    },
    Cancel {
        turn: TurnName,
    },
    /// `None`: `latest`.
    Get {
        turn: Option<TurnName>,
        from: Option<usize>,
    },
}

impl TurnCall {
    pub const LATEST: Self = Self::Get { turn: None, from: None };
}

/// The id of a turn.
#[derive(Clone, Copy, Debug)]
pub enum TurnName {
    /// The n-th latest turn of the session.
    Latest(usize),
    /// An id that the session has never had.
    New,
    /// The id of a message, if the session has it.
    Message,
}

pub fn turn_call() -> BoxedStrategy<TurnCall> {
    let is_number = || prop_oneof![9 => Just(true), 1 => Just(false)];
    let from = prop_oneof![5 => Just(0_isize), 2 => Just(-1), 2 => Just(-2), 1 => Just(1)];
    let differs = || prop_oneof![9 => Just(false), 1 => Just(true)];
    prop_oneof![
        8 => (begun(), begin_body()).prop_map(|(turn, body)| TurnCall::Begin { turn, body }),
        10 => (written(), is_number(), from, 0..=3_usize, differs()).prop_map(
            |(turn, is_number, from, count, differs)| TurnCall::Append { turn, is_number, from, count, differs }
        ),
        4 => (written(), is_number(), end_body())
            .prop_map(|(turn, is_number, body)| TurnCall::End { turn, is_number, body }),
        2 => written().prop_map(|turn| TurnCall::Cancel { turn }),
        4 => (weighted(0.6, written()), weighted(0.4, 0..=3_usize))
            .prop_map(|(turn, from)| TurnCall::Get { turn, from }),
    ]
    .boxed()
}

fn begun() -> BoxedStrategy<TurnName> {
    prop_oneof![
        6 => Just(TurnName::New),
        4 => Just(TurnName::Latest(0)),
        1 => (1..=9_usize).prop_map(TurnName::Latest),
        1 => Just(TurnName::Message),
    ]
    .boxed()
}

fn written() -> BoxedStrategy<TurnName> {
    prop_oneof![
        16 => Just(TurnName::Latest(0)),
        3 => (1..=9_usize).prop_map(TurnName::Latest),
        1 => Just(TurnName::New),
        1 => Just(TurnName::Message),
    ]
    .boxed()
}

fn begin_body() -> impl Strategy<Value = Json> {
    (
        json(&[r#""w""#, r#""w""#, r#""worker\"2""#]),
        weighted(0.2, json(&[r#""assistant""#, r#""tool""#])),
        weighted(0.3, json(METADATA)),
        weighted(0.7, json(&[r#""reject""#, r#""interrupt""#, r#""discard""#, r#""takeover""#])),
    )
        .prop_map(|(writer, role, metadata, if_open)| {
            object([("writer", Some(writer)), ("role", role), ("metadata", metadata), ("ifOpen", if_open)])
        })
}

fn end_body() -> impl Strategy<Value = Json> {
    (
        select(vec!["completed", "failed"]),
        weighted(0.3, json(CONTENTS)),
        weighted(0.3, json(&["{}", r#"{"a":null,"tokens":7}"#, r#"{"a":{"b":null,"c":1}}"#])),
        weighted(0.3, json(&["null", r#"{"code":"boom"}"#])),
    )
        .prop_map(|(status, content, metadata, error)| {
            object([("status", Some(status.into())), ("content", content), ("metadata", metadata), ("error", error)])
        })
}

impl Case<'_> {
    pub(super) async fn turn(&mut self, id: &str, call: &TurnCall) -> Outcome {
        let path = |turn_id: &str, rest: &str| format!("/api/sessions/{id}/turns/{}{rest}", encoded(turn_id));
        let (response, expected) = match call {
            TurnCall::Begin { turn, body } => {
                let mut body = body.0.clone();
                body["turnId"] = self.turn_id(id, *turn).into();
                let response = self.service.post(&format!("/api/sessions/{id}/turns"), body.clone()).await;
                (response, self.model.begin_turn(id, &body))
            }
            TurnCall::Append { turn, is_number, from, count, differs } => {
                let (turn_id, number) = (self.turn_id(id, *turn), self.turn_number(id, *turn, *is_number));
                let stored = self.model.session(id).and_then(|session| session.turns.last());
                let from = stored.map_or(0, |turn| turn.chunks.len()).saturating_add_signed(*from);
                let mut chunks: Vec<_> = CHUNKS.iter().cycle().skip(from % CHUNKS.len()).take(*count).collect();
                if let Some(first) = chunks.first_mut().filter(|_| *differs) {
                    *first = &OTHER_CHUNK;
                }
                let body = json!({"number": number, "from": from, "chunks": chunks});
                let response = self.service.post(&path(&turn_id, "/chunks"), body.clone()).await;
                (response, self.model.append_chunks(id, &turn_id, &body))
            }
            TurnCall::End { turn, is_number, body } => {
                let mut body = body.0.clone();
                let turn_id = self.turn_id(id, *turn);
                body["number"] = self.turn_number(id, *turn, *is_number).into();
                let response = self.service.post(&path(&turn_id, "/end"), body.clone()).await;
                (response, self.model.end_turn(id, &turn_id, &body))
            }
            TurnCall::Cancel { turn } => {
                let turn_id = self.turn_id(id, *turn);
                let response = self.service.post(&path(&turn_id, "/cancel"), Value::Null).await;
                (response, self.model.cancel_turn(id, &turn_id))
            }
            TurnCall::Get { turn, from } => {
                let turn_id = turn.map(|turn| self.turn_id(id, turn));
                let query = from.map_or(String::new(), |from| format!("?from={from}"));
                let response = self.service.get(&path(turn_id.as_deref().unwrap_or("latest"), &query)).await;
                let returned = response.json()["chunks"].clone();
                let expected = self.model.get_turn(id, turn_id.as_deref(), from.unwrap_or_default(), &returned);
                (response, expected)
            }
        };
        self.check(&response, &expected)
    }

    fn turn_id(&self, id: &str, name: TurnName) -> String {
        let turns = self.model.session(id).map_or(&[][..], |session| &session.turns);
        match name {
            TurnName::Latest(back) => turns.iter().rev().nth(back).map_or("t:0", |turn| &turn.id).to_owned(),
            TurnName::New => format!("t:{}\"%", turns.len() + 1),
            TurnName::Message => "m1".to_owned(),
        }
    }

    /// The number of the turn, or the one before.
    fn turn_number(&self, id: &str, name: TurnName, is_number: bool) -> u64 {
        let turns = self.model.session(id).map_or(&[][..], |session| &session.turns);
        let back = if let TurnName::Latest(back) = name { back } else { 0 };
        let number = turns.iter().rev().nth(back).map_or(1, |turn| turn.number);
        if is_number { number } else { (number - 1).max(1) }
    }
}
