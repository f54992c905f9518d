//! The operations of the state machine, and how they are drawn. Values come from small pools, so they repeat within a
//! case.

use std::fmt;

use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::{BoxedStrategy, Just, Strategy, prop_oneof};
use proptest::sample::select;
use serde_json::{Map, Value};

use super::turns::{TurnCall, turn_call};

/// How many users a case has.
pub const USERS: usize = 3;
/// How many operations a case has at most.
const OPERATIONS_MAX: usize = 60;

/// One step of a case.
#[derive(Clone, Debug)]
pub enum Operation {
    GetOrCreate {
        user: usize,
        body: Json,
    },
    Get {
        session: Which,
    },
    Patch {
        session: Which,
        if_match: IfMatch,
        body: Json,
    },
    Delete {
        session: Which,
        if_match: IfMatch,
    },
    Append {
        session: Which,
        body: Json,
    },
    GetMessage {
        session: Which,
        message: String,
    },
    PatchMessage {
        session: Which,
        message: String,
        patch: Json,
    },
    RedactMessage {
        session: Which,
        message: String,
    },
    ListMessages {
        session: Which,
        range: Range,
        limit: Option<usize>,
    },
    Turn {
        session: Which,
        call: TurnCall,
    },
    GetActive {
        user: usize,
    },
    ListHistory {
        user: usize,
        limit: usize,
    },
    ListActive {
        user: usize,
        limit: usize,
    },
    EraseUser {
        user: usize,
    },
    Advance(Step),
    /// Advances time and sends an empty PATCH, `times` times. Only this lets a session reach its maximum lifetime.
    KeepAlive {
        session: Which,
        times: usize,
        minutes: i64,
    },
}

/// A session of the case, or an id without a session.
#[derive(Clone, Copy, Debug)]
pub enum Which {
    /// The n-th newest session, deleted ones included. Starts over at the newest if there are fewer.
    Newest(usize),
    /// The same, with its id in upper case.
    UpperCase(usize),
    /// A UUID without a session.
    Unknown,
    /// Not a UUID.
    NoUuid,
}

/// The `If-Match` header.
#[derive(Clone, Copy, Debug)]
pub enum IfMatch {
    Absent,
    Current,
    /// A list that contains the current version.
    AmongOthers,
    Star,
    Other,
    /// The current version as a weak tag, as a compressing proxy makes it.
    Weak,
}

/// Which messages to list.
#[derive(Clone, Copy, Debug)]
pub enum Range {
    Newest,
    Before(usize),
    After(usize),
}

/// How far time moves.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Millis(i64),
    Seconds(i64),
    Minutes(i64),
    Hours(i64),
    /// To `plus_ms` after a moment of a session. Does not move if that is in the past.
    To {
        session: Which,
        moment: Moment,
        plus_ms: i64,
    },
}

/// A moment of a session at which a rule takes effect.
#[derive(Clone, Copy, Debug)]
pub enum Moment {
    Expiry,
    MaxLifetime,
    EndOfRetention,
    /// From then on, its open turn is lost.
    LostTurn,
}

/// JSON that is printed as JSON when a case fails.
#[derive(Clone)]
pub struct Json(pub Value);

impl fmt::Debug for Json {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)
    }
}

/// The operations of one case.
pub fn operations() -> impl Strategy<Value = Vec<Operation>> {
    // Most operations need a session.
    let first = Operation::GetOrCreate { user: 0, body: object([]) };
    vec(operation(), 1..OPERATIONS_MAX).prop_map(move |later| [vec![first.clone()], later].concat())
}

