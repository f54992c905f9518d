//! The tenant scope: the sessions that a caller may use.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use super::{Identifier, Session};

/// The sessions that a caller may use. A session outside of the tenant scope is treated as missing (docs/api.md,
/// "Credentials").
#[derive(Clone, PartialEq, Eq)]
pub enum TenantScope {
    /// Every session.
    Everything,
    /// The sessions of these businesses.
    Businesses(Arc<HashSet<Identifier>>),
    /// The sessions of one user of one business.
    User {
        /// The business.
        business_id: Identifier,
        /// The user.
        user_id: Identifier,
    },
}

impl TenantScope {
    /// Whether the session is in the tenant scope.
    #[must_use]
    pub fn contains(&self, session: &Session) -> bool {
        self.contains_user(&session.business_id, &session.user_id)
    }

    /// Whether every session of the user is in the tenant scope.
    #[must_use]
    pub fn contains_user(&self, business: &str, user: &str) -> bool {
        match self {
            Self::User { business_id, user_id } => business_id.as_str() == business && user_id.as_str() == user,
            Self::Everything | Self::Businesses(_) => self.contains_business(business),
        }
    }

    /// Whether every session of the business is in the tenant scope.
    #[must_use]
    pub fn contains_business(&self, business: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Businesses(businesses) => businesses.contains(business),
            Self::User { .. } => false,
        }
    }
}

/// Maximum number of businesses that [`TenantScope::lines`] names.
const BUSINESSES_NAMED_MAX: usize = 8;

impl TenantScope {
    /// The scope in the format of the scripts: empty for every session; otherwise lines of a business, or of a business
    /// and a user separated by a tab, each between two line feeds. Identifiers contain neither character. `None` if
    /// there are too many businesses.
    #[must_use]
    pub fn lines(&self) -> Option<String> {
        match self {
            Self::Everything => Some(String::new()),
            Self::User { business_id, user_id } => Some(format!("\n{business_id}\t{user_id}\n")),
            Self::Businesses(businesses) if businesses.len() <= BUSINESSES_NAMED_MAX => {
                let mut lines = String::from("\n");
                for business_id in businesses.iter() {
                    lines.push_str(business_id.as_str());
                    lines.push('\n');
                }
                Some(lines)
            }
            Self::Businesses(_) => None,
        }
    }
}

impl fmt::Debug for TenantScope {
    /// Omits the user and the businesses, which must not be logged.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Everything => "Everything",
            Self::Businesses(_) => "Businesses",
            Self::User { .. } => "User",
        })
    }
}
