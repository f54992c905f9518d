//! Is this Redis one that sessions can be trusted to? Asked once of each server, before its first command.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::{CustomCommand, InfoKind, Value};

use super::StoreError;

/// The oldest versions that have everything the scripts use (`PEXPIRETIME`, script flags).
const REDIS_LEAST: (u32, u32) = (7, 0);
const VALKEY_LEAST: (u32, u32) = (7, 2);

/// Checks a server. What risks sessions is told the log.
///
/// # Errors
/// [`StoreError::Unfit`] for what loses sessions or cannot work, and whatever keeps Redis from being asked.
pub(super) async fn check(client: &Client, address: &str) -> Result<(), StoreError> {
    let name = format!("the Redis at {address}");
    let info: String = match client.info(Some(InfoKind::Server)).await {
        Ok(info) => info,
        Err(error) if error.details().starts_with("NOPERM") => {
            warn_once(&format!("{name} does not tell its version and settings (NOPERM): nothing of it was checked"));
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    check_version(&info).map_err(|problem| StoreError::Unfit(format!("{name} {problem}")))?;
    let Some(policy) = setting(client, &name, "maxmemory-policy").await? else {
        return Ok(());
    };
    if policy != "noeviction" {
        return Err(StoreError::Unfit(format!(
            "{name} has maxmemory-policy {policy}, which throws sessions away when memory is short; set it to noeviction"
        )));
    }
    let info: String = client.info(Some(InfoKind::Replication)).await?;
    let has_replicas = field(&info, "connected_slaves").is_some_and(|count| count != "0");
    let waits_for_none = setting(client, &name, "min-replicas-to-write").await?.is_some_and(|least| least == "0");
    if has_replicas && waits_for_none {
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

/// A setting's value, or `None` if we may not ask.
async fn setting(client: &Client, name: &str, key: &str) -> Result<Option<String>, StoreError> {
    let command = CustomCommand::new_static("CONFIG", None, false);
    match client.custom::<Value, _>(command, vec!["GET", key]).await {
        Ok(reply) => Ok(reply.into_array().into_iter().nth(1).and_then(Value::into_string)),
        // Managed services have no CONFIG at all.
        Err(error) if error.details().starts_with("NOPERM") || error.details().starts_with("ERR unknown command") => {
            warn_once(&format!("{name} does not tell its {key}: make sure that it is right"));
            Ok(None)
        }
        Err(error) => Err(error.into()),
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
