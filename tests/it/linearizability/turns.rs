//! The sequential specification of the turns of one session. Leases do not expire during a test.

use super::user::{Answer, Text};

/// A call for one turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TurnCall {
    Begin {
        writer: Text,
        if_open: &'static str,
    },
    /// One chunk, as number `from`.
    Write {
        number: u64,
        from: usize,
        chunk: Text,
    },
    /// As completed.
    End {
        number: u64,
    },
    Cancel,
    Get,
}

/// A turn as a response shows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TurnView {
    pub number: u64,
    pub writer: Text,
    pub status: Text,
    pub next_chunk: usize,
    pub after_seq: usize,
    pub cancel_requested: bool,
    pub message_seq: Option<usize>,
    /// For an open turn that is read: its chunks.
    pub text: Option<String>,
}

/// The turns of one session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Turns {
    turns: Vec<Turn>,
    number: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Turn {
    id: Text,
    number: u64,
    writer: Text,
    status: &'static str,
    chunks: Vec<Text>,
    after_seq: usize,
    cancel_requested: bool,
    is_ended_by_writer: bool,
    message_seq: Option<usize>,
}

const OPEN: &str = "open";

impl Turn {
    fn view(&self) -> TurnView {
        TurnView {
            number: self.number,
            writer: self.writer.clone(),
            status: self.status.into(),
            next_chunk: self.chunks.len(),
            after_seq: self.after_seq,
            cancel_requested: self.cancel_requested,
            message_seq: self.message_seq,
            text: None,
        }
    }

    /// The answer to a caller that is not, or no longer, the writer of this turn.
    fn closed(&self) -> Answer {
        Answer::TurnClosed(if self.status == OPEN { "taken".into() } else { self.status.into() })
    }
}

impl Turns {
    fn open(&mut self) -> Option<&mut Turn> {
        self.turns.last_mut().filter(|turn| turn.status == OPEN)
    }

    /// Closes the open turn. Its text, if any, becomes the last message.
    fn close(&mut self, status: &'static str, discards: bool, messages: &mut Vec<Text>) {
        let Some(turn) = self.open() else { return };
        turn.status = if turn.cancel_requested { "cancelled" } else { status };
        if !discards && (!turn.chunks.is_empty() || turn.status == "completed") {
            messages.push(turn.id.clone());
            turn.message_seq = Some(messages.len());
        }
    }

    /// Records the end of the session.
    pub fn interrupt(&mut self, messages: &mut Vec<Text>) {
        self.close("interrupted", false, messages);
    }

    pub fn call(&mut self, id: &Text, call: &TurnCall, is_active: bool, messages: &mut Vec<Text>) -> Answer {
        if let TurnCall::Begin { writer, if_open } = call {
            return self.begin(id, writer, if_open, is_active, messages);
        }
        let Some(turn) = self.turns.iter_mut().find(|turn| turn.id == *id) else { return Answer::TurnNotFound };
        match call {
            TurnCall::Begin { .. } => unreachable!("handled above"),
            TurnCall::Get => {
                let text = (turn.status == OPEN).then(|| turn.chunks.concat());
                Answer::Turn(TurnView { text, ..turn.view() })
            }
            TurnCall::Cancel if turn.status == OPEN => {
                turn.cancel_requested = true;
                Answer::Turn(turn.view())
            }
            TurnCall::End { number } if turn.number == *number && turn.is_ended_by_writer => Answer::Turn(turn.view()),
            TurnCall::Write { number, .. } | TurnCall::End { number }
                if turn.status != OPEN || turn.number != *number =>
            {
                turn.closed()
            }
            TurnCall::Cancel => turn.closed(),
            TurnCall::Write { from, chunk, .. } => match turn.chunks.get(*from) {
                None if *from > turn.chunks.len() => Answer::ChunkGap(turn.chunks.len()),
                Some(known) if known != chunk => Answer::ChunkConflict,
                known => {
                    if known.is_none() {
                        turn.chunks.push(chunk.clone());
                    }
                    Answer::Written(turn.chunks.len(), turn.cancel_requested)
                }
            },
            TurnCall::End { .. } => {
                turn.is_ended_by_writer = true;
                self.close("completed", false, messages);
                Answer::Turn(self.turns[self.turns.len() - 1].view())
            }
        }
    }

    fn begin(&mut self, id: &Text, writer: &Text, if_open: &str, is_active: bool, messages: &mut Vec<Text>) -> Answer {
        if let Some(over) = self.turns.iter().find(|turn| turn.id == *id && turn.status != OPEN) {
            return Answer::Turn(over.view());
        }
        let is_this = self.open().is_some_and(|turn| turn.id == *id);
        if let Some(own) = self.open().filter(|turn| is_this && turn.writer == *writer) {
            return Answer::Turn(own.view());
        }
        if !is_active {
            return Answer::NotActive;
        }
        match (self.open(), if_open) {
            (None, _) => {}
            (Some(_), "interrupt" | "discard") if !is_this => self.close("interrupted", if_open == "discard", messages),
            (Some(_), "takeover" | "discard") if is_this => {}
            (Some(open), _) => return Answer::TurnOpen(open.id.clone()),
        }
        self.number += 1;
        let number = self.number;
        let taken = self.turns.pop_if(|turn| turn.status == OPEN);
        let cancel_requested = taken.as_ref().is_some_and(|turn| turn.cancel_requested);
        let new = Turn {
            id: id.clone(),
            number,
            writer: writer.clone(),
            status: OPEN,
            chunks: Vec::new(),
            after_seq: messages.len(),
            cancel_requested,
            is_ended_by_writer: false,
            message_seq: None,
        };
        let turn = match taken {
            Some(turn) if if_open == "takeover" => Turn { number, writer: writer.clone(), ..turn },
            _ => new,
        };
        let view = turn.view();
        self.turns.push(turn);
        if is_this { Answer::Turn(view) } else { Answer::TurnBegun(view) }
    }
}
