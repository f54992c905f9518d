//! A real Prometheus scrapes real services under load and faults, and evaluates every shipped expression.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::expression::{Matcher, names};
use super::work::Workload;
use super::{Expression, panel_expressions, rule_expressions, rules_of};
use crate::support::prometheus::{Prometheus, Sample, promtool};

/// Longer than a run, so that every rate includes the first events.
const WINDOW: &str = "1h";
/// Metrics that Prometheus itself makes.
const OF_PROMETHEUS: [&str; 2] = ["ALERTS", "up"];
/// Metrics of `redis_exporter`, which this test does not run.
const OF_REDIS_EXPORTER: [&str; 2] = ["redis_memory_max_bytes", "redis_memory_used_bytes"];
/// Panels whose values may all be 0, and the reason.
const MAY_BE_ZERO: [(&str, &str); 6] = [
    ("Panics A", "no request makes the service panic"),
    ("CPU A", "only whole seconds are counted, and a run may take less than one"),
    ("Requests in flight A", "all calls have ended"),
    ("Event loops busy A", "only whole seconds are counted, and a run may take less than one"),
    ("Tasks B", "no task waits to run"),
    ("Store problems A", "the Redis has none"),
];
/// Label values that a run may not have, and the reason.
const NEVER_SEEN: [(&str, &str); 1] = [("$job|redis", "which of the two jobs has alerts varies")];

/// The result of the scrapes: the Prometheus, and every metric of the services.
struct Scraped {
    prometheus: Prometheus,
    instance: String,
    metrics: BTreeSet<String>,
}

