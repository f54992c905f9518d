//! Whether the `Content-Type` declares a body as JSON in UTF-8 (RFC 9110, section 8.3).

use axum::http::{HeaderMap, header};

/// The accepted values of the parameter `charset`, in any case. The second name is not registered, but many clients
/// send it.
const UTF_8: [&str; 2] = ["utf-8", "utf8"];

/// Whether the only `Content-Type` is `application/json` or `application/<something>+json`, and its `charset`, if it
/// has one, is UTF-8. Other parameters are ignored.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let mut declared = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(only), None) = (declared.next(), declared.next()) else {
        return false;
    };
    // The fast path: most clients send exactly this.
    only == "application/json" || only.to_str().is_ok_and(is_json_media_type)
}

fn is_json_media_type(text: &str) -> bool {
    let (media_type, mut parameters) = text.split_at(text.find(';').unwrap_or(text.len()));
    let media_type = media_type.trim().to_ascii_lowercase();
    let subtype = media_type.strip_prefix("application/").unwrap_or_default();
    if !(subtype == "json" || subtype.ends_with("+json")) || !subtype.bytes().all(is_token) {
        return false;
    }
    while let Some(text) = parameters.strip_prefix(';') {
        let Some((name, value, rest)) = first_parameter(text) else {
            return false;
        };
        if name.eq_ignore_ascii_case("charset") && !UTF_8.iter().any(|known| value.eq_ignore_ascii_case(known)) {
            return false;
        }
        parameters = rest;
    }
    true
}

/// The name and the value of the first parameter, and the rest, which is empty or starts with the next `;`. `None` if a
/// quoted string does not end, or if other text follows it. Accepts spaces around `=`.
fn first_parameter(text: &str) -> Option<(&str, String, &str)> {
    let (name, text) = text.split_at(text.find(['=', ';']).unwrap_or(text.len()));
    let value = text.strip_prefix('=').map_or(text, str::trim_start);
    let (value, rest) = if let Some(quoted) = value.strip_prefix('"') {
        let (value, rest) = unquoted(quoted)?;
        let rest = rest.trim_start();
        (value, (rest.is_empty() || rest.starts_with(';')).then_some(rest)?)
    } else {
        let (value, rest) = value.split_at(value.find(';').unwrap_or(value.len()));
        (value.trim_end().to_owned(), rest)
    };
    Some((name.trim(), value, rest))
}

/// The text of a quoted string whose opening quote is already removed, and the text after its closing quote (RFC 9110,
/// section 5.6.4).
fn unquoted(quoted: &str) -> Option<(String, &str)> {
    let (mut value, mut characters) = (String::new(), quoted.chars());
    loop {
        match characters.next()? {
            '"' => return Some((value, characters.as_str())),
            '\\' => value.push(characters.next()?),
            character => value.push(character),
        }
    }
}

/// Whether a token may contain this byte (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_all_spellings_of_json_in_utf_8() {
        let good = [
            "application/json",
            "Application/JSON",
            "application/merge-patch+json",
            "application/vnd.api+json",
            "application/json;charset=utf-8",
            "application/json; charset=utf8",
            "application/json; charset=UTF8",
            "application/json; CharSet=Utf-8",
            "application/json; charset=\"utf-8\"",
            "application/json; charset=\"UTF8\"",
            "application/json;charset=\"\\u\\t\\f-8\"",
            "application/json ;  charset = utf8 ",
            "application/json;\tcharset=\"utf8\" ; a=b",
            "application/json; a=\"; charset=latin1\"; charset=utf8",
            "application/json; a=\"\\\"; charset=latin1\"",
            "application/json; profile=https://example.com/a",
            "application/json;",
            "application/json; ;charset=utf-8;",
            "application/json; a",
        ];
        for text in good {
            assert!(is_json_media_type(text), "{text}");
        }
    }

    #[test]
    fn rejects_other_media_types_and_charsets() {
        let bad = [
            "",
            "json",
            "*/*",
            "application/",
            "application/jsonx",
            "text/json",
            "application/json, application/json",
            "application/x, a+json",
            "application/json charset=utf-8",
            "application/json; charset=iso-8859-1",
            "application/json; charset=utf-16",
            "application/json; charset=utf_8",
            "application/json; charset='utf-8'",
            "application/json; charset=",
            "application/json; charset",
            "application/json; charset=\"\"",
            "application/json; charset=\"utf-8",
            "application/json; charset=\"utf-8\\",
            "application/json; charset=\"utf-8\"x",
            "application/json; charset=\"utf-8;\"",
            "application/json; charset=utf-8; charset=latin1",
            "application/json; a=\"b; charset=latin1",
            "application/json; a=\"b\"; charset=latin1",
            "application/json; a=\"\\\\\"; charset=latin1",
        ];
        for text in bad {
            assert!(!is_json_media_type(text), "{text}");
        }
    }
}
