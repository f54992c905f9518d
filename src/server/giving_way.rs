//! A busy event loop offers the processor to others before it waits. On a machine that clients, service and Redis share, one of
//! these has work then, and it is work for the loop: once that is done, the loop goes on without having slept. To sleep is dearer:
//! the loop has to be woken, and is put behind the one who woke it while another processor idles. It is worth 10 to 16 % more
//! requests there, and costs nothing measurable where no one waits (`benches/RESULTS.md`).
//!
//! Beside programs that never rest it would be a bad trade: each takes its full turn, milliseconds. So every long one makes offers
//! rarer, and only loops that get several requests at a time make them: one that gets a few has no need.

use std::cell::RefCell;
use std::time::{Duration, Instant};

/// How many requests since its last wait make a loop a busy one.
const BUSY: u32 = 8;
/// Others took this long: longer than it takes to send a loop its next requests.
const LONG: Duration = Duration::from_millis(1);
/// How much rarer a long one makes offers, and a short one makes them twice as frequent: if more than one in three is long, they
/// soon are as rare as can be.
const RARER: u32 = 4;
/// How many are left out between two at the most.
const LEFT_OUT_MAX: u32 = 1024;

thread_local! {
    static OFFERS: RefCell<Offers> = const { RefCell::new(Offers::new()) };
}

/// Counts a request of this thread's loop.
pub(super) fn count_request() {
    // The metrics' thread serves requests too, and is no loop that offers: it counts without end.
    OFFERS.with_borrow_mut(|offers| offers.requests = offers.requests.saturating_add(1));
}

/// To be called by a loop that has done all it knows of, and is about to wait for more.
pub(super) fn before_wait() {
    OFFERS.with_borrow_mut(|offers| {
        if offers.is_due() {
            let since = Instant::now();
            std::thread::yield_now();
            offers.taken_for(since.elapsed());
        }
    });
}

/// When a loop offers the processor.
struct Offers {
    /// Those since its last wait.
    requests: u32,
    /// How many offers are left out between two.
    interval: u32,
    /// How many are still to be left out before the next.
    left_out: u32,
}

impl Offers {
    const fn new() -> Self {
        Self { requests: 0, interval: 0, left_out: 0 }
    }

    /// Whether to make one now.
    fn is_due(&mut self) -> bool {
        if std::mem::take(&mut self.requests) < BUSY {
            return false;
        }
        let is_due = self.left_out == 0;
        self.left_out = self.left_out.saturating_sub(1);
        is_due
    }

    /// Learns from how long others had the processor.
    fn taken_for(&mut self, duration: Duration) {
        self.interval =
            if duration < LONG { self.interval / 2 } else { (self.interval * RARER).clamp(RARER, LEFT_OUT_MAX) };
        self.left_out = self.interval;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(100);

    /// How many offers are made in a thousand waits of a loop that has as many requests before each, one in `long_every` long.
    fn offers(requests: u32, long_every: u32) -> u32 {
        let mut offers = Offers::new();
        let mut made = 0;
        for _ in 0..1000 {
            offers.requests += requests;
            if offers.is_due() {
                made += 1;
                offers.taken_for(if made % long_every == 0 { LONG } else { SHORT });
            }
        }
        made
    }

    #[test]
    fn a_busy_loop_offers_the_processor_each_time() {
        assert_eq!(offers(BUSY, u32::MAX), 1000);
    }

    #[test]
    fn a_loop_with_few_requests_never_does() {
        assert_eq!(offers(BUSY - 1, u32::MAX), 0);
    }

    #[test]
    fn offers_are_rare_beside_programs_that_never_rest() {
        assert!(offers(BUSY, 1) < 10, "{}", offers(BUSY, 1));
        assert!(offers(BUSY, 2) < 50, "{}", offers(BUSY, 2));
    }

    #[test]
    fn a_long_one_now_and_then_costs_few_offers() {
        assert!(offers(BUSY, 100) > 900, "{}", offers(BUSY, 100));
    }

    #[test]
    fn offers_come_back_when_those_programs_have_ended() {
        let mut offers = Offers::new();
        for _ in 0..10 {
            offers.taken_for(LONG);
        }
        assert_eq!(offers.left_out, LEFT_OUT_MAX);
        let waits = (0..3 * LEFT_OUT_MAX).find(|_| {
            offers.requests = BUSY;
            if offers.is_due() {
                offers.taken_for(SHORT);
            }
            offers.interval == 0
        });
        assert!(waits.is_some());
    }
}
