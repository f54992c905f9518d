//! The audit as a test oracle: the data that a test leaves in Redis must satisfy every invariant.

use sessiond::audit::{AuditOptions, Report, audit as run};

use super::service::Service;

/// Audits all data of a service, at the time of the service's clock.
pub async fn audit(service: &Service) -> Report {
    audit_with(service, false).await
}

/// Audits all data of a service and repairs what is safe to repair.
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
