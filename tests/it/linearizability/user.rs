//! The sequential specification of one user's sessions, against which histories are checked.

use std::collections::BTreeMap;
use std::sync::Arc;

use todc_utils::specifications::Specification;

use super::turns::{TurnCall, TurnView, Turns};

/// A session id, a message id or a title.
pub type Text = Arc<str>;

/// One call of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    GetOrCreate,
    Replace,
    GetActive,
    Get(Text),
    End(Text),
    Resume(Text),
    ResumeReplacing(Text),
    Retitle(Text, Text),
    Append(Text, Text),
    ListMessages(Text),
    /// A call for a turn of a session.
    Turn(Text, Text, TurnCall),
    Delete(Text),
    EraseUser,
}

impl Operation {
    /// Whether the operation never changes anything.
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::GetActive | Self::Get(_) | Self::ListMessages(_) | Self::Turn(_, _, TurnCall::Get))
    }
}

/// A session as a response shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionView {
    pub id: Text,
    pub active: bool,
    pub version: u64,
    pub title: Option<Text>,
    pub messages: usize,
}

/// The result of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Created(SessionView),
    Found(SessionView),
    NotFound,
    AnotherActive(Text),
    NotActive,
    /// The seq of a new message.
    Appended(usize),
    /// The seq of a message that was stored before.
    Replayed(usize),
    Messages(Vec<Text>),
    TurnBegun(TurnView),
    Turn(TurnView),
    TurnNotFound,
    /// The id of the turn that is open.
    TurnOpen(Text),
    /// How it was closed, or `taken`.
    TurnClosed(Text),
    /// How many chunks there are, and whether the writer is asked to stop.
    Written(usize, bool),
    /// How many chunks there are.
    ChunkGap(usize),
    ChunkConflict,
    Deleted,
    /// The number of deleted sessions.
    Erased(usize),
}

/// An operation and its result, or `None` if the client does not know the outcome.
#[derive(Clone, Debug)]
pub struct Step {
    pub operation: Operation,
    pub answer: Option<Answer>,
}

/// One user's sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct User {
    active: Option<Text>,
    sessions: BTreeMap<Text, Document>,
    /// How many sessions ended before a client learned their id.
    unknown_ended: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Document {
    version: u64,
    title: Option<Text>,
    /// The message ids in the order of seq, starting with seq 1.
    messages: Vec<Text>,
    turns: Turns,
}

/// Stands for the id of a session whose create got no response. A client can learn the id only while the session is
/// active.
const UNKNOWN_ID: &str = "?";

impl Specification for User {
    type State = Self;
    type Operation = Step;

    fn init() -> Self {
        Self::default()
    }

    fn apply(step: &Step, user: &Self) -> (bool, Self) {
        budget::spend();
        let mut user = user.clone();
        // The service chooses the id, so it is taken from the result.
        let new_id = match &step.answer {
            Some(Answer::Created(view)) => view.id.clone(),
            _ => UNKNOWN_ID.into(),
        };
        if let Some(Answer::Found(SessionView { id, .. }) | Answer::AnotherActive(id)) = &step.answer {
            user.learn_id(id);
        }
        let answer = user.step(&step.operation, &new_id);
        (step.answer.as_ref().is_none_or(|recorded| *recorded == answer), user)
    }
}

impl User {
    /// Gives the active session this id if its own is unknown and no other session has this one.
    fn learn_id(&mut self, id: &Text) {
        if self.active.as_deref() == Some(UNKNOWN_ID) && !self.sessions.contains_key(id) {
            let document = self.sessions.remove(UNKNOWN_ID).expect("the active session");
            self.sessions.insert(id.clone(), document);
            self.active = Some(id.clone());
        }
    }

    fn view(&self, id: &Text) -> SessionView {
        let document = &self.sessions[id];
        let active = self.active.as_ref() == Some(id);
        let (version, title) = (document.version, document.title.clone());
        SessionView { id: id.clone(), active, version, title, messages: document.messages.len() }
    }

    fn end_active(&mut self) {
        if let Some(id) = self.active.take() {
            if &*id == UNKNOWN_ID {
                self.sessions.remove(&id);
                self.unknown_ended += 1;
            } else {
                self.change(&id);
            }
        }
    }

    fn change(&mut self, id: &Text) -> &mut Document {
        let document = self.sessions.get_mut(id).expect("a session");
        document.version += 1;
        document
    }