fn operation() -> BoxedStrategy<Operation> {
    prop_oneof![
        16 => (user(), get_or_create_body()).prop_map(|(user, body)| Operation::GetOrCreate { user, body }),
        3 => which().prop_map(|session| Operation::Get { session }),
        18 => (which(), if_match(), patch_body())
            .prop_map(|(session, if_match, body)| Operation::Patch { session, if_match, body }),
        2 => (which(), if_match()).prop_map(|(session, if_match)| Operation::Delete { session, if_match }),
        14 => (which(), append_body()).prop_map(|(session, body)| Operation::Append { session, body }),
        2 => (which(), message_id()).prop_map(|(session, message)| Operation::GetMessage { session, message }),
        4 => (which(), message_id(), json(METADATA_PATCHES))
            .prop_map(|(session, message, patch)| Operation::PatchMessage { session, message, patch: Json(patch) }),
        3 => (which(), message_id()).prop_map(|(session, message)| Operation::RedactMessage { session, message }),
        4 => (which(), range(), weighted(0.7, 1..=4_usize))
            .prop_map(|(session, range, limit)| Operation::ListMessages { session, range, limit }),
        // Mostly of the newest session, so that a turn gets more calls.
        70 => (prop_oneof![2 => Just(Which::Newest(0)), 1 => which()], turn_call())
            .prop_map(|(session, call)| Operation::Turn { session, call }),
        2 => user().prop_map(|user| Operation::GetActive { user }),
        3 => (user(), 1..=3_usize).prop_map(|(user, limit)| Operation::ListHistory { user, limit }),
        3 => (user(), 1..=2_usize).prop_map(|(user, limit)| Operation::ListActive { user, limit }),
        1 => user().prop_map(|user| Operation::EraseUser { user }),
        10 => step().prop_map(Operation::Advance),
        2 => (which(), 1..=4_usize, 5..=9_i64)
            .prop_map(|(session, times, minutes)| Operation::KeepAlive { session, times, minutes }),
    ]
    .boxed()
}

/// Mostly the first user, so one user has several sessions.
fn user() -> impl Strategy<Value = usize> {
    prop_oneof![3 => Just(0), 2 => 0..USERS]
}

fn which() -> BoxedStrategy<Which> {
    prop_oneof![
        40 => (0..6_usize).prop_map(Which::Newest),
        3 => (0..6_usize).prop_map(Which::UpperCase),
        1 => Just(Which::Unknown),
        1 => Just(Which::NoUuid),
    ]
    .boxed()
}

/// Mostly the id of a message of the session.
fn message_id() -> impl Strategy<Value = String> {
    let known = json(MESSAGE_IDS).prop_map(|id| id.as_str().expect("a string").to_owned());
    prop_oneof![20 => known, 1 => Just("unknown".to_owned())]
}

fn if_match() -> BoxedStrategy<IfMatch> {
    prop_oneof![
        12 => Just(IfMatch::Absent),
        3 => Just(IfMatch::Current),
        1 => Just(IfMatch::AmongOthers),
        1 => Just(IfMatch::Star),
        2 => Just(IfMatch::Other),
        1 => Just(IfMatch::Weak),
    ]
    .boxed()
}

fn range() -> impl Strategy<Value = Range> {
    prop_oneof![Just(Range::Newest), (0..9_usize).prop_map(Range::Before), (0..9_usize).prop_map(Range::After)]
}

fn step() -> BoxedStrategy<Step> {
    let moment = prop_oneof![6 => Just(Moment::Expiry), 2 => Just(Moment::MaxLifetime), 1 => Just(Moment::EndOfRetention), 6 => Just(Moment::LostTurn)];
    prop_oneof![
        4 => (0..=3_i64).prop_map(Step::Millis),
        8 => (1..=59_i64).prop_map(Step::Seconds),
        6 => (1..=12_i64).prop_map(Step::Minutes),
        1 => (1..=3_i64).prop_map(Step::Hours),
        8 => (which(), moment, -1..=1_i64)
            .prop_map(|(session, moment, plus_ms)| Step::To { session, moment, plus_ms }),
    ]
    .boxed()
}

