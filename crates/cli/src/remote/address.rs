//! Where a server is.

use std::net::IpAddr;
use std::path::Path;

use crate::failure::Failure;

/// The address of an API, without a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    base: String,
    /// On this machine.
    pub is_loopback: bool,
    pub is_encrypted: bool,
}

/// Whether an argument that may name a model's folder names a server instead.
pub fn is_url(argument: &Path) -> bool {
    let text = argument.to_string_lossy().to_ascii_lowercase();
    text.starts_with("http://") || text.starts_with("https://")
}

impl Address {
    /// As OpenAI's own clients take it: a path is the API's, such as `/v1` or `/openai/v1`. Where
    /// there is none, it is `/v1`.
    ///
    /// # Errors
    /// Exit code 2: no address of a server, or one with a password or a query in it.
    pub fn parse(text: &str) -> Result<Address, Failure> {
        let wrong = |what: &str| {
            // Without what may be a password.
            let shown = text.rsplit_once('@').map_or(text, |(_, rest)| rest);
            let advice = "give an address such as http://127.0.0.1:8080 or https://HOST/v1";
            Failure::usage(format!("{shown}: {what}"), advice)
        };
        let trimmed = text.trim();
        let Some((scheme, rest)) = trimmed.split_once("://") else {
            return Err(wrong("not an address of a server"));
        };
        let scheme = scheme.to_ascii_lowercase();
        if !["http", "https"].contains(&scheme.as_str()) {
            return Err(wrong("neither http nor https"));
        }
        if rest.contains('@') {
            return Err(wrong("no user or password may stand in the address"));
        }
        if rest.contains(['?', '#']) {
            return Err(wrong("neither `?` nor `#` may stand in the address"));
        }
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = match path.trim_matches('/') {
            "" => "v1",
            path => path,
        };
        let base = format!("{scheme}://{host}/{path}");
        let parsed = base.parse::<ureq::http::Uri>();
        let host = parsed.as_ref().ok().and_then(|uri| uri.host());
        let Some(host) = host.filter(|host| !host.is_empty()) else {
            return Err(wrong("not an address of a server"));
        };
        Ok(Address {
            is_loopback: is_loopback(host),
            is_encrypted: scheme == "https",
            base,
        })
    }

    /// The address of `chat/completions` and its like.
    pub fn of(&self, path: &str) -> String {
        format!("{}/{path}", self.base)
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let by_number = address.parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || by_number.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_as_openai_clients_take_them() {
        for (given, expected, loopback) in [
            (
                "http://127.0.0.1:8080",
                "http://127.0.0.1:8080/v1/models",
                true,
            ),
            (
                "http://127.0.0.1:8080/",
                "http://127.0.0.1:8080/v1/models",
                true,
            ),
            (
                "http://localhost:8080/v1",
                "http://localhost:8080/v1/models",
                true,
            ),
            ("HTTP://[::1]:80/v1//", "http://[::1]:80/v1/models", true),
            (
                "https://a.example/openai/v1/",
                "https://a.example/openai/v1/models",
                false,
            ),
            (
                "https://localhost.example",
                "https://localhost.example/v1/models",
                false,
            ),
        ] {
            assert!(is_url(Path::new(given)), "{given}");
            let address = Address::parse(given).expect(given);
            assert_eq!(address.of("models"), expected);
            assert_eq!(address.is_loopback, loopback, "{given}");
            let encrypted = given.to_lowercase().starts_with("https");
            assert_eq!(address.is_encrypted, encrypted, "{given}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_without_its_password() {
        for given in [
            "http://",
            "https:///v1",
            "ftp://a.example",
            "http://me:secret@a.example",
            "http://a.example/v1?key=1",
            "http://a b.example",
        ] {
            let failure = Address::parse(given).expect_err(given);
            assert_eq!(failure.exit_code(), 2, "{given}");
            assert!(!failure.words().contains("secret"), "{}", failure.words());
        }
        assert!(!is_url(Path::new("demo-out/grpo")));
        assert!(!is_url(Path::new("http:/x")));
    }
}
