//! The audit as an oracle: whatever a test did to a service, what it left must be whole.

use sessiond::audit::{AuditOptions, Report, audit as run};

use super::service::Service;

/// Audits everything that a service has stored, at its time.
pub async fn audit(service: &Service) -> Report {
    audit_with(service, false).await
}

/// The same, and repairs what is safe to repair.
pub async fn repair(service: &Service) -> Report {
    audit_with(service, true).await
}

/// Panics unless every invariant holds.
pub async fn expect_clean(service: &Service) -> Report {
    let report = audit(service).await;
    assert_eq!(report.findings, [], "{report}");
    report
}

async fn audit_with(service: &Service, repair: bool) -> Report {
    let options = AuditOptions { keys_per_second_max: u32::MAX, repair };
    run(&service.audit_store().store, options, &|| service.now(), &|_| ()).await.expect("a report")
}
