//! Connections: taken one by one, watched while they are silent, and let go in order.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::routes::Peer;
use crate::service::Phase;

/// More connections wait to be taken.
pub const MAX_CONNECTIONS: usize = 4096;
/// From the beginning of a wait for a request to the end of its headers, idle time included.
const HEADER_TIME: Duration = Duration::from_secs(30);
/// A client that takes nothing for so long is gone.
const WRITE_TIME: Duration = Duration::from_secs(60);
/// Bytes of a request's line and headers.
const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_HEADERS: usize = 128;
/// After an error of `accept`, such as too many open files.
const PAUSE: Duration = Duration::from_millis(50);

/// The connections of a server.
pub struct Connections {
    free: Arc<Semaphore>,
}

impl Connections {
    pub fn new() -> Connections {
        Connections {
            free: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
    }

    /// Takes connections until the phase is no more `Serving`; the listener is closed then.
    pub async fn accept(
        &self,
        listener: TcpListener,
        router: Router,
        mut phase: watch::Receiver<Phase>,
    ) {
        loop {
            let next = async {
                let permit = Arc::clone(&self.free).acquire_owned().await;
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                next = next => next,
                _ = phase.wait_for(|phase| *phase > Phase::Serving) => return,
            };
            match accepted {
                Ok((stream, address)) => {
                    let serving = connection(stream, address, router.clone(), phase.clone());
                    tokio::spawn(async move {
                        serving.await;
                        drop(permit);
                    });
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    /// Waits until all connections are closed. False if they were not in time.
    pub async fn closed(&self, within: Duration) -> bool {
        let all = self.free.acquire_many(MAX_CONNECTIONS as u32);
        timeout(within, all).await.is_ok()
    }
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    router: Router,
    mut phase: watch::Receiver<Phase>,
) {
    // Tokens are small and should not wait for each other.
    let _ = stream.set_nodelay(true);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Peer(address.ip()));
        router.call(request)
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(Paced::new(stream)), service);
    let mut serving = pin!(serving);
    tokio::select! {
        // What went wrong with a connection concerns nobody else.
        _ = serving.as_mut() => return,
        _ = phase.wait_for(|phase| *phase > Phase::Serving) => {}
    }
    serving.as_mut().graceful_shutdown();
    let _ = serving.await;
}

/// A stream that fails when a write does not get on.
struct Paced {
    stream: TcpStream,
    /// While a write waits.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    fn new(stream: TcpStream) -> Paced {
        Paced {
            stream,
            deadline: None,
        }
    }

    fn watched<T>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.deadline = None;
            return outcome;
        }
        let begin = || Box::pin(tokio::time::sleep_until(Instant::now() + WRITE_TIME));
        match self.deadline.get_or_insert_with(begin).as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Paced {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watched(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watched(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.watched(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watched(cx, outcome)
    }
}
