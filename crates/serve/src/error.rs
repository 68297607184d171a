//! What a client is told when a request cannot be served, in OpenAI's shape and in Anthropic's.

use std::fmt::Display;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

/// A refusal or a failure of one request. It never says anything of other requests, keys or paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    pub code: Option<&'static str>,
    /// The field of the request, such as `messages[0].content`.
    pub param: Option<String>,
    pub message: String,
}

/// Seconds after which a refused client may come again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

impl ApiError {
    pub fn new(status: StatusCode, message: impl Display) -> ApiError {
        ApiError {
            status,
            code: None,
            param: None,
            message: message.to_string(),
        }
    }

    /// 400, with the field that is wrong.
    pub fn field(param: impl Display, message: impl Display) -> ApiError {
        let param = param.to_string();
        let message = format!("`{param}` {message}");
        ApiError {
            param: Some(param),
            ..ApiError::bad_request(message)
        }
    }

    pub fn bad_request(message: impl Display) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// 429: the queue is full.
    pub fn busy(message: impl Display) -> ApiError {
        ApiError {
            code: Some("queue_full"),
            ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, message)
        }
    }

    /// 503: on the way out, or not there yet.
    pub fn unavailable(message: impl Display) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// 500: an error of ours, not of the request.
    pub fn internal(message: impl Display) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    pub fn with_code(self, code: &'static str) -> ApiError {
        ApiError {
            code: Some(code),
            ..self
        }
    }

    /// OpenAI's `type`.
    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// `{"error": {"message", "type", "param", "code"}}`
    pub fn openai(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind(),
            "param": self.param,
            "code": self.code,
        }})
    }

    /// `{"type": "error", "error": {"type", "message"}}`
    pub fn anthropic(&self) -> Value {
        let kind = match self.status.as_u16() {
            413 => "request_too_large",
            500 => "api_error",
            503 => "overloaded_error",
            _ => self.kind(),
        };
        json!({"type": "error", "error": {"type": kind, "message": self.message}})
    }

    pub fn response(&self, body: &Value) -> Response<Body> {
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
        if matches!(self.status.as_u16(), 429 | 503) {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

impl From<text::Error> for ApiError {
    fn from(error: text::Error) -> ApiError {
        ApiError::bad_request(error)
    }
}
