//! Properties of keys and replies that the fuzz targets check.

#![expect(clippy::missing_panics_doc, reason = "these functions report violations by panicking")]

use fred::types::Value;

use super::keys::{KeyKind, Keys, SESSION_FIELDS, User};
use super::reply::Reply;
use crate::session::{Identifier, Lifecycle, MessageJson, Partition, Session, SessionId, Timestamp};

/// Deepest nesting of a generated reply.
const REPLY_DEPTH_MAX: usize = 4;

/// For all identifiers, a key parses to what it was built from, and is in the slot of its partition. The input is a
/// key, or two lines with a business and a user.
pub fn keys(input: &str) {
    let keys = Keys::new("sd".to_owned());
    if let Some((partition, kind)) = keys.parse(input) {
        // A key may be in a wrong partition. The audit reports that.
        let (key, key_prefix) = (key_of(&keys, partition, &kind), keys.partition(partition));
        let rest = key.split_once("}:").map(|(_, rest)| rest);
        assert_eq!(input.strip_prefix(&key_prefix), rest, "two keys have the same content");
    }
    let Some((business_id, user_id)) = input.split_once('\n') else {
        return;
    };
    if [business_id, user_id].map(Identifier::new).iter().any(Result::is_err) {
        return;
    }
    let user = User { business_id: business_id.to_owned(), user_id: user_id.to_owned() };
    let partition = Partition::of_user(business_id, user_id);
    assert!(Partition::of_business(business_id).contains(&partition));
    let kinds = [KeyKind::Pointer(user.clone()), KeyKind::History(user), KeyKind::Business(business_id.to_owned())];
    for kind in kinds {
        let key = key_of(&keys, partition, &kind);
        assert_eq!(keys.parse(&key), Some((partition, kind)), "{key:?}");
        // Redis Cluster hashes the text from the first opening brace to the first closing one.
        let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
        let (tag, rest) = tag.unwrap_or_else(|| panic!("{key:?} has no hash tag"));
        assert_eq!(tag, partition.to_string());
        assert!(!rest.contains(['{', '}']) && !rest.contains(char::is_control), "{key:?}");
        let names: Vec<_> = rest.split(':').skip(2).map(|name| percent_encoding::percent_decode_str(name)).collect();
        let expected = [business_id, user_id];
        for (name, expected) in names.into_iter().zip(expected) {
            assert_eq!(name.decode_utf8().ok().as_deref(), Some(expected));
        }
    }
}

fn key_of(keys: &Keys, partition: Partition, kind: &KeyKind) -> String {
    match kind {
        KeyKind::Session(id) => keys.session(*id),
        KeyKind::Messages(id) => keys.messages(*id),
        KeyKind::MessageIds(id) => keys.message_ids(*id),
        KeyKind::Turn(id) => keys.turn(*id),
        KeyKind::Chunks(id) => keys.chunks(*id),
        KeyKind::Pointer(user) => keys.pointer(&user.business_id, &user.user_id),
        KeyKind::History(user) => keys.history(&user.business_id, &user.user_id),
        KeyKind::Business(business_id) => keys.business(partition, business_id),
    }
}

/// Every reply is rejected, or is a session or messages with the requested id. The JSON of a session is valid. The
/// input is a session id, and one value a line: `$text`, `:integer`, `,double`, `#t`, `_`, or `*count` before the
/// values of an array.
pub fn reply(input: &str) {
    let mut lines = input.split('\n');
    let Some(id) = lines.next().and_then(|line| line.parse::<SessionId>().ok()) else {
        return;
    };
    let value = value(&mut lines, REPLY_DEPTH_MAX);
    let read = || Reply::new("fuzz", value.clone()).ok();
    if let Some(Ok(Some(session))) = read().map(|mut reply| reply.session(id)) {
        assert_eq!(session.session_id, id);
        check_session(&session, &value);
    }
    if let Some(mut reply) = read() {
        while let Ok(message) = reply.message(id) {
            check_message(&message, id);
        }
    }
    if let Some(mut reply) = read() {
        while !reply.is_empty() {
            let left = reply.remaining();
            // Every read consumes a value, so no loop reads the same value again.
            let _ = (reply.string(), reply.is_empty() || reply.parse::<u64>().is_ok());
            assert!(reply.remaining() < left);
        }
    }
}

fn value(lines: &mut std::str::Split<'_, char>, depth: usize) -> Value {
    let line = lines.next().unwrap_or("_");
    let Some(kind) = line.chars().next() else {
        return Value::Null;
    };
    let rest = &line[kind.len_utf8()..];
    match kind {
        '$' => Value::String(rest.into()),
        ':' => rest.parse().map_or(Value::Null, Value::Integer),
        ',' => rest.parse().map_or(Value::Null, Value::Double),
        '#' => Value::Boolean(rest == "t"),
        '*' if depth > 0 => {
            let count = rest.parse().unwrap_or(0).min(64);
            Value::Array((0..count).map(|_: usize| value(lines, depth - 1)).collect())
        }
        _ => Value::Null,
    }
}

fn check_session(session: &Session, reply: &Value) {
    let texts: Vec<_> = match reply {
        Value::Array(values) => values.iter().map(Value::as_string).collect(),
        _ => Vec::new(),
    };
    // The last of several values with one name counts.
    let values = SESSION_FIELDS.map(|name| {
        let found = texts.chunks(2).rev().find(|pair| pair[0].as_deref() == Some(name));
        found.and_then(|pair| pair.get(1).cloned().flatten())
    });
    let [id, business_id, user_id, location_id, session_type, status, title, metadata, count, version, ..] = values;
    assert_eq!(id.as_ref().map(|id| id.to_lowercase()), Some(session.session_id.to_string()));
    let texts = [&business_id, &user_id, &location_id, &session_type, &metadata];
    let read = [&session.business_id, &session.user_id, &session.location_id, &session.session_type, &session.metadata];
    assert_eq!(texts.map(Option::as_ref), read.map(Some));
    assert_eq!(status.as_deref(), Some(session.status.as_str()));
    assert_eq!(title, session.title);
    let numbers = [count, version].map(|number| number.and_then(|number| number.parse().ok()));
    assert_eq!(numbers, [Some(session.message_count), Some(session.version)]);
    let lifecycle = Lifecycle {
        idle_timeout: std::time::Duration::from_secs(1),
        max_lifetime: std::time::Duration::from_secs(2),
        retention: std::time::Duration::from_secs(3),
        activity_resolution: std::time::Duration::ZERO,
    };
    for now in [0, session.expires_at.0, session.expires_at.0.saturating_add(1), i64::MAX] {
        if let Some(seen) = Box::new(session.clone()).as_of(Timestamp(now), &lifecycle) {
            assert_eq!(seen.version, session.version);
        }
    }
    check_json_of(session);
}

fn check_json_of(session: &Session) {
    let mut json = Vec::new();
    session.write_json(&mut json);
    check_json(&json, &[&session.metadata]);
}

fn check_message(message: &MessageJson, id: SessionId) {
    let text = String::from_utf8_lossy(message.as_bytes()).into_owned();
    assert!(text.starts_with("{\"seq\":") && text.contains(&id.to_string()), "{text}");
}

/// Checks that the output is valid JSON if the spliced texts are.
fn check_json(json: &[u8], spliced: &[&String]) {
    if spliced.iter().all(|text| serde_json::from_str::<serde_json::Value>(text).is_ok()) {
        let read = serde_json::from_slice::<serde_json::Value>(json);
        assert!(read.is_ok(), "{}", String::from_utf8_lossy(json));
    }
}
