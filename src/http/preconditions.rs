//! Preconditions: `If-Match` and `If-None-Match` (RFC 9110, 13.1).
//!
//! The entity tag of a session is its version in quotes, `"3"`. A proxy that compresses a response changes the tag, and
//! the client sends the changed tag back: nginx makes it weak (`W/"3"`), Apache and Caddy append the coding
//! (`"3-gzip"`), and Jetty appends it after two dashes (`"3--gzip"`). In both headers, all of these name version 3,
//! because compression does not change the version.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};

use super::error::ApiError;
use crate::store::VersionCondition;

/// The content codings that proxies append to an entity tag.
const CODINGS: [&str; 4] = ["gzip", "br", "zstd", "deflate"];

/// The versions that a list of entity tags names.
enum Tags {
    /// `*`: every version.
    Any,
    /// These versions, as text. A tag of another format names no version.
    Versions(Vec<String>),
}

impl Tags {
    /// The tags in all lines of a header; `None` if the header is missing.
    fn of(headers: &HeaderMap, name: &HeaderName) -> Option<Self> {
        let mut lines = headers.get_all(name).iter().peekable();
        lines.peek()?;
        let mut versions = Vec::new();
        for line in lines {
            for tag in line.to_str().unwrap_or_default().split(',').map(str::trim) {
                if tag == "*" {
                    return Some(Self::Any);
                }
                versions.extend(version_of(tag).map(str::to_owned));
            }
        }
        Some(Self::Versions(versions))
    }
}

/// The version that an entity tag names; `None` if it is not in the format of this service.
fn version_of(tag: &str) -> Option<&str> {
    let opaque = tag.strip_prefix("W/").unwrap_or(tag).strip_prefix('"')?.strip_suffix('"')?;
    let (version, coding) = opaque.split_once('-').map_or((opaque, None), |(version, coding)| (version, Some(coding)));
    let is_known_coding = |coding: &str| CODINGS.contains(&coding.strip_prefix('-').unwrap_or(coding));
    let is_number = !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && coding.is_none_or(is_known_coding)).then_some(version)
}

/// The versions that `If-Match` names. Weak tags count, unlike in RFC 9110 (section 13.1.1), because proxies make tags
/// weak.
pub(super) struct IfMatch(pub(super) VersionCondition);

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        Ok(Self(match Tags::of(&parts.headers, &header::IF_MATCH) {
            None | Some(Tags::Any) => VersionCondition::Any,
            Some(Tags::Versions(versions)) => VersionCondition::OneOf(versions),
        }))
    }
}

/// The versions that the client already has, from `If-None-Match`.
pub(super) struct IfNoneMatch(Option<Tags>);

impl<S: Send + Sync> FromRequestParts<S> for IfNoneMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        Ok(Self(Tags::of(&parts.headers, &header::IF_NONE_MATCH)))
    }
}

impl IfNoneMatch {
    /// Whether the client has this version.
    pub(super) fn names(&self, version: u64) -> bool {
        match &self.0 {
            None => false,
            Some(Tags::Any) => true,
            Some(Tags::Versions(versions)) => versions.contains(&version.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entity_tags_changed_by_proxies_name_their_version() {
        let ours = [
            "\"3\"",
            "W/\"3\"",
            "\"3-gzip\"",
            "W/\"3-gzip\"",
            "\"3--gzip\"",
            "\"3-br\"",
            "\"3-zstd\"",
            "\"3-deflate\"",
        ];
        for tag in ours {
            assert_eq!(version_of(tag), Some("3"), "{tag}");
        }
        let others = [
            "",
            "3",
            "\"",
            "\"\"",
            "\"3",
            "3\"",
            "'3'",
            "w/\"3\"",
            "W/3",
            "W/ \"3\"",
            "W/W/\"3\"",
            "\" 3\"",
            "\"3 \"",
            "\"-3\"",
            "\"+3\"",
            "\"3.0\"",
            "\"3-\"",
            "\"3--\"",
            "\"3---gzip\"",
            "\"3-gzip-br\"",
            "\"3-GZIP\"",
            "\"3-x\"",
            "\"3;gzip\"",
            "\"-gzip\"",
            "\"*\"",
            "\"v3\"",
        ];
        for tag in others {
            assert_eq!(version_of(tag), None, "{tag}");
        }
    }
}
