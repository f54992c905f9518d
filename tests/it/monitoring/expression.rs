//! The names in a `PromQL` expression: metrics, and labels to group by. Prometheus itself checks the syntax.

/// A metric that an expression reads, with the matchers of its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    pub metric: String,
    pub matchers: Vec<Matcher>,
}

/// `label="value"`, or with another operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matcher {
    pub label: String,
    pub operator: String,
    pub value: String,
}

/// The names in an expression.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub selectors: Vec<Selector>,
    pub grouped_by: Vec<String>,
}

impl Selector {
    /// The selector in `PromQL`, with empty braces if it has no matchers.
    pub fn text(&self) -> String {
        let matchers = self.matchers.iter();
        let matchers: Vec<_> = matchers.map(|one| format!("{}{}{:?}", one.label, one.operator, one.value)).collect();
        format!("{}{{{}}}", self.metric, matchers.join(","))
    }

    pub fn matcher(&self, label: &str) -> Option<&Matcher> {
        self.matchers.iter().find(|matcher| matcher.label == label)
    }
}

/// Finds the names in an expression.
pub fn names(expression: &str) -> Names {
    let mut names = Names::default();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        if first.is_ascii_alphabetic() || matches!(first, '_' | ':') {
            let (word, after) =
                split_at_end(rest, |character| character.is_ascii_alphanumeric() || "_:".contains(character));
            rest = after.trim_start();
            if matches!(word, "by" | "without" | "on" | "ignoring" | "group_left" | "group_right") {
                let list = rest.strip_prefix('(').unwrap_or_else(|| panic!("labels after {word}: {expression}"));
                let (list, after) = list.split_once(')').expect("a closed list");
                names.grouped_by.extend(list.split(',').map(|label| label.trim().to_owned()));
                rest = after;
            } else if let Some(matchers) = rest.strip_prefix('{') {
                let (matchers, after) = read_matchers(matchers);
                names.selectors.push(Selector { metric: word.to_owned(), matchers });
                rest = after;
            } else if !rest.starts_with('(') && !is_keyword(word, rest) {
                names.selectors.push(Selector { metric: word.to_owned(), matchers: Vec::new() });
            }
        } else if first == '[' {
            rest = rest.split_once(']').expect("the end of a range").1;
        } else if first.is_ascii_digit() {
            // A number or a duration.
            rest = split_at_end(rest, |character| character.is_ascii_alphanumeric() || character == '.').1;
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    names
}

/// Whether a word is an operator, or an aggregation followed by its labels.
fn is_keyword(word: &str, after: &str) -> bool {
    matches!(word, "and" | "or" | "unless" | "bool" | "offset")
        || after.starts_with("by")
        || after.starts_with("without")
}

fn split_at_end(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|character| !belongs(character)).unwrap_or(text.len()))
}

/// Reads the matchers up to the closing brace. Returns them and the rest of the text. Values must not contain a quote
/// or a backslash, and none of the shipped ones does.
fn read_matchers(mut text: &str) -> (Vec<Matcher>, &str) {
    let mut matchers = Vec::new();
    loop {
        text = text.trim_start_matches([',', ' ', '\n']);
        if let Some(after) = text.strip_prefix('}') {
            return (matchers, after);
        }
        let (label, after) = split_at_end(text, |character| character.is_ascii_alphanumeric() || character == '_');
        let (operator, after) = after.split_once('"').expect("a value");
        let (value, after) = after.split_once('"').expect("its end");
        let [label, operator, value] = [label, operator.trim(), value].map(str::to_owned);
        matchers.push(Matcher { label, operator, value });
        text = after;
    }
}

#[test]
fn names_are_found_anywhere_in_an_expression() {
    let expression = r#"(sum by (job, le) (rate(a_total{x=~"1|2", y!="{z}"}[$__range])) or vector(0)) / 0.5 > bool 1e3
        and on (job) topk(3, up) unless absent(job:c:rate5m) offset 1h"#;
    let names = names(expression);
    let texts: Vec<_> = names.selectors.iter().map(Selector::text).collect();
    assert_eq!(texts, [r#"a_total{x=~"1|2",y!="{z}"}"#, "up{}", "job:c:rate5m{}"]);
    assert_eq!(names.grouped_by, ["job", "le", "job"]);
}
