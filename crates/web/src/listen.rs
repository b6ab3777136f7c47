//! Connections.

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use axum::{Router, middleware};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, watch},
};

use crate::{
    Settings, WebError,
    access::{Access, guard},
};

/// How long headers may take, and how long a connection may be idle.
const HEADERS: Duration = Duration::from_secs(20);

/// How long answers that are on their way are waited for when a server stops.
const LEAVING: Duration = Duration::from_secs(2);

/// What a client is told for whom there is no room.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 132\r\n\r\n{\"error\":{\"message\":\"too many connections at once: try again later\",\"type\":\"server_error\",\"param\":null,\"code\":\"too_many_requests\"}}\n";

/// Ends a server from another thread.
#[derive(Clone, Debug)]
pub struct Stop(watch::Sender<bool>);

impl Default for Stop {
    fn default() -> Self {
        Self(watch::channel(false).0)
    }
}

impl Stop {
    /// Has the server answer what it was asked, and leave.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }

    /// Whether it was told to.
    pub fn is_stopped(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is told to.
    pub async fn stopped(&self) {
        let mut told = self.0.subscribe();
        // The sender is this very value, so that it cannot be gone.
        let _ = told.wait_for(|stopped| *stopped).await;
    }
}

/// A socket that is bound, and what requests are held against.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    settings: Settings,
    address: SocketAddr,
}

impl Server {
    /// Takes the address.
    ///
    /// # Errors
    ///
    /// [`WebError::NoKey`] for an address that others reach without a key,
    /// [`WebError::Bind`] for one that cannot be had.
    pub fn bind(settings: Settings) -> Result<Self, WebError> {
        settings.check()?;
        let address = SocketAddr::new(settings.host, settings.port);
        let bind = |source| WebError::Bind { address, source };
        let listener = TcpListener::bind(address).map_err(bind)?;
        listener.set_nonblocking(true)?;
        let _ = lengthen_queue(&listener);
        let address = listener.local_addr()?;
        Ok(Self {
            listener,
            settings,
            address,
        })
    }

    /// Where it is, with the port that was found if any would do.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers until it is told to stop.
    ///
    /// # Errors
    ///
    /// [`WebError::Io`] if the system gives no threads.
    pub fn run(self, router: Router, stop: &Stop) -> Result<(), WebError> {
        let _ = raise_open_files();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("http")
            .enable_all()
            .build()?;
        let access = Arc::new(Access::new(&self.settings));
        let router = router.layer(middleware::from_fn_with_state(access, guard));
        let result = runtime.block_on(self.accept(router, stop));
        // Streams that never end are not waited for.
        runtime.shutdown_timeout(Duration::from_millis(200));
        Ok(result?)
    }

    async fn accept(self, router: Router, stop: &Stop) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let most = self.settings.connections.max(1);
        let slots = Arc::new(Semaphore::new(most));
        loop {
            let accepted = tokio::select! {
                () = stop.stopped() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => match Arc::clone(&slots).try_acquire_owned() {
                    Ok(slot) => {
                        let (router, stop) = (router.clone(), stop.clone());
                        tokio::spawn(async move {
                            converse(stream, router, &stop).await;
                            drop(slot);
                        });
                    }
                    Err(_) => {
                        // Into the socket's empty buffer, which never waits; tokio itself does not
                        // know yet that it is.
                        if let Ok(mut stream) = stream.into_std() {
                            let _ = stream.write(FULL);
                            let _ = stream.shutdown(std::net::Shutdown::Write);
                        }
                    }
                },
                // Out of sockets: those who wait are taken when others leave.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        drop(listener);
        let all = slots.acquire_many(u32::try_from(most).unwrap_or(u32::MAX));
        let _ = tokio::time::timeout(LEAVING, all).await;
        Ok(())
    }
}

/// One connection, request after request.
async fn converse(stream: TcpStream, router: Router, stop: &Stop) {
    let _ = stream.set_nodelay(true);
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // What a client does wrong is its own affair.
        _ = connection.as_mut() => return,
        () = stop.stopped() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// Connections that wait to be accepted: of more than there is room for, clients try again a second
/// later, and the library makes room for 128.
#[cfg(unix)]
fn lengthen_queue(listener: &TcpListener) -> Result<(), nix::Error> {
    use nix::sys::socket::{Backlog, listen};
    listen(listener, Backlog::new(4096)?)
}

#[cfg(not(unix))]
fn lengthen_queue(_listener: &TcpListener) -> Result<(), io::Error> {
    Ok(())
}

/// As many open files as the system allows, of which each connection is one.
#[cfg(unix)]
fn raise_open_files() -> Result<(), nix::Error> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(65_536).max(soft), hard)?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn raise_open_files() -> Result<(), io::Error> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use axum::routing::get;

