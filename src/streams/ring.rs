//! The newest events of a feed, which all of its streams share. Streams without further events are woken by the next
//! one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::control::Control;

/// Maximum number of events, and approximate maximum of their bytes, that are kept for slow streams.
const EVENTS_MAX: usize = 256;
const BYTES_MAX: usize = 32 * 1024;

/// What a ring holds.
pub(super) trait Entry: Clone {
    /// Number of bytes of its text.
    fn bytes(&self) -> usize;
}

/// The newest events. Each event has a number, from 0.
#[derive(Debug)]
pub(super) struct Ring<T>(Mutex<State<T>>);

#[derive(Debug)]
struct State<T> {
    events: VecDeque<T>,
    /// The number of the next event.
    end: u64,
    bytes: usize,
    streams: Vec<Arc<Control>>,
}

/// The reply of a ring to a stream that requests an event.
#[derive(Debug)]
pub(super) enum Next<T> {
    /// The requested event.
    Event(T),
    /// There is no such event yet.
    Wait,
    /// The event is no longer kept.
    Gone,
}

impl<T: Entry> Ring<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State { events: VecDeque::new(), end: 0, bytes: 0, streams: Vec::new() }))
    }

    /// Adds events, and wakes the streams.
    pub(super) fn push(&self, events: Vec<T>) {
        if events.is_empty() {
            return;
        }
        let mut state = self.state();
        for event in events {
            state.bytes += event.bytes();
            state.events.push_back(event);
            state.end += 1;
        }
        // A slow stream reads older events from the store.
        while state.events.len() > EVENTS_MAX || state.bytes > BYTES_MAX {
            let Some(first) = state.events.pop_front() else { break };
            state.bytes -= first.bytes();
        }
        for stream in &state.streams {
            stream.wake();
        }
    }

    /// The event with this number.
    pub(super) fn event(&self, number: u64) -> Next<T> {
        let state = self.state();
        let Some(from_end) = state.end.checked_sub(number).filter(|count| *count > 0) else { return Next::Wait };
        let index = usize::try_from(from_end).ok().and_then(|count| state.events.len().checked_sub(count));
        index.and_then(|index| state.events.get(index)).map_or(Next::Gone, |event| Next::Event(event.clone()))
    }

    /// The number of the next event.
    pub(super) fn end(&self) -> u64 {
        self.state().end
    }

    pub(super) fn join(&self, stream: Arc<Control>) {
        self.state().streams.push(stream);
    }

    /// Removes a stream, and returns how many remain.
    pub(super) fn leave(&self, stream: &Arc<Control>) -> usize {
        let mut state = self.state();
        state.streams.retain(|other| !Arc::ptr_eq(other, stream));
        state.streams.len()
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Entry for usize {
        fn bytes(&self) -> usize {
            *self
        }
    }

    #[test]
    fn streams_miss_old_events_and_wait_for_new_ones() {
        let ring = Ring::new();
        assert!(matches!(ring.event(0), Next::Wait));
        ring.push(vec![1; EVENTS_MAX + 2]);
        assert!(matches!(ring.event(1), Next::Gone));
        assert!(matches!(ring.event(2), Next::Event(1)));
        assert!(matches!(ring.event(ring.end()), Next::Wait));
        ring.push(vec![BYTES_MAX + 1]);
        assert!(matches!(ring.event(ring.end() - 1), Next::Gone), "an event that is too large is not kept");
        ring.push(vec![7]);
        assert!(matches!(ring.event(ring.end() - 1), Next::Event(7)));
    }
}
