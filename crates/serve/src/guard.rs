//! Who may ask: the host a browser believes to talk to, the page that asks, and the key.
//!
//! Everything is refused unless it is allowed: only [`is_public`] paths need no key, whatever else
//! a route may be called.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use subtle::ConstantTimeEq;

use crate::error::ApiError;

/// What is allowed beyond the defaults.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Any one of them opens everything; none: no key is needed.
    pub api_keys: Vec<String>,
    /// Names under which browsers may reach the server, beside addresses and `localhost`.
    pub allowed_hosts: Vec<String>,
    /// Origins of other pages that may read answers, such as `https://chat.example.org`.
    pub cors_origins: Vec<String>,
}

/// Checks requests before anything is read of them.
pub struct Guard {
    access: Access,
    /// Keys and addresses become numbers by a hash that nobody outside can foresee.
    hasher: RandomState,
}

impl Guard {
    pub fn new(access: Access) -> Guard {
        Guard {
            access,
            hasher: RandomState::new(),
        }
    }

    /// # Errors
    /// 403 for a host or an origin that is not allowed, 401 for a missing or wrong key.
    pub fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        let host = self.check_host(uri, headers)?;
        self.check_origin(&host, headers)?;
        if is_public(uri.path()) || self.access.api_keys.is_empty() {
            return Ok(());
        }
        match key(headers) {
            Some(key) if self.is_key(key) => Ok(()),
            found => {
                let message = match found {
                    Some(_) => "the API key is wrong",
                    None => "an API key is needed: send `Authorization: Bearer KEY`",
                };
                let error = ApiError::new(StatusCode::UNAUTHORIZED, message);
                Err(error.with_code("invalid_api_key"))
            }
        }
    }

    /// Whose prefixes a request may share, and whose turn it takes: those of its key, or, where
    /// there are no keys, everybody's prefixes and its address's turn.
    pub fn salt_and_client(&self, headers: &HeaderMap, address: IpAddr) -> (u64, u64) {
        match key(headers) {
            Some(key) if !self.access.api_keys.is_empty() => {
                let number = self.hasher.hash_one(key);
                (number, number)
            }
            _ => (0, self.hasher.hash_one(address)),
        }
    }

    /// The origin to name in `access-control-allow-origin`.
    pub fn allowed_origin<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let origin = headers.get(header::ORIGIN)?.to_str().ok()?;
        let allowed = &self.access.cors_origins;
        allowed
            .iter()
            .any(|one| one == "*" || one.eq_ignore_ascii_case(origin))
            .then_some(origin)
    }

    /// Whether this is the question of a browser before the request of a page that is allowed.
    pub fn is_preflight(&self, method: &Method, headers: &HeaderMap) -> bool {
        *method == Method::OPTIONS
            && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
            && self.allowed_origin(headers).is_some()
    }

    /// A name that leads to this address only because someone else's DNS says so (rebinding) is
    /// none of ours. Gives the host with its port.
    fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<String, ApiError> {
        let refused = |message: String| ApiError::new(StatusCode::FORBIDDEN, message);
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = match (uri.authority(), hosts.next(), hosts.next()) {
            (_, _, Some(_)) => return Err(refused("there is more than one `Host`".to_string())),
            (Some(authority), _, _) => authority.as_str(),
            (None, Some(host), None) => host.to_str().unwrap_or(""),
            (None, None, None) => "",
        };
        let name = without_port(host);
        let bracketed = name
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let is_address = match bracketed {
            Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
            None => name.parse::<Ipv4Addr>().is_ok(),
        };
        let allowed = is_address
            || name.eq_ignore_ascii_case("localhost")
            || self
                .access
                .allowed_hosts
                .iter()
                .any(|host| host.eq_ignore_ascii_case(name));
        match allowed {
            true => Ok(host.to_ascii_lowercase()),
            false => Err(refused(format!(
                "`Host: {}` is not a name of this server; start it with --allowed-host NAME",
                name.escape_debug().take(100).collect::<String>()
            ))),
        }
    }

    /// A browser names the page that asks; only our own page and those allowed may.
    fn check_origin(&self, host: &str, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(origin) = headers.get(header::ORIGIN) else {
            return Ok(());
        };
        let origin = origin.to_str().unwrap_or("").to_ascii_lowercase();
        let scheme_and_host = origin.split_once("://");
        let own = scheme_and_host.is_some_and(|(_, origin_host)| origin_host == host);
        if own || self.allowed_origin(headers).is_some() {
            return Ok(());
        }
        let message = "pages of other origins may not use this server; start it with \
                       --cors-origin ORIGIN to allow one";
        Err(ApiError::new(StatusCode::FORBIDDEN, message))
    }

    /// Looks at every key in full, whatever the first bytes say.
    fn is_key(&self, given: &str) -> bool {
        // Hashes have one length, so that not even the key's length shows in the time.
        let digest = |key: &str| self.hasher.hash_one(key).to_ne_bytes();
        let given_digest = digest(given);
        let mut found = false;
        for key in &self.access.api_keys {
            let same = digest(key).ct_eq(&given_digest) & key.as_bytes().ct_eq(given.as_bytes());
            found |= bool::from(same);
        }
        found
    }
}

