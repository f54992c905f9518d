//! A Prometheus server of one test, with the configuration and the rules in `deploy/prometheus`, and promtool.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::process::{TEST_TIMEOUT, with_timeout};
use super::redis_server::POLL;

/// The interval of scrapes and of rule evaluations.
const INTERVAL: &str = "1s";
/// Makes the kernel kill Prometheus when the thread that started it ends, which is the thread of the test.
const WITH_PARENT: [&str; 3] = ["--pdeathsig", "KILL", "prometheus"];
const ADVICE: &str = "prometheus and promtool; `make test` installs them";

/// A running Prometheus. Killed when dropped.
pub struct Prometheus {
    child: Child,
    base: String,
    targets: usize,
    /// The evaluation time of queries, in seconds: the time of a scrape. `None` means the current time.
    time: Option<String>,
    _folder: TempDir,
}

/// One series of a query result: its labels and its value at the evaluation time.
#[derive(Clone, Debug)]
pub struct Sample {
    pub labels: BTreeMap<String, String>,
    pub value: f64,
    /// The evaluation time in seconds.
    pub time: String,
}

impl Prometheus {
    /// Starts a Prometheus that scrapes these addresses as the job `sessiond`.
    pub fn start(targets: &[String]) -> Self {
        let folder = TempDir::new().expect("a folder");
        let config = folder.path().join("prometheus.yml");
        fs::write(&config, adapted(targets, folder.path()).to_string()).expect("a file written");
        let mut child = Command::new("setpriv")
            .args(WITH_PARENT)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stderr(Stdio::piped())
            .spawn()
            .expect(ADVICE);
        let mut log = BufReader::new(child.stderr.take().expect("its log")).lines().map_while(Result::ok);
        let mut address = None;
        for line in log.by_ref() {
            // The address is quoted or not, depending on the version.
            if let Some((_, rest)) = line.split_once("Listening on").and_then(|(_, rest)| rest.split_once("address=")) {
                address = Some(rest.split_whitespace().next().unwrap_or_default().trim_matches('"').to_owned());
            }
            if line.contains("Server is ready") {
                break;
            }
        }
        // Drain the rest of the log, so that Prometheus does not block on a full pipe.
        std::thread::spawn(move || log.for_each(drop));
        let base = format!("http://{}/api/v1", address.expect("a Prometheus that starts"));
        Self { child, base, targets: targets.len(), time: None, _folder: folder }
    }

    async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let query = encoded(parameters);
        let response = reqwest::get(format!("{}/{path}?{query}", self.base)).await.expect("a response");
        let response: Value = response.json().await.expect("JSON");
        if response["status"] == "success" { Ok(response["data"].clone()) } else { Err(response["error"].to_string()) }
    }

    /// Evaluates an expression to a vector. Returns the error message if that fails.
    pub async fn query(&self, expression: &str) -> Result<Vec<Sample>, String> {
        let mut parameters = vec![("query", expression)];
        parameters.extend(self.time.as_deref().map(|time| ("time", time)));
        let data = self.get("query", &parameters).await?;
        let series = data["result"].as_array().filter(|_| data["resultType"] == "vector");
        let series = series.ok_or_else(|| format!("not a vector: {data}"))?;
        let sample = |one: &Value| Sample {
            labels: labels(&one["metric"]),
            time: one["value"][0].to_string(),
            value: one["value"][1].as_str().and_then(|text| text.parse().ok()).expect("a number"),
        };
        Ok(series.iter().map(sample).collect())
    }

    /// Waits until each target has been scraped `times` more times.
    pub async fn scraped(&self, times: f64) {
        // A target that was not scraped yet has no series and counts as 0.
        let count = async || {
            let counts = self.query("sum_over_time(up{job=\"sessiond\"}[1h])").await.expect("counts");
            let least = counts.iter().map(|sample| sample.value).fold(f64::INFINITY, f64::min);
            if counts.len() == self.targets { least } else { 0.0 }
        };
        let before = count().await;
        with_timeout(async {
            while count().await < before + times {
                tokio::time::sleep(POLL).await;
            }
        })
        .await;
    }

    /// Waits until an expression has a value, and evaluates all later queries at that time, so that late scrapes do not
    /// matter. After [`TEST_TIMEOUT`] without a value, queries keep using the current time: later checks report better
    /// what is missing.
    pub async fn stop_the_clock_when(&mut self, expression: &str) {
        let started = Instant::now();
        while started.elapsed() < TEST_TIMEOUT && self.time.is_none() {
            let found = self.query(expression).await.expect("an expression");
            self.time = found.first().map(|sample| sample.time.clone());
            tokio::time::sleep(POLL).await;
        }
    }

    /// The labels of all series that a selector matches, at any time.
    pub async fn series(&self, selector: &str) -> Vec<BTreeMap<String, String>> {
        let data = self.get("series", &[("match[]", selector)]).await;
        let data = data.unwrap_or_else(|error| panic!("{selector}: {error}"));
        data.as_array().expect("a list").iter().map(labels).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn labels(metric: &Value) -> BTreeMap<String, String> {
    let members = metric.as_object().expect("labels").iter();
    members.map(|(name, value)| (name.clone(), value.as_str().expect("a label").to_owned())).collect()
}

fn encoded(parameters: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(parameters).finish()
}

/// The shipped configuration with short intervals and these targets, as JSON, which is valid YAML.
fn adapted(targets: &[String], folder: &Path) -> Value {
    let mut config = yaml(&shipped("prometheus.yml"));
    config["global"] =
        json!({"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL});
    for job in config["scrape_configs"].as_array_mut().expect("jobs") {
        let targets = if job["job_name"] == "sessiond" { targets } else { &[] };
        job["static_configs"] = json!([{"targets": targets}]);
    }
    let mut files = Vec::new();
    for file in files_in("rules") {
        let mut rules = yaml(&file);
        for group in rules["groups"].as_array_mut().expect("groups") {
            group.as_object_mut().expect("a group").remove("interval");
        }
        files.push(folder.join(file.file_name().expect("a name")));
        fs::write(&files[files.len() - 1], rules.to_string()).expect("a file written");
    }
    config["rule_files"] = json!(files);
    config
}

/// A path in `deploy/prometheus/`.
pub fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus").join(path)
}

/// The YAML files of a folder in `deploy/prometheus/`.
pub fn files_in(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(shipped(folder)).expect("a folder").map(|entry| entry.expect("an entry").path());
    let files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|extension| extension == "yml")).collect();
    assert!(!files.is_empty(), "no files in {folder}");
    files
}

/// Reads a YAML file as JSON.
pub fn yaml(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_yaml_ng::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Runs promtool. Panics with its output if it fails.
pub fn promtool(arguments: &[&str], files: &[PathBuf], input: &str) {
    let mut command = Command::new("promtool");
    command.args(arguments).args(files).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect(ADVICE);
    let sent = child.stdin.take().expect("its input").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("its output");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success() && sent.is_ok(), "promtool {arguments:?}: {}\n{text}", output.status);
}
