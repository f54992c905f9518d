//! The body of a response with the events of one business.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};

use super::business_feed::BusinessFeed;
use super::event::{BYE, reset_text, retry_text};
use super::feeds::Membership;
use super::ring::Next;
use crate::metrics::{self, StreamEvent};

/// How long a stream waits for its subscriptions before it begins.
const BEGIN_WAIT: Duration = Duration::from_millis(500);

/// A stream of one business.
pub struct BusinessStream {
    membership: Membership<String, BusinessFeed>,
    /// The number of the feed's next event.
    next: u64,
    unsent: VecDeque<Bytes>,
    has_ended: bool,
}

impl BusinessStream {
    pub(super) async fn open(membership: Membership<String, BusinessFeed>) -> Self {
        membership.feed().wait_until_subscribed(BEGIN_WAIT).await;
        let next = membership.ring().end();
        Self { membership, next, unsent: VecDeque::from([retry_text(), reset_text("start")]), has_ended: false }
    }
}

impl Body for BusinessStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        if this.has_ended {
            return Poll::Ready(None);
        }
        if this.membership.control.must_end(context) {
            this.has_ended = true;
            metrics::stream_event_sent(StreamEvent::Bye);
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(BYE)))));
        }
        let text = match this.unsent.pop_front() {
            Some(text) => text,
            None => match this.membership.ring().event(this.next) {
                Next::Wait => return Poll::Pending,
                Next::Event(event) => {
                    this.next += 1;
                    metrics::stream_event_sent(event.kind);
                    event.text
                }
                // The client was too slow.
                Next::Gone => {
                    this.next = this.membership.ring().end();
                    metrics::stream_reset("lost");
                    metrics::stream_event_sent(StreamEvent::Reset);
                    reset_text("lost")
                }
            },
        };
        Poll::Ready(Some(Ok(Frame::data(text))))
    }
}
