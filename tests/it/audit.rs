//! `sessiond audit`: it finds nothing in data of the service, reports each defect under the right invariant, repairs
//! what is safe to repair, and changes nothing else.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use sessiond::audit::{Finding, INVARIANTS};
use sessiond::session::{Partition, Timestamp};

use crate::support::acl;
use crate::support::audit::{audit, expect_clean, repair};
use crate::support::process::{self, Process};
use crate::support::redis;
use crate::support::service::Service;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn messages(count: usize) -> Value {
    (0..count).map(|_| json!({"role": "user", "content": {"text": "hello"}})).collect()
}

#[tokio::test]
async fn an_audit_of_data_of_the_service_finds_nothing() {
    let service = Service::start(&["--messages-kept", "100"]).await;
    let path = |id: &str| format!("/api/sessions/{id}");
    let create = json!({"businessId": "b", "userId": "a:{b}%💬", "metadata": {"k": [1]}, "title": "t"});
    let first = service.post("/api/sessions", create.clone()).await.expect(201).string("sessionId");
    service.post(&format!("{}/messages", path(&first)), messages(3)).await.expect(201);
    let report = expect_clean(&service).await;
    assert_eq!((report.sessions, report.active, report.stale), (1, 1, 0), "{report}");

    // Replaced, ended, resumed, and resumed while replacing another session.
    service.advance(MINUTE);
    let mut replace = create.clone();
    replace["ifActive"] = "replace".into();
    let second = service.post("/api/sessions", replace).await.expect(201).string("sessionId");
    expect_clean(&service).await;
    service.patch(&path(&second), json!({"status": "ended", "metadata": {"k": null}})).await.expect(200);
    expect_clean(&service).await;
    service.patch(&path(&first), json!({"status": "active"})).await.expect(200);
    expect_clean(&service).await;
    service.patch(&path(&second), json!({"status": "active", "ifActive": "replace"})).await.expect(200);
    expect_clean(&service).await;

    // Changed and redacted messages, the largest one among them.
    let large = json!({"messageId": "m", "role": "user", "content": "x".repeat(500)});
    let message = format!("{}/messages/m", path(&second));
    service.post(&format!("{}/messages", path(&second)), large).await.expect(201);
    service.patch(&message, json!({"metadata": {"feedback": "y".repeat(500)}})).await.expect(200);
    expect_clean(&service).await;
    service.delete(&message).await.expect(204);
    expect_clean(&service).await;

    // More messages than the service keeps.
    for _ in 0..3 {
        service.post(&format!("{}/messages", path(&second)), messages(60)).await.expect(201);
        expect_clean(&service).await;
    }

    // Idle sessions: their expiry is first not stored, then stored by a change, by a resume, and by the next session.
    service.session_of("idle").await;
    service.advance(HOUR);
    let report = expect_clean(&service).await;
    assert_eq!((report.active, report.stale), (0, 2), "{report}");
    service.patch(&path(&second), json!({"title": "late"})).await.expect(200);
    expect_clean(&service).await;
    service.patch(&path(&second), json!({"status": "active"})).await.expect(200);
    service.session_of("idle").await;
    let report = expect_clean(&service).await;
    assert_eq!((report.sessions, report.active, report.stale), (4, 2, 0), "{report}");

    // Deleted and erased.
    service.delete(&path(&first)).await.expect(204);
    expect_clean(&service).await;
    service.delete(&path(&second)).await.expect(204);
    expect_clean(&service).await;
    service.delete("/api/sessions/business/b/user/idle").await.expect(200);
    assert_eq!(expect_clean(&service).await.keys, 0);
}

#[tokio::test]
async fn a_session_ended_with_a_longer_retention_stays_in_the_history() {
    let service = Service::start(&["--retention", "1day"]).await;
    let longer = service.sibling(&["--retention", "90days"]).await;
    for (user_id, change) in [("ends", json!({"status": "ended"})), ("late", json!({"title": "t"}))] {
        let id = service.session_of(user_id).await;
        if user_id == "late" {
            service.advance(HOUR);
        }
        longer.patch(&format!("/api/sessions/{id}"), change).await.expect(200);
        expect_clean(&longer).await;
    }
}