/// A body without `businessId` and `userId`, which the case adds.
fn get_or_create_body() -> impl Strategy<Value = Json> {
    (
        weighted(0.2, json(LOCATIONS)),
        weighted(0.2, json(TYPES)),
        weighted(0.3, json(TITLES)),
        weighted(0.3, json(METADATA)),
        weighted(0.5, json(&[r#""return""#, r#""replace""#])),
    )
        .prop_map(|(location_id, session_type, title, metadata, if_active)| {
            object([
                ("locationId", location_id),
                ("sessionType", session_type),
                ("title", title),
                ("metadata", metadata),
                ("ifActive", if_active),
            ])
        })
}

fn patch_body() -> impl Strategy<Value = Json> {
    (
        weighted(0.15, json(LOCATIONS)),
        weighted(0.15, json(TYPES)),
        weighted(0.25, json(TITLES)),
        weighted(0.3, json(METADATA_PATCHES)),
        weighted(0.4, json(&[r#""active""#, r#""active""#, r#""ended""#])),
        weighted(0.4, json(&[r#""return""#, r#""replace""#])),
    )
        .prop_map(|(location_id, session_type, title, metadata, status, if_active)| {
            object([
                ("locationId", location_id),
                ("sessionType", session_type),
                ("title", title),
                ("metadata", metadata),
                ("status", status),
                ("ifActive", if_active),
            ])
        })
}

/// One message, or an array of up to four. Ids and contents repeat often.
fn append_body() -> BoxedStrategy<Json> {
    let one = || {
        (
            weighted(0.7, json(MESSAGE_IDS)),
            prop_oneof![9 => json(&[r#""user""#]), 1 => json(&[r#""assistant""#, r#""system""#, r#""tool""#])],
            prop_oneof![3 => json(&CONTENTS[..1]), 2 => json(CONTENTS)],
            weighted(0.2, json(METADATA)),
        )
            .prop_map(|(message_id, role, content, metadata)| {
                let content = Some(content);
                object([("messageId", message_id), ("role", Some(role)), ("content", content), ("metadata", metadata)])
            })
    };
    prop_oneof![
        one(),
        vec(one(), 1..=4).prop_map(|messages| Json(messages.into_iter().map(|message| message.0).collect())),
    ]
    .boxed()
}

pub(super) fn json(texts: &'static [&'static str]) -> impl Strategy<Value = Value> {
    select(texts).prop_map(|text| serde_json::from_str(text).expect("JSON"))
}

pub(super) fn object<const N: usize>(members: [(&str, Option<Value>); N]) -> Json {
    let members = members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Json(Value::Object(members.collect::<Map<_, _>>()))
}

const LOCATIONS: &[&str] = &[r#""L0100001""#, r#""L2""#, r#""urn:x:{y}%""#];
const TYPES: &[&str] = &[r#""general""#, r#""support""#];
const TITLES: &[&str] = &["null", r#""""#, r#""Opening hours""#, r#""\"\\\u0000\n💬""#];
pub(super) const METADATA: &[&str] = &["{}", r#"{"a":1}"#, r#"{"a":{"b":{"c":null,"d":[null,{"e":null}]}},"n":1.5}"#];
const METADATA_PATCHES: &[&str] = &[
    "null",
    "{}",
    r#"{"a":1}"#,
    r#"{"a":null}"#,
    r#"{"z":null}"#,
    r#"{"a":{"b":null}}"#,
    r#"{"a":{"b":{"c":null,"f":"g"}}}"#,
    r#"{"a":[1,null,{"b":null}]}"#,
    r#"{"a":{},"":{"é":18446744073709551615}}"#,
    r#"{"n":1.5,"a":"b"}"#,
];
const MESSAGE_IDS: &[&str] = &[r#""m1""#, r#""m2""#, r#""m:{3}%""#];
/// The last two are the same JSON value.
pub(super) const CONTENTS: &[&str] =
    &[r#""Hello!""#, r#""""#, "false", "-0.5", r#"{"x":1,"y":[null,{}]}"#, r#"{"y":[null,{}],"x":1}"#];