/// Paths that need no key.
pub fn is_public(path: &str) -> bool {
    matches!(path, "/" | "/health") || (path.starts_with("/page/") && !path.contains(".."))
}

/// OpenAI's clients send a bearer token, Anthropic's a header of their own.
fn key(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    bearer.or_else(|| headers.get("x-api-key")?.to_str().ok())
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') && port.bytes().all(|b| b.is_ascii_digit()) => {
            name
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                let name = name.parse::<header::HeaderName>().expect("a header's name");
                (
                    name,
                    HeaderValue::from_str(value).expect("a header's value"),
                )
            })
            .collect()
    }

    fn status(guard: &Guard, path: &str, pairs: &[(&'static str, &str)]) -> u16 {
        let uri: Uri = path.parse().expect("a path");
        match guard.check(&uri, &headers(pairs)) {
            Ok(()) => 200,
            Err(error) => error.status.as_u16(),
        }
    }

    #[test]
    fn names_that_are_not_ours_and_pages_of_others_are_refused() {
        let guard = Guard::new(Access {
            allowed_hosts: vec!["model.example.org".to_string()],
            cors_origins: vec!["https://friend.example".to_string()],
            ..Access::default()
        });
        for (host, expected) in [
            ("127.0.0.1:8080", 200),
            ("localhost", 200),
            ("LOCALHOST:1", 200),
            ("[::1]:8080", 200),
            ("192.168.1.7:80", 200),
            ("Model.Example.org:443", 200),
            ("evil.com", 403),
            ("[::1", 403),
            ("[127.0.0.1]", 403),
            ("127.0.0.1.evil.com", 403),
            ("localhost.evil.com:8080", 403),
            ("", 403),
        ] {
            let found = status(&guard, "/v1/models", &[("host", host)]);
            assert_eq!(found, expected, "{host}");
        }
        for (origin, expected) in [
            ("http://localhost:80", 200),
            ("https://friend.example", 200),
            ("https://evil.com", 403),
            ("http://localhost:81", 403),
            ("null", 403),
        ] {
            let pairs = [("host", "localhost:80"), ("origin", origin)];
            let found = status(&guard, "/v1/models", &pairs);
            assert_eq!(found, expected, "{origin}");
        }
        let twice = [("host", "localhost"), ("host", "evil.com")];
        assert_eq!(status(&guard, "/", &twice), 403);
    }

    #[test]
    fn every_path_but_the_public_ones_needs_a_key() {
        let guard = Guard::new(Access {
            api_keys: vec!["sk-one".to_string(), "sk-two".to_string()],
            ..Access::default()
        });
        let host = ("host", "127.0.0.1");
        for path in ["/", "/health", "/page/app.js"] {
            assert_eq!(status(&guard, path, &[host]), 200, "{path}");
        }
        let closed = [
            "/v1/models",
            "//v1/models",
            "/V1/models",
            "/v1/models/",
            "/%2e/health",
            "/health/",
            "/metrics",
            "/nothing",
            "/page/../v1/models",
            "/page",
            "/v1/models?key=sk-one",
        ];
        for path in closed {
            assert_eq!(status(&guard, path, &[host]), 401, "{path}");
        }
        for (name, value, expected) in [
            ("authorization", "Bearer sk-one", 200),
            ("authorization", "bearer sk-two", 200),
            ("x-api-key", "sk-two", 200),
            ("authorization", "Bearer sk-on", 401),
            ("authorization", "Bearer sk-onee", 401),
            ("authorization", "Bearer ", 401),
            ("authorization", "sk-one", 401),
            ("authorization", "Basic sk-one", 401),
        ] {
            let found = status(&guard, "/v1/models", &[host, (name, value)]);
            assert_eq!(found, expected, "{name}: {value}");
        }
    }

    #[test]
    fn keys_do_not_share_prefixes() {
        let keyed = Guard::new(Access {
            api_keys: vec!["a".to_string(), "b".to_string()],
            ..Access::default()
        });
        let address: IpAddr = [127, 0, 0, 1].into();
        let salt = |guard: &Guard, key: &str| {
            let headers = headers(&[("authorization", &format!("Bearer {key}"))]);
            guard.salt_and_client(&headers, address).0
        };
        assert_eq!(salt(&keyed, "a"), salt(&keyed, "a"));
        assert_ne!(salt(&keyed, "a"), salt(&keyed, "b"));
        let open = Guard::new(Access::default());
        assert_eq!(salt(&open, "a"), salt(&open, "b"));
    }
}
