//! Preflight check of a server: what its INFO says about its version and settings.

use crate::metrics::StoreProblem;
use crate::store::health::Finding;

/// Oldest supported versions. The scripts need `PEXPIRETIME` and script flags.
const REDIS_LEAST: (u32, u32) = (7, 0);
const VALKEY_LEAST: (u32, u32) = (7, 2);

/// The problems of a server according to its INFO. CONFIG is not used: it reveals more than a service should know, and
/// managed services do not offer it.
pub(in crate::store) fn findings(info: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |problem, text: String| findings.push(Finding { problem, text });
    if let Err(text) = check_version(info) {
        add(StoreProblem::Version, text);
    }
    match field(info, "maxmemory_policy") {
        Some("noeviction") => {}
        Some(policy) => add(
            StoreProblem::Eviction,
            format!("has maxmemory-policy {policy}, which evicts sessions when memory is short; set it to noeviction"),
        ),
        None => add(
            StoreProblem::Unchecked,
            "does not report its maxmemory-policy; make sure that it is noeviction".to_owned(),
        ),
    }
    let has_replicas = field(info, "connected_slaves").is_some_and(|count| count != "0");
    // Redis reports the number of good replicas only if min-replicas-to-write is set.
    if has_replicas && field(info, "min_slaves_good_slaves").is_none() {
        let text = "has replicas and min-replicas-to-write 0: a failover may lose acknowledged writes that no replica \
                    has; set it to 1, and min-replicas-max-lag to 2";
        add(StoreProblem::Replication, text.to_owned());
    }
    if field(info, "aof_enabled") == Some("0") {
        let text = "has appendonly no: a restart loses all writes since the last snapshot; set it to yes";
        add(StoreProblem::Persistence, text.to_owned());
    }
    findings
}

fn check_version(info: &str) -> Result<(), String> {
    let (kind, version, least) = match (field(info, "valkey_version"), field(info, "redis_version")) {
        (Some(version), _) => ("Valkey", version, VALKEY_LEAST),
        (None, Some(version)) => ("Redis", version, REDIS_LEAST),
        (None, None) => return Err("does not report its version".to_owned()),
    };
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found < least {
        return Err(format!("is {kind} {version}; sessiond needs {}.{} or newer", least.0, least.1));
    }
    Ok(())
}

/// The value of a field in a reply to INFO.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for good in ["redis_version:7.0.15", "redis_version:10.2", "redis_version:7.2.4\r\nvalkey_version:7.2.5\r\n"] {
            assert_eq!(check_version(good), Ok(()), "{good}");
        }
        for bad in ["redis_version:6.2.14", "redis_version:7.2.4\nvalkey_version:7.1.0", "", "redis_version:x"] {
            assert!(check_version(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_wrong_setting_is_one_finding() {
        let good = "redis_version:7.0.15\r\nmaxmemory_policy:noeviction\r\nconnected_slaves:1\r\n\
                    min_slaves_good_slaves:1\r\naof_enabled:1\r\n";
        assert_eq!(findings(good), []);
        let cases = [
            ("redis_version:7.0.15", "redis_version:6.2.14", StoreProblem::Version),
            ("maxmemory_policy:noeviction", "maxmemory_policy:volatile-ttl", StoreProblem::Eviction),
            ("maxmemory_policy:noeviction\r\n", "", StoreProblem::Unchecked),
            ("min_slaves_good_slaves:1\r\n", "", StoreProblem::Replication),
            ("aof_enabled:1", "aof_enabled:0", StoreProblem::Persistence),
        ];
        for (good_text, bad_text, problem) in cases {
            let found: Vec<_> = findings(&good.replace(good_text, bad_text)).iter().map(|one| one.problem).collect();
            assert_eq!(found, [problem], "{bad_text}");
        }
        assert_eq!(findings(&good.replace("connected_slaves:1", "connected_slaves:0")), []);
    }
}
