//! What no request can provoke from outside.

use super::*;

#[tokio::test]
async fn a_panic_is_one_requests_500() {
    let calm = held_off(pin!(async { Ok(1) })).await;
    assert!(matches!(calm, Ok(1)));
    let panicking = pin!(async {
        tokio::task::yield_now().await;
        panic!("not for the caller")
    });
    let held: Result<(), _> = held_off(panicking).await;
    assert_eq!(held.map_err(|reject| reject.row().code), Err("internal"));
}
