//! Which path is answered by whom, and what stands before all of them.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, Method, Response, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::routing::{get, post};
use serde_json::{Value, json};

use crate::body;
use crate::error::ApiError;
use crate::reply::json_response;
use crate::service::{App, Arrival};
use crate::worker::Condition;
use crate::{chat, completions, messages, page, responses, tokens};

/// Where a connection comes from, as the accept loop notes it.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

type Shared = State<Arc<App>>;

pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(page::index))
        .route("/page/{name}", get(page::file))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/responses", post(responses))
        .route("/v1/messages", post(messages))
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/tokenizer_info", get(tokenizer_info))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), guard))
        .with_state(app)
}

/// The one place that every request passes.
async fn guard(State(app): Shared, request: Request, next: Next) -> Response<Body> {
    let headers = request.headers();
    let origin = app.guard.allowed_origin(headers).map(str::to_string);
    let preflight = app.guard.is_preflight(request.method(), headers);
    let began = Instant::now();
    let line = app.request_log.is_some().then(|| {
        let path: String = request.uri().path().chars().take(200).collect();
        format!("{} {path}", request.method())
    });
    let in_shape = shape_of(request.uri().path());
    let mut response = match app.guard.check(request.uri(), headers) {
        // A browser asks without the key whether it may ask with it.
        _ if preflight => preflight_response(),
        Ok(()) => next.run(request).await,
        Err(error) => error.response(&in_shape(&error)),
    };
    let status = response.status().as_u16();
    app.metrics.responded(status);
    if let (Some(log), Some(line)) = (&app.request_log, line) {
        log(&format!(
            "{line} {status} {:.1} ms",
            began.elapsed().as_secs_f64() * 1e3
        ));
    }
    let headers = response.headers_mut();
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    if let Some(origin) = origin.and_then(|origin| HeaderValue::from_str(&origin).ok()) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}

fn preflight_response() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    let allow = |value: &'static str| HeaderValue::from_static(value);
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, allow("GET, POST"));
    let names = "authorization, content-type, x-api-key, anthropic-version";
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allow(names));
    response
}

/// How the API of a path shows errors.
fn shape_of(path: &str) -> fn(&ApiError) -> Value {
    match path.starts_with("/v1/messages") {
        true => ApiError::anthropic,
        false => ApiError::openai,
    }
}

async fn unknown(request: Request) -> Response<Body> {
    let in_shape = shape_of(request.uri().path());
    let path: String = request.uri().path().chars().take(200).collect();
    let message = format!("there is nothing at {path}; /openapi.json lists what there is");
    let error = ApiError::new(StatusCode::NOT_FOUND, message);
    error.response(&in_shape(&error))
}

async fn wrong_method(method: Method, uri: Uri) -> Response<Body> {
    let message = format!("this path does not answer to {method}");
    let error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message);
    error.response(&shape_of(uri.path())(&error))
}

/// 200 when the model answers; work in progress for too long counts against it.
async fn health(State(app): Shared) -> Response<Body> {
    let (status, word) = match app.worker.condition() {
        Condition::Ready => (StatusCode::OK, "ok"),
        Condition::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
        Condition::Stuck => (StatusCode::SERVICE_UNAVAILABLE, "the engine hangs"),
        Condition::Broken => (StatusCode::SERVICE_UNAVAILABLE, "the engine is broken"),
    };
    let mut response = json_response(&json!({"status": word}));
    *response.status_mut() = status;
    response
}