#[tokio::test]
async fn index_entries_of_expired_sessions_are_stale_and_not_findings() {
    let fixture = Fixture::new().await;
    fixture.run("DEL <es>").await;
    let dangling = [("history-dangling", fixture.text("<h>"))];
    assert_eq!(names_of(&audit(&fixture.service).await.findings), dangling);
    fixture.service.advance(31 * DAY);
    let report = expect_clean(&fixture.service).await;
    // The ended session's entry in the history, and the entries of two expired sessions in the business's index.
    assert_eq!(report.stale, 3, "{report}");
}

/// Two users with an active session each, one of whom also has an ended one, and the other an open turn; and a third
/// user with an ended session.
/// All are in one partition.
struct Fixture {
    service: Service,
    /// The values of the placeholders in angle brackets.
    placeholders: Vec<(&'static str, String)>,
}

impl Fixture {
    async fn new() -> Self {
        let service = Service::start(&[]).await;
        let home = Partition::of_user("b", "u");
        let mut neighbours = names().filter(|user| Partition::of_user("b", user) == home);
        let (other_user, quiet_user) = (neighbours.next().expect("a user"), neighbours.next().expect("a user"));

        let ended = service.session_of("u").await;
        service.advance(MINUTE);
        let end = json!({"status": "ended"});
        service.patch(&format!("/api/sessions/{ended}"), end.clone()).await.expect(200);
        let id = service.session_of("u").await;
        let sent: Vec<_> =
            [1, 2, 3].map(|n| json!({"messageId": format!("m{n}"), "role": "user", "content": n})).into();
        service.post(&format!("/api/sessions/{id}/messages"), sent.into()).await.expect(201);
        let other = service.session_of(&other_user).await;
        service.post(&format!("/api/sessions/{other}/turns"), json!({"turnId": "t", "writer": "w"})).await.expect(201);
        let quiet = service.session_of(&quiet_user).await;
        service.patch(&format!("/api/sessions/{quiet}"), end).await.expect(200);

        let ids = [id, ended, other, quiet];
        Self { placeholders: placeholders(&service, home, ids, &quiet_user).await, service }
    }

    fn text(&self, template: &str) -> String {
        self.placeholders.iter().fold(template.to_owned(), |text, (name, value)| text.replace(name, value))
    }