    fn step(&mut self, operation: &Operation, new_id: &Text) -> Answer {
        match operation {
            Operation::Get(id)
            | Operation::End(id)
            | Operation::Resume(id)
            | Operation::ResumeReplacing(id)
            | Operation::Retitle(id, _)
            | Operation::Append(id, _)
            | Operation::ListMessages(id)
            | Operation::Turn(id, ..)
            | Operation::Delete(id)
                if !self.sessions.contains_key(id) =>
            {
                Answer::NotFound
            }
            Operation::GetOrCreate if self.active.is_some() => self.found_active(),
            Operation::GetOrCreate | Operation::Replace => {
                self.end_active();
                self.sessions.insert(new_id.clone(), Document { version: 1, ..Document::default() });
                self.active = Some(new_id.clone());
                Answer::Created(self.view(new_id))
            }
            Operation::GetActive => self.found_active(),
            Operation::Get(id) => Answer::Found(self.view(id)),
            Operation::End(id) => {
                if self.active.as_ref() == Some(id) {
                    let document = self.sessions.get_mut(id).expect("a session");
                    document.turns.interrupt(&mut document.messages);
                    self.end_active();
                }
                Answer::Found(self.view(id))
            }
            Operation::Resume(id) | Operation::ResumeReplacing(id) => {
                if self.active.as_ref() != Some(id) {
                    if let (Operation::Resume(_), Some(other)) = (operation, &self.active) {
                        return Answer::AnotherActive(other.clone());
                    }
                    self.end_active();
                    self.active = Some(id.clone());
                    self.change(id);
                }
                Answer::Found(self.view(id))
            }
            Operation::Retitle(id, title) => {
                if self.sessions[id].title.as_ref() != Some(title) {
                    self.change(id).title = Some(title.clone());
                }
                Answer::Found(self.view(id))
            }
            Operation::Append(id, message_id) => self.append(id, message_id),
            Operation::ListMessages(id) => Answer::Messages(self.sessions[id].messages.clone()),
            Operation::Turn(id, turn_id, call) => {
                let is_active = self.active.as_ref() == Some(id);
                let document = self.sessions.get_mut(id).expect("a session");
                document.turns.call(turn_id, call, is_active, &mut document.messages)
            }
            Operation::Delete(id) => {
                self.sessions.remove(id);
                self.active.take_if(|active| active == id);
                Answer::Deleted
            }
            Operation::EraseUser => {
                let erased = self.sessions.len() + self.unknown_ended;
                *self = Self::default();
                Answer::Erased(erased)
            }
        }
    }

    fn found_active(&self) -> Answer {
        self.active.as_ref().map_or(Answer::NotFound, |id| Answer::Found(self.view(id)))
    }

    fn append(&mut self, id: &Text, message_id: &Text) -> Answer {
        let is_active = self.active.as_ref() == Some(id);
        let messages = &mut self.sessions.get_mut(id).expect("a session").messages;
        if let Some(index) = messages.iter().position(|known| known == message_id) {
            return Answer::Replayed(index + 1);
        }
        if !is_active {
            return Answer::NotActive;
        }
        messages.push(message_id.clone());
        Answer::Appended(messages.len())
    }
}

/// Limits the steps of one check, and thereby its memory: the checker keeps the state after each step.
pub mod budget {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    /// A check of 30 calls with responses takes a few hundred steps. 16 calls without any have at most 65,536 sets of
    /// calls that took effect, and few states for each.
    pub const STEPS_MAX: usize = 2_000_000;

    thread_local! {
        static STEPS: Cell<usize> = const { Cell::new(0) };
    }

    struct BudgetExceeded;

    /// Runs one check. Returns `None` if it exceeds `STEPS_MAX`. The second value is the number of steps.
    pub fn within<T>(check: impl FnOnce() -> T) -> (Option<T>, usize) {
        STEPS.set(0);
        let verdict = match catch_unwind(AssertUnwindSafe(check)) {
            Ok(verdict) => Some(verdict),
            Err(payload) if payload.is::<BudgetExceeded>() => None,
            Err(payload) => resume_unwind(payload),
        };
        (verdict, STEPS.get())
    }

    pub fn spend() {
        STEPS.set(STEPS.get() + 1);
        if STEPS.get() > STEPS_MAX {
            // Unlike `panic!`, this prints nothing.
            resume_unwind(Box::new(BudgetExceeded));
        }
    }
}
