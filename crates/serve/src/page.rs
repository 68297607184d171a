//! The page, embedded in the binary. Whatever a model says, nothing but these files runs in it.

use axum::body::Body;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderValue, Response, StatusCode, header};

use crate::error::ApiError;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

/// A row of [`FILES`].
macro_rules! script {
    ($name:literal) => {
        (
            $name,
            "text/javascript; charset=utf-8",
            include_str!(concat!("../page/", $name)),
        )
    };
}

/// Name, type and text of each file beside the page itself.
const FILES: [(&str, &str, &str); 11] = [
    (
        "style.css",
        "text/css; charset=utf-8",
        include_str!("../page/style.css"),
    ),
    script!("api.js"),
    script!("app.js"),
    script!("chat.js"),
    script!("dom.js"),
    script!("load.js"),
    script!("markdown.js"),
    script!("message.js"),
    script!("settings.js"),
    script!("store.js"),
    script!("theme.js"),
];

pub async fn index() -> Response<Body> {
    embedded(
        "text/html; charset=utf-8",
        include_str!("../page/index.html"),
    )
}

pub async fn file(name: Result<Path<String>, PathRejection>) -> Response<Body> {
    let name = name.map_or_else(|_| String::new(), |Path(name)| name);
    match FILES.into_iter().find(|(known, ..)| *known == name) {
        Some((_, kind, text)) => embedded(kind, text),
        None => {
            let error = ApiError::new(StatusCode::NOT_FOUND, "the page has no such file");
            error.response(&error.openai())
        }
    }
}

fn embedded(kind: &'static str, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
