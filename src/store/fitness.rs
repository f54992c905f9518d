//! Is this Redis one that sessions can be trusted to? Asked once of each server, before its first command.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use fred::clients::Client;
use fred::interfaces::ClientLike;

use super::StoreError;

/// The oldest versions that have everything the scripts use (`PEXPIRETIME`, script flags).
const REDIS_LEAST: (u32, u32) = (7, 0);
const VALKEY_LEAST: (u32, u32) = (7, 2);

/// Checks a server by its INFO: CONFIG says more than a service should know, and managed services do not have it. What risks
/// sessions is told the log.
///
/// # Errors
/// [`StoreError::Unfit`] for what loses sessions or cannot work, and whatever keeps Redis from being asked.
pub(super) async fn check(client: &Client, address: &str) -> Result<(), StoreError> {
    let name = format!("the Redis at {address}");
    let info: String = match client.info(None).await {
        Ok(info) => info,
        Err(error) if error.details().starts_with("NOPERM") => {
            warn_once(&format!("{name} does not tell its version and settings (NOPERM): nothing of it was checked"));
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    check_version(&info).map_err(|problem| StoreError::Unfit(format!("{name} {problem}")))?;
    match field(&info, "maxmemory_policy") {
        Some("noeviction") => {}
        Some(policy) => {
            return Err(StoreError::Unfit(format!(
                "{name} has maxmemory-policy {policy}, which throws sessions away when memory is short; set it to noeviction"
            )));
        }
        None => warn_once(&format!("{name} does not tell its maxmemory-policy: make sure that it is noeviction")),
    }
    let has_replicas = field(&info, "connected_slaves").is_some_and(|count| count != "0");
    // Redis counts good replicas only if it is to wait for some.
    if has_replicas && field(&info, "min_slaves_good_slaves").is_none() {
        warn_once(&format!(
            "{name} has replicas and min-replicas-to-write 0: a failover may lose writes that it acknowledged alone; set it \
             to 1, and min-replicas-max-lag to 2"
        ));
    }
    Ok(())
}

/// Tells the log what was not told yet: every event loop checks its own connection.
fn warn_once(warning: &str) {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(warning.to_owned()) {
        tracing::warn!("{warning}");
    }
}

fn check_version(info: &str) -> Result<(), String> {
    let (kind, version, least) = match (field(info, "valkey_version"), field(info, "redis_version")) {
        (Some(version), _) => ("Valkey", version, VALKEY_LEAST),
        (None, Some(version)) => ("Redis", version, REDIS_LEAST),
        (None, None) => return Err("does not tell its version".to_owned()),
    };
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found < least {
        return Err(format!("is {kind} {version}; sessiond needs {}.{} or newer", least.0, least.1));
    }
    Ok(())
}

/// A value of a reply of INFO.
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
}
