//! Events in the format `text/event-stream` (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).

use bytes::Bytes;

use super::position::{Position, ResetReason};
use crate::metrics::StreamEvent;
use crate::session::{MessageJson, Session, SessionId, Turn};

/// An event of a session's stream.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) kind: StreamEvent,
    /// The bytes to send.
    pub(super) text: Bytes,
    /// The position of the stream after this event.
    pub(super) position: Position,
    /// Whether the stream ends after this event.
    pub(super) is_last: bool,
}

impl Event {
    pub(super) fn session(session: &Session, position: &Position) -> Self {
        Self::of(StreamEvent::Session, None, &session.to_json(), position)
    }

    pub(super) fn message(message: &MessageJson, position: &Position) -> Self {
        Self::with_id(StreamEvent::Message, message.as_bytes(), position)
    }

    pub(super) fn changed(message: &MessageJson, position: &Position) -> Self {
        Self::of(StreamEvent::Changed, None, message.as_bytes(), position)
    }

    pub(super) fn turn(turn: &Turn, position: &Position) -> Self {
        Self::with_id(StreamEvent::Turn, &turn.to_json(), position)
    }

    /// These chunks of a turn, from number `from` on.
    pub(super) fn chunk(turn: &Turn, from: u64, chunks: &[Bytes], position: &Position) -> Self {
        let mut json = Vec::with_capacity(chunks.iter().map(|chunk| chunk.len() + 3).sum::<usize>() + 128);
        turn.write_chunks_json(from, chunks, &mut json);
        Self::with_id(StreamEvent::Chunk, &json, position)
    }

    pub(super) fn ready(position: &Position) -> Self {
        Self::with_id(StreamEvent::Ready, b"{}", position)
    }

    pub(super) fn reset(reason: ResetReason, position: &Position) -> Self {
        Self { kind: StreamEvent::Reset, text: reset_text(reason.as_str()), position: position.clone(), is_last: false }
    }

    pub(super) fn deleted(id: SessionId, position: &Position) -> Self {
        let text = deleted_text(id);
        Self { kind: StreamEvent::Deleted, text, position: position.clone(), is_last: true }
    }

    /// The event before the service ends a stream.
    pub(super) fn bye(position: &Position) -> Self {
        let text = Bytes::from_static(BYE);
        Self { kind: StreamEvent::Bye, text, position: position.clone(), is_last: true }
    }

    /// A comment. It shows the client and the proxies in between that the connection is alive.
    pub(super) fn comment(position: &Position) -> Self {
        let text = Bytes::from_static(COMMENT);
        Self { kind: StreamEvent::Comment, text, position: position.clone(), is_last: false }
    }

    /// The reconnection delay for the client. It is random, so that clients do not reconnect at the same time.
    pub(super) fn retry(position: &Position) -> Self {
        let text = retry_text();
        Self { kind: StreamEvent::Comment, text, position: position.clone(), is_last: false }
    }

    fn with_id(kind: StreamEvent, json: &[u8], position: &Position) -> Self {
        Self::of(kind, Some(&position.cursor.to_text()), json, position)
    }

    fn of(kind: StreamEvent, id: Option<&str>, json: &[u8], position: &Position) -> Self {
        Self { kind, text: text_of(kind, id, json), position: position.clone(), is_last: false }
    }
}

/// A random time from 1 to 4 s.
pub(super) fn retry_text() -> Bytes {
    let mut random = [0; 2];
    // Without random bytes, the delay is the shortest.
    let _ = getrandom::fill(&mut random);
    let ms = 1000 + u32::from(u16::from_ne_bytes(random)) * 3000 / u32::from(u16::MAX);
    format!("retry: {ms}\n\n").into()
}

/// A line that clients ignore.
pub(super) const COMMENT: &[u8] = b":\n\n";

/// The event before the service ends a stream.
pub(super) const BYE: &[u8] = b"event: bye\ndata: {}\n\n";

pub(super) fn reset_text(reason: &str) -> Bytes {
    text_of(StreamEvent::Reset, None, format!("{{\"reason\":\"{reason}\"}}").as_bytes())
}

pub(super) fn deleted_text(id: SessionId) -> Bytes {
    text_of(StreamEvent::Deleted, None, format!("{{\"sessionId\":\"{id}\"}}").as_bytes())
}

/// An event with this JSON. The JSON has no line breaks: the service writes none between tokens, and strings escape
/// them.
pub(super) fn text_of(kind: StreamEvent, id: Option<&str>, json: &[u8]) -> Bytes {
    let mut text = Vec::with_capacity(json.len() + 128);
    for part in ["event: ", kind.as_str(), "\n"] {
        text.extend_from_slice(part.as_bytes());
    }
    if let Some(id) = id {
        for part in ["id: ", id, "\n"] {
            text.extend_from_slice(part.as_bytes());
        }
    }
    text.extend_from_slice(b"data: ");
    text.extend_from_slice(json);
    text.extend_from_slice(b"\n\n");
    text.into()
}