#[tokio::test]
async fn a_real_prometheus_evaluates_every_expression() {
    let mut workload = Workload::start();
    let targets: Vec<_> = workload.services.iter().map(|service| service.metrics.clone()).collect();
    let mut prometheus = Prometheus::start(&targets);
    // The first events count as an increase only if there was a scrape before them.
    prometheus.scraped(1.0).await;
    workload.run(&prometheus).await;
    let mut metrics = BTreeSet::new();
    for service in &workload.services {
        let scrape = service.scrape().await;
        promtool(&["check", "metrics"], &[], &scrape);
        let lines = scrape.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        metrics.extend(lines.map(|line| line.split(['{', ' ']).next().unwrap_or_default().to_owned()));
    }
    prometheus.scraped(2.0).await;
    prometheus.stop_the_clock_when(&everything_is_recorded()).await;
    let scraped = Scraped { prometheus, instance: targets.join("|"), metrics };

    let mut problems = differences_from_the_documentation(&scraped.metrics);
    for expression in panel_expressions() {
        scraped.check_panel(&expression, &mut problems).await;
    }
    for expression in rule_expressions("record") {
        let recorded = Expression { text: expression.place.clone(), ..expression };
        scraped.check(&recorded, &mut problems).await;
        let seen = scraped.prometheus.query(&recorded.text).await.is_ok_and(|found| has_value(&found));
        problems.extend((!seen).then(|| format!("{} records nothing", recorded.place)));
    }
    for kind in ["record", "alert"] {
        for expression in rule_expressions(kind) {
            // An alert may be silent, but the metrics that it reads must exist.
            scraped.check(&expression, &mut problems).await;
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

/// Compares the table in docs/operations.md with the metrics of the services, which must be the same.
fn differences_from_the_documentation(metrics: &BTreeSet<String>) -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let page = std::fs::read_to_string(page).expect("docs/operations.md");
    let cells = page.lines().filter_map(|line| line.strip_prefix("| `sessiond_")?.split_once(" | "));
    let described = cells.flat_map(|(names, _)| names.split("`, `").map(|name| name.trim_end_matches('`').to_owned()));
    let described: BTreeSet<_> = described.map(|name| name.trim_start_matches("sessiond_").to_owned()).collect();
    let parts = ["_bucket", "_sum", "_count"];
    let family = |name: &String| {
        let name = name.strip_prefix("sessiond_")?;
        Some(parts.iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name).to_owned())
    };
    let scraped: BTreeSet<_> = metrics.iter().filter_map(family).collect();
    let different = described.symmetric_difference(&scraped);
    different.map(|name| format!("sessiond_{name} is missing either in docs/operations.md or in the scrapes")).collect()
}

/// An expression that is true once every service was scraped, every rule has recorded, and an alert exists.
fn everything_is_recorded() -> String {
    let records = rules_of("record").len();
    format!(
        "min(up{{job=\"sessiond\"}}) == 1 and on () count(count by (__name__) ({{__name__=~\"job:.*\"}})) == {records} \
         and on () count(ALERTS) > 0"
    )
}

fn has_value(found: &[Sample]) -> bool {
    found.iter().any(|sample| !sample.value.is_nan())
}

impl Scraped {
    /// An expression as Grafana sends it if all instances are selected.
    fn substituted(&self, text: &str) -> String {
        let text = text.replace("$__rate_interval", WINDOW).replace("$__range", WINDOW);
        text.replace("$job", "sessiond").replace("$instance", &self.instance)
    }

    /// Checks that a panel has data of the workload, and the labels of its legend.
    async fn check_panel(&self, expression: &Expression, problems: &mut Vec<String>) {
        self.check(expression, problems).await;
        let Expression { place, text, legend } = expression;
        if OF_REDIS_EXPORTER.iter().any(|metric| text.contains(metric)) {
            return;
        }
        let found = self.prometheus.query(&self.substituted(text)).await.unwrap_or_default();
        if !has_value(&found) {
            problems.push(format!("{place} shows nothing: {text}"));
        } else if found.iter().all(|sample| sample.value == 0.0) && !MAY_BE_ZERO.iter().any(|(name, _)| name == place) {
            problems.push(format!("{place} shows only 0: {text}"));
        }
        for label in legend.split("{{").skip(1).filter_map(|rest| Some(rest.split_once("}}")?.0)) {
            if !found.iter().any(|sample| sample.labels.contains_key(label)) {
                problems.push(format!("{place} has no label {label} for its legend"));
            }
        }
    }

    /// Checks that an expression parses, and that every metric and label that it names exists.
    async fn check(&self, Expression { place, text, .. }: &Expression, problems: &mut Vec<String>) {
        if let Err(error) = self.prometheus.query(&self.substituted(text)).await {
            problems.push(format!("{place}: {error}: {text}"));
            return;
        }
        let names = names(text);
        let mut labels = BTreeMap::<String, BTreeSet<String>>::new();
        for selector in &names.selectors {
            let metric = selector.metric.as_str();
            if OF_REDIS_EXPORTER.contains(&metric) {
                continue;
            }
            let recorded = rules_of("record").contains_key(metric);
            if !recorded && !OF_PROMETHEUS.contains(&metric) && !self.metrics.contains(metric) {
                problems.push(format!("{place} reads {metric}, which does not exist"));
                continue;
            }
            let found = self.prometheus.series(&self.substituted(&selector.text())).await;
            if found.is_empty() {
                problems.push(format!("{place}: no series matches {}", selector.text()));
            }
            for (label, value) in found.into_iter().flatten() {
                labels.entry(label).or_default().insert(value);
            }
            for matcher in &selector.matchers {
                self.check_matcher(place, metric, matcher, problems).await;
            }
        }
        for label in names.grouped_by.iter().filter(|label| !labels.is_empty() && !labels.contains_key(*label)) {
            problems.push(format!("{place} groups by {label}, which none of its series has"));
        }
    }

    /// Checks that a series exists for each label value of a matcher. A misspelled value would otherwise go unnoticed.
    async fn check_matcher(&self, place: &str, metric: &str, matcher: &Matcher, problems: &mut Vec<String>) {
        let Matcher { label, value, .. } = matcher;
        if label == "instance" || NEVER_SEEN.iter().any(|(known, _)| known == value) {
            return;
        }
        for alternative in self.substituted(value).split('|') {
            let one = format!("{metric}{{{label}=~\"{alternative}\"}}");
            if self.prometheus.series(&one).await.is_empty() {
                problems.push(format!("{place}: no series matches {one}"));
            }
        }
    }
}
