//! A request's body, within bounds.

use std::time::Duration;

use axum::{
    body::{Body, Bytes, to_bytes},
    http::StatusCode,
};

/// How long a body may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// All of a body of `limit` bytes at most.
///
/// # Errors
///
/// The status to answer with and what to say: 413 for a body that is larger, 408 for
/// one that does not come, 400 for one that breaks off.
pub async fn body(body: Body, limit: usize) -> Result<Bytes, (StatusCode, String)> {
    let too_large = || {
        (
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is larger than {limit} bytes, which is the limit"),
        )
    };
    // What says that it is too large is not waited for.
    if hyper::body::Body::size_hint(&body).lower() > limit as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(PATIENCE, to_bytes(body, limit)).await {
        Err(_) => Err((
            StatusCode::REQUEST_TIMEOUT,
            format!(
                "the body has not come within {} seconds",
                PATIENCE.as_secs()
            ),
        )),
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            let is_larger = std::error::Error::source(&error)
                .is_some_and(|source| source.to_string().contains("length limit"));
            if is_larger {
                Err(too_large())
            } else {
                Err((
                    StatusCode::BAD_REQUEST,
                    format!("the body broke off: {error}"),
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_taken_up_to_the_limit() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            assert_eq!(body(Body::from("12345"), 5).await.unwrap(), "12345");
            let (status, said) = body(Body::from("123456"), 5).await.unwrap_err();
            assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
            assert!(said.contains("5 bytes"), "{said}");
        });
    }
}