    /// Runs commands that are separated by `; `.
    async fn run(&self, commands: &str) {
        for command in commands.split("; ") {
            let words: Vec<_> = command.split(' ').map(|word| self.text(word)).collect();
            self.service.probe.command(&words.iter().map(String::as_str).collect::<Vec<_>>()).await;
        }
    }
}

/// Names to search for a business or user in a given partition.
fn names() -> impl Iterator<Item = String> {
    (0..1_000_000).map(|n| format!("n{n}"))
}

/// The placeholders of the table below and their values.
async fn placeholders(
    service: &Service,
    home: Partition,
    [id, ended, other, quiet]: [String; 4],
    quiet_user: &str,
) -> Vec<(&'static str, String)> {
    let stranger = names().find(|user| Partition::of_user("b", user) != home);
    let business = names().find(|business| Partition::of_business(business).contains(&home));
    let prefix = &service.config.redis.key_prefix;
    let in_home = |rest: &str| format!("{prefix}:{{{home}}}:{rest}");
    let elsewhere = format!("{prefix}:{{{}}}:", Partition(home.0 ^ 1));
    let missing = format!("{home}0000-0000-8000-8000-000000000001");
    let document = service.probe.hash(&in_home(&format!("s:{id}"))).await;
    let gone = service.probe.text(&["PEXPIRETIME", &in_home(&format!("s:{id}"))]).await.expect("an expiry");
    vec![
        ("<prefix>", prefix.clone()),
        ("<elsewhere>", elsewhere),
        ("<stranger>", stranger.expect("a user")),
        ("<s>", in_home(&format!("s:{id}"))),
        ("<m>", in_home(&format!("m:{id}"))),
        ("<d>", in_home(&format!("d:{id}"))),
        ("<a>", in_home("a:b:u")),
        ("<h>", in_home("h:b:u")),
        ("<b>", in_home("b:b")),
        ("<es>", in_home(&format!("s:{ended}"))),
        ("<ed>", in_home(&format!("d:{ended}"))),
        ("<quiet-a>", in_home(&format!("a:b:{quiet_user}"))),
        ("<other-b>", in_home(&format!("b:{}", business.expect("a business")))),
        ("<missing-s>", in_home(&format!("s:{missing}"))),
        ("<missing-m>", in_home(&format!("m:{missing}"))),
        ("<missing-d>", in_home(&format!("d:{missing}"))),
        ("<id>", id),
        ("<other-s>", in_home(&format!("s:{other}"))),
        ("<other-t>", in_home(&format!("t:{other}"))),
        ("<ended>", ended),
        ("<other>", other),
        ("<quiet>", quiet),
        ("<missing>", missing),
        ("<now>", service.now().0.to_string()),
        ("<created>", document["createdAt"].clone()),
        ("<expires>", document["expiresAt"].clone()),
        ("<ended-expires>", (service.now().0 + 29 * 60 * 1000).to_string()),
        ("<gone>", gone),
    ]
}

fn names_of(findings: &[Finding]) -> Vec<(&'static str, String)> {
    findings.iter().map(|finding| (finding.invariant, finding.key.clone())).collect()
}

struct Defect {
    commands: &'static str,
    /// The violated invariants, each with its key.
    findings: &'static [(&'static str, &'static str)],
    /// Whether a repair removes the defect completely.
    repaired: bool,
}

const fn found(commands: &'static str, findings: &'static [(&'static str, &'static str)]) -> Defect {
    Defect { commands, findings, repaired: false }
}

const fn repaired(commands: &'static str, findings: &'static [(&'static str, &'static str)]) -> Defect {
    Defect { commands, findings, repaired: true }
}

const DEFECTS: &[Defect] = &[
    found("SET <prefix>:junk x", &[("unknown-key", "<prefix>:junk")]),
    found("COPY <s> <elsewhere>x:<id>", &[("unknown-key", "<elsewhere>x:<id>")]),
    found("SET <ed> x PXAT <gone>", &[("expiry-differs", "<es>"), ("wrong-type", "<ed>")]),
    found(
        "DEL <h>; SET <h> x PXAT <gone>",
        &[("history-missing", "<es>"), ("history-missing", "<s>"), ("wrong-type", "<h>")],
    ),
    found("COPY <s> <elsewhere>s:<id>", &[("wrong-partition", "<elsewhere>s:<id>")]),
    found("COPY <a> <elsewhere>a:b:u", &[("wrong-partition", "<elsewhere>a:b:u")]),
    found("COPY <b> <elsewhere>b:b", &[("wrong-partition", "<elsewhere>b:b")]),
    found("HSET <es> userId <stranger>", &[("history-of-another", "<h>"), ("wrong-partition", "<es>")]),
    repaired("PERSIST <s>", &[("expiry-missing", "<s>")]),
    repaired("PERSIST <m>", &[("expiry-missing", "<m>")]),
    repaired("PERSIST <d>", &[("expiry-missing", "<d>")]),
    repaired("PERSIST <a>", &[("expiry-missing", "<a>")]),
    repaired("PERSIST <h>", &[("expiry-missing", "<h>")]),
    repaired("PERSIST <b>", &[("expiry-missing", "<b>")]),
    repaired("PERSIST <es>", &[("expiry-missing", "<es>")]),
    found("PEXPIREAT <m> <now>", &[("expiry-differs", "<s>")]),
    found("PEXPIREAT <d> <now>", &[("expiry-differs", "<s>")]),
    found("PEXPIREAT <a> <now>", &[("expiry-differs", "<s>")]),
    found("PEXPIREAT <h> <now>", &[("expiry-too-early", "<h>")]),
    found("PEXPIREAT <b> <now>", &[("expiry-too-early", "<b>")]),
    found("HDEL <es> locationId", &[("malformed-session", "<es>")]),
    found("HDEL <es> sessionId", &[("malformed-session", "<es>")]),
    found("HSET <es> sessionId <id>", &[("malformed-session", "<es>")]),
    found("HSET <es> createdAt soon", &[("malformed-session", "<es>")]),
    found("HSET <es> status gone", &[("malformed-session", "<es>")]),
    found("HSET <es> metadata []", &[("malformed-session", "<es>")]),
    found("HSET <s> activeUntil <created>", &[("impossible-times", "<s>")]),
    found("HSET <es> updatedAt 1", &[("impossible-times", "<es>")]),
    found("HSET <es> lastActivityAt <gone>", &[("impossible-times", "<es>")]),
    found("HDEL <es> endReason", &[("status-and-end", "<es>")]),
    found("HSET <es> endReason idle", &[("status-and-end", "<es>")]),
    found("HSET <s> endReason client endedAt <now>", &[("status-and-end", "<s>")]),
    repaired("SET <quiet-a> <missing> PXAT <gone>", &[("pointer-to-nothing", "<quiet-a>")]),
    repaired("SET <quiet-a> nonsense PXAT <gone>", &[("pointer-to-nothing", "<quiet-a>")]),
    repaired("SET <quiet-a> <id> PXAT <gone>", &[("pointer-to-another", "<quiet-a>")]),
    repaired("SET <quiet-a> <quiet> PXAT <gone>", &[("pointer-to-ended", "<quiet-a>")]),
    repaired("DEL <a>", &[("active-not-pointed-at", "<s>")]),
    repaired("SET <a> <ended> PXAT <gone>", &[("active-not-pointed-at", "<s>"), ("pointer-to-ended", "<a>")]),
    repaired("SET <a> <missing> PXAT <gone>", &[("active-not-pointed-at", "<s>"), ("pointer-to-nothing", "<a>")]),
    found(
        "HSET <es> status active; HDEL <es> endedAt endReason; ZADD <b> <ended-expires> <ended>",
        &[("two-active", "<es>")],
    ),
    found(
        "HSET <es> status active; HDEL <es> endedAt endReason; ZADD <b> <ended-expires> <ended>; DEL <a>",
        &[("two-active", "<es>"), ("two-active", "<s>")],
    ),
    repaired("ZREM <h> <ended>", &[("history-missing", "<es>")]),
    repaired("DEL <h>", &[("history-missing", "<es>"), ("history-missing", "<s>")]),
    found("ZADD <h> 5 <ended>", &[("history-score", "<es>")]),
    found("HSET <es> historyAt <created>", &[("history-score", "<es>")]),
    found("HSET <es> historyAt 1", &[("history-score", "<es>"), ("impossible-times", "<es>")]),
    repaired("ZADD <h> <now> <missing>", &[("history-dangling", "<h>")]),
    repaired("ZADD <h> <now> nonsense", &[("history-dangling", "<h>")]),
    found("ZADD <h> <now> <other>", &[("history-of-another", "<h>")]),
    repaired("ZREM <b> <id>", &[("business-missing", "<s>")]),
    found("ZADD <b> <now> <id>", &[("business-score", "<s>")]),
    repaired("ZADD <b> <expires> <missing>", &[("business-dangling", "<b>")]),
    found("ZADD <other-b> <expires> <id>; PEXPIREAT <other-b> <gone>", &[("business-of-another", "<other-b>")]),
    repaired("ZADD <b> <expires> <ended>", &[("business-of-ended", "<b>")]),
    found("HSET <s> messageCount 2", &[("message-count", "<s>")]),
    found("HSET <s> messageCount 4", &[("message-count", "<s>")]),
    found("HSET <s> oldestSeq 2", &[("message-count", "<s>")]),
    found("HSET <s> messageBytes 2", &[("message-list", "<m>")]),
    found("HSET <s> largestMessage 2", &[("message-list", "<m>")]),
    found("DEL <m>", &[("message-count", "<s>"), ("message-index", "<d>")]),
    found("LTRIM <m> 1 -1; HDEL <d> m1", &[("message-count", "<s>"), ("message-list", "<m>")]),
    found("RPOPLPUSH <m> <m>", &[("message-count", "<s>"), ("message-list", "<m>")]),
    found("LSET <m> 1 {}", &[("message-list", "<m>")]),
    found("COPY <m> <missing-m>", &[("message-list", "<missing-m>")]),
    found("COPY <d> <missing-d>", &[("message-list", "<missing-d>")]),
    found("HDEL <d> m2", &[("message-index", "<m>")]),
    found("HSET <d> m2 3", &[("message-index", "<m>")]),
    found("HSET <d> m9 9", &[("message-index", "<m>")]),
    found("HDEL <other-t> role", &[("malformed-turn", "<other-t>")]),
    found("DEL <other-t>", &[("turn-and-session", "<other-s>")]),
    found("HDEL <other-s> turnId turnUntil", &[("turn-and-session", "<other-t>")]),
    found("HSET <other-s> turnNumber 7", &[("turn-and-session", "<other-t>")]),
    found("HSET <other-s> turnUntil 7", &[("turn-and-session", "<other-t>")]),
];

#[tokio::test]
async fn each_defect_is_reported_and_repaired_if_that_is_safe() {
    let mut planted = BTreeSet::new();
    for defect in DEFECTS {
        let fixture = Fixture::new().await;
        expect_clean(&fixture.service).await;
        fixture.run(defect.commands).await;
        let report = audit(&fixture.service).await;
        let mut expected: Vec<_> =
            defect.findings.iter().map(|(invariant, key)| (*invariant, fixture.text(key))).collect();
        expected.sort();
        assert_eq!(names_of(&report.findings), expected, "{}\n{report}", defect.commands);
        assert_eq!(report.repairs, [], "{}", defect.commands);
        planted.extend(report.findings.iter().map(|finding| finding.invariant));

        let before = fixture.service.probe.digest().await;
        let after_repair = repair(&fixture.service).await;
        if defect.repaired {
            assert_ne!(after_repair.repairs, [], "{}", defect.commands);
            assert_eq!(after_repair.findings, [], "{}\n{after_repair}", defect.commands);
            expect_clean(&fixture.service).await;
        } else {
            assert_eq!(after_repair.repairs, [], "{}\n{after_repair}", defect.commands);
            assert_eq!(after_repair.findings, report.findings, "{}", defect.commands);
            assert_eq!(fixture.service.probe.digest().await, before, "{}", defect.commands);
        }
    }
    assert_eq!(planted, INVARIANTS.iter().map(|(name, _)| *name).collect());
}

/// `createdAt` strictly increases, independent of the clock, so it may be later than `lastActivityAt` and `expiresAt`.
#[tokio::test]
async fn sessions_created_at_one_moment_or_after_a_clock_step_back_are_valid() {
    let service = Service::start(&[]).await;
    let replace = json!({"businessId": "b", "userId": "u", "ifActive": "replace"});
    service.post("/api/sessions", replace.clone()).await.expect(201);
    let second = service.post("/api/sessions", replace.clone()).await.expect(201).json();
    assert!(second["createdAt"].as_str() > second["lastActivityAt"].as_str(), "{second}");
    expect_clean(&service).await;

    let start = service.now();
    service.set_now(Timestamp(start.0 - 2 * 60 * 60 * 1000));
    let third = service.post("/api/sessions", replace.clone()).await.expect(201).json();
    assert!(third["createdAt"].as_str() > third["expiresAt"].as_str(), "{third}");
    expect_clean(&service).await;
    service.set_now(start);
    service.post("/api/sessions", replace).await.expect(201);
    expect_clean(&service).await;
}

#[tokio::test]
async fn a_repair_restores_the_active_session() {
    let fixture = Fixture::new().await;
    fixture.run("DEL <a>; ZREM <b> <id>; ZREM <h> <id>; PERSIST <m>").await;
    let path = "/api/sessions/business/b/user/u/active";
    fixture.service.get(path).await.expect_problem(404, "no_active_session");
    let report = repair(&fixture.service).await;
    let done: Vec<_> = report.repairs.iter().map(|repair| (repair.done.as_str(), repair.key.clone())).collect();
    let expected = [
        ("business entry restored", fixture.text("<b>")),
        ("expiry set", fixture.text("<m>")),
        ("history entry restored", fixture.text("<h>")),
        ("pointer restored", fixture.text("<a>")),
    ];
    assert_eq!(done, expected);
    assert_eq!(fixture.service.get(path).await.expect(200).string("sessionId"), fixture.text("<id>"));
    expect_clean(&fixture.service).await;
}

#[tokio::test]
async fn a_repair_restores_the_order_of_resumed_sessions() {
    let service = Service::start(&[]).await;
    let first = service.session_of("u").await;
    let replace = json!({"businessId": "b", "userId": "u", "ifActive": "replace"});
    service.post("/api/sessions", replace).await.expect(201);
    service.advance(MINUTE);
    let resume = json!({"status": "active", "ifActive": "replace"});
    service.patch(&format!("/api/sessions/{first}"), resume).await.expect(200);
    let [history] = &service.probe.keys_of('h').await[..] else { panic!("one history") };
    let entries = ["ZRANGE", history, "0", "-1", "WITHSCORES"];
    let before = service.probe.texts(&entries).await;
    assert_eq!(before[2..], [first.clone(), service.now().0.to_string()], "the resumed session is the newest");
    service.probe.command(&["DEL", history]).await;
    repair(&service).await;
    assert_eq!(service.probe.texts(&entries).await, before);
    expect_clean(&service).await;
}

#[tokio::test]
async fn the_audit_prints_its_report_and_sets_the_exit_status() {
    let fixture = Fixture::new().await;
    let url = acl::audit_url(&redis::shared_url());
    let prefix = &fixture.service.config.redis.key_prefix;
    let run = |flags: &[&str]| {
        let arguments: Vec<_> = ["audit", "--key-prefix", prefix].into_iter().chain(flags.iter().copied()).collect();
        let output = process::run(&arguments, &[("REDIS_URL", &url)]);
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    };
    let (code, text) = run(&["--max-keys-per-second", "1000000"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("4 sessions, 2 active; 0 stale index entries; 0 findings; 0 repairs"), "{text}");

    fixture.run("DEL <a>; SET <prefix>:{\x1b junk").await;
    let (code, text) = run(&[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(&fixture.text("found: active-not-pointed-at: <s>: ")), "{text}");
    assert!(!text.contains('\x1b'), "{text}");

    let (code, text) = run(&["--format", "json", "--repair"]);
    assert_eq!(code, Some(1), "{text}");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["repairs"], json!([{"done": "pointer restored", "key": fixture.text("<a>")}]));
    assert_eq!(report["findings"][0]["invariant"], "unknown-key");
    assert_eq!(report["findings"][0]["key"], fixture.text("<prefix>:{\x1b"));
    assert_eq!((&report["sessions"], &report["active"], &report["stale"]), (&json!(4), &json!(2), &json!(0)));

    fixture.run("DEL <prefix>:{\x1b").await;
    assert_eq!(run(&["--format", "json"]).0, Some(0));
}

#[tokio::test]
async fn the_audit_exits_with_2_if_it_cannot_run() {
    let service = Service::start(&[]).await;
    let url = acl::audit_url(&redis::shared_url());
    let prefix = service.config.redis.key_prefix.as_str();
    service.probe.command(&["SET", &format!("{prefix}:layout"), "0"]).await;
    let cases = [
        (vec!["audit", "--max-keys-per-second", "0"], url.as_str(), "--max-keys-per-second"),
        (vec!["audit", "--key-prefix", prefix], &url, "another layout version"),
        (vec!["audit"], "redis+unix:///nowhere/redis.sock", "the store is unavailable"),
    ];
    for (arguments, url, why) in cases {
        let output = process::run(&arguments, &[("REDIS_URL", url)]);
        let errors = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert!(errors.contains(why), "{arguments:?}: {errors}");
    }
}

#[tokio::test]
async fn the_embedded_redis_is_audited_when_no_service_uses_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let data_dir = folder.path().to_str().expect("a path of text");
    let flags = ["--data-dir", data_dir];
    let (mut service, base) = Process::serve(&flags, &[]);
    let client = reqwest::Client::new();
    let body = json!({"businessId": "b", "userId": "u"});
    client.post(format!("{base}/api/sessions")).json(&body).send().await.expect("a response");

    let in_use = process::run(&["audit", "--data-dir", data_dir], &[]);
    assert_eq!(in_use.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&in_use.stderr).contains("is in use by another sessiond"), "{in_use:?}");

    service.signal(rustix::process::Signal::TERM);
    assert!(service.wait().success(), "{:#?}", service.lines);
    let audited = process::run(&["audit", "--data-dir", data_dir, "--format", "json"], &[]);
    assert_eq!(audited.status.code(), Some(0), "{audited:?}");
    let report: Value = serde_json::from_slice(&audited.stdout).expect("JSON");
    assert_eq!((&report["keys"], &report["sessions"], &report["active"]), (&json!(4), &json!(1), &json!(1)));
}
