//! The metrics of a service, read as Prometheus reads them.

use std::collections::BTreeMap;

use super::process::{Process, with_timeout};

/// One scrape of the metrics.
#[derive(Clone, Debug)]
pub struct Scrape {
    pub text: String,
    /// The value of each series as text, by the series' name and labels as text.
    pub series: BTreeMap<String, String>,
}

impl Scrape {
    pub async fn of(service: &Process) -> Self {
        Self::at(&service.metrics_url()).await
    }

    pub async fn at(url: &str) -> Self {
        let response = reqwest::get(url).await.expect("a response");
        assert_eq!(response.status().as_u16(), 200);
        let text = response.text().await.expect("text");
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let series = lines.map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a series and its value");
            (series.to_owned(), value.to_owned())
        });
        let series = series.collect();
        Self { text, series }
    }

    /// Scrapes until `is_so` returns true for a scrape. Returns that scrape.
    pub async fn until(service: &Process, is_so: impl Fn(&Self) -> bool) -> Self {
        with_timeout(async {
            loop {
                let scrape = Self::of(service).await;
                if is_so(&scrape) {
                    return scrape;
                }
            }
        })
        .await
    }

    /// The value of an integer series, if it exists.
    pub fn find(&self, series: &str) -> Option<u64> {
        self.series.get(series).map(|value| value.parse().expect("a whole number"))
    }

    /// The value of an integer series. Panics if it does not exist.
    pub fn value(&self, series: &str) -> u64 {
        self.find(series).unwrap_or_else(|| panic!("no {series} in\n{}", self.text))
    }

    /// The sum of all series of a metric that have all of these labels.
    pub fn sum(&self, name: &str, labels: &[&str]) -> u64 {
        let nonzero = self.nonzero(name);
        let of_labels = nonzero.iter().filter(|(series, _)| labels.iter().all(|label| series.contains(label)));
        of_labels.map(|(_, value)| value).sum()
    }

    /// The values of a metric's series that are not 0, by the series' labels as text.
    pub fn nonzero(&self, name: &str) -> BTreeMap<String, u64> {
        let of_name = self.series.keys().filter(|series| series.split('{').next() == Some(name));
        let values = of_name.map(|series| (series[name.len()..].to_owned(), self.value(series)));
        values.filter(|(_, value)| *value > 0).collect()
    }

    /// Every value of a label, sorted.
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