    use super::*;

    /// What a server answers to these bytes.
    fn answer(settings: Settings, request: &str) -> String {
        let server = Server::bind(settings).unwrap();
        let (address, stop) = (server.address, Stop::default());
        std::thread::scope(|scope| {
            let router = Router::new()
                .route("/", get(|| async { "here" }))
                .route("/health", get(|| async { "well" }));
            scope.spawn(|| server.run(router, &stop).unwrap());
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut text = String::new();
            let _ = stream.read_to_string(&mut text);
            stop.stop();
            text
        })
    }

    #[test]
    fn requests_are_answered_under_our_name_and_with_headers_that_protect() {
        let text = answer(
            Settings::default(),
            "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        );
        assert!(
            text.starts_with("HTTP/1.1 200") && text.ends_with("here"),
            "{text}"
        );
        assert!(
            text.contains("nosniff") && text.contains("frame-ancestors 'none'"),
            "{text}"
        );
        let text = answer(
            Settings::default(),
            "GET / HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n",
        );
        assert!(text.starts_with("HTTP/1.1 421"), "{text}");
    }

    #[test]
    fn without_the_key_only_what_is_open_answers() {
        let settings = || Settings {
            key: Some("a-key-of-ours".to_owned()),
            open: &["/health"],
            ..Settings::default()
        };
        let ask = |path: &str, more: &str| {
            let request = format!(
                "GET {path} HTTP/1.1\r\nhost: localhost\r\n{more}connection: close\r\n\r\n"
            );
            answer(settings(), &request)
        };
        assert!(ask("/", "").starts_with("HTTP/1.1 401"));
        assert!(ask("/health", "").starts_with("HTTP/1.1 200"));
        assert!(ask("/", "authorization: Bearer a-key-of-ours\r\n").starts_with("HTTP/1.1 200"));
    }

    #[test]
    fn a_page_of_another_site_is_refused_unless_it_is_named() {
        let ask = |origins: &[&str]| {
            let settings = Settings {
                origins: origins.iter().map(|&origin| origin.to_owned()).collect(),
                ..Settings::default()
            };
            answer(
                settings,
                "GET / HTTP/1.1\r\nhost: localhost\r\norigin: http://other.example\r\nconnection: close\r\n\r\n",
            )
        };
        assert!(ask(&[]).starts_with("HTTP/1.1 403"));
        let text = ask(&["http://other.example"]);
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        assert!(
            text.contains("access-control-allow-origin: http://other.example"),
            "{text}"
        );
    }

    #[test]
    fn a_client_without_a_slot_is_told_so() {
        let server = Server::bind(Settings {
            connections: 1,
            ..Settings::default()
        });
        let (server, stop) = (server.unwrap(), Stop::default());
        let address = server.address;
        std::thread::scope(|scope| {
            scope.spawn(|| server.run(Router::new(), &stop).unwrap());
            let _first = std::net::TcpStream::connect(address).unwrap();
            let mut text = String::new();
            let mut second = std::net::TcpStream::connect(address).unwrap();
            second.read_to_string(&mut text).unwrap();
            stop.stop();
            assert!(text.starts_with("HTTP/1.1 503"), "{text}");
        });
    }

    #[test]
    fn what_a_client_without_a_slot_is_told_is_whole() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}", body.len())),
            "{}",
            body.len()
        );
    }

    #[test]
    fn a_port_that_another_has_is_named() {
        let first = Server::bind(Settings::default()).unwrap();
        let again = Settings {
            port: first.address.port(),
            ..Settings::default()
        };
        let error = Server::bind(again).unwrap_err().to_string();
        assert!(
            error.contains("--port") && error.contains("127.0.0.1"),
            "{error}"
        );
    }
}
