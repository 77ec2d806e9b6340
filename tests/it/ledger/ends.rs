//! Ends of every kind: no body, a refusal after the beginning.

use super::*;

fn delete() -> String {
    post("/api/delete", "{\"model\":\"tiny\"}").replacen("POST", "DELETE", 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_all_head_waits_for_its_row_with_it() {
    let backend = Backend::scripted(|seen| {
        let head = match seen.line().contains("/api/copy") {
            true => "200 OK\r\nContent-Length: 0",
            false => "204 No Content",
        };
        vec![send(format!("HTTP/1.1 {head}\r\n\r\n"))]
    })
    .await;
    let house = house(&backend).await;
    let mut caller = house.connect().await;
    let copy = post("/api/copy", "{\"source\":\"tiny\",\"destination\":\"other\"}");
    for count in 1..=20 {
        for (at, (asked, status, operation)) in
            [(copy.clone(), 200, "copy"), (delete(), 204, "delete")].into_iter().enumerate()
        {
            caller.send(asked).await;
            assert_eq!(caller.answer().await.status, status);
            let row = rows_in_time(&house, 2 * count - 1 + at).await.pop().unwrap();
            assert_eq!((row.operation.as_str(), row.outcome.as_str()), (operation, "done"));
            assert_eq!((row.status, row.bytes_out, row.usage.tokens()), (status, 0, 0));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_what_a_backend_began_waits_for_its_row() {
    for _ in 0..10 {
        let backend = Backend::scripted(|_| vec![Step::Reset]).await;
        let house = house(&backend).await;
        assert_eq!(house.ask(post("/api/generate", PROMPT)).await.status, 502);
        let row = rows_in_time(&house, 1).await.pop().unwrap();
        assert_eq!((row.status, row.outcome.as_str()), (502, "backend_failed"));
    }
}
