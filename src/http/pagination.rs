//! Pagination of lists: `limit`, opaque keyset cursors, and the `Link` header (RFC 8288) with further pages.

use axum::http::{HeaderValue, Uri};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use xxhash_rust::xxh3::xxh3_64;

use super::error::ApiError;
use super::extract::Query;
use super::include;
use crate::session::{Identifier, Include, SessionId};
use crate::store::{PageRequest, Position, ResponseOwner};

/// Maximum number of sessions on a page.
pub(super) const SESSIONS_MAX: u64 = 100;
const CURSOR_VERSION: u8 = 1;

/// The list that a cursor belongs to. A cursor is rejected in any other list.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct ListId(u64);

impl ListId {
    pub(super) fn active(business_id: &Identifier) -> Self {
        // Identifiers contain no control characters, so NUL is a safe separator.
        Self(xxh3_64(format!("active\0{business_id}").as_bytes()))
    }

    pub(super) fn history(business_id: &Identifier, user_id: &Identifier) -> Self {
        Self(xxh3_64(format!("history\0{business_id}\0{user_id}").as_bytes()))
    }
}

/// The page of sessions that a query requests.
pub(super) struct PageQuery {
    pub(super) limit: u64,
    pub(super) after: Option<Position>,
    pub(super) include: Include,
}

impl PageQuery {
    pub(super) fn read(mut query: Query, list: ListId, default_limit: u64) -> Result<Self, ApiError> {
        let limit = query.number("limit", 1, SESSIONS_MAX).unwrap_or(default_limit);
        let mut after = None;
        if let Some(text) = query.text("cursor") {
            after = read_cursor(&text, list);
            if after.is_none() {
                query.problem("cursor", "must be one that a Link header of this list has given");
            }
        }
        let include = include::read(&mut query);
        query.finish()?;
        Ok(Self { limit, after, include })
    }

    pub(super) fn request(&self, owner: ResponseOwner) -> PageRequest {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        PageRequest { limit, after: self.after, include: self.include, owner }
    }

    /// The `Link` header with the page that starts after `next`.
    pub(super) fn link(&self, uri: &Uri, list: ListId, next: Position) -> Option<HeaderValue> {
        let (limit, include, cursor) = (self.limit, include::parameter(self.include), write_cursor(list, next));
        link_header([("next", format!("limit={limit}{include}&cursor={cursor}"))], uri)
    }
}

/// A `Link` header with one link for each relation and query, all on the path of the request.
pub(super) fn link_header<'a>(links: impl IntoIterator<Item = (&'a str, String)>, uri: &Uri) -> Option<HeaderValue> {
    // A header contains only ASCII, but the path of a request may contain raw UTF-8.
    let path = percent_encoding::percent_encode(uri.path().as_bytes(), percent_encoding::CONTROLS).to_string();
    let links: Vec<_> =
        links.into_iter().map(|(relation, query)| format!("<{path}?{query}>; rel=\"{relation}\"")).collect();
    if links.is_empty() { None } else { links.join(", ").parse().ok() }
}

/// Version, list, score and session id: 33 bytes, as base64url. A cursor is neither secret nor trusted: it only selects
/// a position in the list of the request that carries it.
fn write_cursor(list: ListId, position: Position) -> String {
    let mut bytes = vec![CURSOR_VERSION];
    bytes.extend(list.0.to_be_bytes());
    bytes.extend(position.score.to_be_bytes());
    bytes.extend(position.session_id.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

fn read_cursor(text: &str, list: ListId) -> Option<Position> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (&CURSOR_VERSION, rest) = bytes.split_first()? else {
        return None;
    };
    let (list_bytes, rest) = rest.split_first_chunk()?;
    let (score, id) = rest.split_first_chunk()?;
    let id: [u8; 16] = id.try_into().ok()?;
    let score = i64::from_be_bytes(*score);
    // Scores are times since 1970. The bounds also keep arithmetic on scores exact.
    let is_in_range = (0..1 << 53).contains(&score);
    (ListId(u64::from_be_bytes(*list_bytes)) == list && is_in_range)
        .then_some(Position { score, session_id: SessionId::from_bytes(id) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_valid_only_for_their_list() {
        let identifier = |text: &str| Identifier::new(text).expect("valid identifier");
        let list = ListId::history(&identifier("b"), &identifier("u"));
        let id = "f4bca9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e".parse().expect("valid session id");
        let position = Position { score: 1_795_341_600_001, session_id: id };
        let cursor = write_cursor(list, position);
        assert_eq!(read_cursor(&cursor, list), Some(position));
        assert_eq!(read_cursor(&cursor, ListId::history(&identifier("b"), &identifier("v"))), None);
        assert_eq!(read_cursor(&cursor, ListId::active(&identifier("b"))), None);
        for text in ["", "a", "AQ", &cursor[1..], &format!("{cursor}AAAA"), "💬"] {
            assert_eq!(read_cursor(text, list), None, "{text}");
        }
    }
}