async fn metrics(State(app): Shared) -> Response<Body> {
    let text = app.metrics.text(&app.worker, app.name());
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// The document, with what only this model's requests are held to.
async fn openapi(State(app): Shared) -> Response<Body> {
    let document = include_str!("openapi.json");
    let mut document: Value = serde_json::from_str(document).expect("the document is JSON");
    let schemas = &mut document["components"]["schemas"];
    let names = app.served.names.iter().map(|name| json!(name));
    schemas["ModelName"]["enum"] = names.chain([Value::Null]).collect();
    schemas["TokenId"]["maximum"] = json!(app.served.vocab_size - 1);
    json_response(&document)
}

async fn models(State(app): Shared) -> Response<Body> {
    let cards = app.served.names.iter().map(|name| app.model_card(name));
    json_response(&json!({"object": "list", "data": cards.collect::<Vec<Value>>()}))
}

async fn model(State(app): Shared, name: Result<Path<String>, PathRejection>) -> Response<Body> {
    // What is no UTF-8 is no name.
    let name = name.map_or_else(|_| String::new(), |Path(name)| name);
    if app.served.names.contains(&name) {
        return json_response(&app.model_card(&name));
    }
    let name: String = name.escape_debug().take(100).collect();
    let message = format!("there is no model `{name}` here");
    let error = ApiError::new(StatusCode::NOT_FOUND, message).with_code("model_not_found");
    error.response(&error.openai())
}

async fn chat(State(app): Shared, request: Request) -> Response<Body> {
    let outcome = async {
        let read = |app: &Arc<App>, body: &Value, arrival| chat::prepare(app, body, arrival);
        let (arrival, prepared) = prepared(&app, request, read).await?;
        chat::answer(app, prepared, arrival).await
    };
    openai(outcome.await)
}

async fn completions(State(app): Shared, request: Request) -> Response<Body> {
    let outcome = async {
        let read = |app: &Arc<App>, body: &Value, arrival| completions::prepare(app, body, arrival);
        let (arrival, prepared) = prepared(&app, request, read).await?;
        completions::answer(app, prepared, arrival).await
    };
    openai(outcome.await)
}

async fn responses(State(app): Shared, request: Request) -> Response<Body> {
    let outcome = async {
        let read = |app: &Arc<App>, body: &Value, arrival| responses::prepare(app, body, arrival);
        let (arrival, prepared) = prepared(&app, request, read).await?;
        prepared.answer(app, arrival).await
    };
    openai(outcome.await)
}

async fn messages(State(app): Shared, request: Request) -> Response<Body> {
    let outcome = async {
        let read = |app: &Arc<App>, body: &Value, arrival| messages::prepare(app, body, arrival);
        let (arrival, prepared) = prepared(&app, request, read).await?;
        prepared.answer(app, arrival).await
    };
    anthropic(outcome.await)
}

async fn count_tokens(State(app): Shared, request: Request) -> Response<Body> {
    anthropic(computed(app, request, messages::count_tokens).await)
}

async fn tokenize(State(app): Shared, request: Request) -> Response<Body> {
    openai(computed(app, request, tokens::tokenize).await)
}

async fn detokenize(State(app): Shared, request: Request) -> Response<Body> {
    openai(computed(app, request, tokens::detokenize).await)
}

async fn tokenizer_info(State(app): Shared) -> Response<Body> {
    json_response(&tokens::tokenizer_info(&app))
}

/// An answer that needs no engine.
async fn computed(
    app: Arc<App>,
    request: Request,
    compute: fn(&App, &Value) -> Result<Value, ApiError>,
) -> Result<Response<Body>, ApiError> {
    let read = move |app: &Arc<App>, body: &Value, _: Arrival| compute(app, body);
    let (_, value) = prepared(&app, request, read).await?;
    Ok(json_response(&value))
}

fn openai(outcome: Result<Response<Body>, ApiError>) -> Response<Body> {
    outcome.unwrap_or_else(|error| error.response(&error.openai()))
}

fn anthropic(outcome: Result<Response<Body>, ApiError>) -> Response<Body> {
    outcome.unwrap_or_else(|error| error.response(&error.anthropic()))
}

/// Takes the body, and reads it off the threads that serve connections.
async fn prepared<T: Send + 'static>(
    app: &Arc<App>,
    request: Request,
    read: impl FnOnce(&Arc<App>, &Value, Arrival) -> Result<T, ApiError> + Send + 'static,
) -> Result<(Arrival, T), ApiError> {
    let at = Instant::now();
    let (parts, body) = request.into_parts();
    let received = app.bodies.read(&parts.headers, body).await?;
    let peer = parts.extensions.get::<Peer>();
    let address = peer.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| peer.0);
    let (salt, client) = app.guard.salt_and_client(&parts.headers, address);
    let arrival = Arrival {
        at,
        number: app.next_request(),
        salt,
        client,
    };
    let turn = app.bodies.turn(&received).await;
    let reading = Arc::clone(app);
    let work = move || {
        let result = read(&reading, &body::parse(&received.bytes)?, arrival);
        drop(turn);
        result
    };
    let broken = |_| ApiError::internal("reading the request broke down; this is a bug of ours");
    let reading = app.reading.as_ref();
    let task = match reading {
        Some(reading) => reading.spawn_blocking(work),
        None => tokio::task::spawn_blocking(work),
    };
    let value = task.await.map_err(broken)??;
    Ok((arrival, value))
}
