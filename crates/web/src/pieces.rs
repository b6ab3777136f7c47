//! Answers that come in pieces.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::{Body, Bytes};
use hyper::body::Frame;
use tokio::sync::mpsc;

/// Pieces that wait to be sent, beside those that the system has taken.
const WAITING: usize = 64;

/// A body that is sent while it is made, and where to put its pieces. Sending fails
/// once the client has gone, and waits while it does not read; the body ends when the
/// sender is dropped.
pub fn pieces() -> (mpsc::Sender<Bytes>, Body) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (sender, Body::new(Pieces(receiver)))
}

struct Pieces(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.0.poll_recv(context);
        next.map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_arrive_in_order_and_a_client_that_left_is_noticed() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (sender, body) = pieces();
            for piece in ["one ", "two"] {
                sender.send(Bytes::from(piece)).await.unwrap();
            }
            drop(sender);
            assert_eq!(axum::body::to_bytes(body, 100).await.unwrap(), "one two");
            let (sender, body) = pieces();
            drop(body);
            assert!(sender.send(Bytes::from("three")).await.is_err());
        });
    }
}
