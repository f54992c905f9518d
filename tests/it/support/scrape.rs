//! What Prometheus would read of a service.

use std::collections::BTreeMap;

use super::process::{Process, patiently};

/// One look at the metrics.
#[derive(Clone, Debug)]
pub struct Scrape {
    pub text: String,
    /// The value of each series, by its name and labels as they are written.
    pub series: BTreeMap<String, f64>,
}

impl Scrape {
    pub async fn of(service: &Process) -> Self {
        let answer = reqwest::get(service.metrics_url()).await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 200);
        let text = answer.text().await.expect("text");
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let series = lines.map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a series and its value");
            (series.to_owned(), value.parse().expect("a number"))
        });
        let series = series.collect();
        Self { text, series }
    }

    /// Looks again and again, until it is as it is to be.
    pub async fn until(service: &Process, is_so: impl Fn(&Self) -> bool) -> Self {
        patiently(async {
            loop {
                let scrape = Self::of(service).await;
                if is_so(&scrape) {
                    return scrape;
                }
            }
        })
        .await
    }

    /// The value of one series.
    pub fn value(&self, series: &str) -> f64 {
        *self.series.get(series).unwrap_or_else(|| panic!("no {series} in\n{}", self.text))
    }

    /// The sum of all series of a metric that have all of these labels.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let is_of = |series: &str| series.split('{').next() == Some(name) && labels.iter().all(|l| series.contains(l));
        self.series.iter().filter(|(series, _)| is_of(series)).map(|(_, value)| value).sum()
    }

    /// The series of a metric that are not 0, by their labels as they are written.
    pub fn counted(&self, name: &str) -> BTreeMap<String, f64> {
        let of_name =
            self.series.iter().filter(|(series, value)| series.split('{').next() == Some(name) && **value != 0.0);
        of_name.map(|(series, value)| (series[name.len()..].to_owned(), *value)).collect()
    }

    /// Every value that a label has.
    pub fn label_values(&self, label: &str) -> Vec<String> {
        let start = format!("{label}=\"");
        let mut values: Vec<_> = self
            .series
            .keys()
            .filter_map(|series| {
                let (_, rest) =
                    series.split_once(&format!("{{{start}")).or_else(|| series.split_once(&format!(",{start}")))?;
                Some(rest.split('"').next()?.to_owned())
            })
            .collect();
        values.sort();
        values.dedup();
        values
    }
}
