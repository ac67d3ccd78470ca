//! A panic in the work on one request, as a value: the others go on.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::Poll,
};

/// The work on this request ended in a panic.
#[derive(Debug)]
pub(super) struct Panicked;

/// Does the work. What a panic has left half done is dropped with it; what it shares with
/// other requests stands behind locks that do not mind (`PoisonError::into_inner`).
pub(super) async fn caught<T>(mut work: Pin<&mut impl Future<Output = T>>) -> Result<T, Panicked> {
    std::future::poll_fn(|context| {
        match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
            Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    /// fault-10: before and after it has waited for something.
    #[tokio::test]
    async fn a_panic_is_a_value() {
        assert!(matches!(caught(pin!(async { 7 })).await, Ok(7)));
        for waits in [false, true] {
            let work = async {
                if waits {
                    tokio::task::yield_now().await;
                }
                panic!("on purpose");
            };
            assert!(caught::<()>(pin!(work)).await.is_err());
        }
    }
}
