//! What Prometheus would read of a service.

use std::collections::BTreeMap;

use super::process::{Process, patiently};

/// One look at the metrics.
#[derive(Clone, Debug)]
pub struct Scrape {
    pub text: String,
    /// The value of each series as it is written, by its name and labels as they are written.
    pub series: BTreeMap<String, String>,
}

impl Scrape {
    pub async fn of(service: &Process) -> Self {
        Self::at(&service.metrics_url()).await
    }

    pub async fn at(url: &str) -> Self {
        let answer = reqwest::get(url).await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 200);
        let text = answer.text().await.expect("text");
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let series = lines.map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a series and its value");
            (series.to_owned(), value.to_owned())
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

    /// The value of a series that counts, if it is there.
    pub fn find(&self, series: &str) -> Option<u64> {
        self.series.get(series).map(|value| value.parse().expect("a whole number"))
    }

    /// The value of a series that counts.
    pub fn value(&self, series: &str) -> u64 {
        self.find(series).unwrap_or_else(|| panic!("no {series} in\n{}", self.text))
    }

    /// The sum of all series of a metric that have all of these labels.
    pub fn sum(&self, name: &str, labels: &[&str]) -> u64 {
        let counted = self.counted(name);
        let of_labels = counted.iter().filter(|(series, _)| labels.iter().all(|label| series.contains(label)));
        of_labels.map(|(_, value)| value).sum()
    }

    /// The series of a metric that are not 0, by their labels as they are written.
    pub fn counted(&self, name: &str) -> BTreeMap<String, u64> {
        let of_name = self.series.keys().filter(|series| series.split('{').next() == Some(name));
        let counted = of_name.map(|series| (series[name.len()..].to_owned(), self.value(series)));
        counted.filter(|(_, value)| *value > 0).collect()
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
