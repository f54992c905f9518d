//! The shipped monitoring (`deploy/prometheus`, `deploy/grafana`, `deploy/RUNBOOK.md`) is consistent, and matches the
//! metrics of the service.

mod expression;
mod live;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use self::expression::names;
use crate::support::prometheus::{files_in, promtool, shipped, yaml};

/// An expression, and the rule or panel that contains it.
pub struct Expression {
    pub place: String,
    pub text: String,
    /// Grafana's template for the name of a series, made of labels. Empty for rules.
    pub legend: String,
}

/// Every rule of all files.
fn rules() -> Vec<Value> {
    let groups =
        files_in("rules").into_iter().flat_map(|file| yaml(&file)["groups"].as_array().expect("groups").clone());
    groups.flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
}

/// The rules of a kind, by name: `alert` or `record`.
fn rules_of(kind: &str) -> BTreeMap<String, Value> {
    let named = rules().into_iter().filter_map(|rule| Some((rule[kind].as_str()?.to_owned(), rule)));
    let mut found = BTreeMap::new();
    for (name, rule) in named {
        assert!(found.insert(name.clone(), rule).is_none(), "two rules have the name {name}");
    }
    assert!(found.len() >= 10, "found only {} rules in deploy/prometheus/rules", found.len());
    found
}

fn rule_expressions(kind: &str) -> Vec<Expression> {
    let text = |rule: &Value| rule["expr"].as_str().expect("an expression").to_owned();
    let rules = rules_of(kind).into_iter();
    rules.map(|(place, rule)| Expression { place, text: text(&rule), legend: String::new() }).collect()
}

fn dashboard() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/grafana/dashboards/sessiond.json");
    serde_json::from_str(&fs::read_to_string(path).expect("the dashboard")).expect("JSON")
}

/// Every panel except row headings.
fn panels() -> Vec<Value> {
    let panels = dashboard()["panels"].as_array().expect("panels").clone();
    let panels: Vec<_> = panels.into_iter().filter(|panel| panel["type"] != "row").collect();
    assert!(panels.len() > 30, "found only {} panels in the dashboard", panels.len());
    panels
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

/// The expressions of all panels. Grafana's variables are not substituted.
fn panel_expressions() -> Vec<Expression> {
    let mut expressions = Vec::new();
    for panel in panels() {
        for target in panel["targets"].as_array().expect("targets") {
            let place = format!("{} {}", text(&panel, "title"), text(target, "refId"));
            let [expression, legend] = ["expr", "legendFormat"].map(|name| text(target, name).to_owned());
            expressions.push(Expression { place, text: expression, legend });
        }
    }
    expressions
}

#[test]
fn promtool_accepts_the_configuration_and_the_rules() {
    promtool(&["check", "config"], &[shipped("prometheus.yml")], "");
    promtool(&["check", "rules", "--lint=all", "--lint-fatal"], &files_in("rules"), "");
}

#[test]
fn every_alert_is_tested_both_firing_and_silent() {
    let tests = files_in("tests");
    promtool(&["test", "rules"], &tests, "");
    let (mut firing, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for file in &tests {
        for test in yaml(file)["tests"].as_array().expect("tests") {
            for check in test["alert_rule_test"].as_array().expect("checks") {
                let alerts = check["exp_alerts"].as_array().expect("alerts");
                let seen = if alerts.is_empty() { &mut silent } else { &mut firing };
                seen.insert(text(check, "alertname").to_owned());
            }
        }
    }
    let alerts: BTreeSet<_> = rules_of("alert").into_keys().collect();
    assert_eq!(firing, alerts, "alerts tested as firing in deploy/prometheus/tests, and all alerts");
    assert_eq!(silent, alerts, "alerts tested as silent in deploy/prometheus/tests, and all alerts");
}

#[test]
fn every_alert_has_a_severity_and_a_runbook_section() {
    let runbook = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/RUNBOOK.md");
    let runbook = fs::read_to_string(runbook).expect("a runbook");
    let sections: BTreeMap<_, _> =
        runbook.split("\n## ").skip(1).filter_map(|section| section.split_once('\n')).collect();
    let alerts = rules_of("alert");
    for (name, rule) in &alerts {
        assert!(
            matches!(text(&rule["labels"], "severity"), "page" | "ticket"),
            "{name} has no severity `page` or `ticket`"
        );
        for annotation in ["summary", "description"] {
            assert!(!text(&rule["annotations"], annotation).is_empty(), "{name} has no {annotation}");
        }
        let link = format!("deploy/RUNBOOK.md#{}", name.to_lowercase());
        assert_eq!(text(&rule["annotations"], "runbook_url"), link, "{name}");
        let section = sections.get(name.as_str()).unwrap_or_else(|| panic!("deploy/RUNBOOK.md has no section {name}"));
        for part in ["**What users see.**", "**How to tell.**", "**What to do.**"] {
            assert!(section.contains(part), "{name} in deploy/RUNBOOK.md lacks the part {part}");
        }
    }
    for section in sections.keys().filter(|section| section.starts_with("Sessiond")) {
        assert!(alerts.contains_key(*section), "deploy/RUNBOOK.md has a section {section} without an alert");
    }
}

#[test]
fn every_panel_has_a_description_and_filters_by_job_and_instance() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64() >= Some(39), "an old dashboard");
    let variables = dashboard["templating"]["list"].as_array().expect("variables").iter();
    assert_eq!(variables.map(|one| text(one, "name")).collect::<Vec<_>>(), ["datasource", "job", "instance"]);
    let ids = dashboard["panels"].as_array().expect("panels").iter().map(|panel| panel["id"].as_u64());
    let ids: Vec<_> = ids.collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "two panels have the same id");
    for panel in panels() {
        let title = text(&panel, "title");
        assert!(
            !title.is_empty() && text(&panel, "description").len() > 20,
            "{title:?} has no title or too short a description: {panel}"
        );
        assert!(!text(&panel["fieldConfig"]["defaults"], "unit").is_empty(), "{title:?} has no unit");
        let sources = panel["targets"].as_array().expect("targets").iter().map(|target| &target["datasource"]);
        for source in sources.chain([&panel["datasource"]]) {
            assert_eq!(text(source, "uid"), "${datasource}", "{title:?} does not use the selected data source");
        }
    }
    for Expression { place, text, .. } in panel_expressions() {
        for selector in names(&text).selectors {
            let has = |label: &str, value: &str| selector.matcher(label).is_some_and(|one| one.value == value);
            let fits = match selector.metric.as_str() {
                // Metrics of redis_exporter, which do not have the service's job and instance.
                metric if metric.starts_with("redis_") => has("job", "redis"),
                "ALERTS" => has("job", "$job|redis"),
                // Recorded over all instances of a job.
                metric if metric.starts_with("job:") => has("job", "$job"),
                _ => has("job", "$job") && has("instance", "$instance"),
            };
            assert!(fits, "{place} does not filter {} by the selected job and instance", selector.text());
        }
    }
}
