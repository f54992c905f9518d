//! Properties of the parsers of client input, for the fuzz targets.

#![expect(clippy::missing_panics_doc, reason = "the checks report a failure by a panic")]

use axum::http::Uri;
use serde_json::Value;

use super::extract::Query;
use super::pagination::{ListId, PageQuery, SESSIONS_MAX};
use super::{json, messages, sessions};
use crate::session::{Identifier, TITLE_CHARS_MAX};

/// Checks that a query is either rejected, or parsed into a limit and a position whose `Link` is parsed into the same
/// two. `input` is a query on the history of user `u` of business `b`.
pub fn cursor(input: &str) {
    let (Ok(business_id), Ok(user_id)) = (Identifier::new("b"), Identifier::new("u")) else {
        return;
    };
    let list = ListId::history(&business_id, &user_id);
    let pairs: Vec<_> = form_urlencoded::parse(input.as_bytes()).collect();
    let all = |name: &str| pairs.iter().filter(|pair| pair.0 == name).map(|pair| pair.1.as_ref()).collect::<Vec<_>>();
    let (limits, cursors, includes) = (all("limit"), all("cursor"), all("include"));
    let well_formed = limits.len() <= 1
        && cursors.len() <= 1
        && includes.len() <= 1
        && limits.len() + cursors.len() + includes.len() == pairs.len()
        && includes.iter().all(|names| names.split(',').all(|name| name == "lastMessage"))
        && limits.iter().all(|limit| {
            let significant = limit.trim_start_matches('0');
            limit.bytes().all(|byte| byte.is_ascii_digit())
                && (significant == "100" || (1..=2).contains(&significant.len()))
        });
    let read = PageQuery::read(Query::of(Some(input)), list, 20);
    let Ok(query) = read else {
        // A query that is well-formed otherwise may be rejected for its cursor only.
        assert!(!well_formed || !cursors.is_empty(), "rejected although valid: {input:?}");
        return;
    };
    assert!(well_formed && (1..=SESSIONS_MAX).contains(&query.limit), "accepted although invalid: {input:?}");
    assert_eq!(query.after.is_some(), !cursors.is_empty());
    let Some(position) = query.after else {
        return;
    };
    let other = ListId::active(&business_id);
    assert!(PageQuery::read(Query::of(Some(input)), other, 20).is_err(), "another list accepted the cursor: {input:?}");
    let link = query.link(&Uri::from_static("/list"), list, position);
    let link = link.and_then(|link| link.to_str().map(str::to_owned).ok()).unwrap_or_default();
    let next = link.strip_prefix("</list?").and_then(|link| link.strip_suffix(">; rel=\"next\"")).unwrap_or_default();
    match PageQuery::read(Query::of(Some(next)), list, 20) {
        Ok(reread) => {
            let read = (reread.after, reread.limit, reread.include);
            assert_eq!(read, (Some(position), query.limit, query.include));
        }
        Err(error) => panic!("{link:?}: {error:?}"),
    }
    assert!(cursors.iter().all(|cursor| next.ends_with(cursor)), "one position has two cursors: {input:?}");
}

/// Checks that a body is rejected, or is JSON without duplicate keys that another parser reads as the same value.
/// Returns the value, and whether it is a valid body to create a session, to change one, and to append messages.
#[must_use]
pub fn bodies(input: &[u8]) -> Option<(Value, [bool; 3])> {
    let plain = serde_json::from_slice::<Value>(input).ok();
    let Ok(body) = json::parse(input) else {
        // Of two members with the same name, the other parser keeps the last.
        let text = String::from_utf8_lossy(input);
        let members_max = text.matches(':').count();
        assert!(plain.as_ref().is_none_or(|body| member_count(body) < members_max), "rejected although valid: {text}");
        return None;
    };
    assert_eq!(plain.as_ref(), Some(&body));
    assert_eq!(serde_json::from_str::<Value>(&body.to_string()).ok().as_ref(), Some(&body));
    let default = Identifier::new("default").ok()?;
    let created = sessions::new_session(body.clone(), None, &default, &default, usize::MAX).ok();
    if let Some(new) = &created {
        assert!(body["businessId"] == new.business_id.as_str() && body["userId"] == new.user_id.as_str());
        assert!(new.title.as_ref().is_none_or(|title| title.chars().count() <= TITLE_CHARS_MAX));
        let metadata = serde_json::from_str::<Value>(&new.metadata).ok();
        assert_eq!(metadata, Some(body.get("metadata").cloned().unwrap_or_else(|| serde_json::json!({}))));
    }
    let patch = sessions::session_patch(body.clone()).ok();
    if let Some(patch) = &patch {
        assert_eq!(patch.metadata.as_ref(), body.get("metadata"));
        assert_eq!(patch.title.is_some(), body.get("title").is_some());
    }
    let appended = messages::new_messages(body.clone(), input, usize::MAX, usize::MAX).ok();
    if let Some(new) = &appended {
        let items = body.as_array().cloned().unwrap_or_else(|| vec![body.clone()]);
        assert_eq!(items.iter().map(|item| &item["content"]).collect::<Vec<_>>(), contents(new));
        for (message, item) in new.iter().zip(&items) {
            let metadata = item.get("metadata").cloned().unwrap_or_else(|| serde_json::json!({}));
            let parsed = [&message.content_json, &message.metadata_json].map(|json| serde_json::from_str(json).ok());
            assert_eq!(parsed, [Some(message.content.clone()), Some(metadata)], "the texts have other values");
        }
    }
    let accepted = [created.is_some(), patch.is_some(), appended.is_some()];
    Some((body, accepted))
}

fn contents(messages: &[crate::session::NewMessage]) -> Vec<&Value> {
    messages.iter().map(|message| &message.content).collect()
}

/// The number of members of all objects in the value, at any depth.
fn member_count(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.iter().map(member_count).sum(),
        Value::Object(members) => members.len() + members.values().map(member_count).sum::<usize>(),
        _ => 0,
    }
}
