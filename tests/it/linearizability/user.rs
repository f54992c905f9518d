//! What one user's sessions are, one call after the other: the specification that histories are checked against.

use std::collections::BTreeMap;
use std::sync::Arc;

use todc_utils::specifications::Specification;

/// A session id, a message id or a title.
pub type Text = Arc<str>;

/// One call of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
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
    Delete(Text),
    EraseUser,
}

impl Verb {
    /// Whether it leaves everything as it is, whatever it answers.
    pub fn only_reads(&self) -> bool {
        matches!(self, Self::GetActive | Self::Get(_) | Self::ListMessages(_))
    }
}

/// A session as an answer shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub id: Text,
    pub active: bool,
    pub version: u64,
    pub title: Option<Text>,
    pub messages: usize,
}

/// What a call was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Created(Shown),
    Found(Shown),
    NotFound,
    AnotherActive(Text),
    NotActive,
    /// The message's seq, new or as it was stored before.
    Appended(usize),
    Replayed(usize),
    Messages(Vec<Text>),
    Deleted,
    Erased(usize),
}

/// A call with its answer; without one if the client was not told what came of it.
#[derive(Clone, Debug)]
pub struct Step {
    pub verb: Verb,
    pub answer: Option<Answer>,
}

/// One user's sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct User {
    active: Option<Text>,
    sessions: BTreeMap<Text, Document>,
    /// Sessions that ended before any client was told their id.
    nameless_ended: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Document {
    version: u64,
    title: Option<Text>,
    /// The message with seq 1 is the first.
    messages: Vec<Text>,
}

/// The id of a session whose creator was not told it. Only an active one can still become known.
const NAMELESS: &str = "?";

impl Specification for User {
    type State = Self;
    type Operation = Step;

    fn init() -> Self {
        Self::default()
    }

    fn apply(step: &Step, user: &Self) -> (bool, Self) {
        let mut user = user.clone();
        // The service chooses ids: the answer says which.
        let new_id = match &step.answer {
            Some(Answer::Created(shown)) => shown.id.clone(),
            _ => NAMELESS.into(),
        };
        if let Some(Answer::Found(Shown { id, .. }) | Answer::AnotherActive(id)) = &step.answer {
            user.name(id);
        }
        let answer = user.step(&step.verb, &new_id);
        (step.answer.as_ref().is_none_or(|given| *given == answer), user)
    }
}

impl User {
    /// If nobody knows this id, it can only be the one that nobody was told.
    fn name(&mut self, id: &Text) {
        if self.active.as_deref() == Some(NAMELESS) && !self.sessions.contains_key(id) {
            let document = self.sessions.remove(NAMELESS).expect("the active session");
            self.sessions.insert(id.clone(), document);
            self.active = Some(id.clone());
        }
    }

    fn shown(&self, id: &Text) -> Shown {
        let document = &self.sessions[id];
        let active = self.active.as_ref() == Some(id);
        let (version, title) = (document.version, document.title.clone());
        Shown { id: id.clone(), active, version, title, messages: document.messages.len() }
    }

    fn end_active(&mut self) {
        if let Some(id) = self.active.take() {
            if &*id == NAMELESS {
                self.sessions.remove(&id);
                self.nameless_ended += 1;
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

    fn step(&mut self, verb: &Verb, new_id: &Text) -> Answer {
        match verb {
            Verb::Get(id)
            | Verb::End(id)
            | Verb::Resume(id)
            | Verb::ResumeReplacing(id)
            | Verb::Retitle(id, _)
            | Verb::Append(id, _)
            | Verb::ListMessages(id)
            | Verb::Delete(id)
                if !self.sessions.contains_key(id) =>
            {
                Answer::NotFound
            }
            Verb::GetOrCreate if self.active.is_some() => self.found_active(),
            Verb::GetOrCreate | Verb::Replace => {
                self.end_active();
                self.sessions.insert(new_id.clone(), Document { version: 1, ..Document::default() });
                self.active = Some(new_id.clone());
                Answer::Created(self.shown(new_id))
            }
            Verb::GetActive => self.found_active(),
            Verb::Get(id) => Answer::Found(self.shown(id)),
            Verb::End(id) => {
                if self.active.as_ref() == Some(id) {
                    self.end_active();
                }
                Answer::Found(self.shown(id))
            }
            Verb::Resume(id) | Verb::ResumeReplacing(id) => {
                if self.active.as_ref() != Some(id) {
                    if let (Verb::Resume(_), Some(other)) = (verb, &self.active) {
                        return Answer::AnotherActive(other.clone());
                    }
                    self.end_active();
                    self.active = Some(id.clone());
                    self.change(id);
                }
                Answer::Found(self.shown(id))
            }
            Verb::Retitle(id, title) => {
                if self.sessions[id].title.as_ref() != Some(title) {
                    self.change(id).title = Some(title.clone());
                }
                Answer::Found(self.shown(id))
            }
            Verb::Append(id, message_id) => self.append(id, message_id),
            Verb::ListMessages(id) => Answer::Messages(self.sessions[id].messages.clone()),
            Verb::Delete(id) => {
                self.sessions.remove(id);
                self.active.take_if(|active| active == id);
                Answer::Deleted
            }
            Verb::EraseUser => {
                let erased = self.sessions.len() + self.nameless_ended;
                *self = Self::default();
                Answer::Erased(erased)
            }
        }
    }

    fn found_active(&self) -> Answer {
        self.active.as_ref().map_or(Answer::NotFound, |id| Answer::Found(self.shown(id)))
    }

    fn append(&mut self, id: &Text, message_id: &Text) -> Answer {
        let is_active = self.active.as_ref() == Some(id);
        let messages = &mut self.sessions.get_mut(id).expect("a session").messages;
        if let Some(place) = messages.iter().position(|known| known == message_id) {
            return Answer::Replayed(place + 1);
        }
        if !is_active {
            return Answer::NotActive;
        }
        messages.push(message_id.clone());
        Answer::Appended(messages.len())
    }
}
