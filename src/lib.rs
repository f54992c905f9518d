//! sessiond answers one question on every page load of a chat frontend: which conversation is this user of this business
//! in? It finds the active session or creates it, in one atomic step in Redis.
//!
//! # Where things are
//!
//! `main → server → http → store → session`; [`auth`], [`config`], [`log`], [`metrics`], [`output`], [`signals`] and [`spans`] beside them, [`audit`] on the store:
//!
//! | place | what it does | what it does not |
//! |---|---|---|
//! | [`session`] | identifiers, partitions, sessions, messages, the rules of their life, their JSON and its equality | I/O, clocks |
//! | [`store`] | one method a verb: [`SessionStore`](store::SessionStore); `lua/` has a script for each that writes | HTTP |
//! | `store/keys.rs` | names of keys and fields, why they share a hash tag | |
//! | `store/hints.rs` | where to look first for a known user's session | the truth: that is the session's hash |
//! | `store/client.rs`, `store/fitness.rs` | one server: the connection, bounded in every way; is it fit for sessions? | |
//! | `store/health.rs`, `store/clock_skew.rs` | clocks, settings and layout of all servers, checked while the service runs | waiting: requests read a flag |
//! | `store/address.rs` | URLs of Redis | |
//! | `store/reads.rs`, `store/resp.rs` | a second connection, for reads of sessions alone; what it cannot answer, the client does | decisions |
//! | `store/servers.rs`, `store/cluster.rs` | which server a command goes to; who serves which slot of a cluster | |
//! | [`store::embedded`] | the private Redis of a service that was given none | |
//! | [`http`] | one service around the router; a file a resource: parse, call the store, pick the status | fred, Redis |
//! | [`auth`] | from the text of a credential to what it may do: API keys, JWTs, their files | HTTP, the store |
//! | `http/access.rs` | who may call what: every route that is not named there as public needs a credential | |
//! | `http/error.rs` | every error answer, in one shape | |
//! | `http/overload.rs` | how many requests at once; the rest is told so before any of it is done | |
//! | [`server`] | start, listeners, drain; the one place that reads the clock | |
//! | `server/event_loop.rs` | event loops, one a thread: whoever is connected stays on one of them | |
//! | `server/admission.rs`, `server/patience.rs` | how many connections there may be; how long one may keep the service waiting | |
//! | `server/head.rs`, `server/refusal.rs` | heads that hyper would take and we do not; a body for the answers that it makes by itself | |
//! | [`tls`] | the certificate of the listener, and its reload | |
//! | [`config`] | every setting once; the one place that reads the environment | |
//! | [`metrics`] | every metric once | |
//! | [`spans`] | a span for each request and operation, with the feature `otel`; nothing without it | |
//! | [`log`], `log/queue.rs` | where the log goes, and how much of it there is in a storm; the bounded queue in front of stderr | |
//! | [`output`] | writes to stdout and stderr that report failures instead of panicking | |
//! | [`signals`] | which signals stop the program | |
//! | [`audit`] | what must hold of a whole keyspace; `store/keyspace.rs` walks it | |
//! | `fuzzing.rs` | what must hold of whatever is parsed, for `fuzz/`; in no program | |
//!
//! To add a field to a session: `Session` and its `write_json` in `session.rs` (the compiler leads on to the reply and
//! the create), its name in `SESSION_FIELDS` of `store/keys.rs` and in `FIELDS` of the two scripts that answer sessions,
//! and, if clients set it, the reading in `http/sessions.rs`. Tests fail where one of these is forgotten.
//!
//! # One request
//!
//! `POST /api/sessions` for a user who has an active session:
//!
//! 1. `server.rs` accepted the connection, and gave it to an event loop (`server/event_loop.rs`); hyper parses the request. `http.rs` gives it an id, `http/access.rs` asks
//!    [`auth`] what its credential may do, and then its body is received.
//! 2. `http/sessions.rs` reads the JSON member by member; every problem is collected and answered at once.
//! 3. [`get_or_create`](store::SessionStore::get_or_create) hashes business and user to a partition, makes an id there in
//!    case it is needed, and runs `lua/get_or_create.lua`: Redis follows the user's pointer, sees that the session is
//!    active, writes the activity if that is due, and answers its fields. If this process has answered the user before, a
//!    hint says which session to read first: one `HGETALL`, and no script if that one is active and no activity is due.
//! 4. The fields become a [`Session`](session::Session), and its JSON the answer; `metadata` is spliced in as it is stored.
//!
//! # Invariants
//!
//! **At most one session of a user is active.** A session is active if and only if its hash says `status=active` and
//! `now < expiresAt`. Scripts change hash, pointer and indexes together, and nothing else writes. Redis's own expiry
//! collects garbage later: no decision depends on it, nor on SCAN or notifications.
//!
//! **Time is an argument.** Below [`server`] nobody reads a clock. Stored times of a session never move backwards,
//! whatever the clocks of several processes say. Expiries are carried out by Redis's clock: no script that sets one runs while
//! that clock and the service's differ by more than `--max-clock-skew`.
//!
//! **A script reads before it writes, and may run twice.** An error in the middle leaves nothing half done, and a
//! connection that drops after the write looks like one that dropped before it.
//!
//! **A refused call writes nothing**, not even an expiry that it noticed.
//!
//! **An answer belongs to its question.** Every session that is read carries its id, and is refused if it is another one.
//!
//! **A session out of a caller's reach is a missing one.** Every verb that takes an id takes a
//! [`Reach`](session::Reach), and looks at nothing else of a session first. Businesses and users that a request names are
//! checked in `http/access.rs`, and for the one body that names them in `http/sessions.rs`.
//!
//! **Serving does not depend on the log.** Nothing but the thread of `log/queue.rs` writes to stderr while the service runs. What
//! stderr cannot take is dropped and counted.
//!
//! **Names stay in their place.** fred under `store`, axum under `http` and `server`, the environment in `config`, Redis
//! names in `store/keys.rs` and `lua/`. `tests/it/architecture.rs` holds the code to it.
//!
//! # Where this differs from the first design, and why
//!
//! - A session stores `activeUntil`, the moment at which its maximum lifetime ends, instead of when it became active.
//!   Whether it expired of idleness or of age then follows from the session alone, and stays true when the setting changes.
//! - Scripts touch keys that are not in KEYS in one case: the session that a *declared* pointer or history names. The
//!   pointer has to be read and followed in one step, or two callers could both replace a session. Such a key has the same
//!   hash tag as the key that named it, and it is read before the first write.
//! - A repeated message is compared as text by the script and, where the texts differ, as JSON here: the order of an
//!   object's members, its spacing and the spelling of its numbers (`1`, `1.0`) do not make a retry a conflict, and
//!   messages keep them as they were sent.
//! - The request's deadline starts when the request is received. A client on a slow line gets the receive timeout for its
//!   body; the store gets the deadline.
//! - The layout and the fitness of a Redis are checked before the first command of a process, not only at its start: a Redis
//!   that comes late is checked like one that was there. Both are checked every 10 s after that, by one task of the process.
//! - A cluster is one client for each master, and the store knows which slot is whose. fred's own client for clusters waits
//!   for all masters whenever it connects anew, so that one that is away takes the users of the others with it, and it mixes
//!   up replies on a shared connection when it sends ASKING. So each command is sent once, on a cluster too, and again only
//!   after a redirection: then it was certainly not applied. Writes are a `503` while their keys are on both sides.
//! - Reads of sessions have a connection of their own (`store/reads.rs`): of all that a read cost the service, fred took 40 %, for
//!   reads are one command with 17 texts in its reply. fred keeps all that is hard: whatever is no plain answer is asked of it.
//! - They are an `HGETALL`, not an `HMGET`: to take 17 names and look for each costs Redis, which all processes share, a third more
//!   than to send the names as well. The names are compared here, for a small part of that.
//! - A cluster is ready while any of its masters is: its other users would not be better off without the service.
//! - A page of messages costs a caller whose reach is bounded a second round trip: the owner is looked at before the messages
//!   are read, or the time would tell that there are some.
//! - The crate for JWTs brings its choice of two libraries of cryptography. `ring` is here for TLS, and checks signatures too.
//! - Event loops do not each listen (`SO_REUSEPORT`): one place accepts, and gives each connection to the loop that has fewest. The
//!   kernel would choose by a hash, so that some loops have twice as many as others; it would leave connections unserved in the
//!   queue of a loop that stops; and a second service on the same port would take half of the calls instead of failing.
//! - The private Redis is ended with its parent by SIGTERM, not SIGKILL: with `everysec` it may hold back acknowledged writes
//!   for up to two seconds while a sync takes long.
//! - Its append-only file is checked here, not by `redis-check-aof --fix`: that cuts a file off at the first byte that it cannot
//!   read, also in the middle, and Redis itself cuts off everything after a length that is too large. Here an end is cut off only
//!   if it is the start of one command or transaction, and no other follows.

pub mod audit;
pub mod auth;
pub mod config;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod http;
pub mod log;
pub mod metrics;
pub mod output;
pub mod server;
pub mod session;
pub mod signals;
pub mod spans;
pub mod store;
pub mod tls;
